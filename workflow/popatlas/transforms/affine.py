"""Affine transforms: ITK files, plausibility, and means.

A matrix is homogeneous (4x4, or 3x3 in 2D), in LPS millimetres, and maps a point of the fixed image to the moving image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.linalg import expm, logm, polar

from popatlas.errors import InputError

if TYPE_CHECKING:
    import SimpleITK as sitk

Matrix = npt.NDArray[np.float64]


def read_affine(path: Path | str) -> Matrix:
    """Read an ITK/ANTs file of an affine, similarity, rigid or translation transform.

    Parameters
    ----------
    path : path
        `.mat`, `.txt` or `.tfm` file of one linear transform, 2D or 3D.

    Returns
    -------
    (D + 1, D + 1) ndarray
        Fixed to moving, LPS millimetres; the centre of rotation is folded into the translation.

    Raises
    ------
    InputError
        When the file is not one linear transform with finite values.
    """
    import SimpleITK as sitk

    try:
        matrix = _read_by_ants(path) if _needs_ants(path) else _probe(sitk.ReadTransform(str(path)))
    except Exception as error:  # the ITK readers raise bare RuntimeErrors
        raise InputError(
            f"cannot read affine transform: {error}", file=path, remedy="delete the file and run again"
        ) from error
    if not np.isfinite(matrix).all():
        raise InputError("the affine transform is not finite", file=path, remedy="delete the file and run again")
    return matrix


def _probe(transform: sitk.Transform) -> Matrix:
    """Return the matrix of a linear transform of SimpleITK from where D + 1 points go, however it is parametrised."""
    import SimpleITK as sitk

    several = transform.GetTransformEnum() == sitk.sitkComposite
    if several or not transform.IsLinear():
        raise ValueError(f"a {transform.GetName()} is not one linear transform")
    ndim = transform.GetDimension()
    origin = np.array(transform.TransformPoint([0.0] * ndim))
    matrix = np.eye(ndim + 1)
    matrix[:-1, -1] = origin
    for axis, point in enumerate(np.eye(ndim)):
        matrix[:-1, axis] = np.array(transform.TransformPoint(point.tolist())) - origin
    return matrix


def _needs_ants(path: Path | str) -> bool:
    """Tell whether a file holds the type of ANTs' affine initialisation, which SimpleITK does not know."""
    return b"MatrixOffsetTransformBase" in Path(path).read_bytes()[:4096]


def _read_by_ants(path: Path | str) -> Matrix:
    import ants

    transform = ants.read_transform(str(path))
    parameters = np.asarray(transform.parameters, dtype=float)
    centre = np.asarray(transform.fixed_parameters, dtype=float)
    ndim = len(centre)
    linear, offset = parameters[: ndim**2].reshape(ndim, ndim), parameters[ndim**2 :]
    matrix = np.eye(ndim + 1)
    matrix[:ndim, :ndim] = linear
    matrix[:ndim, ndim] = offset + centre - linear @ centre
    return matrix


@dataclass(frozen=True)
class AffineParts:
    """Size and shape of an affine: singular values of the linear part, its largest shear, and whether it mirrors."""

    scales: tuple[float, ...]
    shear: float
    reflected: bool


def decompose(matrix: Matrix) -> AffineParts:
    """Split an affine into rotation, scales and shear (QR with unit diagonal).

    Parameters
    ----------
    matrix : (D + 1, D + 1) ndarray
        Homogeneous matrix.

    Returns
    -------
    AffineParts
        Singular values, largest first, and the largest absolute shear (dimensionless); NaN for a matrix that is not finite.
    """
    linear = matrix[:-1, :-1]
    if not np.isfinite(matrix).all():
        return AffineParts((np.nan,) * len(linear), np.nan, reflected=False)
    singular = np.linalg.svd(linear, compute_uv=False)
    upper = np.linalg.qr(linear)[1]
    with np.errstate(divide="ignore", invalid="ignore"):  # of a singular matrix, whose shear is not defined
        shears = np.abs(np.triu(upper / np.diag(upper)[:, None], k=1))
    reflected = bool(np.linalg.det(linear) < 0)
    return AffineParts(tuple(float(value) for value in singular), float(shears.max()), reflected)


def mean_affine(matrices: Sequence[Matrix]) -> Matrix:
    """Return the log-Euclidean mean of affine matrices (Arsigny et al., 2009).

    Parameters
    ----------
    matrices : sequence of (D + 1, D + 1) ndarray
        Matrices without reflections and with rotations below 180 degrees.

    Returns
    -------
    (D + 1, D + 1) ndarray
        `expm(mean(logm))`: the mean of a matrix and its inverse is the identity.
    """
    logs = [np.real(logm(matrix)) for matrix in matrices]
    return np.asarray(expm(np.mean(logs, axis=0)), dtype=float)


def stretch_about(matrix: Matrix, centre: npt.ArrayLike, power: float = 1.0) -> Matrix:
    """Return the rotation-free part of an affine as a stretch about a point.

    Parameters
    ----------
    matrix : (D + 1, D + 1) ndarray
        Affine `x -> R S x + t`.
    centre : (D,) array-like
        Point that stays where it is, LPS millimetres.
    power : float
        Fraction of the stretch, taken on the matrix logarithm.

    Returns
    -------
    (D + 1, D + 1) ndarray
        The stretch `S**power` about `centre`; pose (rotation and translation) is left out.
    """
    stretch = polar(matrix[:-1, :-1], side="right")[1]
    scaled = np.real(expm(power * logm(stretch)))
    point = np.asarray(centre, dtype=float)
    result = np.eye(len(matrix))
    result[:-1, :-1] = scaled
    result[:-1, -1] = point - scaled @ point
    return result


def rigid_part(matrix: Matrix, centre: npt.ArrayLike) -> Matrix:
    """Return the rigid motion in an affine: the rotation nearest to it, and where it sends a point.

    Parameters
    ----------
    matrix : (D + 1, D + 1) ndarray
        Affine without reflection.
    centre : (D,) array-like
        Point that goes where the affine sends it, LPS millimetres.

    Returns
    -------
    (D + 1, D + 1) ndarray
        What moves an image into the pose of the other one and leaves it its size and shape.
    """
    point, turn = np.asarray(centre, dtype=float), polar(matrix[:-1, :-1])[0]
    result = np.eye(len(matrix))
    result[:-1, :-1] = turn
    result[:-1, -1] = matrix[:-1, :-1] @ point + matrix[:-1, -1] - turn @ point
    return result


def apply_affine(matrix: Matrix, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Map points (N, D) by a homogeneous matrix."""
    return points @ matrix[:-1, :-1].T + matrix[:-1, -1]
