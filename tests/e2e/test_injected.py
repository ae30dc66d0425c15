"""Faults injected into real runs: what the user sees, the exit code, and that nothing is lost or half written.

docs/faults.md is the table of these cases. Some run always; all of them with POPATLAS_FAULTS=1, or when the page is written
(POPATLAS_WRITE_DOCS=1). Those on a cluster need `bash tests/slurm/start-slurm.sh --full`.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from popatlas.images.io import read_table

from ..hostility import BALLS, brains
from . import injection_slurm as slurm
from .injection import (
    NOTHING,
    SUBJECTS,
    Fault,
    Study,
    damaged,
    damaged_result,
    full_disk,
    killed_job,
    killed_run,
    killed_snakemake,
    moved,
    other_settings,
    out_of_memory,
    put_back,
    put_right,
    read_only,
    removed,
    replaced,
    second_run,
    stopped,
    with_nan,
    with_session,
    with_times,
    without_snakemake,
)

pytestmark = pytest.mark.e2e
PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
ALL = bool(os.environ.get("POPATLAS_FAULTS") or os.environ.get("POPATLAS_WRITE_DOCS"))
HEAD = """# Faults

What happens when something goes wrong, injected into real runs of three scans by `tests/e2e/test_injected.py`, which writes
this table. Each case compares all results before and after: no finished result was lost or changed, no finished job was
repeated, no result was half written, and the next run gave the same files to the byte. Inputs that cannot be used are, stage
by stage, in [Bad input](bad-input.md). Those of a cluster are injected into a real Slurm of one node (profile `slurm`).

| what is injected | what the user sees | exit code | finished work lost | half written | the next run |
|---|---|---|---|---|---|
"""


GOES_ON = "goes on with what was not finished"
FAULTS = [
    Fault("image of 0 bytes", damaged(lambda path: path.write_bytes(b"")), 3, "could not be used: sub-04", mend=put_right),
    Fault(
        "truncated image", damaged(lambda path: path.write_bytes(path.read_bytes()[:9000])), 3, "could not be used: sub-04",
        mend=put_right,
    ),
    Fault("NaN in an image", damaged(with_nan), 3, "could not be used: sub-04", mend=put_right),
    Fault("image of a subject missing", damaged(Path.unlink), 0, "without a T1w image: sub-04", mend=put_right),
    Fault(
        "kill -9 of a job", killed_job, 3,
        "sub-02/anat/sub-02 failed at preprocess: conform_image: the job ended with 'Killed'", GOES_ON, fresh=True,
        reason="signal",
    ),
    Fault(
        "job that the kernel ends for want of memory", out_of_memory, 3,
        "the job ended with 'Killed': out of memory, the kernel says", GOES_ON, fresh=True, reason="oom",
    ),
    Fault(
        "kill -9 of the run", killed_run, -signal.SIGKILL, "the last run ended without a word (killed?)",
        "takes over the lock and goes on", fresh=True, is_quick=True,
    ),
    Fault("kill -9 of its Snakemake", killed_snakemake, 1, "Snakemake was killed by signal 9", GOES_ON, fresh=True),
    Fault("SIGINT", stopped(signal.SIGINT), 130, "stopped by signal 2", GOES_ON, fresh=True),
    Fault("SIGTERM", stopped(signal.SIGTERM), 143, "stopped by signal 15", GOES_ON, fresh=True, is_quick=True),
    Fault(
        "full disk while jobs run", full_disk, 1, "is full (0 MB are free). Remedy: free some space there", GOES_ON,
        fresh=True,
    ),
    Fault("output folder that is read-only", read_only, 1, "Read-only file system"),
    Fault("second run beside the first", second_run, 1, "another run works in this output folder", fresh=True),
    Fault("times of all files changed", with_times(float), 0, "finished after"),
    Fault("times of all files in the future", with_times(lambda number: 2.0**31 + number), 0, "finished after"),
    Fault("`.snakemake` lost", without_snakemake, 0, "finished after"),
    Fault(
        "`.snakemake` lost and a setting changed", other_settings, 0,
        "made again, for it was made with other settings or inputs: 3 normalise_brain", "makes them as they were",
        remade=SUBJECTS, mend=lambda study: study.config.write_text(yaml.safe_dump(BALLS)), is_quick=True,
    ),
    Fault("subject removed from the dataset", removed, 0, "1 scan(s) gone: sub-02", "takes it up again, and nothing runs",
          mend=lambda study: (study.root / "sub-02").rename(study.bids / "sub-02")),
    Fault("subject that gets its first session", with_session, 0, "sub-02 is called sub-02_ses-1 now (the same image)"),
    Fault(
        "scan replaced by another", replaced, 0, "1 scan(s) with another image than before: sub-02",
        "with the former one back, makes the former results", remade=("sub-02",), mend=put_back,
    ),
    Fault("dataset and output folder moved", moved, 0, "finished after"),
    Fault(
        "result cut by somebody", damaged_result, 0, "was changed or damaged since it was made; it is set aside in",
        remade=("sub-02",),
    ),
    Fault("Slurm: `scancel` of a running job", slurm.cancelled(again=True), 0, "3 of 3 scan(s) came through", fresh=True),
    Fault(
        "Slurm: `scancel` of a running job, with `--retries 0`", slurm.cancelled("--retries", "0", again=False), 3,
        "sub-02/anat/sub-02 failed at preprocess: conform_image: SLURM-job", GOES_ON, fresh=True, reason="signal",
    ),
    Fault("Slurm: `scontrol requeue` of a running job", slurm.requeued, 0, "3 of 3 scan(s) came through", fresh=True),
    Fault("Slurm: job preempted by a more urgent one", slurm.preempted, 0, "3 of 3 scan(s) came through", fresh=True),
    Fault(
        "Slurm: jobs that the kernel ends for want of memory; the next attempt has twice as much",
        slurm.out_of_memory(enough=True), 0, "3 of 3 scan(s) came through", fresh=True,
    ),
    Fault(
        "Slurm: the same, and no attempt has enough", slurm.out_of_memory(enough=False), 1,
        "out of memory, says its log; remedy: give it more memory (profile), or use fewer cores [oom]", GOES_ON, fresh=True,
        reason="oom",
    ),
    Fault(
        "Slurm: kill -9 of the run and of its Snakemake, with jobs in the queue", slurm.killed_controller, -signal.SIGKILL,
        "the last run ended without a word (killed?)", "ends the jobs that are left in the queue, and goes on", fresh=True,
        tells="job(s) of an earlier run are in Slurm's queue; they are ended",
    ),
    Fault(
        "Slurm: slurmctld away for 20 s", slurm.without_slurmctld(20, most=1), 0, "the controller of Slurm answers again",
        fresh=True,
    ),
    Fault(
        "Slurm: slurmctld away for 2 minutes", slurm.without_slurmctld(120, most=2), 0,
        "the controller of Slurm answers again", fresh=True,
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study(tmp_path_factory.mktemp("faults"))
    brains(study.bids, len(SUBJECTS))
    code, said = study.run()
    assert code == 0, said
    return study


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_nothing_finished_is_lost_and_nothing_is_half_written(fault, finished, tmp_path):
    if not (fault.is_quick or ALL):
        pytest.skip("POPATLAS_FAULTS=1 runs all")
    reference = finished.results()
    study = Study(tmp_path)
    shutil.copytree(finished.bids, study.bids)
    if not fault.fresh:
        shutil.copytree(finished.out, study.out)
    code, said = fault.inject(study)
    assert code == fault.code, said
    assert fault.words in " ".join(said.split()), said
    after = study.results()
    kept = {path: digest for path, digest in reference.items() if not path.startswith(fault.remade or ("-",))}
    if not fault.fresh:
        assert {path: after.get(path) for path in kept} == kept, "what was finished is as it was"
    assert study.broken() == []
    done = study.receipts() if fault.fresh else {}
    if fault.reason:
        assert set(read_table(study.out / "cohort" / "ledger.tsv")["code"]) == {"", fault.reason}
    fault.mend(study)
    again, told = study.run()
    assert again == fault.again, told
    assert fault.tells in told
    assert study.broken() == []
    found = study.results()
    assert {path: found.get(path) for path in reference} == reference, "to the byte"
    assert {path: study.receipts().get(path) for path in done} == done, "no finished job is repeated"
    assert not list(study.out.rglob(".tmp-*")) and not (study.out / "popatlas.lock").exists()
    if fault.follows == NOTHING:
        assert "made again" not in told and not (study.out / "logs" / "journal.tsv").exists()
        assert "preprocess: 0 of" not in told
    ledger = read_table(study.out / "cohort" / "ledger.tsv")
    assert set(ledger.loc[ledger["stage"] == "preprocess", "state"]) == {"ok"}


def test_the_page_lists_all_faults():
    rows = []
    for fault in FAULTS:
        code = fault.code if fault.code >= 0 else "(killed)"
        words = fault.words.replace("|", "/")
        rows.append(f"| {fault.name} | {words} | {code} | nothing | nothing | {fault.follows} |")
    text = HEAD + "\n".join(rows) + "\n"
    if os.environ.get("POPATLAS_WRITE_DOCS"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text, "run POPATLAS_WRITE_DOCS=1 pytest tests/e2e/test_injected.py"
