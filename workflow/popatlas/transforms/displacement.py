"""Displacement fields in ITK files: inverse, Jacobian determinant, composition.

Fields are vectors in LPS millimetres on the fixed grid: a fixed point `x` goes to `x + u(x)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.images.antspy import AntsImage
from popatlas.images.io import atomic_path

if TYPE_CHECKING:
    import SimpleITK as sitk


def read_field(path: Path | str) -> sitk.Image:
    """Read a displacement field as a SimpleITK vector image (float64)."""
    import SimpleITK as sitk

    try:
        field = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
    except RuntimeError as error:
        raise InputError(f"cannot read field: {error}", file=path, remedy="delete the file and run again") from error
    if field.GetNumberOfComponentsPerPixel() != field.GetDimension():
        raise InputError("not a displacement field", file=path, remedy="give an ITK displacement field")
    return field


def mean_field(paths: Sequence[Path | str]) -> sitk.Image:
    """Return the voxelwise mean of displacement fields on one grid; fields are read one at a time."""
    first = read_field(paths[0])
    total = field_array(first)
    for path in paths[1:]:
        total += field_array(read_field(path))
    return field_image(total / len(paths), first)


def invert_field(field: sitk.Image, iterations: int = 30, tolerance_mm: float = 0.01) -> sitk.Image:
    """Return the inverse of a displacement field by fixed-point iteration (Chen et al., 2008; ITK).

    Parameters
    ----------
    field : SimpleITK.Image
        Vector image, LPS millimetres.
    iterations : int
        Most iterations.
    tolerance_mm : float
        Mean error at which to stop, millimetres.

    Returns
    -------
    SimpleITK.Image
        Field `v` with `(x + v(x)) + u(x + v(x)) = x`.
    """
    import SimpleITK as sitk

    return sitk.InvertDisplacementField(
        field,
        maximumNumberOfIterations=iterations,
        maxErrorToleranceThreshold=10 * tolerance_mm,
        meanErrorToleranceThreshold=tolerance_mm,
        enforceBoundaryCondition=False,
    )


def field_array(field: sitk.Image) -> npt.NDArray[np.float64]:
    """Return the vectors of a field, shape (z, y, x, 3), LPS millimetres."""
    import SimpleITK as sitk

    return np.asarray(sitk.GetArrayFromImage(field), dtype=np.float64)


def field_image(vectors: npt.NDArray[np.float64], grid: sitk.Image) -> sitk.Image:
    """Return vectors (z, y, x, 3), LPS millimetres, as a field on the grid of an image."""
    import SimpleITK as sitk

    field = sitk.GetImageFromArray(vectors, isVector=True)
    field.CopyInformation(grid)
    return field


def write_jacobian(field_path: Path | str, reference: Path | str, out_file: Path | str) -> npt.NDArray[np.float32]:
    """Write the log of the Jacobian determinant of a field and return the determinant.

    Parameters
    ----------
    field_path : path
        Composed displacement field (affine and warp together) on the fixed grid.
    reference : path
        Image that gives the grid, that of the field.
    out_file : path
        Log-Jacobian image. Positive: the fixed region is larger in the moving subject. Non-positive determinants are
        written as the log of 1e-3.

    Returns
    -------
    ndarray
        Determinant on the fixed grid (x, y, z), dimensionless.
    """
    import ants

    grid = ants.image_read(str(reference))
    image = ants.create_jacobian_determinant_image(grid, str(field_path), do_log=False)
    determinant = np.asarray(image.numpy(), dtype=np.float32)
    log = np.log(np.maximum(determinant, 1e-3))
    with atomic_path(out_file) as temporary:
        ants.image_write(grid.new_image_like(log.astype(np.float32)), str(temporary))
    return determinant


def compose(
    grid: Path | str,
    moving: Path | str,
    transforms: Sequence[Path | str],
    invert: Sequence[bool],
    out_file: Path | str,
) -> None:
    """Write a chain of ITK transforms as one displacement field.

    Parameters
    ----------
    grid : path
        Image on whose grid the field is written.
    moving : path
        Image in the space that the chain leads to (ANTs asks for it; its voxels do not matter).
    transforms : sequence of path
        In the order in which a point of `grid` goes through them.
    invert : sequence of bool
        Which of them are inverted (affines only).
    out_file : path
        Displacement field, LPS millimetres.
    """
    import ants

    with atomic_path(out_file) as temporary:
        prefix = str(temporary).removesuffix(".nii.gz")
        written = Path(
            ants.apply_transforms(
                fixed=ants.image_read(str(grid)),
                moving=ants.image_read(str(moving)),
                transformlist=[str(path) for path in transforms],
                whichtoinvert=list(invert),
                compose=prefix,
                singleprecision=True,
            )
        )
        written.replace(temporary)


def apply_chain(
    grid: AntsImage,
    moving: AntsImage,
    transforms: Sequence[Path | str],
    invert: Sequence[bool],
    interpolator: str = "linear",
) -> AntsImage:
    """Resample an ANTs image through a chain of transforms with one interpolation."""
    import ants

    resampled: AntsImage = ants.apply_transforms(
        fixed=grid,
        moving=moving,
        transformlist=[str(path) for path in transforms],
        whichtoinvert=list(invert),
        interpolator=interpolator,
    )
    return resampled
