"""The controller of a real Slurm falls silent while jobs run and are submitted: none is lost, and the run ends well."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from popatlas.cluster.environment import without_outer_job
from popatlas.cluster.leftovers import RUNS, end_leftovers
from popatlas.resources import workflow_root

pytestmark = pytest.mark.slurm
QUICK = ("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1", "--latency-wait", "5")
# how the controller is away, and for how many seconds; for longer ones: POPATLAS_SLURM_SILENCE=120
SECONDS = float(os.environ.get("POPATLAS_SLURM_SILENCE", "20"))


def controller() -> int:
    """Return the process of slurmctld."""
    return int(subprocess.run(["pgrep", "-x", "slurmctld"], capture_output=True, text=True, check=True).stdout.split()[0])


@contextlib.contextmanager
def stopped():
    """Let the controller be silent within the block: it takes connections, and answers none."""
    process = controller()
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@contextlib.contextmanager
def gone():
    """Let there be no controller within the block."""
    subprocess.run(["scontrol", "shutdown", "slurmctld"], check=True)
    while subprocess.run(["pgrep", "-x", "slurmctld"], stdout=subprocess.DEVNULL, check=False).returncode == 0:
        time.sleep(0.1)
    try:
        yield
    finally:
        silence = {name: subprocess.DEVNULL for name in ("stdin", "stdout", "stderr")}
        subprocess.run(["slurmctld"], check=True, **silence)


def start(folder, *targets):
    line = [sys.executable, "-m", "snakemake", *targets, "--snakefile", Path(__file__).with_name("sleeping.smk"), "--nolock"]
    line += ["--cores", "2", "--workflow-profile", workflow_root() / "profiles" / "slurm", *QUICK]
    environment = without_outer_job(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    printed = (folder / "printed").open("w")
    return subprocess.Popen(line, cwd=folder, env=environment, stdout=printed, stderr=subprocess.STDOUT)


def wait_for(folder, pattern, process, count=1):
    deadline = time.monotonic() + 120
    while len(re.findall(pattern, (folder / "printed").read_text())) < count:
        assert process.poll() is None and time.monotonic() < deadline, (folder / "printed").read_text()
        time.sleep(0.1)


def numbers_of(said):
    """Return Slurm's numbers of the jobs of a run."""
    line = ["squeue", "-h", "--states=all", "--format=%i", "--name", re.search(r"SLURM run ID: (\S+)", said)[1]]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()


def test_a_controller_that_is_away_costs_no_job(slurm, tmp_path):
    run = start(tmp_path)
    wait_for(tmp_path, "submitted with SLURM jobid", run, count=2)
    with gone():
        time.sleep(SECONDS)
    assert run.wait(timeout=120) == 0, (tmp_path / "printed").read_text()
    said = (tmp_path / "printed").read_text()
    assert "the controller of Slurm does not answer; jobs are waited for" in said
    assert re.search(r"the controller of Slurm answers again, after \d+ s", said)
    assert len(numbers_of(said)) == 3, "each job was submitted once"


def test_jobs_that_a_silent_controller_did_not_take_are_submitted_again(slurm, tmp_path):
    with stopped():
        run = start(tmp_path, "slept/1")
        wait_for(tmp_path, "the controller of Slurm does not answer", run)
    assert run.wait(timeout=120) == 0, (tmp_path / "printed").read_text()
    assert len(numbers_of((tmp_path / "printed").read_text())) == 1, "and none twice"


def test_jobs_of_a_killed_run_are_ended_before_the_next(slurm, tmp_path):
    run = start(tmp_path)
    wait_for(tmp_path, "submitted with SLURM jobid", run, count=2)
    run.kill()
    run.wait()
    assert end_leftovers(tmp_path) == 2
    name = re.search(r"SLURM run ID: (\S+)", (tmp_path / "printed").read_text())[1]
    line = ["squeue", "-h", "--format=%i", "--name", name]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout == ""
    assert not (tmp_path / RUNS).exists() and end_leftovers(tmp_path) == 0
