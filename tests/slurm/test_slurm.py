"""A small cohort through the shipped Slurm profile, on a real one-node Slurm without accounting (start-slurm.sh)."""

import re
import shlex
import subprocess
import sys
import time

import pytest
import torch
import yaml

from popatlas.cli.snake import profile_folder
from popatlas.images.io import read_json, read_table
from popatlas.resources import workflow_root

from ..cohorts import noise_cohort, popatlas
from ..e2e.conftest import SETTINGS

pytestmark = pytest.mark.slurm
SUBJECTS = ("sub-01", "sub-02")
# the defaults suit a busy cluster; this one is idle and small
QUICK = ("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1", "--latency-wait", "10")
POPATLAS = (sys.executable, "-m", "popatlas.cli.main")
STEPS = 100
# random shapes in 2D: a training that needs no scan
TINY = {
    "data": {"source": "shapes"},
    "synthesis": {"contrast": "same"},
    "grid": {"shape": [32, 32]},
    "network": {"options": {"widths": [8, 16], "blocks": [0, 0]}},
    "loss": {"similarity": {"options": {"radius": 3}}, "labels": {"shrink": 1, "count": 3}},
    "schedule": {"steps": STEPS, "batch": 2, "rate": 0.01, "warm_up": 5, "validate_every": STEPS, "validation_pairs": 2}
    | {"checkpoint_every": 5},
}


def through_slurm(folder, profile, *options):
    """Run a small cohort on Slurm, by a run that is a job itself, as where a login node ends what runs for long."""
    popatlas("simulate", folder / "bids", "--subjects", "2", "--seed", "3")
    config = folder / "config.yaml"
    settings = SETTINGS | {
        "preprocess": SETTINGS["preprocess"] | {"brain": {"gpu": 1, "batch": 2}},
        "fuse": SETTINGS["fuse"] | {"methods": ["majority"]},
    }
    config.write_text(yaml.safe_dump(settings))
    places = (folder / "bids", folder / "out", "--config", config)
    line = shlex.join(map(str, (*POPATLAS, "run", *places, "--profile", profile, *QUICK, *options)))
    job = ["sbatch", "--wait", "--parsable", "--mem=500", f"--output={folder / 'printed'}"]
    result = subprocess.run([*job, "--wrap", line], capture_output=True, text=True, check=False)
    return folder / "out", result, (folder / "printed").read_text()


@pytest.fixture(scope="module")
def finished(slurm, tmp_path_factory):
    return through_slurm(tmp_path_factory.mktemp("slurm"), "slurm-gpu")


def test_the_cohort_comes_through_slurm(finished):
    out, result, printed = finished
    assert result.returncode == 0, printed[-6000:] + result.stderr
    assert {*SUBJECTS} <= set(read_table(out / "group" / "metrics.parquet")["participant_id"])
    logs = "".join(path.read_text() for path in (out / ".snakemake/log").glob("*.log"))
    assert "submitted with SLURM jobid" in logs
    said = re.findall(r"^(\w+): \d+ of \d+ done, .*(?:running|queued)", printed, re.M)
    assert {"preprocess", "register"} <= set(said), printed


def test_jobs_ran_inside_slurm(finished):
    out, result, _ = finished
    records = [read_json(path) for path in (out / "logs").rglob("*_register.log.json")]
    assert len(records) == len(SUBJECTS)
    assert all(re.fullmatch(r"\d+", str(record["job"])) for record in records)
    assert result.stdout.strip() not in [str(record["job"]) for record in records], "not in the job of the run itself"


def test_the_gpu_rule_got_the_gpu_and_served_all_scans_in_one_job(finished):
    out, _, _ = finished
    record = read_json(out / "logs" / "batches" / "brain-1.log.json")
    assert record["visible_gpus"] == "0"
    assert len(record["notes"]["scans"]) == len(SUBJECTS)
    # there is no real device behind it: the network fell back to the CPU and said so
    assert record["notes"]["device"] == "cpu"


class Training:
    """A training that Snakemake submits, and its checkpoint."""

    def __init__(self, folder):
        noise_cohort(folder / "bids", [*SUBJECTS, "sub-03"])
        self.out, config = folder / "out", folder / "config.yaml"
        self.out.mkdir()
        folders = {"bids_dir": str(folder / "bids"), "out_dir": str(self.out)}
        config.write_text(yaml.safe_dump(folders | {"train": {"recipe": "brain-t1w", "changes": TINY}}))
        line = [sys.executable, "-m", "snakemake", "networks", "--snakefile", workflow_root() / "Snakefile"]
        line += ["--configfile", config, "--cores", "2", "--workflow-profile", profile_folder("slurm"), *QUICK]
        with (folder / "printed").open("w") as printed:
            self.snakemake = subprocess.Popen(line, cwd=self.out, stdout=printed, stderr=subprocess.STDOUT)
        self.printed = folder / "printed"

    def steps(self):
        """Return the steps of the checkpoint, 0 without one."""
        found = list(self.out.glob("work/train/*/checkpoint.pt"))
        return torch.load(found[0], weights_only=True)["step"] if found else 0

    def wait_for(self, fact):
        deadline = time.monotonic() + 180
        while not fact():
            assert self.snakemake.poll() is None, self.printed.read_text()
            assert time.monotonic() < deadline, self.printed.read_text()
            time.sleep(0.2)

    def log(self):
        return (self.out / "logs/train/train_registration.log").read_text()

    def job(self):
        states = ("squeue", "-h", "-o", "%i", "-t", "RUNNING", "-n")
        (run,) = re.findall(r"SLURM run ID: (\S+)", self.printed.read_text())
        return subprocess.run([*states, run], capture_output=True, text=True, check=True).stdout.strip()


def test_a_training_that_is_requeued_goes_on_from_its_checkpoint(slurm, tmp_path):
    training = Training(tmp_path)
    training.wait_for(training.steps)
    first = training.job()
    subprocess.run(["scontrol", "requeue", first], check=True)
    training.wait_for(lambda: "not finished:" in training.log())
    stopped = training.steps()
    assert f"not finished: {stopped} of {STEPS} steps (signal SIGTERM" in training.log()
    training.wait_for(lambda: training.steps() > stopped)
    assert f"resumed at step {stopped} of {STEPS}" in training.log()
    assert training.job() == first, "Slurm started the same job again"
    assert training.snakemake.wait(timeout=180) == 0, training.printed.read_text()
    assert re.findall(r"submitted with SLURM jobid (\d+)", training.printed.read_text()) == [first]
    (facts,) = training.out.glob("networks/brain-t1w-*/training.json")
    assert read_json(facts)["step"] == STEPS
