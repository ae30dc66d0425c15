"""Reorientation to RAS and resampling to an isotropic grid, in the world space of the raw image."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.images.antialias import ANTIALIAS_FWHM, FWHM
from popatlas.images.bounds import SizeError, size_fault


def load_single_volume(path: Path | str, subject: str = "") -> nib.Nifti1Image:
    """Load a 3D image as float32 in the closest canonical (RAS) orientation.

    Parameters
    ----------
    path : path
        NIfTI file; trailing axes of length one are dropped.
    subject : str
        Named in errors.

    Returns
    -------
    nibabel.Nifti1Image
        Axes permuted and flipped to RAS, not resampled; not-finite voxels are 0.

    Raises
    ------
    InputError
        When the file cannot be read, is not 3D, holds no grey values, is constant or has no usable affine.
    """
    try:
        fault = size_fault(Path(path))
        if fault:
            raise SizeError(fault)
        image = nib.load(path)
        data = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel raises many kinds on damaged files
        raise InputError(
            f"cannot read image: {error}", file=path, subject=subject, remedy="replace or exclude the image"
        ) from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise InputError(
            f"image has {data.ndim} dimensions, expected 3", file=path, subject=subject, remedy="extract one volume"
        )
    if data.dtype.kind not in "biuf":
        raise InputError(
            f"image values are of type {data.dtype}, expected numbers",
            file=path,
            subject=subject,
            remedy="convert the image to one grey-scale channel",
        )
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-6:
        raise InputError(
            "the affine of the image is singular", file=path, subject=subject, remedy="repair the header or exclude the scan"
        )
    volume = np.nan_to_num(data.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if volume.max() <= volume.min():
        raise InputError("image is constant", file=path, subject=subject, remedy="replace or exclude the image")
    return nib.as_closest_canonical(nib.Nifti1Image(volume, image.affine))


def isotropic_grid(
    shape: tuple[int, ...], affine: npt.NDArray[np.float64], resolution_mm: float
) -> tuple[tuple[int, int, int], npt.NDArray[np.float64]]:
    """Return the isotropic grid that covers the field of view of an image.

    The axes keep their directions, so that an oblique image is not rotated; only the spacing changes.

    Parameters
    ----------
    shape : (3,) tuple
        Voxels of the image.
    affine : (4, 4) ndarray
        Voxel to RAS millimetres.
    resolution_mm : float
        New voxel size, millimetres.

    Returns
    -------
    shape : (3,) tuple
        Voxels of the new grid.
    affine : (4, 4) ndarray
        The centre of the field of view stays where it is.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    extent = np.asarray(shape) * spacing
    new_shape = np.maximum(np.ceil(extent / resolution_mm - 1e-3).astype(int), 1)
    directions = affine[:3, :3] / spacing
    centre = affine[:3, :3] @ ((np.asarray(shape) - 1) / 2) + affine[:3, 3]
    new_affine = np.eye(4)
    new_affine[:3, :3] = directions * resolution_mm
    new_affine[:3, 3] = centre - new_affine[:3, :3] @ ((new_shape - 1) / 2)
    return (int(new_shape[0]), int(new_shape[1]), int(new_shape[2])), new_affine


def resample_isotropic(image: nib.Nifti1Image, resolution_mm: float) -> nib.Nifti1Image:
    """Resample to an isotropic grid: Gaussian against aliasing where voxels grow, cubic B-spline, no new extremes.

    Parameters
    ----------
    image : nibabel.Nifti1Image
        3D image.
    resolution_mm : float
        New voxel size, millimetres.

    Returns
    -------
    nibabel.Nifti1Image
        float32, full field of view; where the last new voxel sticks out of it, the edge is repeated.
    """
    from nibabel.processing import resample_from_to
    from scipy.ndimage import gaussian_filter

    shape, affine = isotropic_grid(image.shape[:3], image.affine, resolution_mm)
    if shape == image.shape[:3] and np.allclose(affine, image.affine, atol=1e-4):
        return image
    data = np.asarray(image.dataobj, dtype=np.float32)
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    growth = np.sqrt(np.maximum((ANTIALIAS_FWHM * resolution_mm) ** 2 - spacing**2, 0)) / spacing
    smoothed = gaussian_filter(data, growth / FWHM) if growth.any() else data
    resampled = resample_from_to(nib.Nifti1Image(smoothed, image.affine), (shape, affine), order=3, mode="nearest")
    values = np.clip(np.asarray(resampled.dataobj, dtype=np.float32), data.min(), data.max())
    return nib.Nifti1Image(values, affine)
