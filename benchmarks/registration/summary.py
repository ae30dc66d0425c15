"""From runs to a table for each dataset, and the bars of what must hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from benchmarks.common import Bar, at_least, at_most
from benchmarks.registration.rows import Row

SCORES = (
    "dice",
    "hd95",
    "error",
    "error_p95",
    "folded",
    "folds",
    "sdlogj",
    "inverse_error",
    "volume_error",
    "cpu_s",
    "wall_s",
    "peak_mb",
    "added_mb",
)
COLUMNS = ("dataset", "case", "engine", "state", *SCORES, "folded_voxels", "cpu_spread")
SYMMETRIC = ("instance-fast", "instance-default", "instance-accurate")
PLAIN = tuple(f"{name}-plain" for name in SYMMETRIC)


def summarise(runs: Sequence[Row]) -> pd.DataFrame:
    """Return the means over the cases of each dataset and engine.

    Parameters
    ----------
    runs : sequence of Row
        One for each case and engine (see `__main__`); a number that does not exist is missing or None.

    Returns
    -------
    DataFrame
        ``dataset``, ``engine``, ``cases``, the means of `SCORES`, ``folded_voxels`` (worst case), ``cpu_spread`` (largest
        range over the repeats of a case, as a share of its median) and ``state`` where an engine did not run everywhere.
    """
    table = pd.DataFrame(runs).reindex(columns=list(COLUMNS))
    table = table.astype(dict.fromkeys(COLUMNS[4:], float))
    rows = []
    for (dataset, engine), group in table.groupby(["dataset", "engine"], sort=False):
        good = group[group["state"] == "ok"]
        states = sorted(set(group["state"]) - {"ok"})
        rows.append(
            {
                "dataset": dataset,
                "engine": engine,
                "cases": len(good),
                **{name: float(good[name].mean()) for name in SCORES},
                "folded_voxels": float(good["folded_voxels"].max()),
                "cpu_spread": float(good["cpu_spread"].max()),
                "state": ", ".join(states) or "ok",
            }
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Rule:
    """A statistic of one engine against that of another, or against a number.

    Attributes
    ----------
    engine, score : str
        Whose and which mean.
    sense : str
        "least" or "most": on which side of the threshold it must be.
    limit : float
        The threshold; with `against`, what its value is multiplied with.
    against : str, optional
        The other engine.
    ratio : bool
        Show the ratio to the other engine and not the value.
    """

    engine: str
    score: str
    sense: Literal["least", "most"]
    limit: float
    against: str | None = None
    ratio: bool = False

    def bar(self, dataset: str, means: pd.DataFrame) -> Bar:
        """Judge; an engine that did not run gives NaN, which holds nothing."""
        value = means[self.score].get(self.engine, float("nan"))
        name, threshold = f"{dataset}: {self.engine}, {self.score}", self.limit
        if self.against is not None:
            other = means[self.score].get(self.against, float("nan"))
            name += f" {'over that of' if self.ratio else 'against'} {self.against}"
            value, threshold = (value / other, self.limit) if self.ratio else (value, self.limit * other)
        return (at_least if self.sense == "least" else at_most)(name, value, threshold)


def better(engine: str, other: str) -> list[Rule]:
    """Return the rules of being at least as good in Dice and in the error of the field."""
    return [Rule(engine, "dice", "least", 1.0, other), Rule(engine, "error", "most", 1.0, other)]


RULES = [
    *(rule for other in ("greedy", "greedy-smooth", "syn-cc") for rule in better("instance-default", other)),
    *(Rule("instance-default", "cpu_s", "most", 0.6, other, ratio=True) for other in ("greedy", "greedy-smooth")),
    Rule("instance-default", "cpu_s", "most", 1 / 15, "syn-cc", ratio=True),
    Rule("instance-fast", "dice", "least", 1.0, "syn-cc"),
    *(Rule("instance-fast", "cpu_s", "most", 0.3, other, ratio=True) for other in ("greedy", "greedy-smooth")),
    *(Rule(name, "inverse_error", "most", 0.1) for name in SYMMETRIC),
    *(Rule(name, "folded_voxels", "most", 0.0) for name in PLAIN + SYMMETRIC),
]


def judge(summary: pd.DataFrame, engines: Iterable[str]) -> list[Bar]:
    """Return the bars of all datasets whose engines were asked for; without a true field there is none about its error."""
    asked = set(engines)
    bars = []
    for dataset, rows in summary.groupby("dataset", sort=False):
        means = rows.set_index("engine")
        known = means["error"].notna().any()
        for rule in RULES:
            if {rule.engine, rule.against or rule.engine} <= asked and (known or rule.score != "error"):
                bars.append(rule.bar(str(dataset), means))
    return bars
