"""Smaller, smoother copies of an image for coarse-to-fine registration.

Smoothing and resampling are separable, so each axis is one product with a small matrix (Gaussian weights, then linear
interpolation at the new voxel centres): a few milliseconds for a whole brain, differentiable, any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from popatlas.images.filters import gaussian_matrix, gaussian_smooth
from popatlas.images.scan import Scan

# A Gaussian of this many output voxels before subsampling leaves a few percent of the energy above the new Nyquist frequency
ANTIALIAS = 0.5
FILL = 1.5  # standard deviation, in voxels, of the neighbourhood whose mean replaces a masked voxel
TRUNCATE = 4.0  # standard deviations at which the Gaussian ends


@lru_cache(maxsize=64)
def smoothing_matrix(length: int, new_length: int, sigma: float) -> Tensor:
    """Return the matrix that smooths an axis and resamples it, corners aligned.

    Parameters
    ----------
    length, new_length : int
        Voxels before and after.
    sigma : float
        Standard deviation of the Gaussian in voxels before; 0 does not smooth.

    Returns
    -------
    (new_length, length) Tensor
        Float64; every row sums to 1, so that a constant stays what it is up to the border.
    """
    at = torch.linspace(0, length - 1, new_length, dtype=torch.float64)[:, None]
    linear = (1 - (at - torch.arange(length)).abs()).clamp(min=0)
    if sigma == 0:
        return linear
    reach = math.ceil(TRUNCATE * sigma)
    return linear @ gaussian_matrix(length, sigma, reach, True, torch.float64, torch.device("cpu"))


def shrink(image: Tensor, shape: Sequence[int], sigmas: Sequence[float]) -> Tensor:
    """Smooth an image and resample it to another number of voxels over the same extent.

    Parameters
    ----------
    image : (B, C, *shape) Tensor
        Any image.
    shape : sequence of int
        New spatial shape (corner aligned, as `Grid.resized`).
    sigmas : sequence of float
        Standard deviation of the Gaussian along each axis, in voxels of `image`.

    Returns
    -------
    (B, C, *shape) Tensor
        The smaller image.
    """
    for axis, (length, sigma) in enumerate(zip(shape, sigmas, strict=True), start=2):
        old = image.shape
        if length == old[axis] and sigma == 0:
            continue
        matrix = smoothing_matrix(old[axis], length, float(sigma)).to(image)
        trailing = old[axis + 1 :]
        product = matrix @ image.reshape(-1, old[axis], trailing.numel())
        image = product.reshape(*old[:axis], length, *trailing)
    return image


def filled(scan: Scan) -> Scan:
    """Return a scan whose voxels outside of the mask are means of the nearest ones inside.

    What is masked then leaks neither into smoothed copies nor into values between the voxels at the border of the mask.
    """
    if scan.mask is None:
        return scan
    inside = (scan.mask > 0).to(scan.image)
    share = gaussian_smooth(inside, FILL)
    near = gaussian_smooth(scan.image * inside, FILL) / share.clamp(min=torch.finfo(share.dtype).tiny)
    mean = (scan.image * inside).sum() / inside.sum()
    outside = torch.where(share > 0, near, mean)
    return replace(scan, image=torch.where(inside > 0, scan.image, outside))


def coarsen(scan: Scan, spacing: float, sigma: float = 0.0) -> Scan:
    """Return a scan whose axes are no finer than a spacing, smoothed in millimetres.

    Parameters
    ----------
    scan : Scan
        Image, grid and mask.
    spacing : float
        Wanted spacing in mm; an axis that is coarser keeps its voxels.
    sigma : float
        Standard deviation of the Gaussian in mm; axes that lose voxels get at least half of the new spacing.

    Returns
    -------
    Scan
        The mask keeps the voxels at least half of whose neighbourhood was inside, and at least its best voxel.
    """
    extents = [(count - 1) * step for count, step in zip(scan.grid.shape, scan.grid.spacing, strict=True)]
    shape = [min(count, max(2, round(extent / spacing) + 1)) for count, extent in zip(scan.grid.shape, extents, strict=True)]
    new = [extent / (count - 1) for extent, count in zip(extents, shape, strict=True)]
    least = [ANTIALIAS * step if count < old else 0.0 for step, count, old in zip(new, shape, scan.grid.shape, strict=True)]
    sigmas = [max(sigma, low) / step for low, step in zip(least, scan.grid.spacing, strict=True)]
    image = shrink(scan.image, shape, sigmas)
    mask = None
    if scan.mask is not None:
        share = shrink(
            (scan.mask > 0).to(image), shape, [low / step for low, step in zip(least, scan.grid.spacing, strict=True)]
        )
        mask = (share >= share.max().clamp(max=0.5)).to(image)
    return Scan(image, scan.grid.resized(tuple(shape)), mask)
