"""`popatlas plan`: what a run would do, before it does it."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

JOB_LINE = re.compile(r"^(\w+)\s+(\d+)$")
TARGETS = ("all", "subjects", "preprocess", "segmentations", "fusion_bench", "total")


def add_parser(subparsers: Any) -> None:
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
    from popatlas.cli.snake import check_folders, dry_run, kept_cohort, study_config
    from popatlas.cohort.plan import cohort_changes, format_plan
    from popatlas.images.io import read_table

    config = study_config(args)
    check_folders(config, draw=False)
    out_dir = Path(config["out_dir"])
    index_file = out_dir / "cohort" / "index.parquet"
    before = read_table(index_file) if index_file.is_file() else None
    with kept_cohort(out_dir):
        result = dry_run(config, args, "all", ["--dry-run", "--quiet", "rules"], capture_output=True)
        if result.returncode:
            print(f"{result.stdout}{result.stderr}".strip(), file=sys.stderr)  # a dry run speaks on stdout
            return 1
        changes = cohort_changes(before, read_table(index_file))
    for line in result.stderr.splitlines():
        if line.startswith("popatlas:"):
            print(line, file=sys.stderr)
    print(format_plan(job_counts(result.stdout + result.stderr), changes))
    return 0


def job_counts(output: str) -> dict[str, int]:
    """Return jobs per rule from Snakemake's dry run, target rules left out."""
    found = (JOB_LINE.match(line.strip()) for line in output.splitlines())
    return {match[1]: int(match[2]) for match in found if match and match[1] not in TARGETS}
