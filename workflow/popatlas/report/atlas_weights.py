"""What each atlas weighs: a figure for the cohort, and its section of the cohort page."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from popatlas.fusion.dataparams.table import by_atlas, informative, relative_weight
from popatlas.images.arrays import FloatArray
from popatlas.images.io import atomic_path
from popatlas.report.pages import link, optional_table, scan_name, subject_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ATLAS_WEIGHTS_TABLE = "group/trust.parquet"
ATLAS_WEIGHTS_FIGURE = "report/figures/trust.png"
MOST_PANELS = 3
NAMED = 3
LISTED = 5
# a wider range of relative weights is shown on a logarithmic axis, what is smaller at its end
LINEAR_UP_TO, SMALLEST = 4.0, 0.02
INK, SOFT, RULE, DOT, FAR = "#1a2126", "#5b6770", "#dfe4e6", "#0a6a78", "#c2410c"


def shown_methods(table: pd.DataFrame) -> list[str]:
    """Return the methods that are drawn: those that tell atlases apart, or the first one when none does."""
    methods = informative(table)[:MOST_PANELS]
    return methods or sorted(table["method"].unique())[:1]


def draw_atlas_weights(table: pd.DataFrame, path: Path) -> None:
    """Draw the weight of each atlas over the targets: panels for the methods that tell atlases apart, a row for each atlas.

    Parameters
    ----------
    table : DataFrame
        From :func:`popatlas.fusion.dataparams.table.tabulate_atlas_weights`; may be empty.
    path : Path
        PNG. Dots are targets, the bar is the median; the targets of the pairs of least weight are named.
    """
    from matplotlib.figure import Figure

    methods = shown_methods(table)
    order = list(by_atlas(table, methods[0])["atlas"]) if methods else []
    height = 0.9 + max(0.22 * len(order), 0.6)
    figure = Figure(figsize=(1.6 + 3.0 * max(len(methods), 1), height), dpi=110, facecolor="white", layout="constrained")
    panels = np.ravel(figure.subplots(1, max(len(methods), 1), sharey=True, squeeze=False))
    if not methods:
        panels[0].text(0.5, 0.5, "no atlas weights have been recorded", ha="center", va="center", color=SOFT)
        panels[0].set_axis_off()
    rows = table.assign(relative=relative_weight)
    for axes, method in zip(panels, methods, strict=False):
        _panel(axes, rows[rows["method"] == method], order, method)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, metadata={"Software": None})


def _panel(axes: Axes, rows: pd.DataFrame, order: Sequence[str], method: str) -> None:
    from matplotlib.patheffects import withStroke

    places = {atlas: place for place, atlas in enumerate(reversed(order))}
    wide = rows["relative"].max() > LINEAR_UP_TO
    x = np.maximum(rows["relative"].to_numpy(dtype=float), SMALLEST if wide else 0.0)
    y = rows["atlas"].map(places).to_numpy(dtype=float) + _spread(len(rows))
    least = rows["relative"].to_numpy(dtype=float).argsort(kind="stable")[:NAMED]
    axes.axvline(1, color=SOFT, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    axes.scatter(x, y, s=9, color=DOT, alpha=0.5, linewidths=0, zorder=2)
    axes.scatter(x[least], y[least], s=14, color=FAR, linewidths=0, zorder=3)
    medians = rows.groupby("atlas")["relative"].median()
    axes.scatter(medians.clip(lower=SMALLEST if wide else 0.0), medians.index.map(places), marker="|", s=110, color=INK,
                 linewidths=1.6, zorder=4)  # fmt: skip
    for atlas, named in rows.iloc[least].groupby("atlas", sort=False):
        place = max(float(named["relative"].max()), SMALLEST if wide else 0.0)
        names = ", ".join(scan_name(str(scan)) for scan in named["scan"])
        halo = [withStroke(linewidth=2, foreground="white")]
        axes.annotate(names, (place, places[str(atlas)]), (3, 3), textcoords="offset points", color=FAR, fontsize=7,
                      va="bottom", zorder=5, path_effects=halo)  # fmt: skip
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(method, fontsize=9, color=INK, loc="left")
    axes.set_xlabel("atlas weight, 1 = equal share", fontsize=8, color=SOFT)
    axes.set_yticks(range(len(order)), [scan_name(atlas) for atlas in reversed(order)], fontsize=7.5, color=INK)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.tick_params(axis="both", labelsize=7.5, colors=SOFT, length=0)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)


def _spread(count: int) -> FloatArray:
    """Return small shifts that keep dots apart, the same at every run."""
    return (np.arange(count) * 0.6180339887 % 1.0 - 0.5) * 0.44


def atlas_weights_section(out_dir: Path, page: Path) -> dict[str, object] | None:
    """Return what the cohort page shows of the atlas weights, None when there is no table."""
    table, figure = optional_table(out_dir / ATLAS_WEIGHTS_TABLE), out_dir / ATLAS_WEIGHTS_FIGURE
    if table.empty:
        return None
    method = shown_methods(table)[0]
    rows = table[table["method"] == method].assign(relative=relative_weight).nsmallest(LISTED, "relative")
    return {
        "method": method,
        "methods": shown_methods(table),
        "targets": table["scan"].nunique(),
        "figure": (link(figure, page), *_size(figure)) if figure.is_file() else None,
        "atlases": by_atlas(table, method).assign(name=lambda found: found["atlas"].map(scan_name)).to_dict("records"),
        "least": [row | _named(out_dir, row, page) for row in rows.to_dict("records")],
    }


def _named(out_dir: Path, row: Mapping[Hashable, str], page: Path) -> dict[str, str]:
    target = subject_page(out_dir, row["scan"])
    address = link(target, page) if target.is_file() else ""
    return {"target": scan_name(row["scan"]), "source": scan_name(row["atlas"]), "page": address}


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as picture:
        width, height = picture.size
    return width, height
