"""The Pareto plot: accuracy against CPU seconds."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox

from benchmarks.pictures import save_figure
from benchmarks.registration.peers import ENGINES

SHOWN = {"dice": ("Dice", 1), "error": ("error of the field, voxels", -1)}  # and the direction that is better
STEPS = (0, 12, -12, 24, -24, 36, -36, 48, -48)
PLACES = [(x, y) for y in STEPS for x in (10, -10)]  # of a name from its point, in points of the page


def pareto(cost: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return the indices, cheapest first, of the points that no cheaper point equals or beats."""
    order: npt.NDArray[np.intp] = np.lexsort((-gain, cost))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], gain[order][:-1]]))
    return order[gain[order] > best]


def plot(summary: pd.DataFrame, path: Path) -> None:
    """Draw one column for each dataset, Dice above the error of the field.

    Parameters
    ----------
    summary : DataFrame
        From `summary.summarise`; engines without CPU seconds (the unregistered pair, the truth) are named in
        the title of the panel.
    path : Path
        PNG file.
    """
    datasets = list(dict.fromkeys(summary["dataset"]))
    scores = [name for name in SHOWN if summary[name].notna().any()]
    figure, axes = plt.subplots(len(scores), len(datasets), figsize=(7 * len(datasets), 5 * len(scores)), squeeze=False)
    named = []
    for column, dataset in enumerate(datasets):
        rows = summary[summary["dataset"] == dataset]
        for axis, score in zip(axes[:, column], scores, strict=True):
            points = rows[(rows["cpu_s"] > 0) & rows[score].notna()]
            if points.empty:
                axis.set_axis_off()
                continue
            axis.set_title(dataset, loc="left")
            given = rows.loc[~(rows["cpu_s"] > 0), ["engine", score]].itertuples(index=False)
            axis.set_title(
                ", ".join(f"{engine} {value:.3g}" for engine, value in given), fontsize=8, loc="right", color="0.4"
            )
            _panel(axis, points, score)
            named.append((axis, points, score))
    figure.tight_layout()
    figure.canvas.draw()  # names are placed in the final layout
    for axis, points, score in named:
        annotate(axis, list(points["engine"]), points["cpu_s"].to_numpy(), points[score].to_numpy())
    save_figure(figure, path)


def _panel(axis: Axes, points: pd.DataFrame, name: str) -> None:
    label, sign = SHOWN[name]
    families = list(dict.fromkeys(engine.family for engine in ENGINES.values()))
    colours = dict(zip(families, matplotlib.color_sequences["tab10"], strict=False))
    cost, values = points["cpu_s"].to_numpy(), points[name].to_numpy()
    front = pareto(cost, sign * values)
    axis.step(cost[front], values[front], where="post", color="0.8", zorder=0)
    axis.scatter(cost, values, c=[colours[ENGINES[engine].family] for engine in points["engine"]], s=28)
    axis.set_xscale("log")
    axis.margins(0.2, 0.15)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.set_xlabel("CPU seconds, one thread")
    axis.set_ylabel(f"{label} ({'higher' if sign > 0 else 'lower'} is better)")
    axis.grid(alpha=0.25, which="both")


def annotate(axis: Axes, names: list[str], cost: np.ndarray, values: np.ndarray) -> None:
    """Write the names beside the points, each at the first place where it covers no other name and no point."""
    taken: list[Bbox] = []
    dots = axis.transData.transform(np.column_stack([cost, values]))
    write = partial(
        axis.annotate,
        textcoords="offset points",
        va="center",
        fontsize=7,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
    )
    for name, x, y in zip(names, cost, values, strict=True):
        for place in PLACES:
            side = "left" if place[0] > 0 else "right"
            text = write(name, (x, y), xytext=place, ha=side)
            text.get_window_extent()  # puts the name where it belongs
            box = Text.get_window_extent(text)  # without the line to the point
            if not any(box.overlaps(other) for other in taken) and not any(box.contains(*dot) for dot in dots):
                break
            if place != PLACES[-1]:
                text.remove()
        taken.append(box)
