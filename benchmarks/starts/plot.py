"""One row of bars for each kind of damage and method: right, refused, wrong."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.patches import Rectangle

from benchmarks.pictures import save_figure

COLOURS = {"right": "#4c9f70", "refused": "#e0c25a", "wrong": "#c0504d"}


def plot(summary: pd.DataFrame, path: Path) -> None:
    """Draw the shares of verdicts.

    Parameters
    ----------
    summary : DataFrame
        Columns data, kind, method, right, refused, wrong, cases.
    path : Path
        PNG file.
    """
    counts = summary.groupby(["kind", "method"], sort=False)[[*COLOURS, "cases"]].sum()
    methods = list(dict.fromkeys(summary["method"]))
    kinds = list(dict.fromkeys(summary["kind"]))
    figure, axes = plt.subplots(
        1, len(methods), figsize=(4.2 * len(methods), 0.42 * len(kinds) + 1.4), sharey=True, squeeze=False
    )
    for axis, method in zip(axes[0], methods, strict=True):
        for row, kind in enumerate(kinds):
            if (kind, method) not in counts.index:
                continue
            one, start = counts.loc[(kind, method)], 0.0
            for name, colour in COLOURS.items():
                share = one[name] / one["cases"]
                axis.barh(row, share, left=start, color=colour, label=name if row == 0 else None)
                if share > 0.06:
                    axis.text(start + share / 2, row, f"{one[name]:.0f}", ha="center", va="center", fontsize=8)
                start += share
        axis.set_title(method, loc="left")
        axis.set_xlim(0, 1)
        axis.set_xticks([])
        axis.set_yticks(range(len(kinds)), kinds)
    axes[0][0].invert_yaxis()
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    figure.legend(handles, ["right", "refused", "wrong and passed"], loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    save_figure(figure, path)
