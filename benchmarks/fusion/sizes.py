"""Volumes of fused labels against the true ones: STAPLE as published, each of our two changes, and its peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import Bar, Record, at_least, at_most, records
from benchmarks.fusion.cases import candidates
from benchmarks.fusion.methods import PUBLISHED, STAPLE, Options, fused, mean_dice
from benchmarks.fusion.volumes import SETTINGS

OURS = "staple"
WAYS: Mapping[str, Options] = {
    "majority": {"method": "majority"},
    STAPLE: PUBLISHED,
    "staple, disputed voxels": {"method": "staple", "region": "disputed", "prior": "frequency"},
    "staple, prior of volumes": {"method": "staple", "region": "all", "prior": "volumes"},
    OURS: {"method": "staple"},
}


def size_rows(files: Sequence[Path], settings: Sequence[str], radius: int) -> list[Record]:
    """Fuse all targets of each setting in each way; return Dice, and errors of the volumes over targets and labels."""
    tables = []
    ways = {**WAYS, "jlf": Options(method="jlf", radius=radius)}
    for setting in settings:
        rows = []
        for file in files:
            stack, truth = candidates(file, SETTINGS[setting])
            for method, dseg, seconds in fused(stack, ways):
                rows += target_rows(truth, dseg, {"method": method, "target": file.stem, "CPU s": seconds})
        tables.append(size_summary(pd.DataFrame(rows)).assign(setting=setting))
    table = pd.concat(tables, ignore_index=True)
    return records(table[["setting", *table.columns.drop("setting")]])


def target_rows(truth: np.ndarray, dseg: np.ndarray, known: Record) -> list[Record]:
    """Return one row for each true label: volumes in voxels, and the mean Dice of the target."""
    values = np.unique(truth)
    found = {"Dice": mean_dice(dseg, truth)}
    return [
        {**known, **found, "label": int(label), "true": int((truth == label).sum()), "volume": int((dseg == label).sum())}
        for label in values[values > 0]
    ]


def size_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return for each method: mean Dice, error of the volume in % (mean, mean size, SD), correlation within labels."""
    rows = rows.assign(error=100 * (rows["volume"] / rows["true"] - 1))
    found = []
    for method, part in rows.groupby("method", sort=False):
        centred = part[["true", "volume"]] - part.groupby("label")[["true", "volume"]].transform("mean")
        scaled = centred / part.groupby("label")[["true", "volume"]].transform("mean")
        found.append({
            "method": method,
            "n": part["target"].nunique(),
            "Dice": part["Dice"].mean(),
            "volume error, %": part["error"].mean(),
            "its size, %": part["error"].abs().mean(),
            "its SD, %": part["error"].std(),
            "correlation": scaled["true"].corr(scaled["volume"]),
            "CPU s": part["CPU s"].mean(),
        })  # fmt: skip
    return pd.DataFrame(found)


def size_bars(part: str, rows: Sequence[Record]) -> list[Bar]:
    """Return the bars: STAPLE is no longer too large, and no worse than as published."""
    table = pd.DataFrame(rows).set_index(["setting", "method"])
    bars = []
    for setting in table.index.unique("setting"):
        error = table["volume error, %"][(setting, OURS)]
        gain = table["Dice"][(setting, OURS)] - table["Dice"][(setting, STAPLE)]
        bars.append(at_most(f"{part}, {setting}: volume error of staple, %", abs(error), 10.0))
        bars.append(at_least(f"{part}, {setting}: Dice of staple - as published, points", 100 * gain, 0.0))
    return bars
