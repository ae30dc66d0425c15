"""A small cohort through the shipped Slurm profile, on a real one-node Slurm without accounting (start-slurm.sh)."""

import os
import re
import shutil
import subprocess

import pytest
import yaml

from popatlas.images.io import read_json, read_table

from ..cohorts import popatlas
from ..e2e.conftest import SETTINGS

pytestmark = pytest.mark.slurm
SUBJECTS = ("sub-01", "sub-02", "sub-03")


def slurm_answers() -> bool:
    """Tell whether a node of a running Slurm takes jobs."""
    if shutil.which("sinfo") is None:
        return False
    state = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False).stdout
    return bool(re.search("idle|mixed|allocated", state))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    if not slurm_answers():
        if os.environ.get("CI") == "true":
            pytest.fail("no Slurm is running: start it with tests/slurm/start-slurm.sh")
        pytest.skip("no Slurm here; tests/slurm/start-slurm.sh starts one (Debian, root)")
    folder = tmp_path_factory.mktemp("slurm")
    popatlas("simulate", folder / "bids", "--subjects", "3", "--seed", "3")
    config = folder / "config.yaml"
    settings = SETTINGS | {
        "preprocess": SETTINGS["preprocess"] | {"brain": {"gpu": 1, "batch": 3}},
        "fuse": SETTINGS["fuse"] | {"methods": ["majority"]},
    }
    config.write_text(yaml.safe_dump(settings))
    # the defaults suit a busy cluster; this one is idle and small
    quick = ("--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "10", "--verbose")
    result = popatlas(
        "run", folder / "bids", folder / "out", "--config", config, "--profile", "slurm-gpu", *quick, check=False
    )
    return folder / "out", result


def test_the_cohort_comes_through_slurm(finished):
    out, result = finished
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert {*SUBJECTS} <= set(read_table(out / "group" / "metrics.parquet")["subject"])
    assert "submitted with SLURM jobid" in result.stdout + result.stderr


def test_jobs_ran_inside_slurm(finished):
    out, _ = finished
    records = [read_json(path) for path in (out / "logs").rglob("*_register.log.json")]
    assert len(records) == len(SUBJECTS)
    assert all(re.fullmatch(r"\d+", str(record["job"])) for record in records)


def test_the_gpu_rule_got_the_gpu_and_served_all_scans_in_one_job(finished):
    out, _ = finished
    record = read_json(out / "logs" / "batches" / "brain-1.log.json")
    assert record["visible_gpus"] == "0"
    assert len(record["notes"]["scans"]) == len(SUBJECTS)
    # there is no real device behind it: the network fell back to the CPU and said so
    assert record["notes"]["device"] == "cpu"
