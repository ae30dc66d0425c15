"""The picture: Dice against seconds for each engine, and Dice in each contrast."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchmarks.common import PICTURES
from benchmarks.deep.contrast import CONTRASTS
from benchmarks.deep.engines import ENGINES
from benchmarks.deep.runs import AFFINE
from benchmarks.pictures import save_figure
from benchmarks.registration.plot import annotate, pareto

PICTURE = PICTURES / "deep.png"
MARKERS = {"network": "*", "network + refinement": "P", "imported network": "X"}
SHADES = ("0.25", "#2166ac", "#b2182b")  # of the contrasts


def draw(pairs: pd.DataFrame | None, contrast: pd.DataFrame | None, path: Path = PICTURE) -> None:
    """Draw what there is.

    Parameters
    ----------
    pairs, contrast : DataFrame or None
        From `benchmarks.deep.bars.pairs_table` and `contrast_table`.
    path : Path
        PNG file.
    """
    count = sum(table is not None for table in (pairs, contrast))
    if not count:
        return
    figure, axes = plt.subplots(1, count, figsize=(8.5 * count, 6.5), squeeze=False)
    panels = list(axes[0])
    if contrast is not None:
        _bars(panels.pop(), contrast)
    shown = pd.DataFrame() if pairs is None else _points(panels[0], pairs)
    figure.tight_layout()
    figure.canvas.draw()  # names are placed in the final layout
    if len(shown):
        annotate(panels[0], list(shown["engine"]), shown["wall_s"].to_numpy(float), shown["dice"].to_numpy(float))
    save_figure(figure, path)


def _points(axis: Axes, table: pd.DataFrame) -> pd.DataFrame:
    """Draw the engines and return those that are shown."""
    shown = table[(table["wall_s"] > 0) & table["dice"].notna()]
    families = list(dict.fromkeys(ENGINES[name].family for name in shown["engine"]))
    colours = dict(zip(families, matplotlib.color_sequences["tab10"], strict=False))
    seconds, dice = shown["wall_s"].to_numpy(float), shown["dice"].to_numpy(float)
    front = pareto(seconds, dice)
    axis.step(seconds[front], dice[front], where="post", color="0.8", zorder=0)
    for family in families:
        chosen = np.array([ENGINES[name].family == family for name in shown["engine"]])
        marker, size = MARKERS.get(family, "o"), 90 if family in MARKERS else 32
        axis.scatter(seconds[chosen], dice[chosen], color=colours[family], marker=marker, s=size, label=family)
    axis.set_xscale("log")
    axis.margins(0.2, 0.15)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("wall seconds of a pair, one thread")
    axis.set_ylabel("Dice, mean over structures and pairs")
    before = table.loc[table["engine"] == AFFINE, "dice"]
    axis.set_title(f"held-out T1w pairs (affine: {before.mean():.3f})", loc="left", fontsize=10)
    axis.grid(alpha=0.25, which="both")
    axis.legend(fontsize=8, loc="lower right")
    return shown


def _bars(axis: Axes, table: pd.DataFrame) -> None:
    places = np.arange(len(table))
    width = 0.8 / len(CONTRASTS)
    for number, (name, shade) in enumerate(zip(CONTRASTS, SHADES, strict=True)):
        axis.barh(places + (number - 1) * width, table[f"Dice, {name}"], width, color=shade, label=f"fixed image: {name}")
    axis.set_yticks(places, table["engine"])
    axis.invert_yaxis()
    axis.set_xlabel("Dice, mean over structures and pairs")
    axis.set_title("moving T1w, fixed image in other contrasts", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, -0.2), ncol=len(CONTRASTS), frameon=False)
