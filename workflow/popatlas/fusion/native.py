"""Labels on the grid of the raw image: the label with the largest linear weight at each of its voxels.

Preprocessing keeps world coordinates, so nothing is registered here: only the grids differ. The nearest label would leave
the steps of the coarser grid in the finer one; linear weights cut them off, and keep volumes.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform

from popatlas.fusion.labels import Box, bounding_box, to_contiguous
from popatlas.images.arrays import FloatArray, IntArray

Numbers = npt.NDArray[Any]
EQUAL = 1e-6  # weights that differ by less are equal: the nearest label is taken


def labels_on_grid(
    labels: IntArray, affine: FloatArray, shape: tuple[int, ...], target: FloatArray
) -> npt.NDArray[np.int32]:
    """Return labels on another grid of the same world.

    Parameters
    ----------
    labels : (x, y, z) int ndarray
        Label image, 0 is background. Beyond its outermost voxels their labels go on, by one voxel.
    affine : (4, 4) ndarray
        Its voxels to RAS millimetres.
    shape : tuple of int
        Voxels of the other grid.
    target : (4, 4) ndarray
        Its voxels to RAS millimetres; of any spacing, direction and shear.

    Returns
    -------
    int32 ndarray
        Of that shape. At each voxel the label, background included, whose linear weight there is largest.
    """
    values, numbers = to_contiguous(np.pad(labels, 1, mode="edge"))
    matrix = np.linalg.inv(np.asarray(affine, dtype=float)) @ np.asarray(target, dtype=float)
    matrix[:3, 3] += 1  # of the rim
    region = _seen_from(bounding_box(numbers > 0, margin=1), matrix, shape)
    if not all(part.stop > part.start for part in region):
        return np.zeros(shape, np.int32)
    nearest = _sample(numbers, (slice(None),) * 3, region, matrix, order=0)
    winner, top, total = np.zeros_like(nearest), np.zeros(nearest.shape, np.float32), np.zeros(nearest.shape, np.float32)
    for number in range(1, len(values)):
        own = numbers == number
        box = bounding_box(own, margin=1)
        seen = _seen_from(box, matrix, shape)
        part = tuple(slice(one.start - whole.start, one.stop - whole.start) for one, whole in zip(seen, region, strict=True))
        if winner[part].size == 0:
            continue
        weight = _sample(own[box].astype(np.float32), box, seen, matrix, order=1)
        total[part] += weight
        wins = _wins(weight, top[part], nearest[part] == number)
        winner[part][wins], top[part][wins] = number, weight[wins]
    winner[_wins(1 - total, top, nearest == 0)] = 0
    found = np.zeros(shape, np.int32)
    found[region] = values[winner]
    return found


def _wins(weight: FloatArray, top: FloatArray, is_nearest: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tell where a weight goes before the largest one until now."""
    return np.asarray((weight > top + EQUAL) | ((weight > top - EQUAL) & is_nearest))


def _seen_from(box: Box, matrix: FloatArray, shape: tuple[int, ...]) -> Box:
    """Return the box of a grid that holds all of its voxels less than one voxel away from a box of the labels."""
    ends = [(part.start - 1, part.stop) for part in box]
    corners = (np.array([*product(*ends)]) - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, shape)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, low, shape)
    return tuple(slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))


def _sample(data: Numbers, box: Box, seen: Box, matrix: FloatArray, *, order: Literal[0, 1]) -> Numbers:
    """Return an array, a box of the labels, at the voxels of a box of the other grid; 0 outside."""
    first = np.array([part.start or 0 for part in box], dtype=float)
    start, size = np.array([part.start for part in seen]), tuple(part.stop - part.start for part in seen)
    offset = matrix[:3, :3] @ start + matrix[:3, 3] - first
    return np.asarray(affine_transform(data, matrix[:3, :3], offset, output_shape=size, order=order, mode="constant"))
