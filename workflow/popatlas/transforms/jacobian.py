"""Jacobian determinants of displacements, by central differences and, for folds, by all one-sided ones; 2D and 3D."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from popatlas.transforms.fields import check_displacement


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Return the determinant of the Jacobian of ``x + u(x)``.

    Parameters
    ----------
    displacement : (B, D, *shape) Tensor
        Voxels; at least two along each axis.

    Returns
    -------
    (B, *shape) Tensor
        Dimensionless: volume in the moving image over volume in the fixed one, if both grids have the same voxels. Central
        differences, one-sided at the border. Values up to 0 are folds.
    """
    ndim = _axes_with_slopes(displacement)
    slopes = [[_slope(displacement[:, row], axis) + (row == axis) for axis in range(ndim)] for row in range(ndim)]
    return _determinant(slopes)


def least_determinant(displacement: Tensor) -> Tensor:
    """Return the least Jacobian determinant of ``x + u(x)`` at each voxel over all choices of one-sided differences.

    Central differences do not see a voxel that has changed places with its neighbours; where this is positive everywhere,
    the cells between the voxels keep their orientation at all of their corners. In 2D these are all four that Liu et al.
    (2024, IJCV 132:3678-3688, doi:10.1007/s11263-024-02047-1) ask for; in 3D eight of their ten, without the two that look
    at tetrahedra between corners.

    Parameters
    ----------
    displacement : (B, D, *shape) Tensor
        Voxels; at least two along each axis.

    Returns
    -------
    (B, *shape) Tensor
        Values up to 0 are folds.
    """
    ndim = _axes_with_slopes(displacement)
    sides = [_one_sided(displacement, axis) for axis in range(ndim)]
    least: Tensor | None = None
    for choice in product((0, 1), repeat=ndim):
        slopes = [[sides[axis][choice[axis]][:, row] + (row == axis) for axis in range(ndim)] for row in range(ndim)]
        found = _determinant(slopes)
        least = found if least is None else torch.minimum(least, found)
    assert least is not None
    return least


def _axes_with_slopes(displacement: Tensor) -> int:
    check_displacement(displacement)
    if min(displacement.shape[2:]) < 2:
        raise ValueError(f"no slopes along an axis of one voxel: {tuple(displacement.shape[2:])}")
    return displacement.shape[1]


def _one_sided(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the differences to the voxel before and to the one after; at the border both are the one that there is."""
    step = values.diff(dim=axis + 2)
    first, last = step.narrow(axis + 2, 0, 1), step.narrow(axis + 2, step.shape[axis + 2] - 1, 1)
    return torch.cat([first, step], dim=axis + 2), torch.cat([step, last], dim=axis + 2)


def _slope(values: Tensor, axis: int) -> Tensor:
    slope: Tensor = torch.gradient(values, dim=[axis + 1])[0]
    return slope


def _determinant(rows: list[list[Tensor]]) -> Tensor:
    """Return the determinant of a 2 x 2 or 3 x 3 matrix of tensors, expanded along the first row."""
    if len(rows) == 2:
        return rows[0][0] * rows[1][1] - rows[0][1] * rows[1][0]
    minors = [[[row[i] for i in range(3) if i != column] for row in rows[1:]] for column in range(3)]
    parts = [rows[0][column] * _determinant(minor) for column, minor in enumerate(minors)]
    return parts[0] - parts[1] + parts[2]


def log_jacobian(displacement: Tensor, floor: float = 1e-3) -> Tensor:
    """Return the natural log of the Jacobian determinant (B, *shape), determinants below `floor` being lifted to it."""
    return jacobian_determinant(displacement).clamp(min=floor).log()
