"""`popatlas efficiency`: what jobs asked for and what they used, and what to ask for instead."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popatlas.cli.arguments import Subparsers, given_path

if TYPE_CHECKING:
    from popatlas.study.efficiency import Efficiency, Range, StepUse, Use

HEAD = ("rule", "jobs", "failed", "asked MB", "used MB", "asked min", "used min", "cores", "busy")


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `efficiency`."""
    parser = subparsers.add_parser(
        "efficiency",
        help="compare what jobs asked for with what they used",
        description="For each rule: jobs that ended well, attempts that failed, memory, time and cores that were asked for "
        "(least and most) and that were used (by the job in the middle, and most), and below it the same of each step that "
        "shared its job with others. Then what to ask for instead, as an option of `popatlas run` or a key of the "
        "configuration. It may be called while a run works.",
    )
    parser.add_argument("out_dir", type=given_path, help="output folder of a run")
    parser.add_argument("--last-run", action="store_true", help="only the jobs of the last run that ran any")
    parser.add_argument("--json", action="store_true", help="print JSON (workflow/schemas/efficiency.schema.yaml)")


def main(args: argparse.Namespace) -> int:
    """Print what jobs asked for and used."""
    from popatlas.cohort.jobbook import BOOK, read_book
    from popatlas.errors import InputError
    from popatlas.study.efficiency import efficiency

    entries = read_book(args.out_dir)
    if not entries:
        remedy = "start with `popatlas run BIDS_DIR OUT_DIR`; what earlier versions ran is not in it"
        raise InputError("no job has been written down", file=args.out_dir / BOOK, remedy=remedy)
    if args.last_run:
        began = last_start(args.out_dir, entries[-1].ended)
        entries = [entry for entry in entries if entry.ended >= began]
    found = efficiency(entries)
    print(json.dumps(content(found), indent=2) if args.json else "\n".join(lines(found)))
    return 0


def last_start(out_dir: Path, end: float) -> float:
    """Return when the run began in which a job ended, seconds since 1970; 0 where that is not known."""
    from datetime import datetime

    from popatlas.cohort.runrecords import read_runs

    starts = [datetime.fromisoformat(run["started"]).timestamp() for run in read_runs(out_dir)]
    return max((start for start in starts if start <= end), default=0.0)


def content(found: Efficiency) -> dict[str, Any]:
    """Return it as JSON has it."""
    used, asked = zip(found.core_hours, found.gb_hours, strict=True)
    return {
        "jobs": found.jobs,
        "failed": dict(found.failed),
        "used": {"core_hours": used[0], "gb_hours": used[1]},
        "asked": {"core_hours": asked[0], "gb_hours": asked[1]},
        "rules": [asdict(use) for use in found.uses],
        "advice": [asdict(one) for one in found.advice],
    }


def lines(found: Efficiency) -> Iterator[str]:
    """Yield what is printed: a table, and what to change."""
    yield "\n".join(_table([HEAD, *(row for use in found.uses for row in _rows(use))]))
    yield f"\n{in_short(found)}"
    if not found.advice:
        yield "nothing to change"
    for one in found.advice:
        yield f"\n{one.rule}: {one.about}: {one.why}"
        if one.change:
            yield f"  {one.change}"
    if any(one.change.startswith("--set-") for one in found.advice):
        yield "\nOptions are those of `popatlas run`; for good they go into a profile (docs/hpc.md, Asked for and used)."


def in_short(found: Efficiency) -> str:
    """Return how much of what was asked for was used, in a line."""
    totals = ((found.core_hours, "the cores"), (found.gb_hours, "the memory"))
    shares = [f"{100 * used / asked:.0f} % of {what}" for (used, asked), what in totals if asked]
    used = f" used {' and '.join(shares)} that they asked for" if shares else ""
    failed = ", ".join(f"{count} {code}" for code, count in found.failed.items())
    return f"{found.jobs} jobs{used}{f'; attempts that failed: {failed}' if failed else ''}"


def after_run(out_dir: Path, began: float) -> Iterator[str]:
    """Yield the lines for the end of a run: what its jobs used, and where too little was asked for.

    Parameters
    ----------
    out_dir : Path
        Output folder.
    began : float
        When the run began, seconds since 1970.
    """
    from popatlas.cohort.jobbook import read_book
    from popatlas.study.efficiency import efficiency

    entries = read_book(out_dir, began)
    if not entries:
        return
    found = efficiency(entries)
    more = f"; {len(found.advice)} advice(s): popatlas efficiency {out_dir} --last-run" if found.advice else ""
    yield f"{in_short(found)}{more}"


def _rows(use: Use) -> Iterator[Sequence[str]]:
    asked = _range(use.asked_mb, "-"), _range(use.asked_minutes, "-")
    busy = "" if use.busy is None else f"{100 * use.busy:.0f} %"
    failed = str(sum(use.failed.values()) or "")
    used = _used(use.used_mb, use.share_mb, 0), _used(use.used_minutes, use.share_minutes, 1)
    yield use.rule, str(use.jobs), failed, asked[0], used[0], asked[1], used[1], str(use.cores), busy
    for step in use.steps:
        yield _step_row(step)


def _step_row(step: StepUse) -> Sequence[str]:
    used = _used(step.used_mb, None, 0), _used(step.used_minutes, None, 1)
    return f"  {step.rule}", str(step.count), "", "", used[0], "", used[1], "", f"{100 * step.cores:.0f} %"


def _used(found: Range | None, share: float | None, digits: int) -> str:
    part = "" if share is None else f" ({100 * share:.0f} %)"
    return "" if found is None else f"{found[0]:.{digits}f}, {found[1]:.{digits}f}{part}"


def _range(found: Range | None, between: str) -> str:
    if found is None:
        return ""
    return f"{found[0]:.0f}" if found[0] == found[1] else f"{found[0]:.0f}{between}{found[1]:.0f}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
