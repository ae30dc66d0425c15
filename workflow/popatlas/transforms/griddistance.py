"""Transformed-grid distance: how far two linear transforms send the points of an image apart, in millimetres.

It compares transforms where they matter, weighs rotation against translation in one unit, does not depend on how they are
parametrised, and as a loss of rigid registration networks does better than distances of their parameters. The published loss
sums over the points of the grid; here that sum is written in closed form, so that no grid is made.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from popatlas.images.grid import Array, Grid


def squared_grid_distance(first: Tensor, second: Tensor, grid: Grid) -> Tensor:
    """Return the mean squared distance between the images of the voxels of a grid under two linear transforms.

    With ``(M, o)`` the difference of the transforms in voxel coordinates, ``m`` the mean index and ``s2`` the variances of
    the index along the axes, it is ``|M m + o|**2 + sum_d s2_d |M e_d|**2``.

    Parameters
    ----------
    first, second : (B, D + 1, D + 1) Tensor
        Homogeneous matrices, LPS millimetres; a batch of one, or a matrix without a batch axis, is repeated.
    grid : Grid
        Voxels whose centres the transforms move: the fixed image's where matrices map fixed to moving points.

    Returns
    -------
    (B,) Tensor
        Square millimetres; differentiable everywhere, symmetric in the two transforms, 0 only where they agree.
    """
    size = grid.ndim + 1
    if first.shape[-2:] != (size, size) or second.shape[-2:] != (size, size):
        raise ValueError(f"matrices of shapes {tuple(first.shape)} and {tuple(second.shape)} for {grid.ndim} axes")
    voxels = torch.tensor(grid.shape, dtype=torch.float64, device=first.device)
    affine = torch.as_tensor(grid.affine.copy(), device=first.device)
    change = (first.double() - second.double()).reshape(-1, size, size) @ affine
    linear, offset = change[:, :-1, :-1], change[:, :-1, -1]
    at_mean = linear @ ((voxels - 1) / 2) + offset
    spread = linear.square().sum(1) @ ((voxels**2 - 1) / 12)
    return (at_mean.square().sum(1) + spread).to(first.dtype)


def grid_distance_mm(first: Tensor | Array, second: Tensor | Array, grid: Grid) -> float:
    """Return the root mean square distance between the voxels of a grid under two linear transforms.

    Parameters
    ----------
    first, second : (D + 1, D + 1) Tensor or ndarray
        Homogeneous matrices, LPS millimetres.
    grid : Grid
        Voxels that the transforms move.

    Returns
    -------
    float
        Millimetres.
    """
    one, other = (torch.as_tensor(np.asarray(matrix), dtype=torch.float64) for matrix in (first, second))
    return math.sqrt(float(squared_grid_distance(one, other, grid)))
