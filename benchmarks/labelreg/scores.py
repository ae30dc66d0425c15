"""How well a displacement brings the structures of a pair together."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

from popatlas.training.conform import Volume
from popatlas.training.structures import structure_maps, structures_of
from popatlas.transforms.fields import coordinates, displaced, sample
from popatlas.transforms.jacobian import jacobian_determinant
from popatlas.transforms.linear import move

GLAND = 1
INSIDE = 0.5


class PairScores(TypedDict):
    """Scores of a pair; None where it has no landmark."""

    gland_dice: float
    landmark_dice: float | None
    gland_mm: float
    tre_mm: float | None
    landmarks: int
    folded: float


def warped_maps(moving: Volume, displacement: Tensor, numbers: Tensor) -> Tensor:
    """Return the maps (1, L, *shape) of structures, moved by a displacement, voxels; from the voxels of their file."""
    labels, matrix = moving.origins["labels"]
    at = displaced(displacement)
    return sample(structure_maps(labels, numbers), move(matrix.to(at), at), "linear", "zeros")


def centroids(maps: Tensor) -> Tensor:
    """Return the centroids (L, D) of maps (1, L, *shape), voxels; NaN where a map is empty."""
    at = coordinates(maps.shape[2:])[0].flatten(1)
    weights = maps[0].flatten(1)
    centres: Tensor = (weights @ at.T) / weights.sum(1, keepdim=True)
    return centres


def common(fixed: Volume, moving: Volume) -> Tensor:
    """Return the structures that both scans have, the gland first."""
    assert fixed.labels is not None
    mine, others = structures_of(fixed.labels), structures_of(moving.origins["labels"][0])
    found = mine[torch.isin(mine, others)]
    return found[found > 0]


def score(fixed: Volume, moving: Volume, displacement: Tensor) -> PairScores:
    """Return the scores of a pair.

    Parameters
    ----------
    fixed, moving : Volume
        On one grid.
    displacement : (1, 3, *shape) Tensor
        Voxels of that grid.

    Returns
    -------
    PairScores
        Dice of the gland, and mean Dice of the landmarks; distance of the centroids of the gland, and root mean square of
        those of the landmarks, the TRE of the paper, mm; share of the voxels that fold.
    """
    assert fixed.labels is not None
    numbers = common(fixed, moving)
    wanted, found = structure_maps(fixed.labels, numbers), warped_maps(moving, displacement, numbers)
    inside = (found > INSIDE).float()
    dice = (2 * (wanted * inside).flatten(2).sum(2) / (wanted + inside).flatten(2).sum(2))[0]
    away = (centroids(wanted) - centroids(found)).norm(dim=1) * fixed.spacing[0]
    landmarks = numbers != GLAND
    some = bool(landmarks.any())
    return {
        "gland_dice": float(dice[~landmarks]),
        "landmark_dice": float(dice[landmarks].mean()) if some else None,
        "gland_mm": float(away[~landmarks]),
        "tre_mm": math.sqrt(float(away[landmarks].square().mean())) if some else None,
        "landmarks": int(landmarks.sum()),
        "folded": float((jacobian_determinant(displacement) <= 0).float().mean()),
    }
