"""What a run would change: scans that came, went or changed, and the jobs that follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from popatlas.images.io import read_table

NAMED = 5


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


def read_index(out_dir: Path) -> pd.DataFrame | None:
    """Return the cohort index of an output folder, None where nothing has been indexed."""
    path = out_dir / "cohort" / "index.parquet"
    return read_table(path) if path.is_file() else None


def describe_changes(before: pd.DataFrame | None, after: pd.DataFrame | None) -> Iterator[str]:
    """Yield what changed in the cohort since the last run, in words; nothing at the first run.

    A scan that has another name now (its subject got a session, say) is told from a new one by its image.
    """
    if before is None or after is None:
        return
    changes, then, now = cohort_changes(before, after), _usable(before), _usable(after)
    images = {now[scan]: scan for scan in changes.added}
    moved = {scan: images[then[scan]] for scan in changes.removed if then[scan] in images}
    gone = [scan for scan in changes.removed if scan not in moved]
    new = [scan for scan in changes.added if scan not in moved.values()]
    for words, scans in (("new", new), ("gone", gone), ("with another image than before", changes.changed)):
        if scans:
            yield f"{len(scans)} scan(s) {words}: {_names(scans)}"
    for scan, name in moved.items():
        yield (
            f"{_names([scan])} is called {_names([name])} now (the same image): it is made again under that name; its "
            "results under the old name stay where they are and are in no table"
        )


def _names(scans: Sequence[str]) -> str:
    return ", ".join(scan.rsplit("/", 1)[-1] for scan in scans[:NAMED]) + (", ..." if len(scans) > NAMED else "")


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
    lines += [f"  replaced  {scan}: another image than before" for scan in changes.changed]
    if changes.added and len(changes.added) < changes.usable:
        lines.append(f"  new       {_names(changes.added)}")
    lines += list(reasons)
    if not jobs:
        return "\n".join([*lines, "jobs:  none, everything is up to date"])
    lines.append(f"jobs:  {sum(jobs.values())}")
    width = max(len(name) for name in jobs)
    lines += [f"  {name:{width}}  {count:6}" for name, count in jobs.items()]
    return "\n".join(lines)
