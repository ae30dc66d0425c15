"""Snakemake as popatlas calls it: the shipped Snakefile on a resolved configuration."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from popatlas.config import Config, load_config, make_absolute
from popatlas.errors import ConfigError, InputError
from popatlas.resources import workflow_root


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `run` and `plan` share."""
    parser.add_argument("bids_dir", nargs="?", type=Path, help="BIDS dataset, or a TSV of paths (default: the config's)")
    parser.add_argument("out_dir", nargs="?", type=Path, help="folder for everything that is written")
    parser.add_argument("--config", type=Path, metavar="FILE", help="your settings; keys left out keep the defaults")
    parser.add_argument("--participant-label", nargs="+", metavar="SUB", help="only these subjects (with or without sub-)")
    parser.add_argument("--query", help='pandas query on participants.tsv, for example "age > 50"')
    parser.add_argument("--profile", default="default", help="default, slurm, slurm-gpu, or a profile folder of yours")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="CPU cores (default: all)")


def study_config(args: argparse.Namespace) -> Config:
    """Return the configuration of a command line, with absolute paths."""
    config = load_config(args.config, bids_dir=_text(args.bids_dir), out_dir=_text(args.out_dir))
    if args.bids_dir is not None and args.out_dir is None:
        raise ConfigError("OUT_DIR is missing. Remedy: popatlas run BIDS_DIR OUT_DIR")
    make_absolute(config)
    if args.participant_label:
        config["cohort"]["include"] = list(args.participant_label)
    if args.query is not None:
        config["cohort"]["query"] = args.query
    return config


def check_folders(config: Config, *, draw: bool = True) -> None:
    """Raise InputError when the input is missing or the output folder cannot be written; `draw` makes the demo cohort."""
    from popatlas.cohort.study import simulate_if_missing

    if draw:
        simulate_if_missing(config)
    if not Path(config["bids_dir"]).exists():
        raise InputError(
            "the dataset does not exist",
            file=config["bids_dir"],
            remedy="check the path, or draw one with `popatlas simulate` (`popatlas run` without arguments draws the demo)",
        )
    out_dir = Path(config["out_dir"])
    if out_dir == Path(config["bids_dir"]):
        raise InputError(
            "the output folder is the dataset itself", file=out_dir, remedy="give a folder of its own, e.g. derivatives"
        )
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write: {error.strerror}", file=out_dir, remedy="choose another OUT_DIR") from error


def command(config_file: Path, args: argparse.Namespace, targets: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return the command line of one Snakemake pass."""
    return [
        *(sys.executable, "-m", "snakemake", *targets),
        *("--snakefile", str(workflow_root() / "Snakefile")),
        *("--configfile", str(config_file)),
        *("--cores", str(args.cores)),
        *("--workflow-profile", str(profile_folder(args.profile))),
        *("--rerun-incomplete", "--keep-going"),
        *options,
        *args.snakemake,
    ]


def is_dry_run(options: Sequence[str]) -> bool:
    """Tell whether options for Snakemake ask for a dry run: -n, also among other flags, or --dry-run."""
    return any(option.startswith("--dry") or re.fullmatch("-[Ffknpq]*n[Ffknpq]*", option) for option in options)


@contextmanager
def kept_cohort(out_dir: Path) -> Iterator[None]:
    """Put the tables of `cohort/` back when the block is left: a look ahead indexes and freezes, and must not count."""
    folder = out_dir / "cohort"
    was_there = folder.is_dir()
    before = {path: (path.read_bytes(), path.stat()) for path in _files(folder)}
    try:
        yield
    finally:
        for path in _files(folder):
            if path not in before:
                path.unlink()
        for path, (content, status) in before.items():
            if not path.is_file() or path.stat().st_mtime_ns != status.st_mtime_ns:
                path.write_bytes(content)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        if folder.is_dir() and not was_there:
            folder.rmdir()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def profile_folder(name: str) -> Path:
    """Return the folder of a shipped profile, or the user's own."""
    for folder in (workflow_root() / "profiles" / name, Path(name)):
        if folder.is_dir():
            return folder.resolve()
    known = sorted(path.name for path in (workflow_root() / "profiles").iterdir() if path.is_dir())
    raise ConfigError(f"no profile '{name}'. Remedy: use one of {', '.join(known)}, or the path of a profile folder")


def environment() -> dict[str, str]:
    """Return the environment of Snakemake: one thread per job unless a rule says otherwise."""
    quiet = {"OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return quiet | dict(os.environ)


def run_snakemake(line: Sequence[str], out_dir: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in the output folder, so that nothing is written elsewhere."""
    return subprocess.run(line, cwd=out_dir, env=environment(), check=False, text=True, **options)


def dry_run(
    config: Config, args: argparse.Namespace, target: str, options: Sequence[str], **run_options: Any
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake on a configuration that is not kept; the options, or those of `args`, hold the dry run."""
    import yaml

    with tempfile.TemporaryDirectory(prefix="popatlas-") as folder:
        config_file = Path(folder) / "config.yaml"
        config_file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return run_snakemake(command(config_file, args, [target], options), Path(config["out_dir"]), **run_options)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
