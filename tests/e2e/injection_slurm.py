"""How faults are injected into the jobs of a run on a real Slurm, see tests/slurm/start-slurm.sh."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from popatlas.images.io import read_json

from ..slurm.conftest import slurm_answers
from ..slurm.test_controller import gone
from .injection import PATIENCE, Study, wait

# the defaults suit a busy cluster; this one is idle and small
QUICK = ("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1", "--latency-wait", "5")
ON_SLURM = ("--profile", "slurm", *QUICK)
ONE = "sub-02"
# a job of a scan needs more than this, in MB, and less than twice as much: Snakemake alone takes 200
TOO_LITTLE = 200
Inject = Callable[[Study], tuple[int, str]]


def asked(*line: str) -> str:
    """Return what a program of Slurm says."""
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


def states(study: Study, scan: str, *options: str) -> list[tuple[str, str, str]]:
    """Return number, memory and state of the jobs of a scan, in the order in which they were submitted."""
    lines = asked("squeue", "-h", "-S", "i", "-o", "%Z|%k|%i|%m|%T", *(options or ["--states=all"])).splitlines()
    rows = [line.split("|") for line in lines if line.startswith(f"{study.out}|") and scan in line]
    return [(number, memory, state) for _, _, number, memory, state in rows]


def running(study: Study) -> str:
    """Wait until a job of the scan runs, and return its number."""
    found: list[tuple[str, str, str]] = []
    wait(lambda: bool(found.extend(states(study, ONE, "-t", "RUNNING")) or found))
    return found[0][0]


def start(study: Study, *options: str) -> subprocess.Popen[str]:
    if not slurm_answers():
        pytest.skip("no Slurm here; tests/slurm/start-slurm.sh starts one")
    line = study.line(*ON_SLURM, *options)
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=study.root, start_new_session=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said = process.communicate(timeout=3 * PATIENCE)[0]
    return process.returncode, said


def needs_full() -> None:
    if not (slurm_answers() and "urgent" in asked("sinfo", "-h", "-o", "%P")):
        pytest.skip("tests/slurm/start-slurm.sh --full starts what this needs")


def cancelled(*options: str, again: bool) -> Inject:
    """Cancel a running job; it is submitted once more, or not."""

    def inject(study: Study) -> tuple[int, str]:
        process = start(study, *options)
        asked("scancel", running(study))
        found = ended(process)
        (_, first, state), *others = states(study, ONE)
        assert state == "CANCELLED" and len(others) == again
        assert all((memory, state) == (f"{2 * int(first[:-1])}M", "COMPLETED") for _, memory, state in others)
        assert {len(states(study, scan)) for scan in ("sub-01", "sub-03")} == {1}, "the others ran once"
        return found

    return inject


def requeued(study: Study) -> tuple[int, str]:
    """Let Slurm start a running job anew; it is neither lost nor submitted a second time."""
    process = start(study)
    number = running(study)
    asked("scontrol", "requeue", number)
    found = ended(process)
    assert [(job, state) for job, _, state in states(study, ONE)] == [(number, "COMPLETED")]
    assert "Restarts=1" in asked("scontrol", "show", "job", number)
    return found


def preempted(study: Study) -> tuple[int, str]:
    """Let an urgent job of all cores take the place of a running one."""
    needs_full()
    process = start(study)
    number = running(study)
    cores = asked("sinfo", "-h", "-p", "urgent", "-o", "%c").strip()
    asked("sbatch", "--partition=urgent", f"--cpus-per-task={cores}", "--mem=50", "--output=/dev/null", "--wrap", "sleep 2")
    found = ended(process)
    assert [(job, state) for job, _, state in states(study, ONE)] == [(number, "COMPLETED")]
    assert "Restarts=1" in asked("scontrol", "show", "job", number)
    return found


def out_of_memory(*options: str, enough: bool) -> Inject:
    """Let jobs have so little memory that the kernel ends their processes; the second time they have twice as much."""

    def inject(study: Study) -> tuple[int, str]:
        needs_full()
        memory = f"attempt*{TOO_LITTLE}" if enough else f"{TOO_LITTLE}"
        found = ended(start(study, "--set-resources", f"prepare_scan:mem_mb={memory}", *options))
        (_, first, state), *others = states(study, ONE)
        assert (first, state) == (f"{TOO_LITTLE}M", "OUT_OF_MEMORY")
        if enough:
            assert [job[1:] for job in others] == [(f"{2 * TOO_LITTLE}M", "COMPLETED")]
        return found

    return inject


def killed_controller(study: Study) -> tuple[int, str]:
    """Kill the run and its Snakemake, as on a node that is lost; their jobs wait in the queue."""
    process = start(study, "--set-resources", "prepare_scan:slurm_extra='--begin=now+120'")
    wait(lambda: len(states(study, "sub-", "-t", "PENDING")) == 3)
    process.send_signal(signal.SIGSTOP)  # it would end the jobs of a Snakemake that it survives, and Snakemake its own
    (helper, _), *_ = read_json(study.out / "popatlas.lock")["helpers"]
    os.kill(int(helper), signal.SIGKILL)
    process.kill()
    code, said = ended(process)
    line = [sys.executable, "-m", "popatlas.cli.main", "status", str(study.out)]
    return code, said + subprocess.run(line, capture_output=True, text=True, check=False).stdout


def without_slurmctld(seconds: float, most: int) -> Inject:
    """Let the controller of Slurm be away while a job runs.

    A job that has just begun cannot start its step without it, and may fail: it is submitted at most `most` times.
    """

    def inject(study: Study) -> tuple[int, str]:
        process = start(study)
        running(study)
        with gone():
            time.sleep(seconds)
        found = ended(process)
        for scan in ("sub-01", "sub-02", "sub-03"):
            sent = states(study, scan)
            assert 1 <= len(sent) <= most and [state for _, _, state in sent].count("COMPLETED") == 1
        return found

    return inject
