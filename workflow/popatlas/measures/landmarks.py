"""Landmarks: points through ANTs transforms and target registration error.

Points move with the inverse of images: the forward list ``[warp, affine]`` that resamples a T1w image onto the
template maps template *points* to the subject, so a subject's points reach the template through
``[affine (inverted), inverse warp]``. Tables hold RAS millimetres; ANTs works in LPS.

Fitzpatrick JM, West JB. The distribution of target registration error in rigid-body point-based registration. IEEE TMI
2001;20(9):917-927. doi:10.1109/42.952729
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd

from popatlas.errors import InputError
from popatlas.images.arrays import FloatArray
from popatlas.images.tables import is_missing, number_of, read_text_table, shown
from popatlas.measures.dictionary import COLUMNS, KEYS
from popatlas.transforms.resample import Step

RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
AXES = ["x", "y", "z"]
LANDMARKS = tuple(f"landmark_{axis}" for axis in AXES)  # metrics: where a landmark lies


def read_landmarks(path: Path, subject: str | None = None) -> pd.DataFrame:
    """Read a landmark table (columns name, x, y, z in RAS mm), sorted by name; one without any coordinate is left out.

    Raises
    ------
    InputError
        What is no table (see `images.tables`), columns that are missing, names that are missing or repeat, coordinates
        that are no numbers.
    """

    def refuse(message: str) -> NoReturn:
        raise InputError(message, file=path, subject=subject, remedy="write one row per landmark: name, x, y, z (RAS mm)")

    table = read_text_table(path)
    missing = [column for column in ("name", *AXES) if column not in table.columns]
    if missing:
        refuse(f"columns {missing} are missing")
    points: dict[str, list[float]] = {}
    for line, name, *cells in table[["name", *AXES]].itertuples(name=None):
        places = [number_of(cell) for cell in cells]
        if all(map(is_missing, cells)):
            continue
        if None in places:
            refuse(f"line {line}: coordinates are not numbers ({shown(' '.join(cells))})")
        if is_missing(name) or name in points:
            refuse(f"line {line}: landmark names repeat ({shown(name)})" if name in points else f"line {line} has no name")
        points[name] = [place for place in places if place is not None]
    found = pd.DataFrame(list(points.values()), columns=AXES, dtype=float)
    found.insert(0, "name", list(points))
    return found.sort_values("name", ignore_index=True)


def map_points(points: FloatArray, steps: Sequence[Step]) -> npt.NDArray[np.float64]:
    """Map points through an ANTs chain.

    Parameters
    ----------
    points : (n, 3) ndarray
        RAS mm, in the space where the chain starts (the fixed grid when the chain resamples an image).
    steps : sequence of Step
        Chain in ANTs order: the first acts first.

    Returns
    -------
    (n, 3) float64 ndarray
        RAS mm.
    """
    import ants

    if not steps or len(points) == 0:
        return np.array(points, dtype=np.float64)
    table = pd.DataFrame(np.asarray(points, dtype=np.float64) * RAS_TO_LPS, columns=AXES)
    moved = ants.apply_transforms_to_points(
        3, table, [str(step.file) for step in steps], whichtoinvert=[step.invert for step in steps]
    )
    return np.asarray(moved[AXES].to_numpy(dtype=np.float64) * RAS_TO_LPS)


def to_template(points: FloatArray, affine: Path, inverse_warp: Path) -> npt.NDArray[np.float64]:
    """Map a subject's points (n, 3; RAS mm) to the template with its affine and inverse warp."""
    return map_points(points, [Step(affine, invert=True), Step(inverse_warp)])


def target_registration_error(first: FloatArray, second: FloatArray) -> npt.NDArray[np.float64]:
    """Return the distance in mm between corresponding points, both (n, 3)."""
    return np.asarray(np.linalg.norm(np.asarray(first, float) - np.asarray(second, float), axis=1))


def landmark_errors(table: pd.DataFrame) -> pd.DataFrame:
    """Score landmarks in the template: distance of each scan's point from the mean of the other scans' points.

    Parameters
    ----------
    table : DataFrame
        Tidy metric rows; those with metric landmark_x, landmark_y, landmark_z (label: the landmark) are used.

    Returns
    -------
    DataFrame
        Rows of the same columns with metric ``landmark_error`` (mm); empty when fewer than two scans have a landmark.
    """
    coordinates = list(LANDMARKS)
    rows = table[table["metric"].isin(coordinates)]
    if rows.empty:
        return table.iloc[:0]
    points = rows.pivot_table(index=KEYS, columns="metric", values="value", aggfunc="first")[coordinates].dropna()
    groups = points.groupby(level=["template", "method", "label"])
    count = groups[coordinates[0]].transform("size")
    distance = np.sqrt(((points - groups.transform("mean")) ** 2).sum(axis=1))
    # leaving a scan out of the mean stretches its distance by n / (n - 1)
    error = (distance * count / (count - 1))[count > 1]
    found = error.rename("value").reset_index()
    scored: pd.DataFrame = found.assign(metric="landmark_error", unit="mm")[COLUMNS]
    return scored
