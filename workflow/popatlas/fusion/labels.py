"""Label images as arrays: contiguous numbers and back, the region that any atlas labels, its bounding box."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.images.arrays import BoolArray, IntArray
from popatlas.images.labels import distinct

Box = tuple[slice, ...]


def to_contiguous(labels: IntArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint16]]:
    """Renumber the labels that occur to 0, 1, 2, ...; background (0) is always number 0.

    Parameters
    ----------
    labels : int ndarray
        Any non-negative label values, of one image or of a stack.

    Returns
    -------
    values : (n_labels,) int64 ndarray
        Sorted original values, ``values[0] == 0``; ``values[indices]`` restores the input.
    indices : uint16 ndarray
        Same shape as `labels`.

    Raises
    ------
    InputError
        Negative labels, or more than 65 000 different ones.
    """
    if (lowest := int(labels.min(initial=0))) < 0:
        raise InputError(f"negative label {lowest}", remedy="use labels that are positive, with background 0")
    values = np.union1d(distinct(labels), [0])
    if len(values) > 65_000:
        raise InputError(f"{len(values)} different labels", remedy="check that the label image holds labels")
    if values[-1] < 1 << 20:
        table = np.zeros(int(values[-1]) + 1, dtype=np.uint16)
        table[values] = np.arange(len(values), dtype=np.uint16)
        return values, np.asarray(table[labels])
    return values, np.searchsorted(values, labels).astype(np.uint16)


def union_mask(labels: IntArray) -> BoolArray:
    """Return where at least one atlas has a label, shape of one image, from a stack (atlases, ...)."""
    return np.asarray((labels != 0).any(axis=0))


def disputed_mask(labels: IntArray) -> BoolArray:
    """Return where the atlases of a stack (atlases, ...) do not all have the same label."""
    return np.asarray((labels != labels[:1]).any(axis=0))


def bounding_box(mask: BoolArray, margin: int = 0) -> Box:
    """Return the smallest box of slices that holds `mask`, grown by `margin` voxels inside the image.

    An empty mask gives an empty box.
    """
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if found.size == 0:
            return tuple(slice(0, 0) for _ in range(mask.ndim))
        box.append(slice(max(int(found[0]) - margin, 0), min(int(found[-1]) + 1 + margin, mask.shape[axis])))
    return tuple(box)
