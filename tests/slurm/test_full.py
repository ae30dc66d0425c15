"""On a Slurm as clusters have it: with accounting, memory limits that the kernel keeps, and a scratch disk for each job.

Outside of what CI runs: bash tests/slurm/start-slurm.sh --full, then POPATLAS_SLURM_FULL=1.
"""

import os
import subprocess
import sys

import pytest

from popatlas.images.io import read_json, read_table

from .test_slurm import POPATLAS, SUBJECTS, through_slurm

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not os.environ.get("POPATLAS_SLURM_FULL"), reason="POPATLAS_SLURM_FULL=1 runs them"),
]


@pytest.fixture(scope="module")
def profile(slurm, tmp_path_factory):
    """Write the profile of this site, as `popatlas doctor` does."""
    folder = tmp_path_factory.mktemp("site") / "profile"
    line = [*POPATLAS, "doctor", "--submit", "--write", folder, "--account", "tests"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "accounting is on" in done.stdout and "LACK" not in done.stdout
    assert "slurm_account=tests" in (folder / "profile.yaml").read_text()
    return folder


@pytest.fixture(scope="module")
def finished(profile, tmp_path_factory):
    return through_slurm(tmp_path_factory.mktemp("full"), profile, "--gpu", "--slurm-status-command", "sacct")


def test_the_cohort_comes_through_with_states_from_the_books(finished):
    out, result, printed = finished
    assert result.returncode == 0, printed[-6000:] + result.stderr
    assert {*SUBJECTS} <= set(read_table(out / "group" / "metrics.parquet")["participant_id"])
    logs = "".join(path.read_text() for path in (out / ".snakemake/log").glob("*.log"))
    assert "submitted with SLURM jobid" in logs


def test_each_job_is_in_the_books_once_and_under_the_account(finished):
    out, result, _ = finished
    submitted = {str(read_json(path)["job"]) for path in (out / "logs").rglob("*.log.json")} - {"None"}
    run = result.stdout.strip()
    assert len(submitted) >= 4 and run not in submitted
    line = ["sacct", "-X", "-n", "-P", "--format=JobIDRaw,Account,State", f"--jobs={','.join(sorted(submitted))}"]
    rows = [row.split("|") for row in subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()]
    assert {row[0] for row in rows} == submitted and len(rows) == len(submitted)
    assert {tuple(row[1:]) for row in rows} == {("tests", "COMPLETED")}


CODE = """
import tempfile
from pathlib import Path
from popatlas.scratch import scratch
with scratch(Path()):
    print(tempfile.gettempdir())
"""


def test_temporary_files_lie_on_the_scratch_disk_of_the_job(slurm, tmp_path):
    line = ["srun", "-n1", "--mem=300", sys.executable, "-c", CODE]
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "/scratch-of-job-" in done.stdout
