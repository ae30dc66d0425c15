"""Free-form deformation: displacements from a lattice of control points, cubic B-spline or linear.

Control point ``i`` of an axis lies at voxel ``(i - 1) * spacing``: one point before the image and, at its end, as many as
the cubic B-spline needs. Both kinds use the same lattice; a linear one leaves its outermost points unused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["bspline", "linear"]

REACH = 4  # control points along each axis that move a voxel


def control_shape(shape: Sequence[int], spacing_voxels: float | Sequence[float]) -> tuple[int, ...]:
    """Return how many control points a grid needs along each axis.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the grid.
    spacing_voxels : float or sequence of float
        Distance of control points in voxels, positive; one for all axes or one for each.
    """
    return tuple(math.floor((n - 1) / gap) + REACH for n, gap in zip(shape, _gaps(shape, spacing_voxels), strict=True))


def dense_from_control(
    control: Tensor, shape: Sequence[int], spacing_voxels: float | Sequence[float], kind: Kind = "bspline"
) -> Tensor:
    """Return the displacement at each voxel from those at control points (Rueckert et al., 1999, doi:10.1109/42.796284).

    Parameters
    ----------
    control : (B, D, *control shape) Tensor
        Displacements of the control points, voxels of the dense grid; see `control_shape`.
    shape : sequence of int
        Shape of the dense grid.
    spacing_voxels : float or sequence of float
        Distance of control points in voxels.
    kind : str
        ``bspline``: smooth (twice differentiable), does not pass through the control points; ``linear``: passes through
        them. Both keep constant and linear displacements.

    Returns
    -------
    (B, D, *shape) Tensor
        Voxels; linear in, and differentiable by, `control`.
    """
    if tuple(control.shape[2:]) != control_shape(shape, spacing_voxels):
        raise ValueError(
            f"control of shape {tuple(control.shape[2:])} where {control_shape(shape, spacing_voxels)} is needed"
        )
    for axis, (n, gap) in enumerate(zip(shape, _gaps(shape, spacing_voxels), strict=True), start=2):
        matrix = _weights(n, gap, control.shape[axis], kind)
        control = along_axis(matrix.to(control.device, control.dtype), control, axis)
    return control.contiguous()


def _gaps(shape: Sequence[int], spacing_voxels: float | Sequence[float]) -> list[float]:
    gaps = (
        [float(spacing_voxels)] * len(shape)
        if isinstance(spacing_voxels, int | float)
        else [float(g) for g in spacing_voxels]
    )
    if len(gaps) != len(shape) or min(gaps) <= 0:
        raise ValueError(f"control point spacing {spacing_voxels} for shape {tuple(shape)}")
    return gaps


def _weights(n: int, gap: float, points: int, kind: Kind) -> Tensor:
    """Return the influence of the control points on the voxels of one axis, (n, points)."""
    position = torch.arange(n, dtype=torch.float64) / gap
    cell = position.floor()
    t = position - cell
    if kind == "bspline":
        weights = torch.stack(bspline_weights(t), dim=1)
    elif kind == "linear":
        weights = torch.stack([torch.zeros_like(t), 1 - t, t, torch.zeros_like(t)], dim=1)
    else:
        raise ValueError(f"no kind {kind!r}")
    index = cell.long().unsqueeze(1) + torch.arange(REACH)
    return torch.zeros(n, points, dtype=torch.float64).scatter_(1, index, weights)


def bspline_weights(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the weights of the four control points round a cell for positions `t` in it, 0 to 1."""
    s = 1 - t
    return s**3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (4 - 6 * s**2 + 3 * s**3) / 6, t**3 / 6


def along_axis(matrix: Tensor, values: Tensor, axis: int) -> Tensor:
    """Multiply a matrix (m, n) onto one axis of n values; the result has m there."""
    product_last: Tensor = torch.tensordot(values, matrix, dims=([axis], [1]))
    return product_last.movedim(-1, axis)
