"""`popatlas plan`: what a run would do, before it does it."""

from __future__ import annotations

import argparse
from pathlib import Path

from popatlas.cli.arguments import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `plan`."""
    from popatlas.cli.snake import add_study_arguments

    parser = subparsers.add_parser(
        "plan",
        help="show what a run would do: subjects added or removed, jobs per rule",
        description="Index the dataset, compare it with the last run, and show the jobs that `popatlas run` would start. "
        "OUT_DIR stays as it is: nothing is drawn, frozen or noted.",
    )
    add_study_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Print the changes of the cohort and the jobs per rule."""
    from popatlas.cli.snake import check_folders, demo_plan, study_config
    from popatlas.cohort.garbage import hide_garbage
    from popatlas.cohort.ledger import forget_failures, read_failures
    from popatlas.cohort.plan import cohort_changes, format_plan
    from popatlas.cohort.view import view_of
    from popatlas.images.io import read_table
    from popatlas.study.inventory import Inventory
    from popatlas.study.study import open_study

    config = study_config(args)
    if demo := demo_plan(config):
        print(demo)
        return 0
    check_folders(config, make=False)
    out_dir = Path(config.out_dir)
    with view_of(out_dir) as view:
        garbage = hide_garbage(view)
        index_file = view / "cohort" / "index.parquet"
        before = read_table(index_file) if index_file.is_file() else None
        here = config.content | {"out_dir": str(view)}
        inventory = Inventory(open_study(here, main=True))
        inventory.require_members("all")
        jobs, reasons = inventory.count("all"), [*garbage, *inventory.explain("all")]
        changes = cohort_changes(before, read_table(index_file))
        failed, again = read_failures(view)["scan"].nunique(), 0
        if failed:
            forget_failures(view)
            again = sum(Inventory(open_study(here, main=True)).count("all").values())
    print(format_plan(jobs, changes, reasons))
    if failed:
        print(f"{failed} scan(s) failed before: a run tries them again (not with --no-retry), {again} jobs in all")
    return 0
