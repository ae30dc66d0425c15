"""How well labels and landmarks of two files agree before and after a registration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from popatlas.errors import InputError
from popatlas.images.arrays import IntArray
from popatlas.images.grid import Grid
from popatlas.images.labels import read_labels
from popatlas.measures.landmarks import AXES, RAS_TO_LPS, read_landmarks, target_registration_error
from popatlas.measures.overlap import LabelPair
from popatlas.measures.surface import label_surface_distances
from popatlas.pairwise.prepare import Given, ras_affine
from popatlas.transforms.chain import Chain


@dataclass(frozen=True)
class LabelScore:
    """Dice before and after, and the 95th percentile of the surface distance after, mm, of one label."""

    label: str
    dice_before: float
    dice: float
    hd95: float


@dataclass(frozen=True)
class Scores:
    """What labels and landmarks tell.

    Attributes
    ----------
    labels : list of LabelScore
        One for each label of the fixed image; empty without labels of both.
    points : dict
        Distance (mm) before and after of each landmark that both images have.
    """

    labels: list[LabelScore] = field(default_factory=list)
    points: dict[str, tuple[float, float]] = field(default_factory=dict)

    def summary(self) -> list[tuple[str, float, float, int]]:
        """Return title, mean before, mean after and decimals of what was compared."""
        rows: list[tuple[str, float, float, int]] = []
        if self.labels:
            before, after = np.nanmean([(one.dice_before, one.dice) for one in self.labels], axis=0).tolist()
            rows.append((f"mean Dice of {len(self.labels)} labels", before, after, 3))
        if self.points:
            before, after = np.mean(list(self.points.values()), axis=0).tolist()
            rows.append((f"mean distance of {len(self.points)} landmarks, mm", before, after, 2))
        return rows


@dataclass(frozen=True)
class Structures:
    """Labels as they are in a file: one map, or overlapping ones in an axis of their own."""

    data: IntArray
    grid: Grid
    overlapping: bool

    @classmethod
    def read(cls, path: Path, ndim: int) -> Structures:
        """Read labels of an image of some axes; an additional one holds overlapping structures."""
        found = read_labels(path, axes=(2, 3, 4), empty=True)
        data = found.data
        while data.ndim > ndim and data.shape[-1] == 1:
            data = data[..., 0]
        if data.ndim not in (ndim, ndim + 1):
            remedy = "give labels of the image's axes, or one more with a structure in each volume"
            raise InputError(f"labels of {data.ndim} axes for an image of {ndim}: {data.shape}", file=path, remedy=remedy)
        grid = Grid.from_affine(data.shape[:ndim], np.asarray(found.affine, dtype=np.float64), path)
        return cls(data, grid, data.ndim > ndim)

    def through(self, chain: Chain, target: Grid) -> IntArray:
        """Return the labels on another grid: the label with the largest linear weight, each structure for itself."""
        maps = np.moveaxis(self.data, -1, 0) if self.overlapping else self.data[None]
        moved = [
            chain.apply(torch.from_numpy(np.ascontiguousarray(one))[None, None], self.grid, target, "generic")[0, 0].numpy()
            for one in maps
        ]
        return np.moveaxis(np.stack(moved), 0, -1) if self.overlapping else moved[0]


def score(fixed: Given, moving: Given, chain: Chain, grid: Grid) -> Scores:
    """Compare labels and landmarks.

    Parameters
    ----------
    fixed, moving : Given
        Files; where one lacks labels or points, these are not compared.
    chain : Chain
        Fixed to moving points.
    grid : Grid
        Of the fixed image.
    """
    labels = _label_scores(fixed.labels, moving.labels, chain, grid) if fixed.labels and moving.labels else []
    points = _point_scores(fixed.points, moving.points, chain, grid.ndim) if fixed.points and moving.points else {}
    return Scores(labels, points)


def _label_scores(fixed: Path, moving: Path, chain: Chain, grid: Grid) -> list[LabelScore]:
    one, other = (Structures.read(path, grid.ndim) for path in (fixed, moving))
    if one.overlapping != other.overlapping or (one.overlapping and one.data.shape[-1] != other.data.shape[-1]):
        remedy = "give as many volumes in both files, the same structure in the same place"
        raise InputError(f"the labels of the two images do not correspond: {fixed.name}", file=moving, remedy=remedy)
    before, after = other.through(Chain(), one.grid), other.through(chain, one.grid)
    if not one.overlapping:
        return _compare(one.data, before, after, one.grid)
    found = []
    for number in range(one.data.shape[-1]):
        reference, start, end = ((part[..., number] > 0).astype(np.int32) for part in (one.data, before, after))
        for row in _compare(reference, start, end, one.grid):
            found.append(replace(row, label=f"volume {number}"))
    return found


def _compare(reference: IntArray, before: IntArray, after: IntArray, grid: Grid) -> list[LabelScore]:
    start, end = (LabelPair(reference, part, ras_affine(grid)) for part in (before, after))
    distances = label_surface_distances(reference, after, grid.spacing, end.labels)["hd95"]
    values = zip(end.labels, start.overlaps["dice"], end.overlaps["dice"], distances, strict=True)
    return [LabelScore(str(label), float(a), float(b), float(c)) for label, a, b, c in values]


def _point_scores(fixed: Path, moving: Path, chain: Chain, ndim: int) -> dict[str, tuple[float, float]]:
    one, other = (read_landmarks(path).set_index("name") for path in (fixed, moving))
    names = [name for name in one.index if name in other.index]
    if not names:
        remedy = "give corresponding landmarks the same name in both files"
        raise InputError(f"no landmark of {fixed.name} has the name of one there", file=moving, remedy=remedy)
    start, goal = (table.loc[names, AXES].to_numpy() * RAS_TO_LPS for table in (one, other))
    moved = chain.points(start[:, :ndim]).numpy()
    before, after = (target_registration_error(where, goal[:, :ndim]) for where in (start[:, :ndim], moved))
    return {name: (float(a), float(b)) for name, a, b in zip(names, before, after, strict=True)}
