"""What a run would change: scans that came, went or changed, and the jobs that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Changes:
    """Scans of two indices compared."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    usable: int


def cohort_changes(before: pd.DataFrame | None, after: pd.DataFrame) -> Changes:
    """Compare the index of the last run with the present one.

    Parameters
    ----------
    before : DataFrame or None
        Former index, None at the first run.
    after : DataFrame
        Present index.
    """
    now = _usable(after)
    then = {} if before is None else _usable(before)
    out = after[after["state"] != "ok"]
    return Changes(
        added=tuple(sorted(set(now) - set(then))),
        removed=tuple(sorted(set(then) - set(now))),
        changed=tuple(sorted(scan for scan in set(now) & set(then) if now[scan] != then[scan])),
        left_out=tuple(zip(out["scan"], out["reason"], strict=True)),
        usable=len(now),
    )


def _usable(index: pd.DataFrame) -> dict[str, str]:
    good = index[index["state"] == "ok"]
    return dict(zip(good["scan"], good["sha256"], strict=True))


def format_plan(jobs: Mapping[str, int], changes: Changes, reasons: Sequence[str] = ()) -> str:
    """Return the plan as text: scans first, then why finished results are made again, then jobs per rule."""
    lines = [
        f"scans: {changes.usable} usable (+{len(changes.added)} new, -{len(changes.removed)} gone, "
        f"{len(changes.changed)} changed), {len(changes.left_out)} left out"
    ]
    lines += [f"  left out  {scan}: {reason}" for scan, reason in changes.left_out]
    lines += [f"  gone      {scan}" for scan in changes.removed]
    lines += list(reasons)
    if not jobs:
        return "\n".join([*lines, "jobs:  none, everything is up to date"])
    lines.append(f"jobs:  {sum(jobs.values())}")
    width = max(len(name) for name in jobs)
    lines += [f"  {name:{width}}  {count:6}" for name, count in jobs.items()]
    return "\n".join(lines)
