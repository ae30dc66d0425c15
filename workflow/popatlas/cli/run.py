"""`popatlas run`: the pipeline in passes, so that a broken scan stops neither the others nor the group.

Pass 1 preprocesses everyone; the atlas members are then frozen among the scans that came through. Pass 2 builds the
template and does the rest per scan. After each pass stock is taken and the ledger is settled, and failed scans are left out
of what follows. The last pass makes the group tables and the report from the scans that are `ok`. A run has finished when
everything that was asked for is shown to be made, from what it should be made of; not when Snakemake says so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.cli.arguments import Subparsers, positive

if TYPE_CHECKING:
    from popatlas.cli.passes import Passes
    from popatlas.config.sections import Config

# parts of the pipeline (popatlas.study.rules.PARTS) that lead to each goal of a run
PASSES = {
    "preprocess": ("preprocess",),
    "segmentations": ("preprocess", "segmentations"),
    "networks": ("preprocess", "networks"),
    "subjects": ("preprocess", "subjects"),
    "all": ("preprocess", "subjects", "all"),
}
Results = tuple[tuple[str, str], ...]  # what is named after a run: name, and file in OUT_DIR


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `run`."""
    from popatlas.cli.snake import add_study_arguments

    parser = subparsers.add_parser(
        "run",
        help="run the pipeline on a dataset",
        description="Run the pipeline. Finished work is kept: after adding subjects run the same command again. "
        "Options that popatlas does not know go to Snakemake. Exit code 0: finished. 3: finished, but scans failed or "
        "could not be read, or lack an extra channel or their QC page; they are named. 1: refused, or the workflow stopped. "
        "130 or 143: stopped by a signal.",
    )
    add_study_arguments(parser)
    add_run_arguments(parser)
    add_until(parser)


def add_until(parser: argparse.ArgumentParser) -> None:
    """Add the argument that says where the pipeline ends."""
    parser.add_argument("--until", choices=list(PASSES), default="all", help="last pass (all)")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of verbs that run passes."""
    parser.add_argument("--no-retry", action="store_true", help="leave out scans that failed before, do not try again")
    parser.add_argument("--verbose", action="store_true", help="show Snakemake's log instead of a line for each stage")
    parser.add_argument(
        "--shards", type=positive, metavar="N",
        help="give Snakemake the scans in N parts, four at a time (default: in parts of some hundred above 1000 scans)",
    )  # fmt: skip
    parser.add_argument(
        "--force-unlock", action="store_true", help="take the output folder from a run that is dead or on another machine"
    )


def main(args: argparse.Namespace) -> int:
    """Run all passes; 0 when everything is made, 3 when scans failed somewhere, 1 when the workflow itself failed."""
    from popatlas.cli.snake import study_config

    config = study_config(args)
    passes = passes_until(args.until, config)
    label = config.atlas.label
    results = (
        ("atlas", f"tpl-{label}/tpl-{label}_T1w.nii.gz"),
        ("metrics", "group/metrics.tsv"),
        ("volumes", "group/volumes.tsv"),
        ("QC page", "report/index.html"),
    )
    return run_passes(args, config, passes, results)


def passes_until(goal: str, config: Config) -> tuple[str, ...]:
    """Return the parts of the pipeline that lead to a goal; ConfigError when the configuration does not have it."""
    from popatlas.errors import ConfigError

    if goal == "segmentations" and not config.fuse.segmenter.enabled:
        raise ConfigError("--until segmentations: there is no segmenter. Remedy: set fuse.segmenter.enabled to true")
    if goal == "networks" and config.train.recipe is None:
        raise ConfigError("--until networks: nothing is trained. Remedy: set train.recipe to the name of a recipe")
    return PASSES[goal]


def run_passes(
    args: argparse.Namespace,
    config: Config,
    targets: Sequence[str],
    results: Results,
    name: str = "config.yaml",
    settled: Config | None = None,
) -> int:
    """Run passes, settle the ledger in between, and say where the results are.

    Parameters
    ----------
    args : Namespace
        Arguments of `add_study_arguments` and `add_run_arguments`.
    config : dict
        Complete configuration with absolute paths.
    targets : sequence of str
        Target rules, one for each pass.
    results : tuple
        Results that are named at the end.
    name : str
        File in OUT_DIR that keeps the configuration.
    settled : dict, optional
        Configuration that the ledger follows, but for the bench; `config` when left out.

    Returns
    -------
    int
        Exit code, see `main`.
    """
    from popatlas.cli.notes import opening_notes, plugin_note
    from popatlas.cli.passes import FINISHED, Passes
    from popatlas.cli.snake import check_folders, demo_plan, dry_run, executor_of, forget_notes
    from popatlas.cluster.leftovers import end_leftovers
    from popatlas.cohort.ledger import forget_failures
    from popatlas.cohort.lock import acquire
    from popatlas.cohort.runrecords import recorded
    from popatlas.config.beside import saved_text
    from popatlas.errors import InputError
    from popatlas.images.io import write_if_changed
    from popatlas.study.opening import only_looks

    out_dir, is_dry = Path(config.out_dir), only_looks(args.snakemake)
    if is_dry and (demo := demo_plan(config)):
        print(demo)
        return FINISHED
    check_folders(config, make=not is_dry)
    if is_dry:
        return dry_run(config, args, targets[-1])
    lock = acquire(out_dir, force=args.force_unlock)
    try:
        end_leftovers(out_dir)
        plugin_note(executor_of(args))
        config_file = out_dir / name
        said = opening_notes(config, config_file)
        if not args.no_retry:
            forget_failures(out_dir)
        forget_notes(out_dir)
        write_if_changed(config_file, saved_text(config.content))
        with recorded(out_dir, args.line, config_file) as ends:
            code = ends(_followed(Passes(args, config_file, config, settled or config, lock), targets, results, said))
        with suppress(InputError):  # of a Snakemake that could not end them; the next run asks again
            end_leftovers(out_dir)
        return code
    finally:
        lock.release()


def _followed(passes: Passes, targets: Sequence[str], results: Results, said: list[str]) -> int:
    """Run passes, show how far they are, and say how they ended; return the exit code."""
    from popatlas.cli.display import display_of, duration
    from popatlas.cli.efficiency import after_run
    from popatlas.cli.notes import closing_notes, mixed_versions, next_commands
    from popatlas.cli.passes import STOPPED
    from popatlas.cli.progress import Progress
    from popatlas.cli.snake import is_cluster, is_quiet, snakemake_log
    from popatlas.study.orphans import kept_results
    from popatlas.study.retention import notes, write_sizes

    started, began, args, out_dir = time.monotonic(), time.time(), passes.args, passes.out_dir
    progress = Progress(out_dir if is_cluster(args) else None)
    with display_of(progress, verbose=args.verbose, quiet=is_quiet(args.snakemake)) as passes.display:
        code = passes.run(targets)
    spent = duration(time.monotonic() - started)
    if code in (STOPPED, *range(128, 192)):
        print(f"\npopatlas: stopped after {spent}: {passes.why_stopped}")
        print(f"  Logs: {out_dir / 'logs'}; state of each scan: popatlas status {out_dir}")
        if log := snakemake_log(out_dir):
            print(f"  Snakemake's log: {log}")
        return code
    print(f"\npopatlas: finished after {spent}")
    if passes.inventory:
        said += mixed_versions(passes.inventory.versions())
        said += kept_results(passes.inventory) if targets[-1] == "all" else []
        said += notes(passes.inventory)
        write_sizes(passes.inventory)
    said += after_run(out_dir, began)
    code = closing_notes(passes.config, results, passes.failures, said, passes.inventory)
    if commands := list(next_commands(out_dir, args.line, code, targets[-1])):
        print("Next", *commands, sep="\n")
    return code
