"""Label images and masks that somebody else made: read exactly, or refused with what is wrong and what to do.

Every place that reads labels or a mask reads them here, so that none of them turns a value into another one: a label that
was stored as 0.9999999 is 1 and not 0, half a label is refused, and numbers up to 2^31 - 1 come through as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.images.arrays import IntArray, RealArray
from popatlas.images.grid import Array, Grid
from popatlas.images.header import FAULTS, file_fault, geometry_fault, load_whole, refuse, told, type_fault
from popatlas.images.io import PathLike

LARGEST_LABEL = int(np.iinfo(np.int32).max)  # label images are int32
WHOLE = 1e-3  # distance from a whole number that is rounding
FLOAT32_EXACT = 1 << 24  # from here on float32 holds only some of the whole numbers
MOST_LABELS = 5000  # different labels of one image; an image that is no label image has more
BORDER = 0.9  # share of the outer faces that one label fills when it is the background
# Intensities: of neighbouring voxels that are not 0, 83 % and more differ in T1w images, at most 28 % in label images
MOST_STEPS = 0.65
LIKELY_STEPS = 0.3  # neighbours that differ in what is most likely a label image; in scans it is 80 %
LEAST_BACKGROUND = 0.1  # share of its voxels that are 0
FEWEST_STEPS = 1000  # pairs of neighbours, and different values, from which on that share tells something
FEWEST_VALUES = 30
LOOKED_AT = 1 << 19  # voxels of an image that are compared along each axis
COUNTABLE = 1 << 20  # labels below are counted with a table, larger ones by sorting

MAKE_AGAIN = "copy the file again from its source, or make it again"
NO_IMAGE = "give the label image, not an image or a probability map, and resample labels by the nearest neighbour"


class UnreadableError(InputError):
    """The file does not open: it is not there, damaged, or of another format."""


@dataclass(frozen=True, eq=False)
class LabelImage:
    """Labels, or a mask of 0 and 1, that have been checked.

    Attributes
    ----------
    path : Path
        Where they come from.
    data : int32 ndarray
        (x, y[, z]), with a last axis of candidates where those were asked for.
    affine : (4, 4) ndarray
        Voxel to RAS millimetres.
    sha256 : str
        Of the file.
    """

    path: Path
    data: npt.NDArray[np.int32]
    affine: Array
    sha256: str = ""

    @property
    def image(self) -> nib.Nifti1Image:
        """The same for nibabel."""
        return nib.Nifti1Image(self.data, self.affine)

    @cached_property
    def grid(self) -> Grid:
        """Where the voxels lie; candidates share it."""
        return Grid.from_affine(self.data.shape, self.affine, self.path)

    @cached_property
    def values(self) -> npt.NDArray[np.int64]:
        """The labels that occur, sorted, without background."""
        found = distinct(self.data)
        return np.asarray(found[found != 0])


def read_labels(
    path: PathLike,
    subject: str | None = None,
    *,
    axes: tuple[int, ...] = (3,),
    empty: bool = False,
    forms: bool = True,
    spacing_mm: tuple[float, float] | None = None,
) -> LabelImage:
    """Read a label image.

    Parameters
    ----------
    path : path-like
        NIfTI file; further axes of length 1 are dropped. Any type of number: floats are rounded when they lie within 1e-3
        of a whole number.
    subject : str, optional
        Named in errors.
    axes : tuple of int
        Numbers of axes that are allowed; with 4 the last one holds candidates.
    empty : bool
        Allow an image without any label, as label fusion may write one.
    forms : bool
        See `popatlas.images.header.geometry_fault`.
    spacing_mm : (float, float), optional
        Plausible voxel sizes, millimetres; any when left out.

    Returns
    -------
    LabelImage

    Raises
    ------
    InputError
        The file does not open (`UnreadableError`), its header does not tell one place, it has other axes, or its values are
        no label numbers: not finite, fractions, negative, too large, those of an intensity image, only background, one
        label everywhere, or a background that is not 0.
    """
    with _naming(path, subject):
        image, data, digest = _opened(path, axes, "label image")
        refuse(geometry_fault(image, spacing_mm, forms=forms), "label image")
        if image.get_data_dtype() == np.float32 and data.max(initial=0) >= FLOAT32_EXACT:
            problem = f"the label image holds labels from {FLOAT32_EXACT} on as float32, which cannot tell neighbours apart"
            raise InputError(problem, remedy="save the labels as integers, from their source")
        found = LabelImage(Path(path), label_numbers(data), np.asarray(image.affine, dtype=np.float64), digest)
        _check_content(found, empty=empty)
    return found


def read_mask(path: PathLike, subject: str | None = None, *, axes: tuple[int, ...] = (2, 3)) -> LabelImage:
    """Read a mask as 0 and 1.

    Parameters
    ----------
    path : path-like
        NIfTI file. Whole numbers: all but 0 is inside. Fractions from 0 to 1: above one half is inside.
    subject : str, optional
        Named in errors.
    axes : tuple of int
        Numbers of axes that are allowed.

    Returns
    -------
    LabelImage

    Raises
    ------
    InputError
        As `read_labels`, and where nothing is inside.
    """
    with _naming(path, subject):
        image, data, digest = _opened(path, axes, "mask")
        refuse(geometry_fault(image), "mask")
        if lost := int(data.size - np.isfinite(data).sum()):
            problem = f"the mask has values that are not finite: {lost} voxel(s)"
            raise InputError(problem, remedy="set them to 0 and save the mask again")
        low, high = data.min(), data.max()
        if low < -WHOLE or (high > 1 + WHOLE and _fractions(data)):
            problem = f"the mask holds values from {low:g} to {high:g} that are neither whole numbers nor shares from 0 to 1"
            raise InputError(problem, remedy="save it with 0 outside and 1 inside")
        inside = data > 0.5
        if not inside.any():
            raise InputError("the mask is empty", remedy="make it again, or leave it out")
    return LabelImage(Path(path), inside.astype(np.int32), np.asarray(image.affine, dtype=np.float64), digest)


@contextmanager
def _naming(path: PathLike, subject: str | None) -> Iterator[None]:
    """Name file and subject in the errors of a block."""
    try:
        yield
    except InputError as error:
        raise type(error)(error.message, file=path, subject=subject, remedy=error.remedy) from error


def _opened(path: PathLike, axes: tuple[int, ...], what: str) -> tuple[nib.Nifti1Image, RealArray, str]:
    """Return image, voxels without further axes of length 1, and digest of a file that opens."""
    file = Path(path)
    try:
        code, detail = file_fault(file)
        if code:
            problem = "it is a folder" if file.is_dir() else FAULTS[code][0] + f" ({detail})" * (code == "size")
            remedy = FAULTS[code][1] if code in ("format", "unfetched") else MAKE_AGAIN
            raise UnreadableError(f"cannot read image: {problem}", remedy=remedy)
        image, digest = load_whole(file)
        data = np.asanyarray(image.dataobj)
        if not data.size:
            raise UnreadableError("cannot read image: it has no voxels", remedy=MAKE_AGAIN)
    except InputError:
        raise
    except Exception as error:  # nibabel and zlib raise many kinds on damaged files
        raise UnreadableError(f"cannot read image: {told(error, file)}", remedy=MAKE_AGAIN) from error
    refuse(type_fault(image.get_data_dtype()), what)
    least = 3 if 3 in axes else 2  # a single slice of a volume stays one
    while data.ndim > least and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim not in axes:
        raise _other_axes(data.shape, axes, what)
    return image, data, digest


def _other_axes(shape: tuple[int, ...], axes: tuple[int, ...], what: str) -> InputError:
    wanted = " or ".join(str(number) for number in axes)
    remedy = f"give a {what} of {wanted} axes"
    if len(shape) == 4:
        remedy = (
            "merge its volumes into one: where volume i is not 0 the voxel gets label i (structures may not overlap); "
            "or extract one volume"
        )
    shown = "x".join(str(number) for number in shape)
    return InputError(f"the {what} has {len(shape)} axes ({shown}), expected {wanted}", remedy=remedy)


def _check_content(found: LabelImage, *, empty: bool) -> None:
    """Refuse images that hold numbers and are no label images."""
    labels = found.data
    for volume in [labels] if labels.ndim < 4 else np.moveaxis(labels, -1, 0):
        _check_kind(volume)
    if empty:
        return
    if not labels.any():
        problem = "the label image holds no label: all voxels are background (0)"
        raise InputError(problem, remedy="draw the labels, or remove the file")
    if labels.size > 1 and labels.min() == labels.max():
        raise InputError(f"all voxels of the label image have the label {labels.flat[0]}", remedy=MAKE_AGAIN)
    if labels.ndim < 4:
        _check_background(labels)


def _check_kind(labels: npt.NDArray[np.int32]) -> None:
    """Refuse intensities that were given for labels."""
    if int(labels.max(initial=0)) < FEWEST_VALUES:
        return
    count = int(np.count_nonzero(distinct(labels)))
    if count > MOST_LABELS:
        raise InputError(f"the label image holds {count} different labels, more than {MOST_LABELS}", remedy=NO_IMAGE)
    if count < FEWEST_VALUES:
        return
    differ, pairs = _steps(labels)
    if pairs >= FEWEST_STEPS and differ > MOST_STEPS * pairs:
        problem = f"the label image seems to hold intensities: {differ / pairs:.0%} of neighbouring voxels differ"
        raise InputError(problem, remedy=NO_IMAGE)


def _steps(labels: npt.NDArray[np.int32]) -> tuple[int, int]:
    """Return how many neighbours differ, and how many there are, none of them 0; of a large image in some planes only."""
    stride, differ, pairs = -(-labels.size // LOOKED_AT), 0, 0
    for axis in range(labels.ndim):
        along = np.moveaxis(labels, axis, 0)  # a view, where `take` would copy the whole image
        one, other = along[:-1:stride], along[1::stride]
        both = (one != 0) & (other != 0)
        pairs += int(np.count_nonzero(both))
        differ += int(np.count_nonzero(both & (one != other)))
    return differ, pairs


def _check_background(labels: npt.NDArray[np.int32]) -> None:
    """Refuse labels of which one seems to be the background."""
    views = [np.moveaxis(labels, axis, 0) for axis in range(labels.ndim)]
    ends = [view[end] for view in views if len(view) > 1 for end in (0, -1)]  # the faces of a single slice are all of it
    faces = np.concatenate([end.ravel() for end in ends])
    values, counts = np.unique(faces, return_counts=True)
    usual, share = int(values[counts.argmax()]), float(counts.max() / len(faces))
    remedy = "give 0 to the background, and take care that the header does not add to it (scl_inter)"
    if usual and share >= BORDER:
        problem = f"label {usual} fills {share:.0%} of the outer faces of the label image: is it the background?"
        raise InputError(problem, remedy=remedy)
    if labels.all():
        problem = f"no voxel of the label image is 0 (background), and {usual} is the usual label at its outer faces"
        raise InputError(f"{problem}: is it the background?", remedy=remedy)


def seem_labels(data: RealArray) -> bool:
    """Tell whether an image of which nobody said what it holds is most likely one of labels, or a mask.

    Parameters
    ----------
    data : (x, y[, z]) ndarray
        Real numbers of any type.

    Returns
    -------
    bool
        Whether these are whole numbers from 0, with a background of 0 and neighbours that are mostly alike.
    """
    if data.min(initial=0) < 0 or (data == 0).mean() < LEAST_BACKGROUND or not (data == np.rint(data)).all():
        return False
    if not data.any() or data.max() > LARGEST_LABEL:
        return False
    labels = np.asarray(data, dtype=np.int32)
    differ, pairs = _steps(labels)
    return differ <= LIKELY_STEPS * pairs and len(distinct(labels)) <= MOST_LABELS


def label_numbers(data: RealArray) -> npt.NDArray[np.int32]:
    """Return values as label numbers, or refuse them.

    Parameters
    ----------
    data : ndarray
        Real numbers of any type.

    Returns
    -------
    int32 ndarray
        The same shape; floats within 1e-3 of a whole number are rounded to it.

    Raises
    ------
    InputError
        Values that are not finite, between whole numbers, negative, or above 2^31 - 1.
    """
    start = f"the label image holds values that are not whole numbers from 0 to {LARGEST_LABEL}"
    values = data.astype(np.uint8) if data.dtype.kind == "b" else data
    if values.dtype.kind == "f":
        lost = int(values.size - np.isfinite(values).sum())
        if lost:
            remedy = "set them to 0 (background) and save the labels again"
            raise InputError(f"{start}: {lost} voxel(s) are NaN or infinite", remedy=remedy)
        values = np.rint(data)
        between = np.abs(data - values) > WHOLE
        if between.any():
            example = float(data[between][0])
            raise InputError(f"{start}: {int(between.sum())} voxel(s) lie between, such as {example:g}", remedy=NO_IMAGE)
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0:
        count = int((values < 0).sum())
        remedy = "number the structures from 1, with 0 for background"
        raise InputError(f"{start}: {count} voxel(s) are negative, such as {int(low)}", remedy=remedy)
    if high > LARGEST_LABEL:
        remedy = f"give the structures smaller numbers, up to {LARGEST_LABEL}"
        raise InputError(f"{start}: label {high:.15g}" if high > 2**63 else f"{start}: label {int(high)}", remedy=remedy)
    return np.asarray(values, dtype=np.int32)


def _fractions(data: RealArray) -> bool:
    return bool(data.dtype.kind == "f" and (np.abs(data - np.rint(data)) > WHOLE).any())


def distinct(labels: IntArray) -> npt.NDArray[np.int64]:
    """Return the values that occur among label numbers, sorted."""
    if labels.size and int(labels.max()) < COUNTABLE:
        return np.flatnonzero(np.bincount(labels.ravel(order="K"))).astype(np.int64)
    values = np.unique(labels[labels != 0])
    return (np.append(0, values) if (labels == 0).any() else values).astype(np.int64)
