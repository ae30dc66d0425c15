"""Affine transforms: ITK files, plausibility, and means.

A matrix is homogeneous (4x4, or 3x3 in 2D), in LPS millimetres, and maps a point of the fixed image to the moving image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.linalg import expm, logm, polar

from popatlas.errors import InputError

Matrix = npt.NDArray[np.float64]


def read_affine(path: Path | str) -> Matrix:
    """Read an ITK/ANTs affine file.

    Parameters
    ----------
    path : path
        `.mat` or `.txt` file of an affine or rigid transform.

    Returns
    -------
    (D + 1, D + 1) ndarray
        Fixed to moving, LPS millimetres; the centre of rotation is folded into the translation.

    Raises
    ------
    InputError
        When the file is not an affine transform.
    """
    import ants

    try:
        transform = ants.read_transform(str(path))
        parameters = np.asarray(transform.parameters, dtype=float)
        centre = np.asarray(transform.fixed_parameters, dtype=float)
        ndim = len(centre)
        linear, offset = parameters[: ndim**2].reshape(ndim, ndim), parameters[ndim**2 :]
    except Exception as error:  # the ITK reader raises bare RuntimeErrors
        raise InputError(
            f"cannot read affine transform: {error}", file=path, remedy="delete the file and run again"
        ) from error
    matrix = np.eye(ndim + 1)
    matrix[:ndim, :ndim] = linear
    matrix[:ndim, ndim] = offset + centre - linear @ centre
    return matrix


@dataclass(frozen=True)
class AffineParts:
    """Size and shape of an affine: singular values of the linear part and its largest shear."""

    scales: tuple[float, float, float]
    shear: float


def decompose(matrix: Matrix) -> AffineParts:
    """Split an affine into rotation, scales and shear (QR with unit diagonal).

    Parameters
    ----------
    matrix : (4, 4) ndarray
        Homogeneous matrix.

    Returns
    -------
    AffineParts
        Singular values, largest first, and the largest absolute shear (dimensionless).
    """
    linear = matrix[:3, :3]
    singular = np.linalg.svd(linear, compute_uv=False)
    upper = np.linalg.qr(linear)[1]
    shears = np.abs(np.triu(upper / np.diag(upper)[:, None], k=1))
    return AffineParts((float(singular[0]), float(singular[1]), float(singular[2])), float(shears.max()))


def mean_affine(matrices: Sequence[Matrix]) -> Matrix:
    """Return the log-Euclidean mean of affine matrices (Arsigny et al., 2009).

    Parameters
    ----------
    matrices : sequence of (4, 4) ndarray
        Matrices without reflections and with rotations below 180 degrees.

    Returns
    -------
    (4, 4) ndarray
        `expm(mean(logm))`: the mean of a matrix and its inverse is the identity.
    """
    logs = [np.real(logm(matrix)) for matrix in matrices]
    return np.asarray(expm(np.mean(logs, axis=0)), dtype=float)


def stretch_about(matrix: Matrix, centre: npt.ArrayLike, power: float = 1.0) -> Matrix:
    """Return the rotation-free part of an affine as a stretch about a point.

    Parameters
    ----------
    matrix : (4, 4) ndarray
        Affine `x -> R S x + t`.
    centre : (3,) array-like
        Point that stays where it is, LPS millimetres.
    power : float
        Fraction of the stretch, taken on the matrix logarithm.

    Returns
    -------
    (4, 4) ndarray
        The stretch `S**power` about `centre`; pose (rotation and translation) is left out.
    """
    stretch = polar(matrix[:3, :3], side="right")[1]
    scaled = np.real(expm(power * logm(stretch)))
    point = np.asarray(centre, dtype=float)
    result = np.eye(4)
    result[:3, :3] = scaled
    result[:3, 3] = point - scaled @ point
    return result


def apply_affine(matrix: Matrix, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Map points (N, 3) by a homogeneous matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]
