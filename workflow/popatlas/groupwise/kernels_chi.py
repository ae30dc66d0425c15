"""Compiled passes over the voxels of one image: its joint histogram with soft classes, and what that says of a voxel.

All three work on flat arrays, so that images of 2 and 3 axes are the same to them, and read each voxel once. Windows are
cubic B-splines; `position` is in bins, from `popatlas.similarity.parzen.Axis`, and lies at least one bin from both ends.
Conventions as in `popatlas.transforms.kernels`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from popatlas.transforms.kernels import compiled

Vector = npt.NDArray[np.float32]
Maps = npt.NDArray[np.float32]
Table = npt.NDArray[np.float64]


@compiled
def class_histogram(position: Vector, weight: Vector, classes: Maps, bins: int) -> Table:
    """Return the sums (K, bins) of the windows of all voxels, each shared among the classes.

    Parameters
    ----------
    position : (V,) float32 ndarray
        Intensities in bins.
    weight : (V,) float32 ndarray
        Weight of each voxel.
    classes : (K, V) float32 ndarray
        Share of each class in each voxel.
    bins : int
        Bins of the histogram.
    """
    count = classes.shape[0]
    sums = np.zeros((bins, count))
    sixth, one, four, three, six = np.float32(1 / 6), np.float32(1), np.float32(4), np.float32(3), np.float32(6)
    for v in range(position.shape[0]):
        w = weight[v]
        if w <= 0:
            continue
        p = position[v]
        lower = int(p)
        t = p - np.float32(lower)
        s = one - t
        a, d = w * sixth * s * s * s, w * sixth * t * t * t
        b = w * sixth * (three * t * t * t - six * t * t + four)
        c = w - a - b - d
        for k in range(count):
            share = classes[k, v]
            sums[lower - 1, k] += a * share
            sums[lower, k] += b * share
            sums[lower + 1, k] += c * share
            sums[lower + 2, k] += d * share
    return sums.T.copy()


@compiled
def add_log_density(position: Vector, weight: Vector, table: Maps, out: Maps) -> None:
    """Add the tabled values (bins, K) at each voxel's intensity to `out` (K, V), linear between the bins."""
    count = out.shape[0]
    for v in range(position.shape[0]):
        w = weight[v]
        if w <= 0:
            continue
        lower = int(position[v])
        t = position[v] - np.float32(lower)
        for k in range(count):
            low = table[lower, k]
            out[k, v] += w * (low + t * (table[lower + 1, k] - low))


@compiled
def slopes(position: Vector, weight: Vector, classes: Maps, table: Maps, out: Vector) -> None:
    """Write the derivative by `position` of the sum over voxels, classes and bins of window times tabled value.

    Parameters
    ----------
    position, weight, classes
        As for `class_histogram`.
    table : (bins, K) float32 ndarray
        Derivative of the objective by each entry of the histogram.
    out : (V,) float32 ndarray
        Result.
    """
    count = classes.shape[0]
    half, one, two, three = np.float32(0.5), np.float32(1), np.float32(2), np.float32(1.5)
    for v in range(position.shape[0]):
        w = weight[v]
        if w <= 0:
            out[v] = 0
            continue
        lower = int(position[v])
        t = position[v] - np.float32(lower)
        s = one - t
        a, b = -half * s * s, three * t * t - two * t
        c, d = two * s - three * s * s, half * t * t
        total = np.float32(0)
        for k in range(count):
            total += classes[k, v] * (
                a * table[lower - 1, k] + b * table[lower, k] + c * table[lower + 1, k] + d * table[lower + 2, k]
            )
        out[v] = w * total
