"""Profiles of other queues: their options exist, their commands are what a queue takes, and its answers are understood."""

import re
import subprocess
import sys

import pytest
import yaml

from popatlas.cluster import queue
from popatlas.resources import workflow_root

# options of the plugins, which are not among the dependencies of the tests
PLUGINS = {
    "lsf": (),
    "cluster-generic": ("submit-cmd", "status-cmd", "cancel-cmd", "cancel-nargs", "sidecar-cmd"),
}


def profile(name):
    return yaml.safe_load((workflow_root() / "profiles" / name / "profile.yaml").read_text())


@pytest.fixture(scope="module")
def options():
    line = [sys.executable, "-m", "snakemake", "--help"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["lsf", "sge", "pbs"])
def test_a_profile_names_options_that_exist(name, options):
    content = profile(name)
    executor = content["executor"]
    own = {f"{executor}-{option}" for option in PLUGINS[executor]}
    assert [key for key in content.keys() - own if not re.search(rf"--{key}[ ,\]]", options)] == []


@pytest.mark.parametrize(
    "name, asks", [("sge", "h_vmem=3000M -l h_rt=0:90:0"), ("pbs", "ncpus=4:mem=3000mb -l walltime=0:90:0")]
)
def test_a_job_asks_for_what_its_rule_does(name, asks):
    resources = type("Resources", (), {"mem_mb": 3000, "runtime": 90})()
    line = profile(name)["cluster-generic-submit-cmd"]
    assert asks in line.format(threads=4, resources=resources)


@pytest.mark.parametrize(
    "kind, answers, state",
    [
        ("sge", {"qstat": (0, "job_number: 7\n")}, "running"),
        ("sge", {"qstat": (1, "error: cannot connect to qmaster")}, "running"),
        ("sge", {"qstat": (1, "Following jobs do not exist:\n7"), "qacct": (1, "error: job id 7 not found")}, "running"),
        ("sge", {"qstat": (1, "jobs do not exist"), "qacct": (0, "failed       0\nexit_status  0\n")}, "success"),
        ("sge", {"qstat": (1, "jobs do not exist"), "qacct": (0, "failed       0\nexit_status  1\n")}, "failed"),
        ("sge", {"qstat": (1, "jobs do not exist"), "qacct": (0, "failed  100 : killed\nexit_status  0\n")}, "failed"),
        ("pbs", {"qstat": (0, "    job_state = R\n")}, "running"),
        ("pbs", {"qstat": (1, "Connection refused")}, "running"),
        ("pbs", {"qstat": (0, "    job_state = F\n    Exit_status = 0\n")}, "success"),
        ("pbs", {"qstat": (0, "    job_state = F\n    Exit_status = 271\n")}, "failed"),
        ("pbs", {"qstat": (0, "    job_state = F\n")}, "failed"),
        ("pbs", {"qstat": (153, "qstat: Unknown Job Id 7")}, "failed"),
    ],
)
def test_an_answer_is_understood(kind, answers, state, monkeypatch):
    monkeypatch.setattr(queue, "asked", lambda program, *words: answers[program])
    assert queue.QUEUES[kind]("7") == state
