"""The pairs: ultrasound (fixed) and MR (moving) of a prostate, each with the same one to three structures, that overlap.

Structure 1 is the gland, the others are small landmarks that an expert found in both images; which, differs from pair to
pair. The files say that voxels have 0.4 mm. Glands would then have 1 ml and landmarks 5 microlitres; with 1.6 mm they have
50 ml and 0.3 ml, as prostates do and as the landmarks of the paper (0.39 ml). So 1.6 mm is what is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from popatlas.errors import InputError
from popatlas.images.io import read_table, save_image, write_table
from popatlas.training.table import TrainingScan, read_training_table

SPACING = 1.6  # mm
SIDES = {"us": "fixed", "mr": "moving"}  # the fixed one is listed first
FOLDS, CHOOSERS = 9, 2  # so many parts; pairs of the next part that choose the best step
AFFINE = np.diag([SPACING, SPACING, SPACING, 1.0])


@dataclass(frozen=True)
class Pair:
    """A pair as scans of a training table."""

    name: str
    fixed: TrainingScan
    moving: TrainingScan


def prepare(data: Path, out: Path) -> Path:
    """Write images and labels with their true voxel size and even sides, and the table of all pairs; return the table.

    Even sides: grids whose middles meet then differ by whole voxels, so that nothing is interpolated to compare them.
    """
    files = sorted(data.glob("*/fixed_images/*.nii.gz"), key=lambda file: file.name)
    if not files:
        raise InputError("no pairs", file=data, remedy="give the folder that has train/fixed_images and test/fixed_images")
    rows = []
    for file in files:
        name = file.name.removesuffix(".nii.gz")
        for side, kind in SIDES.items():
            row = {"subject": name, "session": side, "group": name}
            for column, what in (("image", "images"), ("labels", "labels")):
                values = np.asarray(nib.load(file.parents[1] / f"{kind}_{what}" / file.name).dataobj)
                row[column] = f"{name}_{side}_{what}.nii.gz"
                save_image(even(values), AFFINE, out / row[column], np.uint8)
            rows.append(row)
    write_table(pd.DataFrame(rows).assign(split="train"), out / "pairs.tsv")
    return out / "pairs.tsv"


def even(values: np.ndarray) -> np.ndarray:
    """Return an image with zeros behind its axes of odd length, but for a fourth one."""
    sides = [(0, size % 2 if axis < 3 else 0) for axis, size in enumerate(values.shape)]
    return np.pad(values, sides)


def read_pairs(table: Path) -> list[Pair]:
    """Return the pairs of a table."""
    scans = read_training_table(table)
    return [
        Pair(one.subject, one, other) for one, other in zip(scans[::2], scans[1::2], strict=True) if one.group == other.group
    ]


def fold_splits(names: Sequence[str], fold: int) -> dict[str, str]:
    """Return what each pair is for in a fold: every ninth for the test, of the next ninth two to choose the best step."""
    held = names[fold::FOLDS]
    choosers = names[(fold + 1) % FOLDS :: FOLDS][:CHOOSERS]
    return {name: "test" if name in held else "validation" if name in choosers else "train" for name in names}


def fold_table(table: Path, fold: int) -> Path:
    """Write the table of a fold beside that of all pairs, and return it."""
    rows = read_table(table, dtype=str)
    splits = fold_splits(sorted(rows["group"].unique()), fold)
    path = table.with_name(f"fold-{fold}.tsv")
    write_table(rows.assign(split=rows["group"].map(splits)), path)
    return path
