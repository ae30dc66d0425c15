"""The middle of a group of maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from popatlas.transforms.fieldops import TensorOps


def centred_maps(maps: Sequence[Tensor], ops: TensorOps, weights: Sequence[float] | None = None) -> list[Tensor]:
    """Return maps whose mean is the identity: each goes through the inverse of the mean map first.

    They stay one-to-one, as they might not if the mean were subtracted.

    Parameters
    ----------
    maps : sequence of (1, D, *shape) Tensor
        Displacements, voxels of their common grid.
    ops : TensorOps
        Operations on them.
    weights : sequence of float, optional
        Of the maps in their mean; they sum to 1. Equal when left out.
    """
    shares = [1 / len(maps)] * len(maps) if weights is None else list(weights)
    mean = torch.zeros_like(maps[0])
    for share, field in zip(shares, maps, strict=True):
        mean += share * field
    back = ops.invert(mean)
    return [ops.compose(back, field) for field in maps]
