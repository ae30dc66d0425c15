"""Whether labels and masks lie on their image: the same grid, inside of its field of view, on its brain.

What cannot be told: labels that are mirrored in their voxels below a header that is right.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.images.arrays import RealArray
from popatlas.images.grid import Array, Grid
from popatlas.images.io import PathLike
from popatlas.images.labels import LabelImage, read_mask

HEADER_ROUNDING = 0.1  # voxels by which grids that should be one may differ: quaternions of NIfTI are coarse
SAME_AXIS = 0.7  # cosine of the angle, from which on two axes point the same way
MOST_OUTSIDE = 0.5  # share of labelled voxels outside of the brain mask
COVERED = 0.9  # share of the brain that labels of the whole head cover: they may reach far beyond the brain
POINTS = 20_000  # voxels that are looked at, evenly over the image
ONE_GRID = "write the labels on the grid of their image: copy its header where the voxels correspond, else resample them"


def read_mask_on(
    path: PathLike,
    image: PathLike,
    subject: str | None = None,
    *,
    names: tuple[str, str] = ("image", "mask"),
) -> LabelImage:
    """Read a mask that lies on the grid of an image.

    Parameters
    ----------
    path, image : path-like
        The mask and the image, NIfTI.
    subject : str, optional
        Named in errors.
    names : (str, str)
        What image and mask are, for the message about grids that differ.

    Raises
    ------
    InputError
        From `popatlas.images.labels.read_mask`, and for another grid.
    """
    mask, grid = read_mask(path, subject), Grid.from_file(image)
    grid.check_same(mask.grid, names, tolerance_mm=HEADER_ROUNDING * min(grid.spacing), file=path, subject=subject)
    return mask


def check_place(
    labels: LabelImage, subject: str | None = None, *, image: Grid | None = None, mask: LabelImage | None = None
) -> None:
    """Refuse labels that do not lie on their image.

    Parameters
    ----------
    labels : LabelImage
        With at least one label.
    subject : str, optional
        Named in errors.
    image : Grid, optional
        Of the image that they were drawn on. Labels of its shape must have its grid. Others may have any grid of the same
        world, as long as no label leaves the image's field of view (by more than a voxel), but not its shape with axes
        swapped below a header whose axes are not.
    mask : LabelImage, optional
        Brain of the image, on any grid of the same world. The centre of the labels and at least half of the labelled voxels
        must lie inside. Labels that cover nearly the whole brain may reach beyond it: they may be of the head.

    Raises
    ------
    InputError
        The labels lie elsewhere.
    """

    def refuse(problem: str, remedy: str) -> InputError:
        return InputError(problem, file=labels.path, subject=subject, remedy=remedy)

    own = labels.grid
    if image is not None and image.shape == own.shape:
        if not image.same_as(own, HEADER_ROUNDING * min(image.spacing)):
            raise refuse(f"the labels have the shape of the image and do not lie on it: {_apart(image, own)}", ONE_GRID)
    elif image is not None:
        if _is_swapped(image, own):
            shapes = " and ".join("x".join(str(n) for n in grid.shape) for grid in (own, image))
            raise refuse(f"the axes of the labels are swapped against the image, their header is not: {shapes}", ONE_GRID)
        _check_view(labels, image, refuse)
    if mask is not None:
        _check_brain(labels, mask, refuse)


def _is_swapped(image: Grid, labels: Grid) -> bool:
    """Tell whether the array has the shape of the image with axes swapped while the axes of the headers agree."""
    if image.shape == labels.shape or sorted(image.shape) != sorted(labels.shape):
        return False
    return float((image.direction * labels.direction).sum(axis=0).min()) > SAME_AXIS


def _apart(image: Grid, labels: Grid) -> str:
    """Say how the grid of labels differs from that of their image."""
    distance = float(np.linalg.norm(image.corners() - labels.corners(), axis=1).max())
    way = "moved"
    if not np.allclose(image.spacing, labels.spacing, rtol=1e-2):
        way = "with another voxel size"
    elif np.linalg.det(image.affine) * np.linalg.det(labels.affine) < 0:
        way = "mirrored"
    elif not np.allclose(image.direction, labels.direction, atol=1e-2):
        way = "turned"
    return f"{way}, up to {distance:.3g} mm away"


def _check_view(labels: LabelImage, image: Grid, refuse: Callable[[str, str], InputError]) -> None:
    matrix = np.linalg.inv(image.affine) @ labels.grid.affine
    reach = np.maximum(1.0, np.abs(matrix[:-1, :-1]).max(axis=1))  # a voxel of the coarser grid
    low, high = -0.5 - reach, np.array(image.shape) - 0.5 + reach

    def outside_of(points: RealArray) -> npt.NDArray[np.bool_]:
        at = _moved(matrix, points)
        return np.asarray(((at < low) | (at > high)).any(axis=1))

    axes = range(labels.data.ndim)
    others = [tuple(other for other in axes if other != axis) for axis in axes]
    box = [np.flatnonzero(labels.data.any(axis=some))[[0, -1]] for some in others]
    if not outside_of(np.array(list(product(*box)))).any():
        return
    found = outside_of(np.argwhere(labels.data))
    if found.any():
        problem = f"{int(found.sum())} of {len(found)} labelled voxels lie outside of the field of view of the image"
        raise refuse(problem, ONE_GRID)


def _check_brain(labels: LabelImage, mask: LabelImage, refuse: Callable[[str, str], InputError]) -> None:
    to_mask = np.linalg.inv(mask.grid.affine) @ labels.grid.affine
    at = _moved(to_mask, _places(labels.data))
    outside = 1 - float(_read_at(mask.data, at).mean())
    centre = np.asarray(at.mean(axis=0, keepdims=True), dtype=np.float64)
    if outside <= MOST_OUTSIDE and _read_at(mask.data, centre).all():
        return
    to_labels = np.linalg.inv(labels.grid.affine) @ mask.grid.affine
    if float(_read_at(labels.data, _moved(to_labels, _places(mask.data))).mean()) >= COVERED:
        return
    problem = f"{outside:.0%} of the labelled voxels are" if outside > MOST_OUTSIDE else "the centre of the labels is"
    remedy = "check that the labels belong to this scan and that their header places them on it; look at the brain mask too"
    raise refuse(f"the labels do not lie on the brain: {problem} outside of its mask", remedy)


def _places(data: RealArray) -> npt.NDArray[np.intp]:
    """Return the indices (n, D) of voxels that are not 0, of many only some, evenly."""
    found = np.flatnonzero(data)
    return np.stack(np.unravel_index(found[:: -(-len(found) // POINTS)], data.shape), axis=1)


def _moved(matrix: Array, points: RealArray) -> Array:
    return np.asarray(points @ matrix[:-1, :-1].T + matrix[:-1, -1])


def _read_at(data: RealArray, points: Array) -> npt.NDArray[np.bool_]:
    """Tell at which points the nearest voxel is there and not 0."""
    index = np.rint(points).astype(int)
    inside = ((index >= 0) & (index < np.array(data.shape))).all(axis=1)
    found = np.zeros(len(index), dtype=bool)
    found[inside] = data[tuple(index[inside].T)] != 0
    return found
