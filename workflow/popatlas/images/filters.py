"""Box sums and Gaussian smoothing as products with banded matrices, one axis after the other.

A product with an (n, n) matrix costs the same for a window of any width, is differentiable, sums without the cancellation of
running sums, and is what both BLAS and GPUs do best; against padded convolutions it is several times faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from popatlas.images.precision import full_precision


@lru_cache(maxsize=256)
def box_matrix(length: int, radius: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the (n, n) matrix that sums windows of ``2 radius + 1`` voxels; voxels outside of the axis count as zero."""
    index = torch.arange(length, device=device)
    return ((index[:, None] - index).abs() <= radius).to(dtype)


@lru_cache(maxsize=256)
def gaussian_matrix(
    length: int, sigma: float, radius: int, renormalise: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the matrix of a Gaussian cut at a radius.

    Parameters
    ----------
    length : int
        Voxels of the axis.
    sigma : float
        Standard deviation, voxels, > 0.
    radius : int
        Voxels on each side of the centre.
    renormalise : bool
        True: rows sum to 1, a constant stays as it is up to the border. False: outside counts as zero, the matrix is
        symmetric.
    dtype, device : torch.dtype, torch.device
        Of the result.

    Returns
    -------
    (length, length) Tensor
    """
    index = torch.arange(length, dtype=torch.float64)
    distance = index[:, None] - index
    weights = torch.exp(-0.5 * (distance / sigma) ** 2) * (distance.abs() <= radius)
    if renormalise:
        total = weights.sum(1, keepdim=True)
    else:
        total = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2).sum()
    return (weights / total).to(dtype=dtype, device=device)


def along_axes(image: Tensor, matrix_of: Callable[[int, int], Tensor | None]) -> Tensor:
    """Multiply each spatial axis of an image by a matrix.

    Parameters
    ----------
    image : (B, C, *shape) Tensor
        Any image.
    matrix_of : callable
        Takes the number of the spatial axis and its length; returns an (n, n) Tensor, or None to leave the axis alone.

    Returns
    -------
    (B, C, *shape) Tensor
    """
    shape = image.shape
    with full_precision(image):  # variances are small differences of large sums
        for axis in range(2, len(shape)):
            matrix = matrix_of(axis - 2, shape[axis])
            if matrix is None:
                continue
            if axis == len(shape) - 1:
                image = image @ matrix.T
            else:
                image = (matrix @ image.reshape(-1, shape[axis], shape[axis + 1 :].numel())).reshape(shape)
    return image


def box_sum(image: Tensor, radius: int) -> Tensor:
    """Sum each voxel's window of ``(2 radius + 1) ** D`` voxels; outside counts as zero. The radius costs nothing."""
    return along_axes(image, lambda _, n: box_matrix(n, radius, image.dtype, image.device))


def box_mean(image: Tensor, radius: int) -> Tensor:
    """Average each voxel's window over the voxels that lie inside of the image."""

    def matrix(_: int, n: int) -> Tensor:
        rows = box_matrix(n, radius, image.dtype, image.device)
        return rows / rows.sum(1, keepdim=True)

    return along_axes(image, matrix)


def gaussian_smooth(
    image: Tensor, sigma: float | Sequence[float], *, truncate: float = 3.0, renormalise: bool = True
) -> Tensor:
    """Smooth an image by a Gaussian.

    Parameters
    ----------
    image : (B, C, *shape) Tensor
        Any image.
    sigma : float or sequence of float
        Standard deviation in voxels, one for all axes or one for each; 0 leaves an axis as it is.
    truncate : float
        Half-size of the kernel in standard deviations, rounded half up to voxels.
    renormalise : bool
        What happens at the border; see `gaussian_matrix`.

    Returns
    -------
    (B, C, *shape) Tensor
    """
    ndim = image.ndim - 2
    sigmas = tuple(sigma) if isinstance(sigma, Sequence) else (sigma,) * ndim
    if len(sigmas) != ndim or min(sigmas) < 0:
        raise ValueError(f"sigma {sigma} does not fit {ndim} axes")

    def matrix(axis: int, n: int) -> Tensor | None:
        width = float(sigmas[axis])
        if width == 0:
            return None
        return gaussian_matrix(n, width, int(truncate * width + 0.5), renormalise, image.dtype, image.device)

    return along_axes(image, matrix)
