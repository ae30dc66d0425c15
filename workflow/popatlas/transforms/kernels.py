"""Compiled CPU kernels of the instance engine: one pass over memory for each step of an iteration.

The kernels work on NumPy arrays in C order, 3D, float32. A field lives on a grid that is `shrink` times coarser than the
images, cell-centred: coarse voxel ``c`` covers the fine voxels ``shrink * c .. shrink * c + shrink - 1``. They release the
interpreter lock and work on a range of planes ``lo .. hi``, so that threads can share a volume.

Why they exist: a warp, a composition or a Gaussian written as tensor operations reads and writes each volume many times.
The force of the local correlation is in `popatlas.similarity.kernels_lncc`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numba as nb
import numpy as np
import numpy.typing as npt

Volume = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Stride = int | np.int32
Kernel = TypeVar("Kernel", bound=Callable[..., object])


def compiled(function: Kernel) -> Kernel:
    """Compile a kernel, and keep the machine code for later processes where a folder can be written.

    Inputs are checked for NaN before they come here, so that the compiler may reorder sums.
    """
    options = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        kept: Kernel = nb.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the cache: read-only installation without a home
        kept = nb.njit(**options)(function)
    return kept


EDGE = 1.0001  # keeps the upper neighbour of a clamped position inside of the volume


@compiled
def _coarse_axis(fine: int, coarse: int, shrink: int) -> tuple[Integers, Integers, Volume]:
    """Return the two coarse neighbours of each fine voxel along an axis and the weight of the second."""
    lower = np.empty(fine, np.int32)
    upper = np.empty(fine, np.int32)
    weight = np.empty(fine, np.float32)
    for i in range(fine):
        at = (i + 0.5) / shrink - 0.5
        floor = math.floor(at)
        weight[i] = at - floor
        lower[i] = min(max(int(floor), 0), coarse - 1)
        upper[i] = min(max(int(floor) + 1, 0), coarse - 1)
    return lower, upper, weight


@compiled
def _gather_row(values: Volume, base: Integers, fraction: Volume, sx: Stride, sy: Stride, out: Volume) -> None:
    """Interpolate a row: `base` is the flat index of the lowest of the eight corners, `sx` and `sy` are the strides."""
    for k in range(out.shape[0]):
        at = base[k]
        fx, fy, fz = fraction[0, k], fraction[1, k], fraction[2, k]
        c00 = values[at] + fz * (values[at + 1] - values[at])
        c01 = values[at + sy] + fz * (values[at + sy + 1] - values[at + sy])
        c10 = values[at + sx] + fz * (values[at + sx + 1] - values[at + sx])
        c11 = values[at + sx + sy] + fz * (values[at + sx + sy + 1] - values[at + sx + sy])
        c0 = c00 + fy * (c01 - c00)
        out[k] = c0 + fx * (c10 + fy * (c11 - c10) - c0)


@compiled
def warp(moving: Volume, field: Volume, shrink: int, matrix: Volume, out: Volume, lo: int, hi: int) -> None:
    """Sample `moving` at ``matrix (x + u(x))`` with linear interpolation; the border is repeated.

    Parameters
    ----------
    moving : (x', y', z') float32 ndarray
        Image in its own grid, at least two voxels along each axis.
    field : (3, x, y, z) float32 ndarray
        Displacement in voxels of its own grid.
    shrink : int
        Voxels of `out` along each axis of a voxel of the field.
    matrix : (3, 4) float32 ndarray
        From voxels of `out` to voxels of `moving`.
    out : (X, Y, Z) float32 ndarray
        Result; planes `lo` to `hi` are written.
    """
    X, Y, Z = out.shape
    mx, my, mz = moving.shape
    x0, x1, wx = _coarse_axis(X, field.shape[1], shrink)
    y0, y1, wy = _coarse_axis(Y, field.shape[2], shrink)
    z0, z1, wz = _coarse_axis(Z, field.shape[3], shrink)
    coarse = field.shape[3]
    row = np.empty((3, coarse), np.float32)
    base = np.empty(Z, np.int32)
    fraction = np.empty((3, Z), np.float32)
    values = moving.ravel()
    sx, sy = np.int32(my * mz), np.int32(mz)
    scale, zero, one = np.float32(shrink), np.float32(0), np.float32(1)
    tx, ty, tz = np.float32(mx - EDGE), np.float32(my - EDGE), np.float32(mz - EDGE)
    m = matrix
    for i in range(lo, hi):
        for j in range(Y):
            w11 = wx[i] * wy[j]
            w10, w01 = wx[i] - w11, wy[j] - w11
            w00 = one - wx[i] - w01
            for c in range(3):
                r00, r01 = field[c, x0[i], y0[j]], field[c, x0[i], y1[j]]
                r10, r11 = field[c, x1[i], y0[j]], field[c, x1[i], y1[j]]
                for k in range(coarse):
                    row[c, k] = scale * (w00 * r00[k] + w01 * r01[k] + w10 * r10[k] + w11 * r11[k])
            bx = m[0, 0] * np.float32(i) + m[0, 1] * np.float32(j) + m[0, 3]
            by = m[1, 0] * np.float32(i) + m[1, 1] * np.float32(j) + m[1, 3]
            bz = m[2, 0] * np.float32(i) + m[2, 1] * np.float32(j) + m[2, 3]
            for k in range(Z):
                a, b, w = z0[k], z1[k], wz[k]
                ux = row[0, a] + w * (row[0, b] - row[0, a])
                uy = row[1, a] + w * (row[1, b] - row[1, a])
                uz = row[2, a] + w * (row[2, b] - row[2, a]) + np.float32(k)
                px = min(max(bx + m[0, 0] * ux + m[0, 1] * uy + m[0, 2] * uz, zero), tx)
                py = min(max(by + m[1, 0] * ux + m[1, 1] * uy + m[1, 2] * uz, zero), ty)
                pz = min(max(bz + m[2, 0] * ux + m[2, 1] * uy + m[2, 2] * uz, zero), tz)
                ix, iy, iz = np.int32(px), np.int32(py), np.int32(pz)
                fraction[0, k] = px - np.float32(ix)
                fraction[1, k] = py - np.float32(iy)
                fraction[2, k] = pz - np.float32(iz)
                base[k] = ix * sx + iy * sy + iz
            _gather_row(values, base, fraction, sx, sy, out[i, j])


@compiled
def compose(first: Volume, second: Volume, out: Volume, lo: int, hi: int) -> None:
    """Write the displacement of going through `first`, then `second`, on their common grid (3, x, y, z), in voxels."""
    X, Y, Z = first.shape[1:]
    sx, sy = np.int32(Y * Z), np.int32(Z)
    tx, ty, tz = np.float32(X - EDGE), np.float32(Y - EDGE), np.float32(Z - EDGE)
    zero = np.float32(0)
    base = np.empty(Z, np.int32)
    fraction = np.empty((3, Z), np.float32)
    for i in range(lo, hi):
        for j in range(Y):
            vx, vy, vz = first[0, i, j], first[1, i, j], first[2, i, j]
            for k in range(Z):
                px = min(max(np.float32(i) + vx[k], zero), tx)
                py = min(max(np.float32(j) + vy[k], zero), ty)
                pz = min(max(np.float32(k) + vz[k], zero), tz)
                ix, iy, iz = np.int32(px), np.int32(py), np.int32(pz)
                fraction[0, k] = px - np.float32(ix)
                fraction[1, k] = py - np.float32(iy)
                fraction[2, k] = pz - np.float32(iz)
                base[k] = ix * sx + iy * sy + iz
            for c in range(3):
                _gather_row(second[c].ravel(), base, fraction, sx, sy, out[c, i, j])
                line, start = out[c, i, j], first[c, i, j]
                for k in range(Z):
                    line[k] += start[k]


@compiled
def jacobian(field: Volume, out: Volume, lo: int, hi: int) -> None:
    """Write the Jacobian determinant of ``x + u(x)``, central differences, one-sided at the border; field (3, x, y, z)."""
    X, Y, Z = field.shape[1:]
    one = np.float32(1)
    for i in range(lo, hi):
        im, ip = max(i - 1, 0), min(i + 1, X - 1)
        sx = one / np.float32(ip - im)
        for j in range(Y):
            jm, jp = max(j - 1, 0), min(j + 1, Y - 1)
            sy = one / np.float32(jp - jm)
            for k in range(Z):
                km, kp = max(k - 1, 0), min(k + 1, Z - 1)
                sz = one / np.float32(kp - km)
                a = one + sx * (field[0, ip, j, k] - field[0, im, j, k])
                b = sy * (field[0, i, jp, k] - field[0, i, jm, k])
                c = sz * (field[0, i, j, kp] - field[0, i, j, km])
                d = sx * (field[1, ip, j, k] - field[1, im, j, k])
                e = one + sy * (field[1, i, jp, k] - field[1, i, jm, k])
                f = sz * (field[1, i, j, kp] - field[1, i, j, km])
                g = sx * (field[2, ip, j, k] - field[2, im, j, k])
                h = sy * (field[2, i, jp, k] - field[2, i, jm, k])
                m = one + sz * (field[2, i, j, kp] - field[2, i, j, km])
                out[i, j, k] = a * (e * m - f * h) - b * (d * m - f * g) + c * (d * h - e * g)


@compiled
def least_jacobian(field: Volume, out: Volume, lo: int, hi: int) -> None:
    """Write the least of the eight determinants of one-sided differences at each voxel; see `fields.least_determinant`."""
    X, Y, Z = field.shape[1:]
    one = np.float32(1)
    for i in range(lo, hi):
        for j in range(Y):
            for k in range(Z):
                least = np.float32(np.inf)
                for si in range(2):
                    at_i = min(max(i - 1 + si, 0), X - 2)
                    a = one + field[0, at_i + 1, j, k] - field[0, at_i, j, k]
                    d = field[1, at_i + 1, j, k] - field[1, at_i, j, k]
                    g = field[2, at_i + 1, j, k] - field[2, at_i, j, k]
                    for sj in range(2):
                        at_j = min(max(j - 1 + sj, 0), Y - 2)
                        b = field[0, i, at_j + 1, k] - field[0, i, at_j, k]
                        e = one + field[1, i, at_j + 1, k] - field[1, i, at_j, k]
                        h = field[2, i, at_j + 1, k] - field[2, i, at_j, k]
                        for sk in range(2):
                            at_k = min(max(k - 1 + sk, 0), Z - 2)
                            c = field[0, i, j, at_k + 1] - field[0, i, j, at_k]
                            f = field[1, i, j, at_k + 1] - field[1, i, j, at_k]
                            m = one + field[2, i, j, at_k + 1] - field[2, i, j, at_k]
                            least = min(least, a * (e * m - f * h) - b * (d * m - f * g) + c * (d * h - e * g))
                out[i, j, k] = least


@compiled
def divergence(field: Volume, out: Volume, lo: int, hi: int) -> None:
    """Write the divergence of a field (3, x, y, z) by central differences; the border is repeated."""
    X, Y, Z = field.shape[1:]
    half = np.float32(0.5)
    for i in range(lo, hi):
        im, ip = max(i - 1, 0), min(i + 1, X - 1)
        for j in range(Y):
            jm, jp = max(j - 1, 0), min(j + 1, Y - 1)
            line, before, after = out[i, j], field[0, im, j], field[0, ip, j]
            left, right, along = field[1, i, jm], field[1, i, jp], field[2, i, j]
            for k in range(Z):
                km, kp = max(k - 1, 0), min(k + 1, Z - 1)
                line[k] = half * (after[k] - before[k] + right[k] - left[k] + along[kp] - along[km])


@compiled
def add_gradient(values: Volume, share: float, out: Volume, lo: int, hi: int) -> None:
    """Add a share of the gradient of a volume to a field (3, x, y, z), as `divergence` takes differences."""
    X, Y, Z = values.shape
    half = np.float32(0.5 * share)
    for i in range(lo, hi):
        im, ip = max(i - 1, 0), min(i + 1, X - 1)
        for j in range(Y):
            jm, jp = max(j - 1, 0), min(j + 1, Y - 1)
            for k in range(Z):
                km, kp = max(k - 1, 0), min(k + 1, Z - 1)
                out[0, i, j, k] += half * (values[ip, j, k] - values[im, j, k])
                out[1, i, j, k] += half * (values[i, jp, k] - values[i, jm, k])
                out[2, i, j, k] += half * (values[i, j, kp] - values[i, j, km])


@compiled
def smooth(source: Volume, weights: Volume, out: Volume, lo: int, hi: int) -> None:
    """Convolve components `lo` to `hi` of (C, x, y, z) with a symmetric kernel along each axis; the border is repeated.

    Parameters
    ----------
    source, out : (C, x, y, z) float32 ndarray
        Field and result; they may not be the same array.
    weights : (r + 1,) float32 ndarray
        Centre and one side of the kernel.
    """
    _, X, Y, Z = source.shape
    r = weights.shape[0] - 1
    size = 2 * r + 1
    padded = np.empty(Z + 2 * r, np.float32)
    rows = np.empty((Y, Z), np.float32)
    ring = np.empty((size, Y, Z), np.float32)
    for c in range(lo, hi):
        for p in range(X + r):
            if p < X:
                for y in range(Y):
                    line = source[c, p, y]
                    for k in range(Z):
                        padded[k + r] = line[k]
                    for k in range(r):
                        padded[k] = line[0]
                        padded[Z + r + k] = line[Z - 1]
                    _combine_shifted(padded, weights, rows[y])
                for y in range(Y):
                    _combine_rows(rows, Y, y, Y - 1, weights, ring[p % size, y])
            i = p - r
            if i >= 0:
                for y in range(Y):
                    _combine_rows(ring[:, y], size, i, X - 1, weights, out[c, i, y])


@compiled
def _combine_shifted(padded: Volume, weights: Volume, out: Volume) -> None:
    """Write the weighted sum of a padded row and its mirror-wise shifted copies; two shifts for each pass over the row."""
    r = weights.shape[0] - 1
    n = out.shape[0]
    for k in range(n):
        out[k] = weights[0] * padded[k + r] + weights[1] * (padded[k + r - 1] + padded[k + r + 1])
    for e in range(2, r, 2):
        v, w = weights[e], weights[e + 1]
        for k in range(n):
            out[k] += v * (padded[k + r - e] + padded[k + r + e]) + w * (padded[k + r - e - 1] + padded[k + r + e + 1])
    if r % 2 == 0:
        for k in range(n):
            out[k] += weights[r] * (padded[k] + padded[k + 2 * r])


@compiled
def _combine_rows(rows: Volume, count: int, at: int, last: int, weights: Volume, out: Volume) -> None:
    """Write the weighted sum of row `at` and the rows before and after it, which stand in a ring of `count` rows."""
    r = weights.shape[0] - 1
    n = out.shape[0]
    here, before, after = rows[at % count], rows[max(at - 1, 0) % count], rows[min(at + 1, last) % count]
    for k in range(n):
        out[k] = weights[0] * here[k] + weights[1] * (before[k] + after[k])
    for e in range(2, r, 2):
        v, w = weights[e], weights[e + 1]
        before, after = rows[max(at - e, 0) % count], rows[min(at + e, last) % count]
        further, beyond = rows[max(at - e - 1, 0) % count], rows[min(at + e + 1, last) % count]
        for k in range(n):
            out[k] += v * (before[k] + after[k]) + w * (further[k] + beyond[k])
    if r % 2 == 0:
        before, after = rows[max(at - r, 0) % count], rows[min(at + r, last) % count]
        for k in range(n):
            out[k] += weights[r] * (before[k] + after[k])
