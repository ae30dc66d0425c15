"""How far apart the sessions of a participant lie, by the affines of their registrations to one template, in millimetres.

The distance of two affines is that of `popatlas.transforms.griddistance`: root mean square over the voxels of the template.
An affine is kept in the table of its scan as the places of four points: the middle of the template's grid, and the points
one standard deviation of the grid away from it along each axis. The squared distance of two affines is that of the middles
plus those of the differences of the three arms.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from popatlas.images.grid import Grid
from popatlas.measures.dictionary import AFFINE, COLUMNS
from popatlas.measures.landmarks import AXES, RAS_TO_LPS
from popatlas.transforms.affine import read_affine

POINTS = ("middle", "x", "y", "z")
COORDINATES = tuple(f"affine_{axis}" for axis in AXES)
DISTANCE, SHAPE = "session_distance", "session_shape_distance"


def affine_rows(affine: Path, template: Path) -> Iterator[tuple[str, str, str, float]]:
    """Yield method, point, coordinate and value of where an affine takes the four points of a template's grid, RAS mm."""
    grid = Grid.from_file(template)
    size = np.array(grid.shape, float)
    points = (size - 1) / 2 + np.vstack([np.zeros(3), np.diag(np.sqrt((size**2 - 1) / 12))])
    moved = np.c_[points, np.ones(4)] @ (read_affine(affine) @ grid.affine).T
    for name, point in zip(POINTS, moved[:, :3] * RAS_TO_LPS, strict=True):
        for coordinate, value in zip(COORDINATES, point, strict=True):
            yield AFFINE, name, coordinate, float(value)


def session_distances(table: pd.DataFrame) -> pd.DataFrame:
    """Compare each session of a participant with the one before.

    Parameters
    ----------
    table : DataFrame
        Tidy metric rows; those of `affine_rows` are used.

    Returns
    -------
    DataFrame
        Rows of the same columns: `DISTANCE`, as the scans lie, and `SHAPE`, after the best rigid motion of one onto the
        other, which head positions do not change; the label is the session before. Empty where nobody has two sessions.
    """
    rows = table[table["metric"].isin(COORDINATES)]
    found = []
    for (participant, template), person in rows.groupby(["participant_id", "template"], sort=False):
        places = person.pivot_table(
            index="session_id", columns=["label", "metric"], values="value", aggfunc="first"
        ).sort_index()
        if len(places) < 2:
            continue
        wanted = places[[(point, coordinate) for point in POINTS for coordinate in COORDINATES]]
        sessions = [(str(name), row.to_numpy(float).reshape(4, 3)) for name, row in wanted.iterrows()]
        for (before, one), (session, other) in pairwise(sessions):
            for metric, value in zip((DISTANCE, SHAPE), distances(one, other), strict=True):
                found.append((participant, session, template, AFFINE, before, metric, value, "mm"))
    return pd.DataFrame(found, columns=COLUMNS)


def distances(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the distance of two affines by their four points (4, 3), and that after the best rigid motion."""
    arms = [points[1:] - points[0] for points in (one, other)]
    squares = float(np.square(one[0] - other[0]).sum() + np.square(arms[0] - arms[1]).sum())
    stretches = np.linalg.svd(arms[0].T @ arms[1])[1]
    stretches[-1] *= np.sign(np.linalg.det(arms[0]) * np.linalg.det(arms[1]))  # no motion mirrors
    apart = sum(float(np.square(arm).sum()) for arm in arms) - 2 * float(stretches.sum())
    return float(np.sqrt(squares)), float(np.sqrt(max(apart, 0.0)))
