"""What the images of a cohort told when they were opened: the rows of the index that follow, and what is remembered."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import pandas as pd

from popatlas.cohort.choice import Choice, Rules, choose, judged
from popatlas.cohort.inspect import NO_FILE, Inspection, Stamp
from popatlas.config.sections import Cohort
from popatlas.settings import Content

COLUMNS = (
    "scan", "subject", "session", "role", "state", "reason", "t1w", "channels", "runs", "unused_runs",
    "choice", "candidates", "sha256", "shape", "spacing_mm", "orientation", "bytes", "mtime_ns", "inspected",
)  # fmt: skip
MOST_CHANGES = 10  # scans with another image than before that are named
FACTS = {item.name for item in fields(Inspection)}
Key = tuple[str, int, int, int]


class Opened:
    """What opening the images told, and from it the rows of the index.

    Parameters
    ----------
    found : mapping
        Path to inspection.
    stamps : mapping
        Path to stamp.
    before : mapping
        Scan to the T1w taken last time.
    rules : Rules
        How images are chosen.
    """

    def __init__(
        self,
        found: Mapping[str, Inspection],
        stamps: Mapping[str, Stamp],
        before: Mapping[str, str],
        rules: Rules,
    ) -> None:
        self.found, self.stamps, self.before, self.rules = found, stamps, before, rules
        self.seen: dict[tuple[str, str], str] = {}

    def row(self, row: Content) -> Content:
        """Return the complete row of a scan; the first of two scans with one image keeps it."""
        images, filtered = row["images"], row["filtered"]
        row = {key: value for key, value in row.items() if key in COLUMNS}
        blank = {"sha256": "", "shape": "", "spacing_mm": "", "orientation": "", "bytes": 0, "mtime_ns": 0}
        row |= blank | {"choice": "", "candidates": "{}", "inspected": "{}"}
        if row["state"] != "ok":
            return row
        chosen = {suffix: self._choose(row, suffix, paths) for suffix, paths in images.items()}
        t1w = chosen.pop("T1w")
        path = t1w.best.path
        facts = {key: value for key, value in asdict(self.found[path]).items() if key in COLUMNS}
        row |= facts | dict(zip(("bytes", "mtime_ns"), self.stamps[path][:2], strict=True))
        others = [one for one in (*t1w.why_not, *filtered.get("T1w", {})) if one != path]
        row |= {
            "t1w": path,
            "choice": _choice_words(t1w, chosen) if t1w.taken else "",
            "unused_runs": ", ".join(sorted(Path(one).name for one in others)),
            "candidates": json.dumps(_candidates({"T1w": t1w, **chosen}, filtered)),
            "inspected": json.dumps({one: self._facts(one) for group in images.values() for one in group}),
        }
        if t1w.taken is None:
            return {**row, "state": "unavailable", "reason": t1w.why}
        self.seen[row["role"], self.found[path].voxels] = row["scan"]
        # a bad channel does not cost the scan
        notes = [f"{suffix} left out: {choice.why}" for suffix, choice in chosen.items() if choice.taken is None]
        notes += [f"{suffix} left out: {Inspection('filter').reason}" for suffix in filtered if suffix not in images]
        kept = {suffix: choice.taken.path for suffix, choice in chosen.items() if choice.taken}
        return {**row, "channels": json.dumps(kept), "reason": "; ".join(notes)}

    def _choose(self, row: Content, suffix: str, paths: Sequence[str]) -> Choice:
        former = self.before.get(row["scan"], "") if suffix == "T1w" else ""
        images = [judged(path, self._inspection(row, suffix, path), self.rules, suffix) for path in paths]
        return choose(images, self.rules, former)

    def _inspection(self, row: Content, suffix: str, path: str) -> Inspection:
        """Return what opening an image told, or that another scan has the same one."""
        found = self.found[path]
        other = self.seen.get((row["role"], found.voxels), "") if suffix == "T1w" and not found.code else ""
        return replace(found, code="duplicate", detail=other) if other else found

    def _facts(self, path: str) -> list[object]:
        return [*self.stamps[path], asdict(self.found[path])]


def _choice_words(t1w: Choice, channels: Mapping[str, Choice]) -> str:
    others = [f"{suffix}: {choice.why}" for suffix, choice in channels.items() if choice.taken and choice.why]
    return " | ".join([*([t1w.why] if t1w.why else []), *others])


def _candidates(chosen: Mapping[str, Choice], filtered: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Return by suffix and file why each image was not taken; the text of the one that was is empty."""
    table: dict[str, dict[str, str]] = {}
    for suffix, choice in chosen.items():
        taken = {choice.taken.path: ""} if choice.taken else {}
        table[suffix] = taken | dict(choice.why_not)
    for suffix, left in filtered.items():
        table[suffix] = table.get(suffix, {}) | dict(left)
    return {suffix: {Path(path).name: why for path, why in found.items()} for suffix, found in table.items() if found}


def say_choices(table: pd.DataFrame, former: pd.DataFrame) -> None:
    """Say aloud that images were chosen, and which scans, known before, have another T1w now: their results will change.

    Parameters
    ----------
    table, former : DataFrame
        The index and the last one.
    """
    usable, before = table[table["state"] == "ok"], former[former["state"] == "ok"].set_index("scan")
    known = set(zip(before.index, before["choice"], strict=True))
    new = [scan for scan, why in zip(usable["scan"], usable["choice"], strict=True) if why and (scan, why) not in known]
    if new:
        print(
            f"popatlas: of {len(new)} scan(s) with several images one was taken: `popatlas check`, or the column choice of "
            "cohort/index.tsv, tells which and why",
            file=sys.stderr,
        )
    last = dict(zip(before.index, zip(before["t1w"], before["sha256"], strict=True), strict=True))
    rows = [{str(key): value for key, value in row.items()} for row in usable.to_dict("records")]
    changed = [row for row in rows if row["scan"] in last and _is_another(row, *last[row["scan"]])]
    for row in changed[:MOST_CHANGES]:
        paths = last[row["scan"]][0], row["t1w"]
        names = [Path(path).name for path in paths]
        names = list(paths) if names[0] == names[1] else names
        why = f" ({row['choice']})" if row["choice"] else ""
        print(f"popatlas: {row['scan']}: the T1w was {names[0]} and is now {names[1]}{why}", file=sys.stderr)
    if len(changed) > MOST_CHANGES:
        print(f"popatlas: and {len(changed) - MOST_CHANGES} more scans have another T1w now", file=sys.stderr)


def _is_another(row: Content, t1w: str, digest: str) -> bool:
    """Tell whether a scan has another T1w than before, which neither a dataset that was moved nor a copy is."""
    places = [path.rpartition(f"/{row['subject']}/")[2] for path in (t1w, row["t1w"])]
    return bool(places[0] != places[1] and digest != row["sha256"])


def former_inspections(former: pd.DataFrame, options: Cohort) -> dict[Key, Inspection]:
    """Return what the last index knows of images by path and stamp, as far as it would be found again."""
    found: dict[Key, Inspection] = {}
    for text in former["inspected"]:
        for path, (*stamp, facts) in json.loads(text).items():
            # an index of before may lack a time: its files are opened again
            if len(stamp) == len(NO_FILE) and set(facts) == FACTS and holds(inspection := Inspection(**facts), options):
                size, modified, changed = stamp
                found[path, size, modified, changed] = inspection
    return found


def holds(found: Inspection, options: Cohort) -> bool:
    """Tell whether a finding holds under the present limits, which may have been changed since."""
    if found.code in ("shape", "spacing"):
        return not _within(found, options)
    return found.lasting and (bool(found.code) or _within(found, options))


def _within(found: Inspection, limits: Cohort) -> bool:
    low, high = limits.spacing_mm
    spacing = [float(value) for value in found.spacing_mm.split("x") if value]
    shape = [int(value) for value in found.shape.split("x")[:3] if value]
    return all(low < value < high for value in spacing) and all(value >= limits.min_shape for value in shape)


def inspected_digests(inspected: str | None) -> dict[str, str]:
    """Return the SHA-256 of each image of a scan by its path, from the column `inspected` of the index."""
    return {path: facts["sha256"] for path, (*_, facts) in json.loads(inspected or "{}").items()}
