"""How well labels and landmarks of two files agree before and after a registration."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from popatlas.errors import InputError
from popatlas.images.arrays import IntArray
from popatlas.images.grid import Grid
from popatlas.images.labels import read_labels
from popatlas.images.place import check_place
from popatlas.measures.landmarks import AXES, RAS_TO_LPS, read_landmarks, target_registration_error
from popatlas.measures.overlap import LabelPair
from popatlas.measures.surface import label_surface_distances
from popatlas.pairwise.prepare import Given
from popatlas.settings import Content
from popatlas.transforms.chain import Chain


@dataclass(frozen=True)
class LabelScore:
    """Dice before and after, and the 95th percentile of the surface distance after, mm, of one label."""

    label: str
    dice_before: float
    dice: float
    hd95: float

    def content(self) -> Content:
        """Return what the record says; JSON knows no numbers that are none."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Scores:
    """What labels and landmarks tell.

    Attributes
    ----------
    labels : list of LabelScore
        One for each label of the fixed image; empty without labels of both.
    points : dict
        Distance (mm) before and after of each landmark that both images have.
    alone : int
        Number of landmarks that only one image has.
    """

    labels: list[LabelScore] = field(default_factory=list)
    points: dict[str, tuple[float, float]] = field(default_factory=dict)
    alone: int = 0

    def summary(self) -> list[tuple[str, float, float, int]]:
        """Return title, mean before, mean after and decimals of what was compared."""
        rows: list[tuple[str, float, float, int]] = []
        if self.labels:
            before, after = np.nanmean([(one.dice_before, one.dice) for one in self.labels], axis=0).tolist()
            rows.append((f"mean Dice of {len(self.labels)} labels", before, after, 3))
        if self.points:
            before, after = np.mean(list(self.points.values()), axis=0).tolist()
            alone = f" ({self.alone} more in one file only)" if self.alone else ""
            rows.append((f"mean distance of {len(self.points)} landmarks{alone}, mm", before, after, 2))
        return rows


@dataclass(frozen=True)
class Structures:
    """Labels as they are in a file: one map, or overlapping ones in an axis of their own."""

    data: IntArray
    grid: Grid
    overlapping: bool

    @property
    def volumes(self) -> int:
        """Number of overlapping structures; 0 for one map."""
        return self.data.shape[-1] if self.overlapping else 0

    @classmethod
    def read(cls, path: Path, ndim: int, image: Grid | None = None) -> Structures:
        """Read labels of an image of some axes; an additional one holds overlapping structures.

        Raises
        ------
        InputError
            For labels that cannot be read, have other axes, or do not lie on their image where its grid is given.
        """
        found = read_labels(path, axes=(2, 3, 4), empty=True)
        data = found.data
        while data.ndim > ndim and data.shape[-1] == 1:
            data = data[..., 0]
        if data.ndim == ndim + 2 and data.shape[ndim] == 1:  # volumes of a plane
            data = data.reshape(*data.shape[:ndim], -1)
        if data.ndim not in (ndim, ndim + 1):
            remedy = "give labels of the image's axes, or one more with a structure in each volume"
            raise InputError(f"labels of {data.ndim} axes for an image of {ndim}: {data.shape}", file=path, remedy=remedy)
        overlapping = data.ndim > ndim
        whole = replace(found, data=data.max(axis=-1, initial=0, keepdims=True)[..., 0] if overlapping else data)
        if image is not None and whole.data.any():
            check_place(whole, image=image)
        return cls(data, whole.grid, overlapping)

    def through(self, chain: Chain, target: Grid) -> IntArray:
        """Return the labels on another grid: the label with the largest linear weight, each structure for itself."""
        maps = np.moveaxis(self.data, -1, 0) if self.overlapping else self.data[None]
        moved = [
            chain.apply(torch.from_numpy(np.ascontiguousarray(one))[None, None], self.grid, target, "generic")[0, 0].numpy()
            for one in maps
        ]
        return np.moveaxis(np.stack(moved), 0, -1) if self.overlapping else moved[0]


@dataclass(frozen=True)
class Extras:
    """Labels and landmarks of both sides, read and checked before anything is registered; None where there are none."""

    labels: tuple[Structures | None, Structures | None]
    points: tuple[pd.DataFrame | None, pd.DataFrame | None]

    @classmethod
    def read(cls, given: tuple[Given, Given], grids: tuple[Grid, Grid]) -> Extras:
        """Read what is given of the fixed and of the moving side.

        Parameters
        ----------
        given : pair of Given
            Files.
        grids : pair of Grid
            Of both images.

        Raises
        ------
        InputError
            For files that cannot be read, labels that do not lie on their image, labels or landmarks of the two sides that
            do not correspond.
        """
        _require_both(*given)
        labels = [
            Structures.read(side.labels, grid.ndim, grid) if side.labels else None
            for side, grid in zip(given, grids, strict=True)
        ]
        for side, found in zip(given, labels, strict=True):
            if found and not found.data.any():
                raise InputError("the label image holds no label", file=side.labels, remedy="leave it out")
        points = [read_landmarks(side.points).set_index("name") if side.points else None for side in given]
        one, other = labels
        if one and other and one.volumes != other.volumes:
            remedy = "give as many volumes in both files, the same structure in the same place"
            message = f"the labels of the two images do not correspond: {given[0].labels}"
            raise InputError(message, file=given[1].labels, remedy=remedy)
        first, second = points
        if first is not None and second is not None and first.index.intersection(second.index).empty:
            remedy = "give corresponding landmarks the same name in both files"
            message = f"no landmark of {given[0].points} has the name of one there"
            raise InputError(message, file=given[1].points, remedy=remedy)
        return cls((one, other), (first, second))

    def score(self, chain: Chain) -> Scores:
        """Compare labels and landmarks of which both sides have some; `chain` takes fixed points to moving ones."""
        one, other = self.points
        alone = 0 if one is None or other is None else len(one.index.symmetric_difference(other.index))
        return Scores(_label_scores(*self.labels, chain), _point_scores(one, other, chain), alone)


def _require_both(fixed: Given, moving: Given) -> None:
    """Refuse what is of no use without its counterpart; only labels of the moving image are brought along."""
    for name, one, other in (
        ("--labels", fixed.labels, moving.labels),
        ("--moving-points", fixed.points, moving.points),
        ("--fixed-points", moving.points, fixed.points),
    ):
        if one and not other:
            remedy = f"give {name} too, or leave them out; popatlas apply moves labels and landmarks"
            raise InputError("they are compared with those of the other image, which are not given", file=one, remedy=remedy)


def _label_scores(one: Structures | None, other: Structures | None, chain: Chain) -> list[LabelScore]:
    if one is None or other is None:
        return []
    before, after = other.through(Chain(), one.grid), other.through(chain, one.grid)
    if not one.volumes:
        return _compare(one.data, before, after, one.grid)
    found = []
    for number in range(one.volumes):
        reference, start, end = ((part[..., number] > 0).astype(np.int32) for part in (one.data, before, after))
        for row in _compare(reference, start, end, one.grid):
            found.append(replace(row, label=f"volume {number}"))
    return found


def _compare(reference: IntArray, before: IntArray, after: IntArray, grid: Grid) -> list[LabelScore]:
    start, end = (LabelPair(reference, part, grid.ras_affine) for part in (before, after))
    distances = label_surface_distances(reference, after, grid.spacing, end.labels)["hd95"]
    values = zip(end.labels, start.overlaps["dice"], end.overlaps["dice"], distances, strict=True)
    return [LabelScore(str(label), float(a), float(b), float(c)) for label, a, b, c in values]


def _point_scores(one: pd.DataFrame | None, other: pd.DataFrame | None, chain: Chain) -> dict[str, tuple[float, float]]:
    if one is None or other is None:
        return {}
    names, ndim = one.index.intersection(other.index), chain.steps[0].ndim
    start, goal = ((table.loc[names, AXES].to_numpy() * RAS_TO_LPS)[:, :ndim] for table in (one, other))
    before, after = (target_registration_error(where, goal) for where in (start, chain.points(start).numpy()))
    return {name: (float(a), float(b)) for name, a, b in zip(names, before, after, strict=True)}
