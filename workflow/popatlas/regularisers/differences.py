"""Finite differences of displacement fields."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_field(displacement: Tensor, least: int) -> int:
    """Check a displacement (B, D, *shape) whose axes need at least `least` voxels; return D."""
    ndim = displacement.ndim - 2
    if ndim not in (2, 3) or displacement.shape[1] != ndim or not displacement.is_floating_point():
        raise ValueError(f"a displacement is (B, D, *shape) with D = 2 or 3 axes, not {tuple(displacement.shape)}")
    if min(displacement.shape[2:]) < least:
        raise ValueError(f"each axis needs at least {least} voxels, not {tuple(displacement.shape[2:])}")
    return ndim


def step(values: Tensor, axis: int) -> Tensor:
    """Return ``v(x + 1) - v(x)`` along a spatial axis, one voxel shorter."""
    return values.diff(dim=axis + 2)


def physical(displacement: Tensor, spacing: Sequence[float] | None) -> tuple[Tensor, Sequence[float]]:
    """Return the displacement in units of `spacing` and the voxel sizes; in voxels, and ones, without."""
    ndim = displacement.shape[1]
    if spacing is None:
        return displacement, (1.0,) * ndim
    if len(spacing) != ndim or min(spacing) <= 0:
        raise ValueError(f"spacing {tuple(spacing)} does not fit {ndim} axes")
    sizes = torch.tensor(spacing, dtype=displacement.dtype, device=displacement.device)
    return displacement * sizes.reshape(-1, *[1] * ndim), spacing


def mean_square(values: Tensor) -> Tensor:
    """Return the squared length (B,) of vectors (B, D, *shape), averaged over the voxels."""
    return values.square().sum(1).flatten(1).mean(1)
