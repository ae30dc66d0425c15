"""Penalties on the first derivatives of a displacement, and on its length."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from popatlas.regularisers.differences import check_field, mean_square, physical, step


def diffusion(displacement: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Return the diffusion penalty: the mean of the squared first derivatives.

    Parameters
    ----------
    displacement : (B, D, *shape) Tensor
        Voxels of its own grid.
    spacing : sequence of float, optional
        Voxel sizes; derivatives are then those of the physical displacement by the physical position. Without, by voxels.

    Returns
    -------
    (B,) Tensor
        Sum over components and axes of the squared forward difference, averaged over the voxels: ``|G|**2`` for ``u = G x``.

    Raises
    ------
    ValueError
        When the field is not one, or an axis has a single voxel.
    """
    ndim = check_field(displacement, 2)
    field, sizes = physical(displacement, spacing)
    total = mean_square(step(field, 0)) / sizes[0] ** 2
    for axis in range(1, ndim):
        total = total + mean_square(step(field, axis)) / sizes[axis] ** 2
    return total


def magnitude(displacement: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Return the mean squared length of a displacement.

    Parameters
    ----------
    displacement : (B, D, *shape) Tensor
        Voxels of its own grid.
    spacing : sequence of float, optional
        Voxel sizes, for a length in their unit.

    Returns
    -------
    (B,) Tensor
        Mean of ``|u|**2``.

    Raises
    ------
    ValueError
        When the field is not one.
    """
    check_field(displacement, 1)
    return mean_square(physical(displacement, spacing)[0])
