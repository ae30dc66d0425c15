"""The scans on the page of the cohort: rows of its table and, of a large cohort, a file from which the browser shows them.

A table of ten thousand rows of HTML is 10 MB that take a browser seconds to sort. Above `MOST_ROWS` the page holds the first
rows only, for readers without JavaScript, and the others come from a file beside it, row by row as they are scrolled into
view.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from popatlas.images.io import write_if_changed
from popatlas.report.outliers import OUTLIER, Measure

# place in the list, before the score: what needs a look first
ORDER = {"failed": 0, "ok": 1, "pending": 2, "unavailable": 3, "excluded": 4}
MOST_ROWS, FIRST_ROWS = 300, 100
MOST_OUT = 200  # scans that are out, or have remarks, in the lists of the overview


@dataclass(frozen=True)
class Row:
    """A scan in table and montage."""

    scan: str
    name: str
    state: str
    stage: str
    reason: str
    remedy: str
    log: str
    page: str
    picture: str
    score: float
    measure: str
    values: list[float]
    registered: str
    atlases: int

    @property
    def odd(self) -> bool:
        """Whether the scan is an outlier."""
        return self.state == "ok" and self.score > OUTLIER

    @property
    def rank(self) -> float:
        """What the column of scores is sorted by."""
        return {"ok": self.score, "failed": 1e9}.get(self.state, -float(ORDER[self.state]))

    @property
    def words(self) -> str:
        """What the filter searches."""
        flag = "outlier" if self.odd else ""
        return f"{self.name} {self.state} {self.stage} {self.reason} {self.measure} {self.registered} {flag}".lower()


def is_long(rows: Sequence[Row]) -> bool:
    """Tell whether a table has more rows than a page should hold."""
    return len(rows) > MOST_ROWS


def shown(rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows that the page itself holds."""
    return rows[:FIRST_ROWS] if is_long(rows) else rows


def write_scans(rows: Sequence[Row], measures: Sequence[Measure], path: Path) -> None:
    """Write the rows of a long table as a script, which a page may load from a disk; remove that of a shorter one.

    Parameters
    ----------
    rows : sequence of Row
        All scans.
    measures : sequence of Measure
        Of their values.
    path : Path
        The script. It sets `window.popatlasRows`: `texts`, and `rows` of name, whether there is a page, state, stage,
        reason, measure, registered (each a place in `texts`), whether it is an outlier, rank, score, atlases, values.
    """
    if not is_long(rows):
        path.unlink(missing_ok=True)
        return
    texts: dict[str, int] = {}

    def place(text: str) -> int:
        return texts.setdefault(text, len(texts))

    listed = [
        [
            row.name, int(bool(row.page)), *map(place, (row.state, row.stage, row.reason, row.measure, row.registered)),
            int(row.odd), _number(row.rank, 4), _number(row.score, 4), row.atlases,
            *(_number(value, measure.digits) for value, measure in zip(row.values, measures, strict=True)),
        ]
        for row in rows
    ]  # fmt: skip
    content = {"digits": [measure.digits for measure in measures], "texts": list(texts), "rows": listed}
    write_if_changed(path, f"window.popatlasRows = {json.dumps(content, separators=(',', ':'), allow_nan=False)};\n")


def _number(value: float, digits: int) -> float | None:
    return None if value != value else round(float(value), digits)
