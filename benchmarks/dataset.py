"""Labelled scans of BIDS datasets: which there are, their parcellations, and the box that holds the labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS points, and back


def scans_of(data: Path) -> list[str]:
    """Return the T1w scans of a dataset in order, as their paths without `_T1w.nii.gz`."""
    found = sorted(data.glob("sub-*/**/anat/*_T1w.nii.gz"))
    return [str(path.relative_to(data)).removesuffix("_T1w.nii.gz") for path in found]


def parcellations(data: Path, scan: str) -> list[Path]:
    """Return the files of labels that a scan has among the derivatives."""
    return list(data.glob(f"derivatives/*/{scan}_*dseg.nii.gz"))


def label_box(labels: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Return the box of what has a label, with so many voxels around it where the image has them."""
    inside = np.argwhere(labels > 0)
    low = np.maximum(inside.min(axis=0) - margin, 0)
    return tuple(slice(start, stop + margin + 1) for start, stop in zip(low, inside.max(axis=0), strict=True))
