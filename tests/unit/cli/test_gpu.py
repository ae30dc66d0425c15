"""`--gpu`: all keys at once, one job at a time on this machine, the profile on Slurm, a refusal where there is no GPU."""

import argparse

import pytest
import torch

from popatlas.cli import register
from popatlas.cli.gpu import on_gpu, with_one_gpu
from popatlas.cli.main import parse
from popatlas.cli.snake import study_config
from popatlas.config.load import load_config
from popatlas.errors import ConfigError
from popatlas.study.madeof import science


def given():
    return argparse.Namespace(profile="default", snakemake=[])


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def keys_for_gpus(content):
    """Return all keys of a configuration that ask for GPUs, by their names."""
    found = {}
    for key, value in content.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": number for name, number in keys_for_gpus(value).items()}
        elif key in ("gpu", "gpus"):
            found[key] = value
    return found


def test_it_sets_every_key_that_asks_for_gpus_and_changes_no_result(gpu):
    args, plain = given(), load_config()
    config = on_gpu(plain, args, on_cluster=False)
    assert set(keys_for_gpus(plain.content).values()) == {0}
    assert len(keys_for_gpus(config.content)) == 5 and set(keys_for_gpus(config.content).values()) == {1}
    assert config.preprocess.brain.batch == 50
    assert science(config.content) == science(plain.content)
    assert args.snakemake == ["--resources", "gpu=1"] and args.profile == "default"


def test_numbers_of_the_configuration_stay(gpu):
    own = {"preprocess": {"brain": {"batch": 7, "gpu": 2}}, "train": {"gpus": 4}}
    args = given()
    config = on_gpu(load_config(own), args, on_cluster=False)
    assert (config.preprocess.brain.batch, config.preprocess.brain.gpu, config.train.gpus) == (7, 2, 4)
    assert args.snakemake == ["--resources", "gpu=4"], "else a training of four would never start"


@pytest.mark.parametrize(
    "options, expected",
    [
        (["-n"], ["-n", "--resources", "gpu=1"]),
        (["--resources", "mem_mb=9000"], ["--resources", "gpu=1", "mem_mb=9000"]),
        (["--resources", "mem_mb=9000", "gpu=2"], ["--resources", "mem_mb=9000", "gpu=2"]),
        (["--resources=gpu=3"], ["--resources=gpu=3"]),
    ],
)
def test_one_job_at_a_time_has_the_gpu_unless_the_user_says_otherwise(options, expected):
    assert with_one_gpu(options, 1) == expected


@pytest.mark.parametrize("version, words", [(None, "build for the CPU"), ("12.8", "sees no CUDA device")])
def test_without_a_gpu_a_run_on_this_machine_is_refused(monkeypatch, version, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", version)
    with pytest.raises(ConfigError, match=rf"--gpu: torch .*{words}.*\. Remedy: .*leave out --gpu"):
        study_config(parse(["plan", "bids", "out", "--gpu"]))
    with pytest.raises(ConfigError, match=rf"--gpu: torch .*{words}.*\. Remedy: .*or leave out --gpu$"):
        register.main(parse(["register", "a.nii", "b.nii", "--out", "c", "--gpu"]))


@pytest.mark.parametrize("engine, registrations", [("instance", 0), ("network", 1)])
def test_on_slurm_the_networks_go_to_gpu_nodes_from_anywhere(engine, registrations, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = parse(["run", "bids", "out", "--gpu", "--profile", "slurm", "--set", f"register.engine={engine}"])
    config = study_config(args)
    assert args.profile == "slurm-gpu" and args.snakemake == []
    assert (config.preprocess.brain.gpu, config.register.gpu) == (1, registrations)


@pytest.mark.parametrize(
    "options, batch",
    [
        (["--profile", "slurm-gpu"], 50),
        (["--profile", "slurm-gpu", "--set", "preprocess.brain.batch=9"], 9),
        (["--profile", "slurm-gpu", "--set", "preprocess.brain.method=none"], 1),
        (["--profile", "slurm"], 1),
        ([], 1),
    ],
)
def test_a_job_on_a_gpu_node_serves_many_scans(options, batch):
    assert study_config(parse(["run", "bids", "out", *options])).preprocess.brain.batch == batch
