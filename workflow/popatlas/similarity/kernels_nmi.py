"""The compiled force of the normalised mutual information: a histogram in one pass, the force in another.

The derivative at a voxel is a difference of neighbouring entries of one small table, so that its cost depends neither on the
bins nor on how many windows overlap; conventions as in `popatlas.transforms.kernels`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from popatlas.transforms.kernels import Volume, compiled

Table = npt.NDArray[np.float64]


@compiled
def joint_sums(
    fixed: Volume, moving: Volume, weight: Volume, low: Volume, scale: Volume, bins: int, lo: int, hi: int
) -> Table:
    """Return the sums of the linear Parzen windows (bins, bins) over some planes.

    Parameters
    ----------
    fixed, moving : (X, Y, Z) float32 ndarray
        Images.
    weight : (X, Y, Z) float32 ndarray
        Weight of each voxel; of shape (1, 1, 1) when there is none.
    low, scale : (2,) float32 ndarray
        Intensity of the first bin, and bins for each unit of intensity, of both images.
    bins : int
        Bins of each image.
    lo, hi : int
        Planes.
    """
    Y, Z = fixed.shape[1], fixed.shape[2]
    weighted = weight.shape[0] > 1
    joint = np.zeros((bins, bins))
    last = np.float32(bins - 1)
    w = np.float32(1)
    for i in range(lo, hi):
        for y in range(Y):
            for k in range(Z):
                if weighted:
                    w = weight[i, y, k]
                    if w <= 0:
                        continue
                p = min(max((fixed[i, y, k] - low[0]) * scale[0], np.float32(0)), last)
                q = min(max((moving[i, y, k] - low[1]) * scale[1], np.float32(0)), last)
                row, column = min(int(p), bins - 2), min(int(q), bins - 2)
                s, t = p - row, q - column
                first, second = w * (1 - s), w * s
                joint[row, column] += first * (1 - t)
                joint[row, column + 1] += first * t
                joint[row + 1, column] += second * (1 - t)
                joint[row + 1, column + 1] += second * t
    return joint


@compiled
def nmi_force(
    fixed: Volume,
    moving: Volume,
    weight: Volume,
    low: Volume,
    scale: Volume,
    slope: Volume,
    shrink: int,
    symmetric: bool,
    force: Volume,
    lo: int,
    hi: int,
) -> float:
    """Add the ascent direction of a function of the joint histogram to a coarse force field; return the sum of the weights.

    Parameters
    ----------
    fixed, moving, weight, low, scale, lo, hi
        As for `joint_sums`.
    slope : (bins, bins) float32 ndarray
        Derivative of the function by each entry of the histogram.
    shrink, symmetric, force
        As for `popatlas.similarity.kernels_lncc.lncc_force`.
    """
    X, Y, Z = fixed.shape
    bins = slope.shape[0]
    weighted = weight.shape[0] > 1
    last, zero, half, w = np.float32(bins - 1), np.float32(0), np.float32(0.5), np.float32(1)
    mass: float = 0.0
    for i in range(lo, hi):
        im, ip = max(i - 1, 0), min(i + 1, X - 1)
        for y in range(Y):
            ym, yp = max(y - 1, 0), min(y + 1, Y - 1)
            for k in range(Z):
                if weighted:
                    w = weight[i, y, k]
                    if w <= 0:
                        continue
                mass += float(w)
                if k == 0 or k == Z - 1:
                    continue
                p, q = (fixed[i, y, k] - low[0]) * scale[0], (moving[i, y, k] - low[1]) * scale[1]
                p_inside, q_inside = zero < p < last, zero < q < last
                p, q = min(max(p, zero), last), min(max(q, zero), last)
                row, column = min(int(p), bins - 2), min(int(q), bins - 2)
                s, t = p - row, q - column
                a, b = slope[row, column], slope[row, column + 1]
                c, d = slope[row + 1, column], slope[row + 1, column + 1]
                x, z = i // shrink, k // shrink
                v = y // shrink
                if q_inside:
                    g = half * w * scale[1] * ((1 - s) * (b - a) + s * (d - c))
                    force[0, x, v, z] += g * (moving[ip, y, k] - moving[im, y, k])
                    force[1, x, v, z] += g * (moving[i, yp, k] - moving[i, ym, k])
                    force[2, x, v, z] += g * (moving[i, y, k + 1] - moving[i, y, k - 1])
                if symmetric and p_inside:
                    g = half * w * scale[0] * ((1 - t) * (c - a) + t * (d - b))
                    force[0, x, v, z] -= g * (fixed[ip, y, k] - fixed[im, y, k])
                    force[1, x, v, z] -= g * (fixed[i, yp, k] - fixed[i, ym, k])
                    force[2, x, v, z] -= g * (fixed[i, y, k + 1] - fixed[i, y, k - 1])
    return mass
