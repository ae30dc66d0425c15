"""Twice the resolution: the pairs with voxels of 1 mm, the schedules of the presets as they are and one level longer.

No parcellated pairs of 1 mm that no network has seen are at hand, so images and labels of 2 mm are doubled: what is compared
is how schedules, whose widths are in voxels, and a network of 2 mm carry over, not what finer images show.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from benchmarks.common import Bar, at_least
from benchmarks.deep.bars import COLUMNS
from benchmarks.deep.pairs import Prepared
from benchmarks.deep.rows import Row
from benchmarks.registration.cases import Array, Case
from benchmarks.registration.summary import summarise

TITLE = "T1w pairs with voxels of 1 mm (doubled)"
DATASET = "t1w-1mm"
# from voxels of the doubled grid to those of the grid; the outer faces of both are the same
HALVED = np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])


def doubled_cases(prepared: Iterable[Prepared], out: Path) -> Iterator[Prepared]:
    """Yield the pairs with voxels of half the size; what is there is kept."""
    for pair in prepared:
        path = out / f"{DATASET}-{pair.name}.npz"
        if not path.is_file():
            doubled(Case.load(pair.path)).save(path)
        yield Prepared(DATASET, pair.name, path)


def doubled(case: Case) -> Case:
    """Return a pair with voxels of half the size: images by linear interpolation, labels and outlines repeated."""
    return replace(
        case,
        fixed=_doubled(case.fixed),
        moving=_doubled(case.moving),
        fixed_labels=_repeated(case.fixed_labels),
        to_moving=case.to_moving @ HALVED,
        spacing=case.spacing / 2,
        truth=np.zeros(0, np.float32),
    )


def _repeated(array: np.ndarray) -> np.ndarray:
    for axis in range(array.ndim):
        array = np.repeat(array, 2, axis)
    return array


def _doubled(image: Array) -> Array:
    shape = tuple(2 * n for n in image.shape)
    linear = ndimage.affine_transform(image, HALVED[:3, :3], HALVED[:3, 3], shape, order=1, mode="nearest")
    return np.where(_repeated(image) > 0, linear, 0).astype(np.float32)


def fine_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the means of each engine, best Dice first."""
    table = summarise([row for row in rows if row["dataset"] == DATASET])
    return table[list(COLUMNS)].sort_values("dice", ascending=False, ignore_index=True)


def fine_bars(table: pd.DataFrame) -> list[Bar]:
    """Return what must hold: the network loses nothing to the engine."""
    means = table.set_index("engine")["dice"]
    best = {name: means.filter(like=name).max() for name in ("network", "instance")}
    return [at_least("network - instance at 1 mm, Dice", float(best["network"] - best["instance"]), 0)]
