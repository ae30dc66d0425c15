"""Linear transforms as torch matrices: parameters, change between millimetres and voxels, displacement.

A matrix is homogeneous, (B, D + 1, D + 1), in LPS millimetres, and maps a point of the fixed image to the moving image.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from popatlas.images.grid import Array, Grid
from popatlas.transforms.fields import coordinates

KINDS = ("translation", "rigid", "similarity", "affine")


def _layout(kind: str, ndim: int) -> tuple[int, int, int]:
    """Return how many parameters are translations, rotations and log-stretches."""
    if kind not in KINDS or ndim not in (2, 3):
        raise ValueError(f"no transform {kind!r} in {ndim} dimensions; kinds: {', '.join(KINDS)}")
    turns = ndim * (ndim - 1) // 2
    stretches = {"similarity": 1, "affine": ndim + turns}.get(kind, 0)
    return ndim, 0 if kind == "translation" else turns, stretches


def parameter_count(kind: str, ndim: int) -> int:
    """Return the number of parameters: 3, 6, 7, 12 in 3D and 2, 3, 4, 6 in 2D for the kinds in order."""
    return sum(_layout(kind, ndim))


def identity_parameters(kind: str, ndim: int, batch: int = 1) -> Tensor:
    """Return the parameters (batch, P) of the identity: zeros, float32."""
    return torch.zeros(batch, parameter_count(kind, ndim))


def matrix(parameters: Tensor, kind: str, centre: Tensor | Array) -> Tensor:
    """Return the matrices of parameters.

    The linear part is ``R exp(S)`` with a rotation ``R`` and a symmetric log-stretch ``S`` (polar decomposition): each
    matrix without reflection has parameters, and each set of parameters gives an invertible matrix. Translation and rotation
    come first and mean the same in all kinds.

    Parameters
    ----------
    parameters : (B, P) Tensor
        In order: translation (D), millimetres; rotation vector (3 in 3D, 1 in 2D), radians; similarity: log-scale (1);
        affine: log-scales (D) and log-shears, the entries of ``S`` above its diagonal (3 in 3D, 1 in 2D).
    kind : str
        One of `KINDS`.
    centre : (D,) Tensor or ndarray
        Point that rotation and stretch leave in place, LPS millimetres.

    Returns
    -------
    (B, D + 1, D + 1) Tensor
        ``x -> R exp(S) (x - centre) + centre + translation``; differentiable, also at the identity.
    """
    point = torch.as_tensor(centre, dtype=parameters.dtype, device=parameters.device)
    ndim = point.shape[0]
    layout = _layout(kind, ndim)
    if parameters.ndim != 2 or parameters.shape[1] != sum(layout):
        raise ValueError(f"{kind} in {ndim} dimensions has {sum(layout)} parameters, not shape {tuple(parameters.shape)}")
    shift, turn, stretch = torch.split(parameters, list(layout), dim=1)
    linear = torch.eye(ndim, dtype=parameters.dtype, device=parameters.device).expand(len(parameters), -1, -1)
    if layout[1]:
        linear = torch.linalg.matrix_exp(_skew(turn, ndim))
    if layout[2]:
        linear = linear @ torch.linalg.matrix_exp(_symmetric(stretch, ndim))
    offset = shift + point - linear @ point
    return _homogeneous(linear, offset)


def _homogeneous(linear: Tensor, offset: Tensor) -> Tensor:
    last = torch.zeros_like(linear[:, :1])
    bottom = torch.cat([last, torch.ones_like(last[:, :, :1])], dim=2)
    return torch.cat([torch.cat([linear, offset.unsqueeze(2)], dim=2), bottom], dim=1)


def _skew(turn: Tensor, ndim: int) -> Tensor:
    """Return the matrix of ``turn x`` (cross product) for rotation vectors (B, 3) or angles (B, 1)."""
    zero = torch.zeros_like(turn[:, 0])
    if ndim == 2:
        rows = [zero, -turn[:, 0], turn[:, 0], zero]
    else:
        x, y, z = turn.unbind(1)
        rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, dim=1).reshape(-1, ndim, ndim)


def _symmetric(stretch: Tensor, ndim: int) -> Tensor:
    if stretch.shape[1] == 1:
        return torch.diag_embed(stretch.expand(-1, ndim))
    entries: list[list[Tensor]] = [[stretch[:, i]] * ndim for i in range(ndim)]
    for value, (i, j) in zip(stretch[:, ndim:].unbind(1), combinations(range(ndim), 2), strict=True):
        entries[i][j] = entries[j][i] = value
    return torch.stack([torch.stack(row, dim=1) for row in entries], dim=1)


def voxel_matrix(matrix: Tensor, fixed: Grid, moving: Grid) -> Tensor:
    """Return a matrix in millimetres as one between voxels.

    Parameters
    ----------
    matrix : (B, D + 1, D + 1) or (D + 1, D + 1) Tensor
        Fixed to moving point, LPS millimetres.
    fixed, moving : Grid
        Grids of the two images.

    Returns
    -------
    (B, D + 1, D + 1) Tensor
        Fixed to moving voxel index; computed in float64, of the type of `matrix`.
    """
    size = (fixed.ndim + 1, moving.ndim + 1)
    if matrix.shape[-2:] != size:
        raise ValueError(f"matrix of shape {tuple(matrix.shape)} between grids of {fixed.ndim} and {moving.ndim} axes")
    before, after = (torch.as_tensor(m, device=matrix.device) for m in (fixed.affine.copy(), np.linalg.inv(moving.affine)))
    return (after @ matrix.double().reshape(-1, *size) @ before).to(matrix.dtype)


def affine_displacement(matrix: Tensor, fixed: Grid) -> Tensor:
    """Return a matrix, LPS millimetres, as displacement (B, D, *shape) in voxels of the fixed grid, of the matrix's type."""
    change = voxel_matrix(matrix, fixed, fixed) - torch.eye(fixed.ndim + 1, dtype=matrix.dtype, device=matrix.device)
    return move(change, coordinates(fixed.shape, device=matrix.device, dtype=matrix.dtype))


def move(matrix: Tensor, points: Tensor) -> Tensor:
    """Map points (B, D, *out) by homogeneous matrices (B, D + 1, D + 1); a batch of one is repeated."""
    ndim = points.shape[1]
    linear, offset = matrix[:, :ndim, :ndim], matrix[:, :ndim, ndim:]
    return (linear @ points.flatten(2) + offset).reshape(-1, *points.shape[1:])
