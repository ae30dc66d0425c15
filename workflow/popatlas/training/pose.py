"""How far a rigid or affine map is from the motion that is known.

Matrices (B, D, D + 1) are those of `popatlas.networks.registration.Prediction`: voxels counted from the centre of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from popatlas.images.grid import Grid
from popatlas.transforms.euler import angles_of
from popatlas.transforms.griddistance import squared_grid_distance

TINY = 1e-6  # square millimetres: keeps the slope of a root finite


def about_centre(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a matrix (B, D + 1, D + 1) from voxel index to voxel index as (B, D, D + 1) for voxels from the centre."""
    centre = (torch.tensor(shape, dtype=matrix.dtype) - 1) / 2
    linear = matrix[:, :-1, :-1]
    shift = matrix[:, :-1, -1] + linear @ centre - centre
    return torch.cat([linear, shift.unsqueeze(-1)], -1).float()


def grid_distance(found: Tensor, truth: Tensor, shape: Sequence[int], spacing: float) -> Tensor:
    """Return the root mean square distance of the voxels of an image under two maps (B,), millimetres: the TGD loss."""
    grid = Grid(tuple(shape), np.diag([*[spacing] * len(shape), 1.0]))
    grid = Grid(grid.shape, np.block([[grid.affine[:-1, :-1], -grid.centre[:, None]], [grid.affine[-1:]]]))
    one, other = (_homogeneous(matrix, spacing) for matrix in (found, truth))
    return (squared_grid_distance(one, other, grid) + TINY).sqrt()


def euler_error(found: Tensor, truth: Tensor, spacing: float) -> Tensor:
    """Return the mean squared error of angles in degrees and shifts in millimetres (B,)."""
    ndim = truth.shape[1]
    turns = angles_of(found[:, :, :ndim]) - angles_of(truth[:, :, :ndim])
    shifts = spacing * (found[:, :, -1] - truth[:, :, -1])
    return torch.cat([math.degrees(1) * turns, shifts], 1).square().mean(1)


def _homogeneous(matrix: Tensor, spacing: float) -> Tensor:
    scaled = torch.cat([matrix[:, :, :-1], spacing * matrix[:, :, -1:]], 2)
    last = torch.zeros_like(scaled[:, :1])
    last[:, :, -1] = 1
    return torch.cat([scaled, last], 1)
