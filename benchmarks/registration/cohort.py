"""Real pairs: labelled heads of a BIDS dataset, skull cut off by the labels, aligned by an affine that all engines share."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.dataset import LPS, label_box, parcellations, scans_of
from benchmarks.registration.cases import Array, Case
from popatlas.errors import InputError
from popatlas.images.antspy import deterministic_ants
from popatlas.images.deformation import Grid, sample
from popatlas.measures.scan import resample_labels
from popatlas.registration.engines.ants.core import register_linear
from popatlas.transforms.affine import Matrix, read_affine

AFFINE_ITERATIONS = (200, 100, 50, 20)
MARGIN = 6  # voxels kept round the fixed brain
Brain = tuple[nib.Nifti1Image, np.ndarray]


def choose_pairs(data: Path, count: int) -> list[tuple[str, str]]:
    """Return pairs of labelled scans without a scan in common, in a fixed random order.

    Parameters
    ----------
    data : Path
        BIDS dataset with one parcellation for each scan, `derivatives/*/{scan}_*dseg.nii.gz`.
    count : int
        Most pairs.
    """
    labelled = [scan for scan in scans_of(data) if parcellations(data, scan)]
    if len(labelled) < 2:
        raise InputError(
            "fewer than two scans with labels", file=data, remedy="give a dataset with derivatives/*/*_dseg.nii.gz"
        )
    order = np.random.default_rng(0).permutation(len(labelled))
    pairs = zip(order[::2], order[1::2], strict=False)
    return [(labelled[a], labelled[b]) for a, b in pairs][:count]


def load_pair(data: Path, fixed_scan: str, moving_scan: str) -> Case:
    """Return a pair on the grid of its first scan, cropped to the brain.

    The moving image is resampled once, through the affine; its labels stay on their grid and are read there through the
    composed transform, so that nothing is resampled twice.
    """
    fixed, fixed_labels = _load_brain(data, fixed_scan)
    moving, moving_labels = _load_brain(data, moving_scan)
    return paired((fixed, fixed_labels), (moving, moving_labels), common_affine(fixed, moving), data / fixed_scan)


def paired(fixed: Brain, moving: Brain, affine: Matrix, file: Path) -> Case:
    """Return a pair on the grid of its fixed brain, cropped to it.

    Parameters
    ----------
    fixed, moving : (NIfTI image, labels) pair
        Brains of the same intensities, 0 outside, with labels on the same grids.
    affine : (4, 4) ndarray
        Fixed to moving points, LPS millimetres.
    file : Path
        Fixed image, named in errors.
    """
    (image, fixed_labels), (other, moving_labels) = fixed, moving
    spacing = np.array(image.header.get_zooms()[:3], float)
    if np.ptp(spacing) > 0.01 * spacing.mean():
        raise InputError(f"voxels are not isotropic: {spacing}", file=file, remedy="resample the dataset first")
    to_moving = np.linalg.inv(LPS @ other.affine) @ affine @ LPS @ image.affine
    box = label_box(fixed_labels, MARGIN)
    shift = np.eye(4)
    shift[:3, 3] = [part.start for part in box]
    to_moving = to_moving @ shift
    target = np.asarray(image.dataobj, np.float32)[box]
    points = Grid(target.shape, np.eye(4)).points(to_moving)
    moved = sample(np.asarray(other.dataobj, np.float32), np.eye(4), points)
    return Case(target, moved, fixed_labels[box], moving_labels, to_moving, float(spacing.mean()), np.zeros(0, np.float32))


def common_affine(fixed: nib.Nifti1Image, moving: nib.Nifti1Image) -> Matrix:
    """Return the affine from fixed to moving points, LPS millimetres: ANTs, rigid then full, on mutual information."""
    ants = deterministic_ants()
    with tempfile.TemporaryDirectory(prefix="popatlas-affine-") as folder:
        files = [Path(folder) / name for name in ("fixed.nii.gz", "moving.nii.gz")]
        for image, file in zip((fixed, moving), files, strict=True):
            nib.save(image, file)
        target, source = (ants.image_read(str(file)) for file in files)
        prefix = Path(folder) / "stage-"
        rigid = register_linear(target, source, "Rigid", None, AFFINE_ITERATIONS, prefix)
        return read_affine(register_linear(target, source, "Affine", str(rigid), AFFINE_ITERATIONS, prefix))


def _load_brain(data: Path, scan: str) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Return the brain of a scan, its 99th percentile scaled to 1, and its labels on the same grid, both in RAS order."""
    image = nib.as_closest_canonical(nib.load(data / f"{scan}_T1w.nii.gz"))
    labels = resample_labels(parcellations(data, scan)[0], image)
    values: Array = np.asarray(image.dataobj, np.float32)
    brain = np.where(labels > 0, values / np.percentile(values[labels > 0], 99), 0).astype(np.float32)
    return nib.Nifti1Image(brain, image.affine), labels
