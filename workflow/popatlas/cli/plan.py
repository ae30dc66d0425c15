"""`popatlas plan`: what a run would do, before it does it."""

from __future__ import annotations

import argparse
from pathlib import Path

from popatlas.cli.arguments import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `plan`."""
    from popatlas.cli.run import add_run_arguments, add_until
    from popatlas.cli.snake import add_study_arguments

    parser = subparsers.add_parser(
        "plan",
        help="show what a run would do: subjects added or removed, jobs per rule",
        description="Index the dataset, compare it with the last run, and show the jobs that `popatlas run` would start. "
        "OUT_DIR stays as it is: nothing is drawn, frozen or noted. The options of a run are taken, so that only the "
        "verb of its command line has to change.",
    )
    add_study_arguments(parser)
    add_run_arguments(parser)
    add_until(parser)


def main(args: argparse.Namespace) -> int:
    """Print the changes of the cohort and the jobs per rule."""
    from popatlas.cli.run import passes_until
    from popatlas.cli.snake import check_folders, demo_plan, study_config
    from popatlas.cohort.garbage import hide_garbage
    from popatlas.cohort.ledger import forget_failures, read_failures
    from popatlas.cohort.plan import cohort_changes, format_plan
    from popatlas.cohort.view import view_of
    from popatlas.images.io import read_table
    from popatlas.study.inventory import Inventory
    from popatlas.study.study import open_study

    config = study_config(args)
    target = passes_until(args.until, config)[-1]
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
        inventory.require_members(target)
        jobs, reasons = inventory.count(target), [*garbage, *inventory.explain(target)]
        changes = cohort_changes(before, read_table(index_file))
        failed, again = read_failures(view)["scan"].nunique(), 0
        if failed and not args.no_retry:
            forget_failures(view)
            again = sum(Inventory(open_study(here, main=True)).count(target).values())
    print(format_plan(jobs, changes, reasons))
    if failed and args.no_retry:
        print(f"{failed} scan(s) failed before and are left out (--no-retry)")
    elif failed:
        print(f"{failed} scan(s) failed before: a run tries them again (not with --no-retry), {again} jobs in all")
    return 0
