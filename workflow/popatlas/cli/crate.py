"""`popatlas crate`: an RO-Crate of a study."""

from __future__ import annotations

import argparse

from popatlas.cli.arguments import Subparsers, given_path


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `crate`."""
    parser = subparsers.add_parser(
        "crate",
        help="describe a study as an RO-Crate",
        description="Write ro-crate-metadata.json into OUT_DIR: the group results with their checksums, the runs and steps "
        "that made them, from which files, with which programs (Process Run Crate). Publish the folder with it.",
    )
    parser.add_argument("out_dir", type=given_path, help="output folder of a run")
    parser.add_argument(
        "--files", action="store_true", help="what was made of each scan too, file by file (large for large cohorts)"
    )


def main(args: argparse.Namespace) -> int:
    """Write the crate and print where it is."""
    from popatlas.report.crate import write_crate

    print(write_crate(args.out_dir, files=args.files))
    return 0
