"""Images of subjects as rows of numbers in a common space, on a coarse grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.images.deformation import Array, Grid, sample
from popatlas.images.io import load_image
from popatlas.images.labels import read_labels

Rows = npt.NDArray[np.float64]
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS to RAS millimetres


def coarse_grid(reference: Path, spacing_mm: float) -> Grid:
    """Return a grid over an image with voxels of about so many millimetres, not smaller than its own."""
    image = load_image(reference)
    if len(image.shape) != 3:
        raise InputError(f"the image has {len(image.shape)} axes", file=reference, remedy="give images of three axes")
    own = Grid((image.shape[0], image.shape[1], image.shape[2]), np.asarray(image.affine, dtype=np.float64))
    steps = [max(1, round(spacing_mm / size)) for size in own.spacing]
    nx, ny, nz = (1 + (n - 1) // step for n, step in zip(own.shape, steps, strict=True))
    return Grid((nx, ny, nz), own.affine @ np.diag([*map(float, steps), 1.0]))


def label_rows(files: Sequence[Path], grid: Grid, affines: Sequence[Path] = ()) -> tuple[Rows, Rows]:
    """Read label images on a grid, and how much of each label they have.

    Parameters
    ----------
    files : sequence of path
        Label images.
    grid : Grid
        Of the common space.
    affines : sequence of path
        Affine of each, from points of the common space to its own; none where they lie in it. What is left after it is what
        is compared: labels that were carried through the whole registration they were made by would all be alike.

    Returns
    -------
    (subjects, voxels) ndarray
        Labels, of voxels that some subject has a label at.
    (subjects, labels) ndarray
        Volume of each label, ml on the image's own grid.
    """
    from popatlas.transforms.affine import read_affine

    rows, amounts = [], []
    for place, file in enumerate(files):
        image = read_labels(file)
        points = grid.points(FLIP @ read_affine(affines[place]) @ FLIP if affines else None).reshape(3, -1)
        rows.append(sample(image.data.astype(np.float32), image.affine, points, order=0).astype(np.int32))
        voxel_ml = abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000
        numbers, counts = np.unique(image.data, return_counts=True)
        amounts.append({int(n): c * voxel_ml for n, c in zip(numbers, counts, strict=True) if n})
    labels = np.stack(rows)
    labels = labels[:, (labels != 0).any(axis=0)]
    if not labels.shape[1]:
        raise InputError("no label image reaches the common space", remedy="give label images that lie in it")
    known = sorted(set().union(*amounts))
    return labels.astype(np.float64), np.array([[one.get(number, 0.0) for number in known] for one in amounts])


def jacobian_rows(files: Sequence[Path], grid: Grid, mask: Path | None = None) -> tuple[Rows, Rows]:
    """Read log-Jacobians on a grid, and the weight of each voxel: its share of the mask, all of it without one.

    Returns
    -------
    (subjects, voxels) ndarray
        Values, where the weight is above 0.
    (voxels,) ndarray
        Weights.
    """
    points = grid.points().reshape(3, -1)
    weight = _read(mask, points) if mask else np.ones(points.shape[1])
    inside = weight > 0
    if not inside.any():
        raise InputError("the mask is empty in the common space", file=mask, remedy="give a mask that lies in it")
    return np.stack([_read(file, points[:, inside]) for file in files]), np.asarray(weight[inside], dtype=np.float64)


def _read(file: Path, points: Array) -> Rows:
    image = load_image(file)
    values = sample(np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine), points, mode="nearest")
    return np.asarray(values, dtype=np.float64)
