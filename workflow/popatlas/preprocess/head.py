"""Where the head is in an image, whatever surrounds it: a coarse copy, what of it is not air, a window round the head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from popatlas.images.arrays import RealArray
from popatlas.preprocess.levels import measure_levels

Values = npt.NDArray[np.float32]
Window = tuple[slice, slice, slice]

COARSE_MM = 4.0
USUAL_FIELD_MM = 280.0  # up to there deepbet answers alike: it was made for such fields of view
HEAD_MM = (200.0, 240.0, 250.0)  # left-right, back-front, down from the top: the head without shoulders
ABOVE_MM = 25.0  # of this, over the top of the head; the scalp, where it is thin, may be missed
UPPER_MM = 100.0  # what is below the top of the head by less is neither neck nor shoulders
TOP_MM2 = 1500.0  # section from which on something is the top of a head
DIM = 0.5  # share of Otsu's threshold above which something is no air: N4 takes the same


@dataclass(frozen=True)
class CoarseHead:
    """An image in voxels of about 4 mm.

    Attributes
    ----------
    values : (x, y, z) ndarray
        Means of blocks, 0 to 1 from air to bright, 0 where nothing is.
    inside : (x, y, z) ndarray of bool
        The largest thing in the image.
    block : (3,) ndarray
        Voxels of the image along the sides of a block.
    spacing : (3,) ndarray
        Sides of a block, mm.
    """

    values: Values
    inside: npt.NDArray[np.bool_]
    block: npt.NDArray[np.int64]
    spacing: npt.NDArray[np.float64]


def coarse_head(values: Values, spacing: npt.NDArray[np.float64]) -> CoarseHead | None:
    """Reduce an image to blocks and find the largest thing in it.

    Parameters
    ----------
    values : (x, y, z) ndarray
        Image of any offset.
    spacing : (3,) ndarray
        Voxel size, mm.

    Returns
    -------
    CoarseHead or None
        None when the image is empty.
    """
    from scipy.ndimage import binary_dilation, binary_opening, label
    from skimage.measure import block_reduce

    levels = measure_levels(values)
    if levels is None:
        return None
    base = levels.air if levels.even or levels.padding is None else levels.padding
    block = np.maximum(1, np.round(COARSE_MM / spacing)).astype(np.int64)
    missing = [(0, int(-count % size)) for count, size in zip(values.shape, block, strict=True)]
    clipped = np.clip((np.pad(values, missing, mode="edge") - base) / max(levels.high - base, 1e-12), 0, 1)
    reduced = np.asarray(block_reduce(clipped, tuple(block), np.mean), dtype=np.float32)
    bright = binary_opening(reduced > DIM * _threshold(reduced))
    parts = np.asarray(label(bright)[0])  # type: ignore[index]
    if not parts.any():
        return None
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    inside = parts == sizes.argmax()
    return CoarseHead(np.where(binary_dilation(inside, iterations=2), reduced, 0), inside, block, block * spacing)


def _threshold(reduced: Values) -> float:
    from skimage.filters import threshold_otsu

    filled = reduced[reduced > 0]  # padding would draw the threshold down
    return float(threshold_otsu(filled)) if filled.size and filled.max() > filled.min() else 0.0


def head_window(values: Values, spacing: npt.NDArray[np.float64]) -> Window:
    """Return the part of a RAS image in which the head of somebody upright is, without shoulders and without all the air.

    Parameters
    ----------
    values : (x, y, z) ndarray
        Image, axes close to RAS.
    spacing : (3,) ndarray
        Voxel size, mm.

    Returns
    -------
    tuple of slice
        The whole axis where the image is not longer than a usual field of view.
    """
    lengths = np.array(values.shape) * spacing
    coarse = coarse_head(values, spacing) if (lengths > USUAL_FIELD_MM).any() else None
    if coarse is None:
        return slice(None), slice(None), slice(None)
    return window_below(values.shape, spacing, *_top_and_middle(coarse))


def window_below(
    shape: tuple[int, ...], spacing: npt.NDArray[np.float64], middle: npt.NDArray[np.float64], top: float
) -> Window:
    """Return the window of a head by its middle from left to right and from back to front, and its top (all in mm)."""
    low = [middle[0] - HEAD_MM[0] / 2, middle[1] - HEAD_MM[1] / 2, top + ABOVE_MM - HEAD_MM[2]]
    window = []
    for count, size, start, length in zip(shape, spacing, low, HEAD_MM, strict=True):
        first = max(0, round(start / size))
        last = min(count, round((start + length) / size))
        window.append(slice(first, last) if count * size > USUAL_FIELD_MM and last > first else slice(None))
    return window[0], window[1], window[2]


def _top_and_middle(coarse: CoarseHead) -> tuple[npt.NDArray[np.float64], float]:
    """Return the middle (x, y) of the upper head and the height of its top, mm from the corner of the image."""
    section = coarse.inside.sum((0, 1)) * coarse.spacing[0] * coarse.spacing[1]
    slices = np.flatnonzero(section >= min(TOP_MM2, section.max()))
    top = int(slices[-1])
    upper = coarse.inside[:, :, max(0, top - round(UPPER_MM / coarse.spacing[2])) : top + 1]
    middle = [_middle(np.asarray(upper.any(axis=axes))) for axes in ((1, 2), (0, 2))]
    return np.array(middle) * coarse.spacing[:2], (top + 1) * float(coarse.spacing[2])


def _middle(present: RealArray) -> float:
    where = np.flatnonzero(present)
    return float(where[0] + where[-1] + 1) / 2
