"""`--gpu` of `popatlas run` and `plan`: one switch for all that a run on GPUs needs, and a refusal where there is none."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from popatlas.errors import ConfigError

if TYPE_CHECKING:
    from popatlas.config.sections import Config

BATCH = 50  # scans of a job of brain extraction, which loads the network once
WITHOUT_NETWORK = ("none", "template")  # ways to find brains
RESOURCES = ("--resources", "--res")
CPU_BUILD = "install a build of torch for your CUDA (the selector of pytorch.org has the command), or leave out --gpu"
NO_DEVICE = (
    "look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES; in a container pass the GPU on (docker --gpus all, apptainer --nv); "
    "or leave out --gpu"
)
ON_CLUSTER = "; on a cluster give --profile slurm"


def gpu_profile(name: str) -> str:
    """Return the profile of a run on GPUs: on Slurm the one for GPU nodes."""
    return "slurm-gpu" if name == "slurm" else name


def on_gpu(config: Config, args: argparse.Namespace, *, on_cluster: bool) -> Config:
    """Return a configuration by which networks and registrations ask for a GPU; change the arguments to go with it.

    Keys that ask for GPUs already keep their numbers. On this machine one job at a time has the GPU. On a cluster
    registrations that need no network stay on the CPU nodes, of which there are more.

    Parameters
    ----------
    config : Config
        Complete configuration.
    args : Namespace
        Arguments of a run; `snakemake`, its options for Snakemake, may change.
    on_cluster : bool
        Jobs are submitted to run elsewhere.

    Raises
    ------
    ConfigError
        When jobs run on this machine and torch sees no GPU.
    """
    from popatlas.config.load import changed

    if not on_cluster:
        require_cuda(ON_CLUSTER)
        args.snakemake = with_one_gpu(args.snakemake, max(1, config.train.gpus))
    return changed(config, gpu_keys(config, registrations=not on_cluster or config.register.engine != "instance"))


def in_batches(config: Config, profile: Mapping[str, Any]) -> Config:
    """Return a configuration by which a job of brain extraction serves many scans where the profile gives it a GPU.

    A number of scans that is not the default stays.

    Parameters
    ----------
    config : Config
        Complete configuration.
    profile : mapping
        Keys of the profile.
    """
    from popatlas.config.load import changed

    rules, brain = profile.get("set-resources") or {}, config.preprocess.brain
    asks = isinstance(rules, Mapping) and (rules.get("extract_brains") or {}).get("gpu")
    if not asks or brain.batch != 1 or brain.method in WITHOUT_NETWORK:
        return config
    return changed(config, {"preprocess": {"brain": {"batch": BATCH}}})


def gpu_keys(config: Config, *, registrations: bool) -> dict[str, Any]:
    """Return the keys that a run on GPUs needs, by section; those that ask for GPUs already are as they are."""
    brain, fuse = config.preprocess.brain, config.fuse
    found: dict[str, Any] = {
        "preprocess": {"brain": {"gpu": max(1, brain.gpu), "batch": BATCH if brain.batch == 1 else brain.batch}},
        "fuse": {
            "dataparams": {"gpu": max(1, fuse.dataparams.gpu)},
            "segmenter": {"gpu": max(1, fuse.segmenter.gpu)},
        },
        "train": {"gpus": max(1, config.train.gpus)},
    }
    if registrations:
        found["register"] = {"gpu": max(1, config.register.gpu)}
    return found


def with_one_gpu(options: list[str], gpus: int) -> list[str]:
    """Return options for Snakemake by which no more jobs run at once than there are GPUs; a number of the user stays."""
    if any(option.partition("=")[0] == "gpu" or option.startswith("--resources=gpu=") for option in options):
        return options
    for place, option in enumerate(options):
        if option in RESOURCES:
            return [*options[: place + 1], f"gpu={gpus}", *options[place + 1 :]]
    return [*options, "--resources", f"gpu={gpus}"]


def require_cuda(otherwise: str = "") -> None:
    """Raise ConfigError where torch sees no GPU, with what to do, and what may be done instead."""
    import torch

    if torch.cuda.is_available():
        return
    is_cpu_build = torch.version.cuda is None
    why = f"torch {torch.__version__} is a build for the CPU" if is_cpu_build else "torch sees no CUDA device"
    raise ConfigError(f"--gpu: {why}. Remedy: {CPU_BUILD if is_cpu_build else NO_DEVICE}{otherwise}")
