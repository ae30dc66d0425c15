"""The page of a registration of two files: pictures, the gate's numbers, labels and landmarks; one file without others."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from popatlas.images.arrays import FloatArray
from popatlas.images.grid import Array
from popatlas.images.io import load_image
from popatlas.measures.attempts import tried
from popatlas.pairwise.scores import Scores
from popatlas.report.figures import (
    Cell,
    ColourBar,
    Cut,
    Diverging,
    Edges,
    Gray,
    Layer,
    View,
    planes,
    symmetric_limit,
    under,
    window,
)
from popatlas.report.pages import write_page
from popatlas.report.panels import PLANE_TITLES, Figure, Sheet, paint
from popatlas.report.subject import gate_limits
from popatlas.settings import Content


@dataclass(frozen=True)
class Drawn:
    """Images on one grid with voxels of one size: what the page shows.

    Attributes
    ----------
    fixed, mask : (x, y[, z]) ndarray
        Fixed image and its foreground.
    before, after : (x, y[, z]) ndarray
        Moving image as its header places it, and registered.
    affine : (4, 4) ndarray
        Voxel to RAS millimetres.
    logjacobian : Path or None
        Of the deformation.
    """

    fixed: FloatArray
    mask: FloatArray
    before: FloatArray
    after: FloatArray
    affine: Array
    logjacobian: Path | None = None

    def volume(self, data: FloatArray) -> FloatArray:
        """Return an image with three axes, as pictures want it."""
        return data if data.ndim == 3 else data[..., None]


def draw_page(path: Path, record: Content, scores: Scores, drawn: Drawn) -> None:
    """Write the page of a registration.

    Parameters
    ----------
    path : Path
        HTML file.
    record : dict
        Of the registration, see `popatlas.pairwise.register`.
    scores : Scores
        Of labels and landmarks.
    drawn : Drawn
        What is shown.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = [paint(sheet, Path(folder), "pair") for sheet in _sheets(drawn)]
        pictures = [(figure, _embedded(figure)) for figure in figures]
    known = {"scale": [0.0, np.inf], "shear": np.inf, **{name: np.nan for name in ("pose", "sides")}}
    limits = known | record["limits"]
    write_page(
        "pair",
        path,
        study="Registration",
        name=f"{Path(record['moving']['image']).name} to {Path(record['fixed']['image']).name}",
        record=record,
        figures=pictures,
        limits=gate_limits(record["metrics"], limits),
        attempts=[(tried(one), "; ".join(one["reasons"]) or "passed") for one in record["attempts"]],
        scores=scores,
        summary=scores.summary(),
    )


def _embedded(figure: Figure) -> str:
    return "data:image/webp;base64," + base64.b64encode(figure.path.read_bytes()).decode()


def _sheets(drawn: Drawn) -> Iterator[Sheet]:
    fixed, mask, before, after = (drawn.volume(part) for part in (drawn.fixed, drawn.mask, drawn.before, drawn.after))
    view = View.around(mask, drawn.affine)
    flat = fixed.shape[2] == 1

    def rows(*layers: Layer) -> list[list[Cell]]:
        return [[Cell(view, Cut(2, 0), layers)]] if flat else planes(view, layers)

    titles = ("plane",) if flat else PLANE_TITLES
    edges = Edges(fixed, np.ones(fixed.shape))
    if flat:
        pictures = ((before, True), (after, True), (fixed, False), (after, False))
        cells = [
            Cell(view, Cut(2, 0), [under(data), edges] if over else [Gray(data, *window(data))]) for data, over in pictures
        ]
        caption = "Moving image with the edges of the fixed one, before and after; then the fixed and the registered image."
        yield Sheet("registration", "Registered image", caption, [cells], titles)
    else:
        caption = "Registered image with the edges of the fixed one: they should follow what is drawn."
        yield Sheet("registration", "Registered image, edges of the fixed one", caption, rows(under(after), edges), titles)
        caption = "The other way round: the fixed image with the edges of the registered one."
        other = Edges(after, np.ones(after.shape))
        yield Sheet("fixed", "Fixed image, edges of the registered one", caption, rows(under(fixed), other), titles)
        caption = "The moving image as its header places it, with the edges of the fixed one."
        yield Sheet("before", "Before the registration", caption, rows(under(before), edges), titles)
    if drawn.logjacobian is not None:
        values = drawn.volume(np.asarray(load_image(drawn.logjacobian).dataobj))
        limit = symmetric_limit(values, mask)
        caption = "Local volume change on the fixed grid. Red: larger in the moving image; blue: smaller."
        bar = ColourBar.symmetric(limit, "log Jacobian")
        yield Sheet("jacobian", "Log Jacobian", caption, rows(Diverging(values, mask, limit)), titles, bar)
