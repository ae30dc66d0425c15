"""Penalties on affine matrices: how far they are from keeping volumes and from keeping shapes.

Those of the affine stage of the Volume Tweening Network: Zhao et al., IEEE Journal of Biomedical and Health Informatics
2020;24:1394-1404, doi:10.1109/JBHI.2019.2951024.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-5  # keeps the inverse of a squared singular value finite


def _linear(matrix: Tensor) -> Tensor:
    """Return the linear part (B, D, D) in single precision or better, as decompositions need it."""
    if matrix.ndim != 3 or matrix.shape[1] not in (2, 3) or matrix.shape[2] != matrix.shape[1] + 1:
        raise ValueError(f"affine matrices are (B, D, D + 1) with D = 2 or 3 axes, not {tuple(matrix.shape)}")
    return matrix[:, :, :-1].to(torch.promote_types(matrix.dtype, torch.float32))


def determinant_penalty(matrix: Tensor) -> Tensor:
    """Return ``(det A - 1)**2 / 2``, which is 0 when volumes stay and keeps away from reflections.

    Parameters
    ----------
    matrix : (B, D, D + 1) Tensor
        Affine maps ``x -> A x + b``.

    Returns
    -------
    (B,) Tensor
        Dimensionless.

    Raises
    ------
    ValueError
        When the matrices have another shape.
    """
    determinant: Tensor = torch.linalg.det(_linear(matrix))
    return 0.5 * (determinant - 1).square()


def orthogonality_penalty(matrix: Tensor) -> Tensor:
    """Return a penalty that is 0 for rotations and grows without bound for large stretches and squeezes.

    Each eigenvalue ``c`` of ``A'A + e`` costs ``c + (1 + e)**2 / c - 2 (1 + e)`` with ``e = 1e-5``.

    Parameters
    ----------
    matrix : (B, D, D + 1) Tensor
        Affine maps ``x -> A x + b``.

    Returns
    -------
    (B,) Tensor
        Dimensionless: ``D (s**2 + 1 / s**2 - 2)`` for a scaling by ``s``, up to terms of `EPSILON`.

    Raises
    ------
    ValueError
        When the matrices have another shape.
    """
    # singular values: those of A'A are never rounded below zero, and equal ones have a gradient
    eigenvalues: Tensor = torch.linalg.svdvals(_linear(matrix)).square() + EPSILON
    return (eigenvalues - (1 + EPSILON)).square().div(eigenvalues).sum(1)
