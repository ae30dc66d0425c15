"""The compiled patch search of joint label fusion; conventions as in `popatlas.fusion.kernels_joint`.

The differences between the target and an atlas at one displacement are computed once for all voxels; patches are windows
over them, summed along one axis after the other, in a few planes that stay in the cache. No sum runs on from voxel to voxel:
the result at a voxel does not depend on where a slab starts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from popatlas.transforms.kernels import Integers, Volume, compiled

Choices = npt.NDArray[np.uint16]
# more than any mean of squares
NONE_YET = 3e38


@compiled
def row_spans(mask: npt.NDArray[np.bool_], rx: int, ry: int, exact: Integers, wide: Integers) -> None:
    """Find where each row of a mask starts and stops, and the same for all rows within reach of it.

    Parameters
    ----------
    mask : (X, Y, Z) bool ndarray
        Where a search is needed.
    rx, ry : int
        Reach along the first two axes.
    exact, wide : (X, Y, 2) int32 ndarray
        First voxel and the one after the last; 0, 0 for an empty row.
    """
    X, Y, Z = mask.shape
    exact[:] = 0
    wide[:] = 0
    for x in range(X):
        for y in range(Y):
            first, stop = Z, 0
            for z in range(Z):
                if mask[x, y, z]:
                    first = min(first, z)
                    stop = z + 1
            if stop == 0:
                continue
            exact[x, y, 0], exact[x, y, 1] = first, stop
            for i in range(max(x - rx, 0), min(x + rx + 1, X)):
                for j in range(max(y - ry, 0), min(y + ry + 1, Y)):
                    known = wide[i, j, 1] > 0
                    wide[i, j, 0] = min(wide[i, j, 0], first) if known else first
                    wide[i, j, 1] = max(wide[i, j, 1], stop)


@compiled
def _add_five(a: Volume, b: Volume, c: Volume, d: Volume, e: Volume, out: Volume) -> None:
    """Write the sum of five rows: the usual window, in one pass."""
    for k in range(out.shape[0]):
        out[k] = a[k] + b[k] + c[k] + d[k] + e[k]


@compiled
def _add_rows(stack: Volume, first: int, stop: int, row: int, lo: int, hi: int, out: Volume) -> None:
    """Write the sum of the rows ``stack[n, row, lo:hi]``, n from `first` to `stop`; `stack` is a ring."""
    turn = stack.shape[0]
    if stop - first == 5:
        _add_five(
            stack[first % turn, row, lo:hi],
            stack[(first + 1) % turn, row, lo:hi],
            stack[(first + 2) % turn, row, lo:hi],
            stack[(first + 3) % turn, row, lo:hi],
            stack[(first + 4) % turn, row, lo:hi],
            out,
        )
        return
    out[:] = stack[first % turn, row, lo:hi]
    for n in range(first + 1, stop):
        out += stack[n % turn, row, lo:hi]


@compiled
def _square_differences(a: Volume, b: Volume, out: Volume) -> None:
    """Write the squared differences of two rows."""
    for k in range(out.shape[0]):
        difference = a[k] - b[k]
        out[k] = difference * difference


@compiled
def _window_of_squares(
    target: Volume, image: Volume, shift: int, lo: int, hi: int, radius: int, padded: Volume, out: Volume
) -> None:
    """Write window sums ``lo .. hi`` of the squared differences from ``image[z + shift]``; zero outside of the rows."""
    Z = target.shape[0]
    first, stop = max(lo - radius, 0, -shift), min(hi + radius, Z, Z - shift)
    padded[lo : hi + 2 * radius] = 0
    if first < stop:
        _square_differences(target[first:stop], image[first + shift : stop + shift], padded[first + radius : stop + radius])
    if radius == 2:
        _add_five(
            padded[lo:hi],
            padded[lo + 1 : hi + 1],
            padded[lo + 2 : hi + 2],
            padded[lo + 3 : hi + 3],
            padded[lo + 4 : hi + 4],
            out,
        )
        return
    out[:] = padded[lo:hi]
    for k in range(1, 2 * radius + 1):
        out += padded[lo + k : hi + k]


@compiled
def _overlap(n: int, radius: int, shift: int) -> Volume:
    """Return one over the number of positions of a window along an axis that lie in the image before and after a shift."""
    out = np.empty(n, np.float32)
    for i in range(n):
        count = 0
        for k in range(max(i - radius, 0), min(i + radius + 1, n)):
            if 0 <= k + shift < n:
                count += 1
        out[i] = 1 / max(count, 1)
    return out


@compiled
def _keep_least(sums: Volume, share: float, shares: Volume, number: int, best: Volume, choice: Choices) -> None:
    """Note a displacement where its mean is less than the best one up to now."""
    factor, chosen = np.float32(share), np.uint16(number)
    for k in range(sums.shape[0]):
        mean = sums[k] * (factor * shares[k])
        better = mean < best[k]
        best[k] = min(mean, best[k])
        choice[k] = chosen if better else choice[k]


@compiled
def search(
    target: Volume,
    image: Volume,
    exact: Integers,
    wide: Integers,
    offsets: Integers,
    radius: Integers,
    best: Volume,
    choice: Choices,
) -> None:
    """Find the displacement at which the patches of one atlas have the least mean squared difference from the target.

    The first of equal ones wins. Positions outside of either image are left out of the mean, and a displacement that leads
    out of the image is left out.

    Parameters
    ----------
    target, image : (X, Y, Z) float32 ndarray
        Image to label and image of the atlas.
    exact, wide : (X, Y, 2) int32 ndarray
        Of :func:`row_spans`.
    offsets : (n_offsets, 3) int32 ndarray
        Displacements.
    radius : (3,) int32 ndarray
        Patch radius along each axis.
    best : (X, Y, Z) float32 ndarray
        Work space.
    choice : (X, Y, Z) uint16 ndarray
        Index of the best displacement; written inside of `exact` only.
    """
    X, Y, Z = target.shape
    rx, ry, rz = radius[0], radius[1], radius[2]
    padded, sums = np.zeros(Z + 2 * rz, np.float32), np.zeros(Z, np.float32)
    rows, ring = np.zeros((Y, 1, Z), np.float32), np.zeros((2 * rx + 1, Y, Z), np.float32)
    best[:] = NONE_YET
    choice[:] = 0
    for number in range(offsets.shape[0]):
        ox, oy, oz = offsets[number, 0], offsets[number, 1], offsets[number, 2]
        share_x, share_y, share_z = _overlap(X, rx, ox), _overlap(Y, ry, oy), _overlap(Z, rz, oz)
        first, stop = max(0, -ox), min(X, X - ox)  # voxels that this displacement keeps in the image
        low, high = max(0, -oy), min(Y, Y - oy)
        for plane in range(first, stop + rx):
            if plane < stop:
                for y in range(low, high):
                    lo, hi = wide[plane, y, 0], wide[plane, y, 1]
                    if hi:
                        row, other = target[plane, y], image[plane + ox, y + oy]
                        _window_of_squares(row, other, oz, lo, hi, rz, padded, rows[y, 0, lo:hi])
                for y in range(low, high):
                    lo, hi = wide[plane, y, 0], wide[plane, y, 1]
                    if hi:
                        out = ring[plane % (2 * rx + 1), y, lo:hi]
                        _add_rows(rows, max(y - ry, low), min(y + ry + 1, high), 0, lo, hi, out)
            x = plane - rx
            if x < first:
                continue
            for y in range(low, high):
                lo, hi = max(exact[x, y, 0], -oz), min(exact[x, y, 1], Z - oz)
                if lo < hi:
                    mean = sums[lo:hi]
                    _add_rows(ring, max(x - rx, first), min(x + rx + 1, stop), y, lo, hi, mean)
                    share = share_x[x] * share_y[y]
                    _keep_least(mean, share, share_z[lo:hi], number, best[x, y, lo:hi], choice[x, y, lo:hi])
