"""Mean and spread over scans of what was measured."""

from __future__ import annotations

from array import array

import pandas as pd

from popatlas.measures.dictionary import BRAIN
from popatlas.measures.landmarks import LANDMARKS
from popatlas.measures.metrics import METRICS
from popatlas.measures.sessions import COORDINATES as OF_AFFINES
from popatlas.measures.wide import WHO

COORDINATES = (*LANDMARKS, *OF_AFFINES)
LINE = ["template", "method", "metric", "unit"]
COLUMNS = [*LINE, "scans", "mean", "sd", "minimum", "maximum"]


class Spread:
    """Values of the summary, one for each scan and line, gathered piece by piece.

    Values are averaged over labels within a scan first, so that every scan counts once. Coordinates and volumes of single
    labels are left out: their mean over labels has no meaning.
    """

    def __init__(self) -> None:
        self._lines: dict[tuple[str, ...], int] = {}
        self._places, self._values = array("l"), array("d")

    def add(self, rows: pd.DataFrame) -> None:
        """Add the rows of some scans, all that they have of a metric."""
        single = rows["metric"].isin(COORDINATES) | ((rows["metric"] == "volume") & (rows["label"] != BRAIN))
        if single.all():
            return
        per_scan = rows[~single].groupby([*LINE, *WHO], sort=False)["value"].mean().dropna()
        lines = zip(*(per_scan.index.get_level_values(name) for name in LINE), strict=True)
        self._places.extend(self._lines.setdefault(tuple(map(str, line)), len(self._lines)) for line in lines)
        self._values.extend(per_scan.to_numpy(float))

    def table(self) -> pd.DataFrame:
        """Return the summary: a row for each template, method and metric."""
        if not self._lines:
            return pd.DataFrame(columns=COLUMNS)
        gathered = pd.DataFrame({"line": self._places, "value": self._values})
        groups = gathered.groupby("line")["value"]
        table = groups.agg(scans="size", mean="mean", sd="std", minimum="min", maximum="max").reset_index()
        lines = list(self._lines)
        for number, name in enumerate(LINE):
            table[name] = [lines[place][number] for place in table["line"]]
        order = {name: place for place, name in enumerate(METRICS)}
        table = table.sort_values(LINE, ignore_index=True)
        return table.sort_values(LINE[:3], key=lambda c: c.map(order) if c.name == "metric" else c, ignore_index=True)[
            COLUMNS
        ]


def summarise(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return mean and spread over scans by template, method and metric, see `Spread`."""
    spread = Spread()
    spread.add(metrics)
    return spread.table()
