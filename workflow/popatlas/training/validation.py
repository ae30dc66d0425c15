"""Validation of a registration network: overlap and similarity before and after, folds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.networks.registration import RegistrationNetwork
from popatlas.networks.segmentation import evaluating
from popatlas.similarity.ncc import NCC
from popatlas.training.curve import Terms
from popatlas.training.objective import Batch
from popatlas.training.pairs import renumbered
from popatlas.transforms.fields import jacobian_determinant, warp, warp_labels

SMALLEST = 100  # voxels that a label needs in both images of 3D pairs; a tenth of it in 2D
OVERLAP = ("dice_before", "dice")  # scores that need common labels
MOST_LABELS = 4096  # more values than that are intensities, not labels


def mean_dice(fixed: Tensor, warped: Tensor, moving: Tensor) -> float:
    """Return the mean Dice of the labels that are large enough in fixed and (unwarped) moving image.

    Parameters
    ----------
    fixed, warped, moving : (1, 1, *shape) int Tensor
        Label images on one grid.

    Raises
    ------
    InputError
        When the arrays are no labels: of floating type, negative, or of thousands of values. A number called Dice would
        then say nothing about overlap.
    """
    images = [fixed, warped, moving]
    if any(image.is_floating_point() for image in images) or int(fixed.min()) < 0:
        raise InputError("Dice of an array that holds no labels", remedy="give label images, integers from 0")
    images = list(renumbered(*images))
    size = int(max(int(image.max()) for image in images)) + 1
    counts = [torch.bincount(image.flatten().long(), minlength=size) for image in images]
    if int((counts[0] > 0).sum()) > MOST_LABELS:
        raise InputError("Dice of an array with thousands of values", remedy="give label images, not intensities")
    common = torch.bincount(images[0].flatten().long()[(fixed == warped).flatten()], minlength=size)
    smallest = SMALLEST if fixed.ndim == 5 else SMALLEST // 10
    scored = (counts[0] >= smallest) & (counts[2] >= smallest)
    scored[0] = False
    dice = 2 * common[scored] / (counts[0] + counts[1])[scored]
    return float(dice.mean()) if len(dice) else math.nan


@torch.no_grad()
def validate(net: RegistrationNetwork, pairs: Sequence[Batch]) -> Terms:
    """Register validation pairs.

    Parameters
    ----------
    net : RegistrationNetwork
        In any mode.
    pairs : sequence of Batch
        One pair each.

    Returns
    -------
    dict
        Means: `dice_before`, `dice` (of the pairs with common labels; NaN without any), `ncc_before`, `ncc` (of the images),
        `folded` (share of voxels).
    """
    rows = []
    with evaluating(net):
        for pair in pairs:
            field = net(pair.fixed, pair.moving).displacement
            rows.append(_scores(pair, field))
    labelled = [row for row in rows if not math.isnan(row["dice_before"])]
    return {name: _mean([row[name] for row in (labelled if name in OVERLAP else rows)]) for name in rows[0]}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _scores(pair: Batch, displacement: Tensor) -> Terms:
    ncc = NCC()
    warped = warp(pair.moving, displacement)
    row = {
        "dice_before": math.nan,
        "dice": math.nan,
        "ncc_before": -float(ncc(pair.fixed, pair.moving)),
        "ncc": -float(ncc(pair.fixed, warped)),
        "folded": float((jacobian_determinant(displacement) <= 0).float().mean()),
    }
    if pair.fixed_labels is not None and pair.moving_labels is not None:
        fixed, moving = pair.fixed_labels, pair.moving_labels
        row["dice_before"] = mean_dice(fixed, moving, moving)
        row["dice"] = mean_dice(fixed, warp_labels(moving, displacement), moving)
    return row
