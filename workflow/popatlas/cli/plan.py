"""`popatlas plan`: what a run would do, before it does it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.cli.arguments import Subparsers
from popatlas.errors import first_few

if TYPE_CHECKING:
    import pandas as pd

    from popatlas.config.sections import Config
    from popatlas.study.costs import Cost
    from popatlas.study.inventory import Inventory

NOTHING = 3  # exit code when a scan has neither a result nor a job
GIGA, MEGA = 1e9, 1e6


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `plan`."""
    from popatlas.cli.run import add_run_arguments, add_until
    from popatlas.cli.snake import add_study_arguments

    parser = subparsers.add_parser(
        "plan",
        help="show what a run would do: what changed, jobs per rule, what they cost",
        description="Index the dataset, compare it and the settings with the last run, and show the jobs that "
        "`popatlas run` would start, with core-hours, GPU-hours and disk. OUT_DIR stays as it is: nothing is drawn, frozen "
        "or noted. The options of a run are taken, so that only the verb of its command line has to change. Exit code 3: a "
        "scan that was asked for has neither a result nor a job, for its image cannot be used or, with --no-retry, it has "
        "failed before.",
    )
    add_study_arguments(parser)
    add_run_arguments(parser)
    add_until(parser)


def main(args: argparse.Namespace) -> int:
    """Print the changes of cohort and settings, the jobs and what they cost; 3 when a scan has neither result nor job."""
    from popatlas.cli.notes import changes
    from popatlas.cli.run import passes_until
    from popatlas.cli.snake import check_folders, demo_plan, study_config
    from popatlas.cohort.garbage import hide_garbage
    from popatlas.cohort.ledger import forget_failures, read_failures
    from popatlas.cohort.plan import cohort_changes, format_plan
    from popatlas.cohort.view import view_of
    from popatlas.images.io import read_table
    from popatlas.study.costs import cost
    from popatlas.study.inventory import Inventory
    from popatlas.study.retention import notes
    from popatlas.study.study import open_study

    config = study_config(args)
    target = passes_until(args.until, config)[-1]
    if demo := demo_plan(config):
        print(demo)
        return 0
    check_folders(config, make=False)
    out_dir = Path(config.out_dir)
    last = last_settings(out_dir)
    with view_of(out_dir) as view:
        garbage = hide_garbage(view)
        index_file = view / "cohort" / "index.parquet"
        before = read_table(index_file) if index_file.is_file() else None
        failed = read_failures(view)["scan"].nunique()
        if failed and not args.no_retry:
            forget_failures(view)
        inventory = Inventory(open_study(config.content | {"out_dir": str(view)}, main=True))
        inventory.require_members(target)
        jobs, reasons = inventory.count(target), [*garbage, *inventory.explain(target)]
        index = read_table(index_file)
        (view / "logs").symlink_to(out_dir / "logs")  # where the records are
        kept = notes(inventory)
        costs, nothing = cost(inventory, inventory.needed(target), index, last), without_anything(index, inventory)
    said = [f"setting {line}" for line in changes(last.content, config.content)] if last else []
    print(format_plan(jobs, cohort_changes(before, index), [*said, *reasons]))
    if failed and args.no_retry:
        print(f"{failed} scan(s) failed before and are left out (--no-retry)")
    elif failed:
        count = sum(jobs.values())
        print(f"{failed} scan(s) failed before: a run tries them again (not with --no-retry), {count} jobs in all")
    for line in kept:
        print(f"kept:  {line}")
    if costs.stages:
        print(*cost_lines(costs, out_dir), sep="\n")
    if nothing:
        print(f"{len(nothing)} scan(s) have neither a result nor a job: {first_few(nothing)}")
    return NOTHING if nothing else 0


def last_settings(out_dir: Path) -> Config | None:
    """Return the settings of the last run in a folder; None where there are none of today."""
    from popatlas.config.load import load_config
    from popatlas.errors import PopatlasError

    try:
        return load_config(out_dir / "config.yaml") if (out_dir / "config.yaml").is_file() else None
    except PopatlasError:
        return None


def without_anything(index: pd.DataFrame, inventory: Inventory) -> list[str]:
    """Return the scans that are asked for, of which nothing is made and nothing will be."""
    jobs = inventory.jobs.jobs
    dead = set(inventory.study.scans.dead)
    served = {job.scan for name, job in jobs.items() if job.scan and (name in inventory.made or job.scan not in dead)}
    asked = index[(index["role"] == "cohort") & (index["state"] != "excluded")]["scan"]
    return [scan.rsplit("/", 1)[-1] for scan in asked if scan not in served]


def cost_lines(costs: Cost, out_dir: Path) -> Iterator[str]:
    """Yield what jobs cost, by stage."""
    from popatlas.diskspace import free_bytes

    source = "from the records of this study" if costs.is_own else "from usual rates where this study has none of its own"
    yield f"cost:  {hours(costs.total)}, {source}"
    for stage, found in costs.stages.items():
        yield f"  {stage:10}  {found[0]:6} jobs, {hours(found)}"
    disk = f"{_size(costs.before)} of results now, about {_size(costs.after)} after"
    yield f"disk:  {disk} ({_size(free_bytes(out_dir))} are free)"


def hours(found: tuple[int, float, float]) -> str:
    """Return core-hours and, where there are any, GPU-hours in words; less than one as minutes."""
    _, cores, gpus = found
    return ", ".join(_time(value, unit) for value, unit in ((cores, "core"), (gpus, "GPU")) if value or unit == "core")


def _time(value: float, unit: str) -> str:
    return f"{value:.1f} {unit}-hours" if value >= 1 else f"{value * 60:.1f} {unit}-minutes"


def _size(value: float) -> str:
    return f"{value / GIGA:.1f} GB" if value >= GIGA else f"{value / MEGA:.0f} MB"
