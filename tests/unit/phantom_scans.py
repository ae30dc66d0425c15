"""A tiny cohort to train on: one set of shapes, bent at random for each subject, as files and a training table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from popatlas.images.io import save_image, write_table
from popatlas.training.motion import displacement_of, random_motion
from popatlas.training.settings import MotionSettings
from popatlas.transforms.fields import coordinates, warp, warp_labels

GREY = (0.0, 0.9, 0.6, 0.35, 0.75)  # of the labels
# centre and radius, shares of the image
BLOBS = ((0.0, 0.0, 0.36), (-0.14, 0.1, 0.15), (0.16, 0.1, 0.11), (0.02, -0.16, 0.12))


def shapes(size: int, ndim: int) -> torch.Tensor:
    """Return labels (1, 1, *shape): a body and three organs, none symmetric to another."""
    at = coordinates((size,) * ndim)[0] / size - 0.5
    labels = torch.zeros(1, 1, *(size,) * ndim, dtype=torch.int32)
    for value, (x, y, radius) in enumerate(BLOBS, start=1):
        centre = torch.tensor([x, y, 0.03][:ndim]).reshape(-1, *[1] * ndim)
        labels[0, 0][((at - centre).norm(dim=0) < radius)] = value
    return labels


def subject(number: int, size: int, ndim: int, bend: float = 2.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image and labels of a subject."""
    generator = torch.Generator().manual_seed(number)
    settings = MotionSettings(rotation=0, scale=0.04, shear=0.0, shift=1.0, bend=bend, bend_spacing=(size / 3, size / 2))
    shape = (size,) * ndim
    motion = torch.zeros(1)
    while motion.abs().max() < bend:  # the strength is random too: weak ones teach nothing
        motion = displacement_of([random_motion(shape, settings, generator)], shape)
    labels = shapes(size, ndim)
    image = torch.tensor(GREY)[labels.long()] + 0.01 * torch.randn(labels.shape, generator=generator)
    moved = warp(image, motion, padding="zeros")
    bent = warp_labels(labels, motion, padding="zeros")
    return torch.where(bent > 0, moved.clamp(0.05, 1), 0), bent


def write_scans(folder: Path, *, size: int = 32, ndim: int = 2, subjects: int = 14, labels: bool = True) -> Path:
    """Write a cohort whose last two subjects are for validation; return its table."""
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([2.0] * 3 + [1.0])
    for number in range(subjects):
        image, dseg = (part[0, 0].numpy() for part in subject(number, size, ndim))
        row = {"subject": f"{number:02d}", "image": f"{number:02d}.nii.gz", "split": "train"}
        save_image(image, affine, folder / row["image"], np.float32)
        if labels:
            row["labels"] = f"{number:02d}_dseg.nii.gz"
            save_image(dseg, affine, folder / row["labels"], np.int16)
        row["split"] = "validation" if number >= subjects - 2 else "train"
        rows.append(row)
    write_table(pd.DataFrame(rows), folder / "scans.tsv")
    return folder / "scans.tsv"
