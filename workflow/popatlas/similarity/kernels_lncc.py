"""The compiled force of the squared local correlation; conventions as in `popatlas.transforms.kernels`.

Window sums are kept in a few planes that stay in the cache while the volume is read once; their cost hardly grows with the
radius: along a row by doubling, from row to row and from plane to plane by adding what comes and taking off what goes.
"""

from __future__ import annotations

import numpy as np

from popatlas.transforms.kernels import Volume, compiled

CHANNELS = 6  # window sums: weight, I, J, I*I, J*J, I*J


@compiled
def _row_window(source: Volume, radius: int, work: Volume, out: Volume) -> None:
    """Sum windows of ``2 radius + 1`` along a padded row by doubling: the cost grows with the logarithm of the radius."""
    n = out.shape[0]
    width = 2 * radius + 1
    if width == 5:  # the usual window, in one pass
        for k in range(n):
            out[k] = source[k] + source[k + 1] + source[k + 2] + source[k + 3] + source[k + 4]
        return
    for k in range(n):
        out[k] = source[k]  # width is odd
    offset, span = 1, 1
    length = source.shape[0]
    for k in range(length):
        work[k] = source[k]
    while offset < width:
        for k in range(length - span):  # work becomes the sum of 2 * span neighbours; in place, low to high
            work[k] += work[k + span]
        length -= span
        span *= 2
        if width & span:
            for k in range(n):
                out[k] += work[k + offset]
            offset += span


@compiled
def _plane_window(
    fixed: Volume, moving: Volume, weight: Volume, plane: int, radius: int, padded: Volume, rows: Volume, out: Volume
) -> None:
    """Write the in-plane window sums (CHANNELS, Y, Z) of one plane; outside of the volume everything is zero."""
    Y, Z = fixed.shape[1], fixed.shape[2]
    weighted = weight.shape[0] > 1
    first = 0 if weighted else 1
    work = padded[CHANNELS]
    for y in range(Y):
        a, b = fixed[plane, y], moving[plane, y]
        if weighted:
            w = weight[plane, y]
            for k in range(Z):
                p = w[k] * a[k]
                q = w[k] * b[k]
                padded[0, k + radius] = w[k]
                padded[1, k + radius], padded[2, k + radius] = p, q
                padded[3, k + radius], padded[4, k + radius], padded[5, k + radius] = p * a[k], q * b[k], p * b[k]
        else:
            for k in range(Z):
                p = a[k]
                q = b[k]
                padded[1, k + radius], padded[2, k + radius] = p, q
                padded[3, k + radius], padded[4, k + radius], padded[5, k + radius] = p * p, q * q, p * q
        for c in range(first, CHANNELS):
            _row_window(padded[c], radius, work, rows[c, y])
    for c in range(first, CHANNELS):
        total = work[:Z]
        total[:] = 0
        for y in range(-radius, Y):
            if y + radius < Y:
                new = rows[c, y + radius]
                for k in range(Z):
                    total[k] += new[k]
            if y - radius - 1 >= 0:
                old = rows[c, y - radius - 1]
                for k in range(Z):
                    total[k] -= old[k]
            if y >= 0:
                line = out[c, y]
                for k in range(Z):
                    line[k] = total[k]


@compiled
def _window_length(n: int, radius: int) -> Volume:
    """Return how many voxels of a window lie inside of an axis."""
    length = np.empty(n, np.float32)
    for i in range(n):
        length[i] = min(i + radius, n - 1) - max(i - radius, 0) + 1
    return length


@compiled
def _add_row(row: Volume, shrink: int, out: Volume) -> None:
    """Add a fine row to a coarse one."""
    n = row.shape[0]
    if shrink == 1:
        for k in range(n):
            out[k] += row[k]
    else:
        for k in range(n // 2):
            out[k] += row[2 * k] + row[2 * k + 1]
        if n % 2:
            out[n // 2] += row[n - 1]


@compiled
def lncc_force(
    fixed: Volume,
    moving: Volume,
    weight: Volume,
    radius: int,
    floor: float,
    shrink: int,
    symmetric: bool,
    force: Volume,
    lo: int,
    hi: int,
) -> tuple[float, float]:
    """Add the ascent direction of the squared local correlation to a coarse force field.

    The derivative is that of the window at the voxel itself (Avants et al., 2008, doi:10.1016/j.media.2007.06.004), not the
    sum over all windows that hold the voxel. Variances are raised by `floor`, so that windows without structure (noise)
    neither count nor push.

    Parameters
    ----------
    fixed, moving : (X, Y, Z) float32 ndarray
        Fixed and warped moving image.
    weight : (X, Y, Z) float32 ndarray
        Weight of each voxel; of shape (1, 1, 1) when there is none.
    radius : int
        Windows have 2 radius + 1 voxels along each axis.
    floor : float
        Squared intensity that is added to both variances.
    shrink : int
        1 or 2: voxels of the images along each axis of a voxel of the force.
    symmetric : bool
        Subtract the force on the fixed image, for a step that moves both halves in opposite directions.
    force : (3, x, y, z) float32 ndarray
        Sum over the voxels of each coarse voxel of derivative times image gradient.
    lo, hi : int
        Planes of the images; multiples of `shrink` except at the end.

    Returns
    -------
    tuple of float
        Sum of the squared local correlation and sum of the weights over these planes.
    """
    X, Y, Z = fixed.shape
    width = 2 * radius + 1
    weighted = weight.shape[0] > 1
    padded = np.zeros((CHANNELS + 1, Z + 2 * radius), np.float32)
    rows = np.empty((CHANNELS, Y, Z), np.float32)
    ring = np.zeros((width, CHANNELS, Y, Z), np.float32)
    sums = np.zeros((CHANNELS, Y, Z), np.float32)
    push = np.empty((2, Z), np.float32)
    agreement = np.empty(Z, np.float32)
    part = np.empty((3, Z), np.float32)
    nx, ny, nz = _window_length(X, radius), _window_length(Y, radius), _window_length(Z, radius)
    half, one, tiny = np.float32(0.5), np.float32(1), np.float32(1e-6)
    low = np.float32(max(floor, 1e-9))  # of images scaled to 0..1: below it, rounding
    total, mass = 0.0, 0.0
    for plane in range(max(lo - radius, 0), min(hi + radius, X)):
        slot = ring[plane % width]
        sums -= slot
        _plane_window(fixed, moving, weight, plane, radius, padded, rows, slot)
        sums += slot
        i = plane - radius
        last = plane == X - 1
        while lo <= i < hi:
            im, ip = max(i - 1, 0), min(i + 1, X - 1)
            for y in range(Y):
                a, b = fixed[i, y], moving[i, y]
                sn, sa, sb = sums[0, y], sums[1, y], sums[2, y]
                saa, sbb, sab = sums[3, y], sums[4, y], sums[5, y]
                if not weighted:
                    for k in range(Z):
                        sn[k] = nx[i] * ny[y] * nz[k]
                for k in range(Z):
                    inverse = one / max(sn[k], tiny)
                    ma, mb = sa[k] * inverse, sb[k] * inverse
                    vaa = (saa[k] - sa[k] * ma) * inverse + low
                    vbb = (sbb[k] - sb[k] * mb) * inverse + low
                    vab = (sab[k] - sa[k] * mb) * inverse
                    ratio = vab / (vaa * vbb)
                    agreement[k] = vab * ratio
                    push[1, k] = ratio * ((a[k] - ma) - (vab / vbb) * (b[k] - mb))
                    push[0, k] = ratio * ((b[k] - mb) - (vab / vaa) * (a[k] - ma))
                if weighted:
                    w = weight[i, y]
                    agreement *= w
                    push *= w
                    mass += float(w.sum())
                total += float(agreement.sum())
                ym, yp = max(y - 1, 0), min(y + 1, Y - 1)
                bxm, bxp, bym, byp = moving[im, y], moving[ip, y], moving[i, ym], moving[i, yp]
                for k in range(1, Z - 1):
                    g = half * push[1, k]
                    part[0, k] = g * (bxp[k] - bxm[k])
                    part[1, k] = g * (byp[k] - bym[k])
                    part[2, k] = g * (b[k + 1] - b[k - 1])
                part[:, 0] = 0
                part[:, Z - 1] = 0
                if symmetric:
                    axm, axp, aym, ayp = fixed[im, y], fixed[ip, y], fixed[i, ym], fixed[i, yp]
                    for k in range(1, Z - 1):
                        g = half * push[0, k]
                        part[0, k] -= g * (axp[k] - axm[k])
                        part[1, k] -= g * (ayp[k] - aym[k])
                        part[2, k] -= g * (a[k + 1] - a[k - 1])
                for c in range(3):
                    _add_row(part[c], shrink, force[c, i // shrink, y // shrink])
            if not last:
                break
            i += 1  # past the last plane the windows only lose planes
            gone = i - radius - 1
            if gone >= 0:
                slot = ring[gone % width]
                sums -= slot
                slot[:] = 0
    return total, mass if weighted else float((hi - lo) * Y * Z)
