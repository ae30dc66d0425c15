"""Boxes around labels, the cheap supervision of registration networks: an annotator draws a box in seconds.

Schumacher et al., "Weak bounding box supervision for image registration networks", WBIR 2022; in full: Journal of Medical
Imaging 2022;9:044001, doi:10.1117/1.JMI.9.4.044001. The loss is twice the mean squared difference between the maps of the
fixed boxes and the warped maps of the moving ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from popatlas.training.structures import structure_maps


def boxes_of(labels: Tensor, values: Sequence[int] | Tensor) -> Tensor:
    """Return the smallest boxes that hold the labels.

    Parameters
    ----------
    labels : (B, C, *shape) Tensor
        Labels, see `popatlas.training.structures`.
    values : sequence of int
        The L labels to look for.

    Returns
    -------
    (B, L, D, 2) int64 Tensor
        First voxel along each axis, and the one after the last: stop minus start is the side. Zeros for an absent label.
    """
    maps = (structure_maps(labels, [int(value)])[:, 0] > 0 for value in values)
    boxes = [torch.stack([_extent(one, axis) for axis in range(labels.ndim - 2)], 1) for one in maps]
    if not boxes:
        raise ValueError("no labels to make boxes of")
    return torch.stack(boxes, 1)


def _extent(mask: Tensor, axis: int) -> Tensor:
    """Return start and stop (B, 2) of masks (B, *shape) along an axis."""
    hit = mask.movedim(axis + 1, 1).flatten(2).any(2).to(torch.int64)
    start, behind = hit.argmax(1), hit.flip(1).argmax(1)
    return torch.stack([start, hit.shape[1] - behind], 1) * hit.amax(1, keepdim=True)


def jittered(boxes: Tensor, share: float = 0.05, generator: torch.Generator | None = None) -> Tensor:
    """Move each face of boxes on its own, as a hasty annotator does.

    Parameters
    ----------
    boxes : (B, L, D, 2) Tensor
        Start and stop along each axis.
    share : float
        Farthest move as a share of the box's side along that axis, evenly distributed in both directions; below 0.5.
    generator : Generator, optional
        Source of the moves, on any device; torch's global one by default.

    Returns
    -------
    (B, L, D, 2) float32 Tensor
        Parts of voxels included, and possibly beyond the image.

    Raises
    ------
    ValueError
        When `share` is outside of 0 to 0.5, where boxes could turn inside out.
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"the share of a side is from 0 to below 0.5, not {share}")
    device = boxes.device if generator is None else generator.device
    moves = torch.rand(boxes.shape, generator=generator, device=device).to(boxes.device)
    sides = boxes[..., 1:] - boxes[..., :1]
    return boxes + (2 * moves - 1) * share * sides


def rasterised(boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """Return boxes as maps.

    Parameters
    ----------
    boxes : (B, L, D, 2) Tensor
        Start and stop along each axis, in voxels from the corner of the image.
    shape : sequence of int
        Of the image.

    Returns
    -------
    (B, L, *shape) float32 Tensor
        Share of each voxel that lies in the box: 1, 0, and between them at faces that cut voxels, so that the maps of small
        boxes differ when their faces move by less than a voxel.
    """
    ndim = len(shape)
    result = torch.ones(*boxes.shape[:2], *shape, device=boxes.device)
    for axis, n in enumerate(shape):
        start, stop = boxes[:, :, axis, :1].float(), boxes[:, :, axis, 1:].float()
        low = torch.arange(n, device=boxes.device)
        covered = (torch.minimum(stop, low + 1.0) - torch.maximum(start, low.float())).clamp(min=0)
        result = result * covered.reshape(*covered.shape[:2], *[n if other == axis else 1 for other in range(ndim)])
    return result


def box_maps(
    labels: Tensor, values: Sequence[int] | Tensor, share: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Return the maps of the boxes around labels.

    Parameters
    ----------
    labels : (B, C, *shape) Tensor
        Labels, see `popatlas.training.structures`.
    values : sequence of int
        The L labels to make boxes of.
    share : float
        Errors of the boxes, see `jittered`; 0 for tight ones.
    generator : Generator, optional
        Source of the errors.

    Returns
    -------
    (B, L, *shape) float32 Tensor
        See `rasterised`; zero for an absent label.
    """
    boxes = boxes_of(labels, values)
    return rasterised(jittered(boxes, share, generator) if share else boxes, labels.shape[2:])
