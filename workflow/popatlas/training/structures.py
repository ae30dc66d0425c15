"""The structures of labels: which ones there are, and the map of each.

Labels are integers (B, C, *shape). With one channel they are a label map: the number of its structure in each voxel, 0
outside. With several, channel k is 1 where structure k + 1 is, and structures may overlap; an empty channel is no structure.
All that learns from labels asks here, so that it need not know which of the two it has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from popatlas.errors import InputError

COUNTABLE = 2**16  # numbers below it are found by counting, which is faster than sorting
SMALLEST = 100  # voxels that a label of a 3D map needs in both images to be scored; a tenth of it in 2D
MOST_LABELS = 4096  # more values than that are intensities, not labels


def may_overlap(labels: Tensor) -> bool:
    """Tell whether labels have a channel for each structure."""
    return labels.ndim > 3 and labels.shape[1] > 1


def structures_of(labels: Tensor) -> Tensor:
    """Return the numbers of the structures of labels (1, C, *shape), sorted, int64; of a label map also 0."""
    if may_overlap(labels):
        return labels.flatten(2).any(2).any(0).nonzero()[:, 0] + 1
    flat = labels.flatten().long()
    if flat.numel() and int(flat.min()) >= 0 and int(flat.max()) < COUNTABLE:
        return torch.bincount(flat).nonzero()[:, 0]
    values: Tensor = torch.unique(flat)
    return values


def sample_structures(
    fixed: Tensor, moving: Tensor, count: int, generator: torch.Generator, exclude: Sequence[int] = (0,)
) -> Tensor:
    """Draw common structures of two images, each equally likely (Hu et al. 2018, doi:10.1016/j.media.2018.07.002).

    With image pairs that are drawn uniformly, the mean loss over these structures has the gradient of the mean over all
    pairs and all of their structures as its expectation, at the cost of a few of them.

    Parameters
    ----------
    fixed, moving : (1, C, *shape) integer Tensor
        Labels of both; label maps may have any shape.
    count : int
        Structures to draw, without repetition, at least 1.
    generator : Generator
        Of any device.
    exclude : sequence of int
        Numbers that are never drawn.

    Returns
    -------
    (n,) int64 Tensor
        Numbers on the device of `fixed`: `count` of them or, when the images have fewer in common, all; maybe none.
    """
    if count < 1:
        raise ValueError(f"{count} labels")
    common = structures_of(fixed)
    common = common[torch.isin(common, structures_of(moving))]
    common = common[~torch.isin(common, torch.tensor(list(exclude), dtype=torch.int64, device=common.device))]
    order = torch.randperm(len(common), generator=generator, device=generator.device)[:count]
    return common[order.to(common.device)]


def structure_maps(labels: Tensor, numbers: Tensor | Sequence[int]) -> Tensor:
    """Return the map of each structure.

    Parameters
    ----------
    labels : (B, C, *shape) integer Tensor
        Labels.
    numbers : (L,) Tensor or sequence of int
        Which structures.

    Returns
    -------
    (B, L, *shape) float32 Tensor
        1 where the structure is, else 0; only zeros for one that there is not.
    """
    numbers = torch.as_tensor(numbers, device=labels.device)
    if not may_overlap(labels):
        return (labels == numbers.reshape(1, -1, *[1] * (labels.ndim - 2))).float()
    known = ((numbers > 0) & (numbers <= labels.shape[1])).reshape(1, -1, *[1] * (labels.ndim - 2))
    return labels[:, (numbers - 1).clamp(0, labels.shape[1] - 1)].float() * known


def foreground(labels: Tensor) -> Tensor:
    """Return where any structure is: (B, C, *shape) labels to (B, 1, *shape) float32."""
    return (labels > 0).any(1, keepdim=True).float()


def exchanged(labels: Tensor, sides: Sequence[tuple[int, int]]) -> Tensor:
    """Return labels in which the structures of each pair have changed places."""
    result = labels.clone()
    for pair in sides:
        for number, other in (pair, pair[::-1]):
            if not may_overlap(labels):
                result[labels == number] = other
            elif number <= labels.shape[1]:
                result[:, number - 1] = labels[:, other - 1] if other <= labels.shape[1] else 0
    return result


def painted(fixed: Tensor, moving: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Paint two images with a random grey value for each structure, the same in both; where structures overlap, their sum.

    Parameters
    ----------
    fixed, moving : (1, C, *shape) integer Tensor
        Labels of both.
    generator : Generator
        Source of the grey values, on the CPU.

    Returns
    -------
    fixed, moving : (1, 1, *shape) float32 Tensor
        0 where no structure is.
    """
    if may_overlap(fixed):
        grey = torch.rand(fixed.shape[1], generator=generator).to(fixed.device).reshape(1, -1, *[1] * (fixed.ndim - 2))
        one, other = ((labels * grey).sum(1, keepdim=True) for labels in (fixed, moving))
        return one, other
    fixed, moving = (labels.long() for labels in renumbered(fixed, moving))
    grey = torch.rand(int(max(fixed.max(), moving.max())) + 1, generator=generator).to(fixed.device)
    grey[0] = 0
    return grey[fixed], grey[moving]


def renumbered(*maps: Tensor) -> tuple[Tensor, ...]:
    """Return label maps of one shape with small numbers: the same for the same label in all maps, and 0 for 0.

    Maps whose labels are small already are returned as they are; a table with an entry for each number up to the largest
    one has no room for labels in the millions.
    """
    if not maps or max(int(labels.max()) for labels in maps) < COUNTABLE:
        return maps
    values: Tensor = torch.unique(torch.cat([maps[0].new_zeros(1), *(labels.flatten() for labels in maps)]))
    return tuple(torch.searchsorted(values, labels.contiguous()).to(labels.dtype) for labels in maps)


def structure_dice(fixed: Tensor, warped: Tensor, moving: Tensor) -> dict[int, float]:
    """Return the Dice of each structure that fixed and (unwarped) moving image have.

    Parameters
    ----------
    fixed, warped, moving : (1, C, *shape) integer Tensor
        Labels on one grid.

    Returns
    -------
    dict
        Number to Dice, of label maps only of labels that are large enough (`SMALLEST`). Numbers of label maps from
        `COUNTABLE` on are those of `renumbered`.

    Raises
    ------
    InputError
        When the arrays are no labels: of floating type, negative, or of thousands of values. A number called Dice would
        then say nothing about overlap.
    """
    images = [fixed, warped, moving]
    if any(image.is_floating_point() for image in images) or int(fixed.min()) < 0:
        raise InputError("Dice of an array that holds no labels", remedy="give label images, integers from 0")
    if may_overlap(fixed):
        least, first = 1, 1
        sizes = [image.flatten(2)[0].count_nonzero(1) for image in images]
        common = (fixed * warped).flatten(2)[0].count_nonzero(1)
    else:
        least, first = SMALLEST if fixed.ndim == 5 else SMALLEST // 10, 0
        images = list(renumbered(*images))
        size = int(max(int(image.max()) for image in images)) + 1
        sizes = [torch.bincount(image.flatten().long(), minlength=size) for image in images]
        common = torch.bincount(images[0].flatten().long()[(images[0] == images[1]).flatten()], minlength=size)
        if int((sizes[0] > 0).sum()) > MOST_LABELS:
            raise InputError("Dice of an array with thousands of values", remedy="give label images, not intensities")
    scored = (sizes[0] >= least) & (sizes[2] >= least)
    dice = 2 * common / (sizes[0] + sizes[1]).clamp(min=1)
    numbers = (scored.nonzero()[:, 0] + first).tolist()
    return {number: value for number, value in zip(numbers, dice[scored].tolist(), strict=True) if number}
