"""Runs on Kubernetes and AWS Batch: by the real plugins, against services of the tests whose jobs are processes here.

The plugins are not among the dependencies of the tests: POPATLAS_CLOUD=1 runs these, after
pip install 'popatlas[kubernetes,aws-batch]'.
"""

import os
import subprocess
import sys

import pytest
import yaml

from popatlas.images.io import read_table
from popatlas.resources import workflow_root

from ..e2e.injection import Study
from ..hostility import brains
from .service import Service, serving

QUICK = ("--seconds-between-status-checks", "1", "--latency-wait", "5")
CLOUDS = ("kubernetes", "aws-batch")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not os.environ.get("POPATLAS_CLOUD"), reason="POPATLAS_CLOUD=1 runs them; they need the plugins"),
]


def site_profile(name, root):
    """Write a copy of a shipped profile with an image and a volume, as a site would."""
    content = yaml.safe_load((workflow_root() / "profiles" / name / "profile.yaml").read_text())
    content["container-image"] = "registry.site/popatlas"
    if name == "kubernetes":
        content["kubernetes-persistent-volumes"] = [f"study:{root}"]
    else:
        others = [one for one in content["default-resources"] if not one.startswith("efs=")]
        content["default-resources"] = [*others, f"efs='fs-1:{root}'"]
    folder = root / name
    folder.mkdir()
    (folder / "profile.yaml").write_text(yaml.safe_dump(content))
    return folder


def surroundings(root, address):
    """Return the environment of a run that reaches the service."""
    server = {"name": "here", "cluster": {"server": address}}
    context = {"name": "here", "context": {"cluster": "here", "user": "me"}}
    config = {"apiVersion": "v1", "kind": "Config", "current-context": "here", "clusters": [server], "contexts": [context]}
    (root / "kubeconfig").write_text(yaml.safe_dump(config | {"users": [{"name": "me", "user": {}}]}))
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": address}
    queue = {"SNAKEMAKE_AWS_BATCH_JOB_QUEUE": "queue", "SNAKEMAKE_AWS_BATCH_JOB_ROLE": "role"}
    return {**os.environ, "KUBECONFIG": str(root / "kubeconfig"), **keys, **queue}


def run(study, name, service, *options):
    with serving(service) as address:
        line = study.line("--profile", str(site_profile(name, study.root)), *QUICK, *options)
        environment = surroundings(study.root, address)
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=study.root, env=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def study(tmp_path):
    found = Study(tmp_path)
    brains(found.bids, 3)
    return found


@pytest.mark.parametrize("name", CLOUDS)
def test_a_study_is_made_by_jobs_on_a_shared_volume(name, study):
    service = Service(silent=3)
    code, said = run(study, name, service)
    assert code == 0, said
    assert len(service.jobs) == 3 and len(study.receipts()) >= 3
    for job in service.jobs.values():
        if name == "kubernetes":
            pod = job["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            assert {"name": "study", "mountPath": str(study.root)} in container["volumeMounts"]
            claim = {"name": "study", "persistentVolumeClaim": {"claimName": "study"}}
            assert claim in [{key: one[key] for key in one if one[key]} for one in pod["volumes"]]
            assert container["image"] == "registry.site/popatlas"
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"] == "1500M"
        else:
            container = job["containerProperties"]
            assert container["mountPoints"] == [{"sourceVolume": "study", "containerPath": str(study.root)}]
            assert container["volumes"][0]["efsVolumeConfiguration"]["fileSystemId"] == "fs-1"
            assert {"type": "MEMORY", "value": "1500"} in container["resourceRequirements"] and not container["privileged"]
            assert job["timeout"]["attemptDurationSeconds"] > 60 * 30


@pytest.mark.parametrize("name", CLOUDS)
def test_a_job_without_memory_gets_more(name, study):
    service = Service(fatal=1500)
    code, said = run(study, name, service)
    assert code == 0, said
    assert len(service.jobs) == 6


@pytest.mark.parametrize("name", CLOUDS)
def test_a_job_without_memory_says_so(name, study):
    code, said = run(study, name, Service(fatal=1500), "--retries", "0", "--set-resources", "prepare_scan:mem_mb=1500")
    assert code == 1, said  # no scan is left for a template
    ledger = read_table(study.out / "cohort" / "ledger.tsv")
    assert set(ledger.loc[ledger["state"] == "failed", "code"]) == {"oom"}, said


@pytest.mark.parametrize("name", CLOUDS)
def test_a_look_ahead_sends_nothing(name, study):
    service = Service()
    code, said = run(study, name, service, "-n")
    assert code == 0 and "prepare_scan" in said, said
    assert service.jobs == {}
    line = [
        sys.executable,
        "-m",
        "popatlas.cli.main",
        "plan",
        str(study.bids),
        str(study.out),
        "--config",
        str(study.config),
    ]
    line += ["--profile", str(study.root / name)]
    assert subprocess.run(line, check=False).returncode == 0
