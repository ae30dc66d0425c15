"""Images as tensors: one type for an image with its grid and mask, and the checks of a pair of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.io import PathLike, load_image

FLAT = 1e-6  # range of a constant image relative to its largest absolute value: float32 rounding


@dataclass(frozen=True)
class Scan:
    """An image, where it lies, and where it may be trusted.

    Attributes
    ----------
    image : (1, 1, *shape) Tensor
        Intensities.
    grid : Grid
        Voxel index to LPS millimetres.
    mask : (1, 1, *shape) Tensor or None
        Voxels that count are above 0; None counts all of them.
    """

    image: Tensor
    grid: Grid
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.image.shape[:2] != (1, 1) or tuple(self.image.shape[2:]) != tuple(self.grid.shape):
            raise ValueError(f"image of shape {tuple(self.image.shape)} on a grid of shape {tuple(self.grid.shape)}")

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return self.grid.ndim


def read_volume(path: PathLike, subject: str | None = None) -> Tensor:
    """Read one volume of one channel (1, 1, *shape), float32.

    Raises
    ------
    InputError
        When the file cannot be read or holds anything else than an image of 2 or 3 axes.
    """
    values = np.asarray(load_image(path).dataobj, dtype=np.float32)
    if values.ndim not in (2, 3):
        message = f"shape {values.shape} is no image of 2 or 3 axes"
        raise InputError(message, file=path, subject=subject, remedy="give one volume")
    return torch.from_numpy(np.ascontiguousarray(values))[None, None]


def check_pair(
    fixed: Tensor,
    moving: Tensor,
    fixed_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
    subject: str | None = None,
) -> None:
    """Refuse images that no engine can register.

    Parameters
    ----------
    fixed, moving : (B, C, *shape) Tensor
        Images of 2 or 3 axes; their shapes may differ.
    fixed_mask, moving_mask : (B or 1, 1, *shape) Tensor, optional
        Voxels that count are above 0.
    subject : str, optional
        Named in the error.

    Raises
    ------
    InputError
        For a mix of 2D and 3D, an axis of one voxel, values that are not finite, a constant image (in its mask when it has
        one), a mask of another shape and an empty mask.
    """
    axes = fixed.ndim - 2, moving.ndim - 2
    if axes[0] != axes[1] or axes[0] not in (2, 3):
        message = f"the fixed image has {axes[0]} axes and the moving one {axes[1]}"
        raise InputError(message, subject=subject, remedy="give two images of 2 axes or two of 3 axes")
    check_image(fixed, fixed_mask, subject, "fixed ")
    check_image(moving, moving_mask, subject, "moving ")


def check_image(image: Tensor, mask: Tensor | None = None, subject: str | None = None, kind: str = "") -> None:
    """Refuse an image that no engine can register; see `check_pair`.

    Parameters
    ----------
    image : (B, C, *shape) Tensor
        Image of 2 or 3 axes.
    mask : (B or 1, 1, *shape) Tensor, optional
        Voxels that count are above 0.
    subject : str, optional
        Named in the error.
    kind : str
        What kind of image it is, with a blank behind it.

    Raises
    ------
    InputError
        For an axis of one voxel, values that are not finite, a constant image (in its mask when it has one), a mask of
        another shape and an empty mask.
    """
    _check_values(kind, image, subject)
    if mask is not None:
        _check_mask(kind, image, mask, subject)
    _check_contrast(kind, image, mask, subject)


def check_scans(fixed: Scan, moving: Scan, subject: str | None = None) -> None:
    """Run `check_pair` on two scans."""
    check_pair(fixed.image, moving.image, fixed.mask, moving.mask, subject)


def _check_values(kind: str, image: Tensor, subject: str | None) -> None:
    if min(image.shape[2:]) < 2:
        message = f"the {kind}image has an axis of one voxel (shape {tuple(image.shape[2:])})"
        raise InputError(message, subject=subject, remedy="drop that axis and register in 2D")
    wrong = int((~torch.isfinite(image)).sum())
    if wrong:
        message = f"the {kind}image has {wrong} voxels that are NaN or infinite"
        raise InputError(message, subject=subject, remedy="replace them, by 0 outside of the field of view")


def _check_mask(kind: str, image: Tensor, mask: Tensor, subject: str | None) -> None:
    if mask.shape[2:] != image.shape[2:]:
        message = f"the {kind}mask has shape {tuple(mask.shape[2:])} and its image {tuple(image.shape[2:])}"
        raise InputError(message, subject=subject, remedy="resample the mask onto the image's grid")
    if not bool((mask > 0).flatten(1).any(1).all()):
        raise InputError(f"the {kind}mask is empty", subject=subject, remedy="check the brain extraction, or give no mask")


def _check_contrast(kind: str, image: Tensor, mask: Tensor | None, subject: str | None) -> None:
    for row in range(image.shape[0]):
        values = image[row] if mask is None else image[row][(mask[row % mask.shape[0]] > 0).expand_as(image[row])]
        low, high = float(values.min()), float(values.max())
        if high - low <= FLAT * max(abs(low), abs(high)):
            where = "" if mask is None else " inside its mask"
            message = f"the {kind}image is constant{where} (value {low:g})"
            raise InputError(message, subject=subject, remedy="check that the file holds the intended image")
