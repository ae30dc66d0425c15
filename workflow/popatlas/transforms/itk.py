"""ITK/ANTs files of transforms: displacement fields as vector NIfTI and affines, LPS millimetres.

ANTs, SimpleITK and nitransforms read them; `popatlas.transforms.affine.read_affine` reads affines back.

The last digits of a 32-bit number say nothing of where a point of a brain goes, and no program packs their noise. Fields of
registrations are therefore rounded to steps of about a thousandth of a voxel, a power of two of a millimetre, so that the
rest of each number is zeros: a third to a half of the bytes, in plain 32-bit numbers that every program reads.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from torch import Tensor

from popatlas.errors import InputError
from popatlas.images.arrays import RealArray
from popatlas.images.grid import Array, Grid
from popatlas.images.io import PathLike, atomic_path
from popatlas.transforms.displacement import field_array, read_field

ORTHOGONAL = 1e-4  # largest dot product of unit axes that is rounding of a header
COARSEST = 0.002  # shortest edges of a voxel: what fields are rounded to is this step or up to half of it


def step_mm(grid: Grid) -> float:
    """Return what the components of fields on a grid are rounded to: a power of two of a millimetre.

    Each is off by half of it at most, a vector by less than 0.002 voxels.
    """
    return float(2.0 ** math.floor(math.log2(COARSEST * min(grid.spacing))))


def write_displacement(path: PathLike, displacement: RealArray | Tensor, grid: Grid, *, rounded: bool = False) -> None:
    """Write a displacement as an ITK vector image, atomically.

    Parameters
    ----------
    path : path-like
        `.nii.gz` or `.nii`.
    displacement : (D, *shape) ndarray or Tensor
        Voxels of `grid`.
    grid : Grid
        Where it lives; its axes must be orthogonal, since ITK images have no shear.
    rounded : bool
        Round it (`step_mm`), so that the file is small.

    Raises
    ------
    InputError
        When the grid is sheared.
    ValueError
        When the shapes differ or a vector is not finite.
    """
    import SimpleITK as sitk

    vectors = _plain(displacement)
    if vectors.shape != (grid.ndim, *grid.shape):
        raise ValueError(f"displacement of shape {vectors.shape} on a grid of shape {grid.shape}")
    if not np.isfinite(vectors).all():
        raise ValueError("the displacement has vectors that are not finite")
    if np.abs(grid.direction.T @ grid.direction - np.eye(grid.ndim)).max() > ORTHOGONAL:
        raise InputError("the axes of the grid are not orthogonal", file=path, remedy="resample the image without shear")
    millimetres = np.tensordot(grid.affine[:-1, :-1], vectors, axes=1)
    if rounded:
        millimetres = np.rint(millimetres / step_mm(grid)) * step_mm(grid) + 0.0  # no negative zeros
    millimetres = millimetres.astype(np.float32)
    field = sitk.GetImageFromArray(np.ascontiguousarray(millimetres.T), isVector=True)
    field.SetSpacing(grid.spacing)
    field.SetOrigin(grid.origin.tolist())
    field.SetDirection(grid.direction.ravel().tolist())
    with atomic_path(path) as temporary:
        sitk.WriteImage(field, str(temporary))


def read_displacement(path: PathLike) -> tuple[npt.NDArray[np.float64], Grid]:
    """Read a displacement field in any format of ITK.

    Parameters
    ----------
    path : path-like
        Vector image, LPS millimetres.

    Returns
    -------
    displacement : (D, *shape) ndarray
        Voxels of the grid.
    grid : Grid
        Where it lives.

    Raises
    ------
    InputError
        When the file cannot be read, is no field or has vectors that are not finite.
    """
    field = read_field(str(path))
    grid = Grid.from_sitk(field)
    millimetres = field_array(field).T
    if not np.isfinite(millimetres).all():
        raise InputError("the field has vectors that are not finite", file=path, remedy="make the field again")
    return np.tensordot(np.linalg.inv(grid.affine[:-1, :-1]), millimetres, axes=1), grid


def write_affine(path: PathLike, matrix: Array | Tensor, centre: npt.ArrayLike | None = None) -> None:
    """Write an affine as an ITK file, atomically.

    Parameters
    ----------
    path : path-like
        `.mat`, or `.txt` or `.tfm` for a text file.
    matrix : (D + 1, D + 1) ndarray or Tensor
        Fixed to moving point, LPS millimetres.
    centre : (D,) array-like, optional
        Centre that is written as ITK's fixed parameters, the origin when left out; it does not change where points go.
    """
    import SimpleITK as sitk

    values = _plain(matrix)
    ndim = len(values) - 1
    if values.shape not in ((3, 3), (4, 4)) or not np.isfinite(values).all():
        raise ValueError(f"not a finite homogeneous matrix: {values.tolist()}")
    point = np.zeros(ndim) if centre is None else np.asarray(centre, dtype=np.float64)
    linear, offset = values[:-1, :-1], values[:-1, -1]
    transform = sitk.AffineTransform(ndim)
    transform.SetCenter(point.tolist())
    transform.SetMatrix(linear.ravel().tolist())
    transform.SetTranslation((offset + linear @ point - point).tolist())
    with atomic_path(path) as temporary:
        sitk.WriteTransform(transform, str(temporary))


def _plain(values: RealArray | Tensor) -> Array:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.asarray(array, dtype=np.float64)
