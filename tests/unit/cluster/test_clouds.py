"""Runs in a cloud that could not work are refused before a job is sent, with what to do."""

import re
import subprocess
import sys
from argparse import Namespace

import pytest
import yaml

from popatlas.cli.main import parse
from popatlas.cli.snake import command, environment, profile_of, study_config
from popatlas.cluster import plugins
from popatlas.cluster.clouds import MODULES, check_cloud
from popatlas.errors import ConfigError
from popatlas.resources import workflow_root

VOLUME = {
    "kubernetes": {"kubernetes-persistent-volumes": ["study:/study"]},
    "aws-batch": {"default-resources": ["mem_mb=2000", "efs='fs-1:/study'"]},
}
PLACES = {"the dataset": "/study/bids", "OUT_DIR": "/study/out"}
IMAGE = {"container-image": "registry.site/popatlas"}
# options of the plugins, which are not among the dependencies of the tests
OWN = {"kubernetes": {"persistent-volumes", "namespace"}, "aws-batch": {"region"}}


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(plugins, "find_spec", lambda name: name)


@pytest.mark.parametrize("executor", MODULES)
def test_what_can_work_is_not_refused(executor, installed):
    check_cloud(executor, IMAGE | VOLUME[executor], PLACES)


@pytest.mark.parametrize("executor", MODULES)
@pytest.mark.parametrize(
    "change, place, words",
    [
        ({"container-image": None}, {}, "jobs need an image with popatlas. Remedy: container-image"),
        ({"container-image": "EXAMPLE/popatlas"}, {}, "jobs need an image with popatlas"),
        ({"default-resources": [], "kubernetes-persistent-volumes": []}, {}, "jobs mount no shared volume. Remedy: "),
        ({}, {"OUT_DIR": "/mine/out"}, r"OUT_DIR \(/mine/out\) is on no volume that jobs mount \(/study\).* Remedy: "),
        ({}, {"the dataset": "/study2"}, r"the dataset \(/study2\) is on no volume"),
        (
            {"default-resources": ["efs=fs-1"], "kubernetes-persistent-volumes": ["study"]}, {},
            "is no volume. Remedy: give NAME:PATH",
        ),
    ],
)  # fmt: skip
def test_what_cannot_is_refused(executor, change, place, words, installed):
    with pytest.raises(ConfigError, match=words):
        check_cloud(executor, IMAGE | VOLUME[executor] | change, PLACES | place)


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(
    "profile, line",
    [
        ("kubernetes", "'popatlas[kubernetes]'"), ("aws-batch", "'popatlas[aws-batch]'"), ("slurm", "'popatlas[slurm]'"),
        ("lsf", "snakemake-executor-plugin-lsf"), ("sge", "snakemake-executor-plugin-cluster-generic"),
        ("pbs", "snakemake-executor-plugin-cluster-generic"),
    ],
)  # fmt: skip
def test_without_the_plugin_it_is_named(profile, line, verb, monkeypatch):
    monkeypatch.setattr(plugins, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=re.escape(f"not installed. Remedy: pip install {line}")):
        study_config(parse([verb, "/study/bids", "/study/out", "--profile", profile]))


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize("executor", MODULES)
def test_a_shipped_profile_wants_the_names_of_the_site(executor, verb, installed):
    with pytest.raises(ConfigError, match="jobs need an image"):
        study_config(parse([verb, "/study/bids", "/study/out", "--profile", executor]))


def test_options_of_the_command_line_go_before_the_profile():
    options = ["--kubernetes-persistent-volumes", "a:/data", "b:/more", "--retries", "3", "--container-image=mine"]
    found = profile_of(Namespace(profile="kubernetes", snakemake=options))
    assert (found["kubernetes-persistent-volumes"], found["container-image"]) == (["a:/data", "b:/more"], "mine")
    assert found["executor"] == "kubernetes"


@pytest.mark.parametrize("executor", MODULES)
def test_jobs_share_files_and_have_a_home(executor, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    args = Namespace(profile=executor, snakemake=[], cores=2)
    assert command(tmp_path, args, ["all"], [])[1:3] == ["-m", "popatlas.cluster.shared"]
    wanted = set(profile_of(args)["envvars"])
    assert wanted <= environment(args).keys()


def test_the_profiles_name_options_that_exist():
    line = [sys.executable, "-m", "snakemake", "--help"]
    known = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    for executor, own in OWN.items():
        content = yaml.safe_load((workflow_root() / "profiles" / executor / "profile.yaml").read_text())
        others = content.keys() - {f"{executor}-{option}" for option in own}
        assert [key for key in others if not re.search(rf"--{key}[ ,\]]", known)] == []
