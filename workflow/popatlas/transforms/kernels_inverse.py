"""Compiled inverse of a displacement: Newton's method at each voxel, from the result of its neighbour.

A voxel x of the inverse v fulfils ``v(x) + u(x + v(x)) = 0``. Between voxels u is trilinear, and its eight corners give
value and derivative at once; two or three steps find a point that the fixed-point iteration of Chen et al. 2008
(doi:10.1118/1.2816107) needs twenty for, and where stretches above 2 keep that from converging at all.
"""

from __future__ import annotations

import numpy as np

from popatlas.transforms.kernels import EDGE, Volume, compiled

NEWTON, MOST = 12, 60  # steps; after the first ones shorter steps along the residual, which cannot jump back and forth
FLAT = 0.05  # a smaller determinant says nothing about where to go
LONGEST = 3.0  # voxels of a step


@compiled
def _corners(
    values: Volume, at: int, sx: int, sy: int, fx: np.float32, fy: np.float32, fz: np.float32
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """Return value and derivatives along the axes between eight corners, `at` being the lowest of them."""
    a00, b00 = values[at], values[at + 1]
    a01, b01 = values[at + sy], values[at + sy + 1]
    a10, b10 = values[at + sx], values[at + sx + 1]
    a11, b11 = values[at + sx + sy], values[at + sx + sy + 1]
    c00, c01, c10, c11 = a00 + fz * (b00 - a00), a01 + fz * (b01 - a01), a10 + fz * (b10 - a10), a11 + fz * (b11 - a11)
    c0, c1 = c00 + fy * (c01 - c00), c10 + fy * (c11 - c10)
    d00, d01, d10, d11 = b00 - a00, b01 - a01, b10 - a10, b11 - a11
    d0, d1 = d00 + fy * (d01 - d00), d10 + fy * (d11 - d10)
    return c0 + fx * (c1 - c0), c1 - c0, (c01 - c00) + fx * ((c11 - c10) - (c01 - c00)), d0 + fx * (d1 - d0)


@compiled
def invert(field: Volume, tolerance: float, out: Volume, lo: int, hi: int) -> float:
    """Write the inverse of a displacement (3, x, y, z), voxels, and return the largest component of what is left.

    Outside, the field is that of the border. A voxel is done when all components of its rest are below `tolerance`.
    """
    X, Y, Z = field.shape[1:]
    sx, sy = Y * Z, Z
    flat = field.reshape(3, -1)
    zero, one, half = np.float32(0), np.float32(1), np.float32(0.5)
    tx, ty, tz = np.float32(X - EDGE), np.float32(Y - EDGE), np.float32(Z - EDGE)
    worst = zero
    for i in range(lo, hi):
        for j in range(Y):
            vx, vy, vz = -field[0, i, j, 0], -field[1, i, j, 0], -field[2, i, j, 0]
            for k in range(Z):
                bx, by, bz, best = vx, vy, vz, np.float32(1e30)
                for n in range(MOST):
                    px, py, pz = np.float32(i) + vx, np.float32(j) + vy, np.float32(k) + vz
                    qx, qy, qz = min(max(px, zero), tx), min(max(py, zero), ty), min(max(pz, zero), tz)
                    ix, iy, iz = int(qx), int(qy), int(qz)
                    fx, fy, fz = qx - np.float32(ix), qy - np.float32(iy), qz - np.float32(iz)
                    at = ix * sx + iy * sy + iz
                    ux, uxx, uxy, uxz = _corners(flat[0], at, sx, sy, fx, fy, fz)
                    uy, uyx, uyy, uyz = _corners(flat[1], at, sx, sy, fx, fy, fz)
                    uz, uzx, uzy, uzz = _corners(flat[2], at, sx, sy, fx, fy, fz)
                    rx, ry, rz = vx + ux, vy + uy, vz + uz
                    rest = max(abs(rx), abs(ry), abs(rz))
                    if rest < best:
                        bx, by, bz, best = vx, vy, vz, rest
                    if rest < tolerance:
                        break
                    if n >= NEWTON:
                        vx, vy, vz = vx - half * rx, vy - half * ry, vz - half * rz
                        continue
                    if qx != px:
                        uxx, uyx, uzx = zero, zero, zero
                    if qy != py:
                        uxy, uyy, uzy = zero, zero, zero
                    if qz != pz:
                        uxz, uyz, uzz = zero, zero, zero
                    a, e, m = one + uxx, one + uyy, one + uzz
                    xx, xy, xz = e * m - uyz * uzy, uxz * uzy - uxy * m, uxy * uyz - uxz * e
                    yx, yy, yz = uyz * uzx - uyx * m, a * m - uxz * uzx, uxz * uyx - a * uyz
                    zx, zy, zz = uyx * uzy - e * uzx, uxy * uzx - a * uzy, a * e - uxy * uyx
                    determinant = a * xx + uxy * yx + uxz * zx
                    if abs(determinant) < FLAT:
                        dx, dy, dz = half * rx, half * ry, half * rz
                    else:
                        share = one / determinant
                        dx = share * (xx * rx + xy * ry + xz * rz)
                        dy = share * (yx * rx + yy * ry + yz * rz)
                        dz = share * (zx * rx + zy * ry + zz * rz)
                        long = max(abs(dx), abs(dy), abs(dz))
                        if long > LONGEST:
                            dx, dy, dz = dx * LONGEST / long, dy * LONGEST / long, dz * LONGEST / long
                    vx, vy, vz = vx - dx, vy - dy, vz - dz
                vx, vy, vz = bx, by, bz
                out[0, i, j, k], out[1, i, j, k], out[2, i, j, k] = vx, vy, vz
                worst = max(worst, best)
    return float(worst)
