"""`popatlas logs`: the log that tells what happened to a scan, and where it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.cli.arguments import Subparsers, given_path, positive
from popatlas.errors import InputError
from popatlas.stages import SIDE_STAGES, STAGES

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 40  # lines
LOGGED = (*(stage for stage in STAGES if stage != "index"), *SIDE_STAGES)


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `logs`."""
    parser = subparsers.add_parser(
        "logs",
        help="show the log of a scan",
        description="Show the end of the log that tells what happened to a scan, and its path: that of the job which failed "
        "or, where none did, the newest.",
    )
    parser.add_argument("out_dir", type=given_path, help="output folder of a run")
    parser.add_argument("scan", help="scan or subject, as in `popatlas status`: sub-01, sub-01_ses-1, or the whole key")
    parser.add_argument("--stage", help=f"of this stage: {', '.join(LOGGED[:-1])} or {LOGGED[-1]}")
    parser.add_argument("--lines", type=positive, default=SHOWN, help=f"lines that are shown ({SHOWN})")
    parser.add_argument("--all", action="store_true", help="list the paths of all logs of the scan, the newest last")


def main(args: argparse.Namespace) -> int:
    """Print the end of a log, and its path below it."""
    from popatlas.cohort.ledger import Evidence, read_ledger

    ledger = rows_of(read_ledger(args.out_dir), args.scan)
    stages = list(dict.fromkeys(ledger["stage"]))
    if args.stage is not None and args.stage not in stages:
        raise InputError(f"{args.scan} has no stage '{args.stage}'", remedy=f"use one of {', '.join(stages)}")
    chosen = ledger if args.stage is None else ledger[ledger["stage"] == args.stage]
    evidence = Evidence(args.out_dir)
    logs = [log for row in chosen.to_dict("records") for log in evidence.logs(row["stage"], row["scan"])]
    logs = sorted(dict.fromkeys(logs), key=lambda path: path.stat().st_mtime_ns)
    if args.all:
        print(*logs, sep="\n")
        return 0
    failed = [args.out_dir / row["log"] for row in chosen[chosen["state"] == "failed"].to_dict("records") if row["log"]]
    there = [log for log in (*failed, *reversed(logs)) if log.is_file()]
    if not there:
        states = ", ".join(f"{row['stage']} {row['state']}" for row in chosen.to_dict("records"))
        raise InputError(f"{args.scan} has no log yet ({states})", remedy=f"popatlas status {args.out_dir}")
    print(tail(there[0], args.lines))
    for row in chosen[chosen["state"] == "failed"].to_dict("records"):
        print(f"\n{row['scan']} failed at {row['stage']} ({row['code']}): {row['reason']}")
    print(f"\nlog: {there[0]}")
    return 0


def rows_of(ledger: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of a scan, or of all scans of a subject.

    Raises
    ------
    InputError
        When there is none of that name.
    """
    bare = name.rstrip("/")
    names = {bare, f"sub-{bare}"}
    short = ledger["scan"].str.rsplit("/", n=1).str[-1]
    found = ledger[ledger["scan"].isin(names) | short.isin(names)]
    if found.empty:
        found = ledger[ledger["subject"].isin(names)]
    if found.empty:
        raise InputError(
            f"there is no scan '{name}'", remedy="popatlas status names them; give one as sub-01 or sub-01_ses-1"
        )
    return found


def tail(path: Path, count: int) -> str:
    """Return the last lines of a text; of a long one only its end is read."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(size - 1000 * count, 0))
        text = stream.read().decode("utf-8", errors="replace")
    return "\n".join(text.splitlines()[-count:])
