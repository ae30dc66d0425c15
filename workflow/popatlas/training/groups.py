"""Groups of files to learn from: a table of images by group and contrast, deformed at random in each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from popatlas.errors import InputError, first_few
from popatlas.groupwise.deepcc.group import padded, scaled
from popatlas.groupwise.deepcc.settings import CombinedSettings
from popatlas.images.io import read_table, sha256
from popatlas.images.labels import read_labels
from popatlas.images.scan import read_volume
from popatlas.training.combined import GroupSample
from popatlas.training.random_fields import smooth_noise
from popatlas.transforms.fields import coordinates, sample, warp

COLUMNS = ("group", "contrast", "image")


@dataclass(frozen=True)
class TrainingGroup:
    """One group in memory: images (1, 1, *shape) by contrast, and their labels (*shape) where there are any."""

    images: list[Tensor]
    labels: list[Tensor | None]

    def with_labels(self, used: Sequence[bool]) -> TrainingGroup:
        """Return the group with the labels of some images only."""
        kept = [have if wanted else None for have, wanted in zip(self.labels, used, strict=True)]
        return TrainingGroup(self.images, kept)


def read_groups(table: Path, classes: int) -> tuple[list[str], list[TrainingGroup]]:
    """Read the groups of a table.

    Parameters
    ----------
    table : Path
        TSV with a row for each image: columns group, contrast, image, and labels where some images have them; paths start
        at the folder of the table.
    classes : int
        Labels are 0 to `classes` - 1.

    Returns
    -------
    list of str
        Contrasts, sorted.
    list of TrainingGroup
        Groups, sorted by name.

    Raises
    ------
    InputError
        For missing columns and files, a group that lacks a contrast or has it twice, grids that differ within a group, and
        labels beyond the classes.
    """
    rows = read_table(table, dtype=str).fillna("")
    if missing := [name for name in COLUMNS if name not in rows]:
        message, remedy = f"it has no column {', '.join(missing)}", f"give the columns {', '.join(COLUMNS)}"
        raise InputError(message, file=table, remedy=remedy)
    contrasts = sorted(rows["contrast"].unique())
    if len(contrasts) < 2:
        raise InputError(f"it has {len(contrasts)} contrast(s)", file=table, remedy="give groups of two or more contrasts")
    wrong = [str(name) for name, own in rows.groupby("group") if sorted(own["contrast"]) != contrasts]
    if wrong:
        message = f"{len(wrong)} group(s) have not one image of each of {', '.join(contrasts)}: {first_few(wrong)}"
        raise InputError(message, file=table, remedy="complete these groups, or leave them out")
    found = [_read(own.sort_values("contrast"), table, str(name), classes) for name, own in rows.groupby("group")]
    if len({group.images[0].ndim for group in found}) > 1:
        raise InputError("some groups are 2D and some are 3D", file=table, remedy="train on groups of one kind")
    return contrasts, found


def digest_of(table: Path) -> list[str]:
    """Return the SHA-256 of a table and of all files that it names."""
    rows = read_table(table, dtype=str).fillna("")
    names = [name for column in ("image", "labels") if column in rows for name in rows[column] if name]
    return [sha256(path) for path in (table, *(table.parent / name for name in names))]


def _read(rows: pd.DataFrame, table: Path, name: str, classes: int) -> TrainingGroup:
    images: list[Tensor] = []
    labels: list[Tensor | None] = []
    for row in rows.to_dict("records"):
        path = table.parent / row["image"]
        images.append(scaled(read_volume(path), str(path)))
        if images[-1].shape != images[0].shape:
            message = f"{path.name} of group {name} lies on another grid than the others"
            raise InputError(message, file=table, remedy="bring the images of a group to one grid")
        if not row.get("labels"):
            labels.append(None)
            continue
        values = read_labels(table.parent / row["labels"], axes=(images[0].ndim - 2,)).data
        if values.shape != tuple(images[-1].shape[2:]) or values.max() >= classes:
            message = f"labels of shape {values.shape} up to {values.max()}, for an image of {tuple(images[-1].shape[2:])}"
            remedy = f"give labels 0 to {classes - 1} on the grid of the image"
            raise InputError(message, file=table.parent / row["labels"], remedy=remedy)
        labels.append(torch.from_numpy(values.astype(np.int64)))
    return TrainingGroup(images, labels)


class Groups:
    """Draws groups, each image deformed on its own.

    Parameters
    ----------
    groups : sequence of TrainingGroup
        At least one.
    plan : CombinedSettings
        How far images are deformed, and the stride that their sizes are brought to.
    prior : (K, *shape) Tensor, optional
        Class probabilities of an atlas in the common space.
    """

    def __init__(self, groups: Sequence[TrainingGroup], plan: CombinedSettings, prior: Tensor | None = None) -> None:
        self.groups, self.plan, self.prior = groups, plan, prior

    def draw(self, generator: torch.Generator) -> GroupSample:
        """Return a group."""
        group = self.groups[int(torch.randint(len(self.groups), (1,), generator=generator))]
        images: list[Tensor] = []
        labels: list[Tensor | None] = []
        for image, known in zip(group.images, group.labels, strict=True):
            field = self._field(tuple(image.shape[2:]), generator)
            images.append(padded(warp(image, field), self.plan.stride))
            moved = None if known is None else sample(known[None, None].float(), coordinates(known.shape) + field, "nearest")
            labels.append(None if moved is None else padded(moved, self.plan.stride)[0, 0].long())
        prior = None if self.prior is None else padded(self.prior[None], self.plan.stride)[0]
        return GroupSample(images, tuple(range(len(images))), labels, prior)

    def _field(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return a random displacement (1, D, *shape), voxels."""
        extent = float(min(shape))
        field = smooth_noise(generator, shape, max(self.plan.knots * extent, 2.0), channels=len(shape))
        longest = float(field.norm(dim=1).max())
        reach = self.plan.reach * extent * float(torch.rand((), generator=generator))
        return field * (reach / max(longest, 1e-6))
