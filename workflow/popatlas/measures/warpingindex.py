"""Groupwise warping index: how far the images of a group are from each other where the truth is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from popatlas.transforms.fieldops import TensorOps


def warping_index(
    found: Sequence[Tensor], truth: Sequence[Tensor], mask: Tensor | None = None, spacing: float = 1.0
) -> float:
    """Return the root mean square distance of the images of a group from their mean place.

    Point ``x`` of the common space goes to ``found_j`` in image j, and from there to ``truth_j`` in the anatomy that the
    images were made of. A perfect registration sends it to the same place by all images, wherever that is:
    ``r_j(x) = truth_j(found_j(x)) - x``, less its mean over the group (Luo and Zhuang, 2023,
    doi:10.1109/TPAMI.2022.3225418).

    Parameters
    ----------
    found : sequence of (1, D, *shape) Tensor
        Displacements from the common space to each image, voxels.
    truth : sequence of (1, D, *shape) Tensor
        Displacements from each image to the anatomy, voxels.
    mask : (*shape) Tensor, optional
        Voxels of the common space that count (above 0).
    spacing : float
        Millimetres of a voxel.

    Returns
    -------
    float
        Millimetres; the arguments are not changed.
    """
    ops = TensorOps()
    rests = torch.stack([ops.compose(one, other)[0] for one, other in zip(found, truth, strict=True)])
    squares = (rests - rests.mean(0)).square().sum(1)
    inside = torch.ones_like(squares[0], dtype=torch.bool) if mask is None else mask > 0
    return spacing * float(squares[:, inside].mean().sqrt())
