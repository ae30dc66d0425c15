"""Validation of a registration network: overlap and similarity before and after, folds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from popatlas.networks.registration import RegistrationNetwork
from popatlas.networks.segmentation import evaluating
from popatlas.similarity.ncc import NCC
from popatlas.training.curve import Terms
from popatlas.training.objective import Batch
from popatlas.training.pose import grid_distance
from popatlas.training.structures import may_overlap, structure_dice
from popatlas.transforms.fields import warp, warp_labels
from popatlas.transforms.jacobian import jacobian_determinant

OVERLAP = "dice"  # scores that begin so need common labels


def mean_dice(fixed: Tensor, warped: Tensor, moving: Tensor) -> float:
    """Return the mean Dice of the structures of a pair, NaN without any; see `structures.structure_dice`."""
    dice = structure_dice(fixed, warped, moving).values()
    return sum(dice) / len(dice) if dice else math.nan


@torch.no_grad()
def validate(net: RegistrationNetwork, pairs: Sequence[Batch], spacing: float = 1.0) -> Terms:
    """Register validation pairs.

    Parameters
    ----------
    net : RegistrationNetwork
        In any mode.
    pairs : sequence of Batch
        One pair each.
    spacing : float
        Voxel size, mm.

    Returns
    -------
    dict
        Means: `dice_before`, `dice` (of the pairs with common labels; NaN without any), `ncc_before`, `ncc` (of the images),
        `folded` (share of voxels); where the motion is known `pose_before` and `pose`, the distance of the last affine stage
        from it (mm, root mean square over the voxels); and where structures may overlap `dice_1`, `dice_2`, ... of each
        structure.
    """
    rows = []
    with evaluating(net):
        for pair in pairs:
            found = net(pair.fixed, pair.moving)
            rows.append(_scores(pair, found.displacement) | _pose(pair, found.matrices, spacing))
    return {name: _mean(name, [row[name] for row in rows if name in row]) for name in _names(rows)}


def _pose(pair: Batch, matrices: Sequence[Tensor], spacing: float) -> Terms:
    if pair.truth is None or not matrices:
        return {}
    still = torch.eye(*pair.truth.shape[1:], device=pair.truth.device)[None]
    shape = pair.fixed.shape[2:]
    before, after = (float(grid_distance(matrix, pair.truth, shape, spacing)) for matrix in (still, matrices[-1]))
    return {"pose_before": before, "pose": after}


def _names(rows: Sequence[Terms]) -> list[str]:
    """Return the names of the scores, those of all pairs first."""
    return list(dict.fromkeys([*rows[0], *sorted({name for row in rows for name in row})])) if rows else []


def _mean(name: str, values: Sequence[float]) -> float:
    if name.startswith(OVERLAP):
        values = [value for value in values if not math.isnan(value)]
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
        found = warp_labels(moving, displacement)
        row["dice_before"], row["dice"] = mean_dice(fixed, moving, moving), mean_dice(fixed, found, moving)
        if may_overlap(fixed):
            row |= {f"dice_{number}": dice for number, dice in structure_dice(fixed, found, moving).items()}
    return row
