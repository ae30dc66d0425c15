"""Snakemake as popatlas calls it: the shipped Snakefile on a resolved configuration."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popatlas.cli.arguments import given_path, positive
from popatlas.cli.options import add_bids_app_options, check_known, options_of
from popatlas.cluster.clouds import IMAGE, MODULES, VOLUMES, check_cloud
from popatlas.cluster.environment import without_outer_job
from popatlas.cluster.plugins import check_plugin
from popatlas.errors import ConfigError
from popatlas.resources import workflow_root
from popatlas.surroundings import QUIET

if TYPE_CHECKING:
    from popatlas.config.sections import Config

ARRAYS = "--slurm-array-jobs"
# options of Snakemake that say what is run and where, and how popatlas says it
OURS = {
    "--snakefile": "the workflow is that of popatlas",
    "-s": "the workflow is that of popatlas",
    "--configfile": "give --config FILE",
    "--configfiles": "give --config FILE",
    "-C": "give --config FILE with the keys that differ",
    "--directory": "give OUT_DIR",
    "-d": "give OUT_DIR",
    "--workflow-profile": "give --profile",
    ARRAYS: "jobs of an array would all have the memory of the first; leave it out (docs/hpc.md)",
    "--unlock": "popatlas locks by itself; see --force-unlock",
}
MOST_AT_ONCE = 4  # Snakemakes of a pass: each has some hundred megabytes, and takes a core while it makes its graph
USED = 0.8  # share of the slots that is enough, where their number cannot be divided


def check_options(options: Sequence[str]) -> None:
    """Refuse options for Snakemake by which it would run another study than the one whose books popatlas keeps.

    Parameters
    ----------
    options : sequence of str
        What popatlas does not know and would hand on.

    Raises
    ------
    ConfigError
        For one of `OURS`, also written short (`--configf`).
    """
    for option in options:
        name = option.split("=", 1)[0]
        for known, instead in OURS.items():
            short = len(known) == 2 and option.startswith(known) and not option.startswith("--")
            if short or (name.startswith("--") and len(name) > 4 and known.startswith(name)):
                raise ConfigError(f"{option}: this option of Snakemake cannot be used here. Remedy: {instead}")


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `run` and `plan` share."""
    parser.add_argument(
        "bids_dir", nargs="?", type=given_path, help="BIDS dataset, or a TSV of paths (default: the config's)"
    )
    parser.add_argument("out_dir", nargs="?", type=given_path, help="folder for everything that is written")
    parser.add_argument("--config", type=given_path, metavar="FILE", help="your settings; keys left out keep the defaults")
    add_settings(parser)
    parser.add_argument(
        "--participant-label", nargs="+", action="extend", default=[], metavar="SUB",
        help="only these subjects (with or without sub-)",
    )  # fmt: skip
    parser.add_argument("--query", help='condition on participants.tsv, for example "age > 50"')
    parser.add_argument(
        "--profile",
        default="default",
        help="default, slurm, slurm-gpu, lsf, sge, pbs, kubernetes, aws-batch, or a folder of yours",
    )
    parser.add_argument(
        "--gpu", action="store_true",
        help="use a GPU for networks and registrations: sets all keys that it needs; with --profile slurm, GPU nodes",
    )  # fmt: skip
    parser.add_argument("--cores", type=positive, default=len(os.sched_getaffinity(0)), help="CPU cores (default: all)")
    add_bids_app_options(parser)
    parser.set_defaults(parser=parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the argument for single settings."""
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="settings that go before those of the file: preprocess.resolution_mm=1",
    )  # fmt: skip


def study_config(args: argparse.Namespace) -> Config:
    """Return the configuration of a command line, with absolute paths."""
    from popatlas.cohort.select import parse_labels
    from popatlas.config.load import changed, load_config, make_absolute

    check_options(args.snakemake)
    check_known(args.snakemake, options_of(args.parser))
    config = with_settings(load_config(args.config, bids_dir=_text(args.bids_dir), out_dir=_text(args.out_dir)), args.set)
    if args.bids_dir is not None and args.out_dir is None:
        raise ConfigError(f"OUT_DIR is missing. Remedy: {args.parser.prog} BIDS_DIR OUT_DIR")
    chosen: dict[str, object] = {}
    if args.participant_label:
        chosen["include"] = parse_labels(args.participant_label)
    if args.query is not None:
        chosen["query"] = args.query
    config = changed(make_absolute(config), {"cohort": chosen})
    if args.gpu:
        from popatlas.cli.gpu import gpu_profile, on_gpu

        args.profile = gpu_profile(args.profile)
        config = on_gpu(config, args, on_cluster=is_cluster(args))
    if is_cluster(args):
        from popatlas.cli.gpu import in_batches

        profile, executor = profile_of(args), str(executor_of(args))
        check_plugin(executor)
        if profile.get(ARRAYS.removeprefix("--")):
            raise ConfigError(f"{ARRAYS} of the profile cannot be used here. Remedy: {OURS[ARRAYS]}")
        config = in_batches(config, profile)
        if executor in MODULES:
            check_cloud(executor, profile, {"the dataset": config.bids_dir, "OUT_DIR": config.out_dir})
    if config.cohort.query:
        from popatlas.cohort.grammar import parse

        parse(config.cohort.query)  # what is no query is refused before anything runs
    return config


def with_settings(config: Config, settings: list[str]) -> Config:
    """Return a configuration with settings of the command line, ``key=value`` with the value in YAML.

    Raises
    ------
    PopatlasError
        For what is no such setting, an unknown key or an impossible value.
    """
    if not settings:
        return config
    from popatlas.config.load import changed
    from popatlas.renamed import with_keys_of_today
    from popatlas.training.recipe import parse_changes

    return changed(config, with_keys_of_today(parse_changes(settings)))


def check_folders(config: Config, *, make: bool = True) -> None:
    """Raise InputError when input or output cannot be used, see `check_places`; `make` draws the demo cohort, too."""
    from popatlas.cohort.places import check_places
    from popatlas.study.prepare import simulate_if_missing

    if make:
        simulate_if_missing(config)
    check_places(config, make=make)


def demo_plan(config: Config) -> str:
    """Return what a run would draw first, since the demo cohort is not there; empty where nothing is drawn."""
    from popatlas.study.prepare import is_demo_missing

    if not is_demo_missing(config):
        return ""
    heads = f"{config.simulate.subjects} heads (seed {config.simulate.seed})"
    return (
        f"the demo cohort is not there: `popatlas run` would draw {heads} in {config.bids_dir} and process them into "
        f"{config.out_dir}; the jobs can be counted when it is drawn (`popatlas simulate {config.bids_dir}`)"
    )


def command(config_file: Path, args: argparse.Namespace, targets: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return the command line of one Snakemake pass."""
    program = "popatlas.cluster.shared" if executor_of(args) in MODULES else "snakemake"
    return [
        *(sys.executable, "-m", program, *targets),
        *("--snakefile", str(workflow_root() / "Snakefile")),
        *("--configfile", str(config_file)),
        *("--cores", str(args.cores)),
        *("--workflow-profile", str(profile_folder(args.profile))),
        # what is done is in our receipts, and the folder is locked by us: Snakemake keeps no notes of its own
        # of several steps in a job one may fail; what the others made stays, and each takes away what it leaves unfinished
        *("--keep-going", "--nolock", "--drop-metadata", "--keep-incomplete"),
        *options,
        *args.snakemake,
    ]


def is_quiet(options: Sequence[str]) -> bool:
    """Tell whether options for Snakemake ask for silence."""
    return any(option.startswith("--quiet") or re.fullmatch("-[Ffkp]*q[Ffkpq]*", option) for option in options)


def is_cluster(args: argparse.Namespace) -> bool:
    """Tell whether jobs are submitted to run elsewhere."""
    return executor_of(args) not in (None, "local", "dryrun", "touch")


def executor_of(args: argparse.Namespace) -> str | None:
    """Return the executor that the profile, or an option for Snakemake, names."""
    return _asked(args, "executor", r"['\"]?([\w-]+)", "-e", "--executor")


def slots(args: argparse.Namespace) -> int:
    """Return how many jobs run at a time: cores here, submitted jobs on a cluster (`jobs` of the profile or an option)."""
    number = _asked(args, "jobs", r"(\d+)", "-j", "--jobs") if is_cluster(args) else None
    return int(number) if number is not None and number.isdigit() else int(args.cores)


def shares(args: argparse.Namespace, parts: int) -> tuple[int, argparse.Namespace]:
    """Return how many Snakemakes work on the shards of a pass at a time, and the arguments of each: its share of the slots.

    One at a time where a resource is bounded, such as the GPUs of this machine: each would take all of it.
    """
    bounded = _asked(args, "resources", "(.*)", "--res", "--resources") is not None
    total, most = slots(args), 1 if bounded else min(parts, MOST_AT_ONCE)
    number = max(n for n in range(1, most + 1) if n == 1 or n * (total // n) >= USED * total)
    each = argparse.Namespace(**vars(args))
    if is_cluster(args):
        each.snakemake = [*args.snakemake, "--jobs", str(total // number)]
    else:
        each.cores = total // number
    return number, each


def _asked(args: argparse.Namespace, key: str, pattern: str, short: str, long: str) -> str | None:
    """Return a value for Snakemake: that of an option, otherwise of a line of the profile; None without either."""
    files = sorted(profile_folder(args.profile).glob("*.yaml"))
    lines = [re.match(f"{key}: *{pattern}", line) for file in files for line in file.read_text().splitlines()]
    found = next((line[1] for line in lines if line), None)
    for name, value in pairwise([*args.snakemake, ""]):
        if name.partition("=")[0] in (short, long):
            found = name.partition("=")[2] or value
    return found


def profile_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keys of the profile; those that say which volumes and image jobs have may be options for Snakemake, too."""
    import yaml

    found: dict[str, Any] = {}
    for file in sorted(profile_folder(args.profile).glob("*.yaml")):
        found |= yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    for place, option in enumerate(args.snakemake):
        name, given, value = option.removeprefix("--").partition("=")
        if option.startswith("--") and name in (VOLUMES, IMAGE, "default-resources"):
            values = (
                [value] if given else list(takewhile(lambda word: not word.startswith("-"), args.snakemake[place + 1 :]))
            )
            found[name] = values[0] if name == IMAGE and values else values
    return found


def profile_folder(name: str) -> Path:
    """Return the folder of a shipped profile, or the user's own."""
    for folder in (workflow_root() / "profiles" / name, Path(name)):
        if folder.is_dir():
            return folder.resolve()
    known = sorted(path.name for path in (workflow_root() / "profiles").iterdir() if path.is_dir())
    raise ConfigError(f"no profile '{name}'. Remedy: use one of {', '.join(known)}, or the path of a profile folder")


def environment(args: argparse.Namespace) -> dict[str, str]:
    """Return the environment of Snakemake: silent, one thread per job unless a rule says otherwise."""
    own = without_outer_job(os.environ) if executor_of(args) == "slurm" else dict(os.environ)
    one_thread = {"OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    cache = {"HOME": "/tmp", "XDG_CACHE_HOME": "/tmp/popatlas-cache"} if executor_of(args) in MODULES else {}
    return QUIET | one_thread | cache | own


def forget_notes(out_dir: Path) -> None:
    """Remove what Snakemake noted about the output folder; the receipts tell what is done."""
    for name in ("metadata", "incomplete", "locks", "iocache", "backup"):
        shutil.rmtree(out_dir / ".snakemake" / name, ignore_errors=True)


def snakemake_log(out_dir: Path) -> Path | None:
    """Return the log that Snakemake wrote last, where there is one."""
    return max((out_dir / ".snakemake" / "log").glob("*.log"), default=None)


def dry_run(config: Config, args: argparse.Namespace, target: str) -> int:
    """Run Snakemake dry, in a folder of its own, and return its exit code; the options of `args` hold the dry run."""
    import yaml

    with tempfile.TemporaryDirectory(prefix="popatlas-") as folder:
        config_file = Path(folder) / "config.yaml"
        config_file.write_text(yaml.safe_dump(config.content, sort_keys=False), encoding="utf-8")
        line = command(config_file, args, [target], [])
        return subprocess.run(line, cwd=folder, env=environment(args), check=False).returncode


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
