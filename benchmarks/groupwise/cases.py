"""Groups with known truth: one anatomy of tissue maps, seen in several contrasts after random free-form deformations.

The tissue maps are those of the nilearn wheel (MNI152, Fonov et al. 2011), in the place of BrainWeb's. Each image has its
own contrast, deformation, bias field and noise. Control points of the deformations are 40 mm apart; the field is scaled so
that its longest vector has the length that the level of a case names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from popatlas.images.phantom import head_model
from popatlas.measures.warpingindex import warping_index
from popatlas.transforms.ffd import control_shape, dense_from_control
from popatlas.transforms.fieldops import block_mean
from popatlas.transforms.fields import coordinates, sample, warp

TISSUES = ("background", "csf", "gm", "wm")
# intensities of the tissues; T1w, T2w and PDw repeat where a group has more images
CONTRASTS = {"t1w": (0.0, 0.25, 0.65, 1.0), "t2w": (0.0, 1.0, 0.6, 0.4), "pdw": (0.0, 0.9, 1.0, 0.75)}
SLICE_MM, MARGIN, KNOTS_MM, BIAS_KNOTS_MM = 8.0, 8, 40.0, 60.0
NOISE, BIAS = 0.03, 0.2


@dataclass(frozen=True)
class Case:
    """A group and its truth.

    Attributes
    ----------
    images : list of (1, 1, *shape) Tensor
        Images on one grid.
    truth : list of (1, D, *shape) Tensor
        Where their voxels go in the anatomy, voxels.
    labels : list of (1, 1, *shape) Tensor
        Tissue of each voxel of each image.
    masks : list of (1, 1, *shape) Tensor or None
        Head and a rim, in 3D, where the background is most of a volume.
    inside : (*shape) Tensor
        Where the anatomy is, in its own space.
    spacing : float
        Millimetres of a voxel.
    """

    images: list[Tensor]
    truth: list[Tensor]
    labels: list[Tensor]
    masks: list[Tensor | None]
    inside: Tensor
    spacing: float

    def index(self, fields: Sequence[Tensor] | None = None) -> float:
        """Return the groupwise warping index in the foreground, mm; without fields that of the unregistered group."""
        still = [torch.zeros_like(field) for field in self.truth]
        return warping_index(still if fields is None else fields, self.truth, self.inside, self.spacing)

    def dice(self, fields: Sequence[Tensor] | None = None) -> float:
        """Return the mean Dice of the three tissues over all pairs of warped images."""
        moved = [
            label if fields is None else sample(label, coordinates(label.shape[2:]) + field, "nearest")
            for label, field in zip(self.labels, fields or self.truth, strict=True)
        ]
        found = []
        for j, one in enumerate(moved):
            for other in moved[:j]:
                for tissue in range(1, len(TISSUES)):
                    a, b = one == tissue, other == tissue
                    found.append(2 * int((a & b).sum()) / max(int(a.sum() + b.sum()), 1))
        return float(np.mean(found))


@lru_cache
def anatomy(ndim: int, spacing: int) -> Tensor:
    """Return the shares of the tissues (1, 4, *shape) in a head of the nilearn wheel, or in one of its axial slices."""
    head = head_model()
    maps = np.stack([head.brain[name] for name in TISSUES[1:]]).astype(np.float32) / 255
    if ndim == 2:
        level = round((SLICE_MM - head.affine[2, 3]) / head.affine[2, 2])
        maps = maps[..., level]
    tissues = block_mean(torch.from_numpy(maps)[None], [spacing] * ndim)
    tissues = torch.nn.functional.pad(tissues, [MARGIN] * (2 * ndim))
    return torch.cat([1 - tissues.sum(1, keepdim=True), tissues], 1)


def make_case(
    seed: int, ndim: int, level_mm: float, images: int = 3, spacing: int = 1, tissues: Tensor | None = None
) -> Case:
    """Return a group of images whose deformations reach `level_mm`; `tissues` (1, 4, *shape) instead of the wheel's."""
    chance = torch.Generator().manual_seed(seed)
    tissues = anatomy(ndim, spacing) if tissues is None else tissues
    shape = tissues.shape[2:]
    found: dict[str, list[Tensor]] = {"images": [], "truth": [], "labels": [], "masks": []}
    for number in range(images):
        field = _random(chance, shape, KNOTS_MM / spacing)
        field = field * (level_mm / spacing / float(field.norm(dim=1).max()))
        moved = warp(tissues, field)
        levels = torch.tensor(list(CONTRASTS.values())[number % len(CONTRASTS)]).reshape(1, -1, *[1] * ndim)
        clean = (moved * levels).sum(1, keepdim=True)
        bias = 1 + BIAS * _random(chance, shape, BIAS_KNOTS_MM / spacing)[:, :1]
        found["images"].append(clean * bias + NOISE * torch.randn(clean.shape, generator=chance))
        found["truth"].append(field)
        found["labels"].append(moved.argmax(1, keepdim=True).float())
        found["masks"].append(_near(moved[:, :1] < 0.5, ndim, spacing))
    masks: list[Tensor | None] = [*found["masks"]] if ndim == 3 else [None] * images
    inside = tissues[0, 0] < 0.5
    return Case(found["images"], found["truth"], found["labels"], masks, inside, float(spacing))


def _random(chance: torch.Generator, shape: Sequence[int], gap: float) -> Tensor:
    control = torch.rand(1, len(shape), *control_shape(shape, gap), generator=chance) * 2 - 1
    return dense_from_control(control, shape, gap)


def _near(inside: Tensor, ndim: int, spacing: int) -> Tensor:
    """Return a mask and about 6 mm round it."""
    radius = max(1, round(6 / spacing))
    pool = torch.nn.functional.max_pool3d if ndim == 3 else torch.nn.functional.max_pool2d
    return pool(inside.float(), 2 * radius + 1, stride=1, padding=radius)
