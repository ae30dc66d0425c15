"""Dice of each method in each setting, one panel for each dataset and setting."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from benchmarks.common import PICTURES
from benchmarks.fusion.methods import OURS, PEER, STAPLE
from benchmarks.pictures import save_figure

PICTURE = PICTURES / "fusion.png"
COLUMNS = 3
COLOURS = {OURS: "#b2182b", STAPLE: "#2166ac"}


def draw(tables: dict[str, pd.DataFrame], path: Path = PICTURE) -> None:
    """Draw the summaries of the datasets; a bar is the mean over targets, a line its standard deviation."""
    panels = [(part, setting, rows) for part, table in tables.items() for setting, rows in table.groupby("setting")]
    columns = min(len(panels), COLUMNS)
    lines = -(-len(panels) // columns)
    size = (3.2 + 3.2 * columns, 4.0 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, sharey=True, sharex=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    order = [name for name in panels[0][2].sort_values("Dice")["method"] if name != PEER]
    for axis, (part, setting, rows) in zip(axes.flat, panels, strict=False):
        shown = rows.set_index("method").reindex(order)
        axis.barh(order, shown["Dice"], xerr=shown["SD"], color=[COLOURS.get(name, "0.65") for name in order], ecolor="0.3")
        axis.set_xlim(0, 1)
        for place, value in enumerate(shown["Dice"]):
            axis.text(0.01, place, f"{value:.3f}", va="center", color="white", fontsize=8)
        axis.set_title(f"{part}, {setting} (n = {int(shown['n'].max())})", loc="left", fontsize=10)
        axis.set_xlabel("Dice, mean over labels and targets")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    save_figure(figure, path)
