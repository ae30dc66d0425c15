"""Overlap against smoothness: engines at several smoothnesses on the same held-out pairs.

An engine that deforms more reaches more overlap, so engines are compared where their log-Jacobians spread alike. Smoothness
has more than one measure; the table also holds folds and the error of the volumes of structures that the Jacobian gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from benchmarks.common import PICTURES, Bar, at_least, at_most
from benchmarks.deep.bars import NAN, pairs_table, value_of
from benchmarks.deep.engines import ENGINES, FRONT, REFINED, T1W
from benchmarks.deep.rows import Row
from benchmarks.deep.runs import AFFINE
from benchmarks.pictures import save_figure
from benchmarks.registration.plot import annotate

TITLE = "Overlap at equal smoothness"
PICTURE = PICTURES / "front.png"
PEER, OURS = "greedy", "instance-default"
GAIN = 0.02  # Dice above the peer at its smoothness
SMOOTH = 0.40  # SD of the log-Jacobian of the network and its refinement
LOST = 0.01  # Dice that this may cost
SHOWN = (*FRONT, OURS, PEER, "syn-cc", T1W, *REFINED)


def front_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the means of all engines of the front, smoothest first."""
    table = pairs_table([row for row in rows if row["engine"] in SHOWN])
    return table.sort_values("sdlogj", ignore_index=True).drop(columns=["inverse_error", "state"])


def dice_at(table: pd.DataFrame, families: Sequence[str], spread: float) -> float:
    """Return the overlap of a family of engines at a smoothness, between its two next points; NaN outside of them."""
    own = table[[ENGINES[name].family in families for name in table["engine"]]].sort_values("sdlogj")
    return float(np.interp(spread, own["sdlogj"], own["dice"], left=NAN, right=NAN)) if len(own) else NAN


def front_bars(table: pd.DataFrame) -> list[Bar]:
    """Return what must hold: overlap above the peer at its smoothness and cost, and a smooth network."""
    means = table.set_index("engine")
    refined = f"{T1W}+10"
    if not {PEER, OURS, T1W, refined} <= set(means.index):
        return []
    gain = dice_at(table, ["instance"], value_of(means, PEER, "sdlogj")) - value_of(means, PEER, "dice")
    cost = value_of(means, OURS, "cpu_s") / value_of(means, PEER, "cpu_s")
    change = value_of(means, refined, "dice") - value_of(means, T1W, "dice")
    return [
        at_least(f"instance - {PEER}, Dice at the smoothness of {PEER}", gain, GAIN),
        at_most(f"{OURS} / {PEER}, CPU s", cost, 1.0),
        at_most(f"{refined}, SD of the log-Jacobian", value_of(means, refined, "sdlogj"), SMOOTH),
        at_least(f"{refined} - {T1W} alone, Dice", change, -LOST),
    ]


def draw_front(table: pd.DataFrame, path: Path = PICTURE) -> None:
    """Draw overlap against smoothness; engines of one family are joined where rougher ones overlap more.

    Parameters
    ----------
    table : DataFrame
        From `front_table`.
    path : Path
        PNG file.
    """
    shown = table[table["engine"] != AFFINE]
    families = [ENGINES[name].family for name in shown["engine"]]
    figure, axis = plt.subplots(figsize=(9, 6.5))
    for family, colour in zip(dict.fromkeys(families), matplotlib.color_sequences["tab10"], strict=False):
        own = shown[[name == family for name in families]]
        joined = "-" if own["dice"].is_monotonic_increasing else ""
        axis.plot(own["sdlogj"], own["dice"], f"o{joined}", color=colour, label=family, markersize=5, linewidth=1)
    axis.set_xlabel("standard deviation of the log-Jacobian in the brain (smooth on the left)")
    axis.set_ylabel("Dice, mean over structures and pairs")
    axis.set_title("held-out T1w pairs", loc="left", fontsize=10)
    axis.grid(alpha=0.25)
    axis.margins(0.12)
    axis.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.canvas.draw()  # names are placed in the final layout
    annotate(axis, list(shown["engine"]), shown["sdlogj"].to_numpy(float), shown["dice"].to_numpy(float))
    save_figure(figure, path)
