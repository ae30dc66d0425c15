"""`popatlas status`: who is done, who failed, why, and what to do; live while a run works."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popatlas.cli.arguments import Subparsers, given_path, positive

if TYPE_CHECKING:
    from popatlas.cohort.live import State

SHOWN = 50  # scans whose registration has to be looked at, and failures that are told one by one
NAMED = 5  # scans that wait for the same
INTERVAL = 5  # seconds
CLEAR = "\x1b[H\x1b[2J"
GROUPS = ("group/metrics.parquet", "report/index.html")
GIGA, MEGA = 1e9, 1e6
FAILED = 3  # exit code when something failed


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `status`."""
    parser = subparsers.add_parser(
        "status",
        help="show the state of each scan at each stage",
        description="Show how many scans are ok, failed, excluded, unavailable, pending, running or queued (in a cluster) "
        "at each stage, and why. It may be called while a run works, from any terminal, and after a run was killed. A "
        "failed channel or page leaves the scan in the group results, and so does a registration that has to be looked at. "
        "Exit code 3: something failed.",
    )
    parser.add_argument("out_dir", type=given_path, help="output folder of a run")
    parser.add_argument("--json", action="store_true", help="print JSON (workflow/schemas/status.schema.yaml)")
    parser.add_argument("--watch", action="store_true", help="show it again and again, until no run works there")
    parser.add_argument(
        "--interval", type=positive, default=INTERVAL, metavar="SECONDS", help=f"between two looks with --watch ({INTERVAL})"
    )


def main(args: argparse.Namespace) -> int:
    """Print the state of the scans; 0 when no scan failed at any stage, 3 otherwise."""
    while True:
        state, text = shown(args.out_dir, as_json=args.json)
        is_terminal = args.watch and sys.stdout.isatty()
        print(f"{CLEAR}{text}" if is_terminal else text, flush=True)
        if not (args.watch and is_working(args.out_dir, state)):
            return FAILED if state is not None and (state.ledger["state"] == "failed").any() else 0
        time.sleep(args.interval)


def shown(out_dir: Path, *, as_json: bool) -> tuple[State | None, str]:
    """Return the state of a study, None while its dataset is indexed for the first time, and what is printed of it."""
    from popatlas.cohort.live import read_state
    from popatlas.cohort.lock import look
    from popatlas.errors import InputError

    try:
        state = read_state(out_dir)
    except InputError:
        if not (run := look(out_dir)).alive:
            raise
        working = {"state": "running", "words": run.words, "jobs_per_hour": None, "running": 0, "queued": 0}
        told = {"stages": {}, "jobs": {}, "run": working}
        empty: dict[str, Any] = {"left_out": [], "incomplete": [], "remarks": []}
        return None, json.dumps(told | empty, indent=2) if as_json else f"the dataset is being indexed ({run.words})"
    return state, json.dumps(content(state, out_dir), indent=2) if as_json else "\n".join(lines(state, out_dir))


def kept_bytes(out_dir: Path) -> tuple[float, str] | None:
    """Return the bytes of the results after the last run and the level of `retention`; None where no run has ended."""
    from popatlas.cohort.ledger import KEPT
    from popatlas.errors import InputError
    from popatlas.images.io import read_json

    try:
        found = read_json(out_dir / KEPT)
        return float(found["bytes"]), str(found["retention"])
    except (InputError, KeyError, TypeError, ValueError):
        return None


def is_working(out_dir: Path, state: State | None) -> bool:
    """Tell whether a run works in a folder."""
    from popatlas.cohort.lock import look

    return look(out_dir).alive if state is None else state.run.alive


def content(state: State, out_dir: Path) -> dict[str, Any]:
    """Return the state of a study as JSON has it."""
    from popatlas.cohort.ledger import incomplete, left_out
    from popatlas.cohort.remarks import read_remarks

    rate = state.journal.rate() if state.run.alive else 0.0
    running, queued = state.jobs if state.run.alive else (0, 0)
    run = "running" if state.run.alive else "interrupted" if state.is_interrupted else "none"
    return {
        "stages": state.summary().to_dict("index"),
        "jobs": {name: vars(jobs) for name, jobs in state.journal.groups.items()},
        "run": {
            "state": run,
            "words": state.run.words,
            "jobs_per_hour": round(rate * 3600, 1) if rate else None,
            "running": running,
            "queued": queued,
        },
        "left_out": left_out(state.ledger).to_dict("records"),
        "incomplete": incomplete(state.ledger).to_dict("records"),
        "remarks": read_remarks(out_dir).to_dict("records"),
    }


def lines(state: State, out_dir: Path) -> Iterator[str]:
    """Yield what is printed of the state of a study."""
    from popatlas.cohort.ledger import incomplete, left_out
    from popatlas.cohort.remarks import remark_lines
    from popatlas.reasons import UNKNOWN

    yield state.summary().to_string()
    yield from run_lines(state)
    out = [*left_out(state.ledger).to_dict("records"), *incomplete(state.ledger).to_dict("records")]
    told = [row for row in out if row["state"] in ("failed", "unavailable")]
    for row in told[:SHOWN]:
        place = ", ".join(part for part in (row["stage"], row["code"]) if part not in ("", UNKNOWN))
        yield f"\n{row['state']:11} {row['scan']}  (at {place})\n  {row['reason']}"
        if row["log"]:
            yield f"  log: {out_dir / row['log']}"
    if len(told) > SHOWN:
        yield f"\n... and {len(told) - SHOWN} more: the column state of {out_dir / 'cohort/ledger.tsv'}, or --json"
    waiting: dict[tuple[str, str, str], list[str]] = {}
    for row in out:
        if row["state"] not in ("failed", "unavailable", "running", "queued"):
            waiting.setdefault((row["state"], row["stage"], row["reason"]), []).append(row["scan"])
    for (what, stage, reason), scans in waiting.items():
        more = f", ... ({len(scans)})" if len(scans) > NAMED else ""
        yield f"\n{what:11} {', '.join(scans[:NAMED])}{more}  (at {stage})\n  {reason}"
    if size := kept_bytes(out_dir):
        amount = f"{size[0] / GIGA:.1f} GB" if size[0] >= GIGA else f"{size[0] / MEGA:.0f} MB"
        yield f"\nresults take {amount} (retention: {size[1]})"
    if remarks := list(remark_lines(out_dir, SHOWN)):
        yield "\n" + "\n".join(remarks)
    groups = [name for name in GROUPS if (out_dir / name).is_file()]
    yield f"\ngroup results: {', '.join(groups) or 'none yet'}"


def run_lines(state: State) -> Iterator[str]:
    """Yield how far the jobs of no single scan are, and who works there or has died."""
    from popatlas.cli.display import duration

    journal = state.journal
    for name, jobs in journal.groups.items():
        counts = {"running": jobs.running, "queued": jobs.queued, "failed": jobs.failed}
        counts["to go"] = max(jobs.left - sum(counts.values()), 0)
        words = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        yield f"{name}: {jobs.done} of {jobs.done + jobs.left} jobs done{', ' * bool(words)}{words}"
    if state.run.alive:
        rate = journal.rate()
        speed = f"; {rate * 60:.1f} jobs/min" if rate else ""
        last = f", the last news {duration(max(time.time() - journal.last, 0))} ago" if journal.last else ""
        running, queued = state.jobs
        in_queue = f", {queued} queued" if queued else ""
        yield f"\na run works here: {running} jobs running{in_queue}{speed}{last} ({state.run.words})"
    elif state.is_interrupted:
        yield "\nthe last run ended without a word (killed?): finished work is kept, the same command goes on"
