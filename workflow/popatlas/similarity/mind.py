"""Modality independent neighbourhood descriptors: images are compared by how each resembles itself nearby.

MIND: Heinrich et al., Medical Image Analysis 2012;16:1423-1435, doi:10.1016/j.media.2012.05.008. MIND-SSC: Heinrich et al.,
MICCAI 2013, doi:10.1007/978-3-642-40811-3_24. Patch distances are divided by their local mean, so that a descriptor does not
change when the intensities become ``a I + b``, a being negative or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from popatlas.images.filters import box_mean, gaussian_smooth
from popatlas.settings import option, settings
from popatlas.similarity.base import Similarity, masked_mean, spread_out

LOWEST, HIGHEST = 1e-3, 1e3  # limits of the local variance, in means of it over the image
TINY = 1e-30


def _neighbours(ndim: int) -> list[tuple[int, ...]]:
    """Return the offsets of the direct neighbours: 6 in 3D, 4 in 2D."""
    return [tuple(sign * (i == axis) for i in range(ndim)) for axis in range(ndim) for sign in (-1, 1)]


def _shifted(image: Tensor, offsets: list[tuple[int, ...]], distance: int) -> Iterator[Tensor]:
    """Yield ``image(x + distance * offset)`` for each offset; the border is repeated."""
    shape = image.shape[2:]
    padded = functional.pad(image, [distance] * (2 * len(shape)), mode="replicate")
    for offset in offsets:
        window = (slice(distance * (1 + o), distance * (1 + o) + n) for o, n in zip(offset, shape, strict=True))
        yield padded[(slice(None), slice(None), *window)]


def _normalised(distances: Tensor, mask: Tensor | None, channels: int) -> Tensor:
    """Turn patch distances (B * C, K, *shape) into a descriptor (B, C, K, *shape) whose largest entry at each voxel is 1."""
    split = distances.reshape(-1, channels, *distances.shape[1:])
    variance = split.mean(2)
    level = spread_out(masked_mean(variance.detach(), mask), variance)
    variance = torch.minimum(torch.maximum(variance, LOWEST * level + TINY), HIGHEST * level + TINY)
    return torch.exp((split.amin(2, keepdim=True) - split) / variance.unsqueeze(2))


def mind_descriptor(image: Tensor, sigma: float, mask: Tensor | None = None) -> Tensor:
    """Return the MIND of an image for its direct neighbours.

    Parameters
    ----------
    image : (B, C, *shape) Tensor
        Any image.
    sigma : float
        Standard deviation of the Gaussian that weights a patch, voxels; the patch ends at 1.5 sigma, rounded.
    mask : (B, 1, *shape) Tensor, optional
        Voxels over which the mean variance is taken.

    Returns
    -------
    (B, C, 2 D, *shape) Tensor
        ``exp(-d / v) / n``: d distance of the patch at the voxel to that at the neighbour, v mean of d over the neighbours,
        n such that the largest entry is 1. 1 everywhere for a constant image.
    """
    flat = image.flatten(0, 1).unsqueeze(1)
    moved = _shifted(flat, _neighbours(image.ndim - 2), 1)
    differences = torch.cat([(near - flat).square() for near in moved], dim=1)
    return _normalised(gaussian_smooth(differences, sigma, truncate=1.5), mask, image.shape[1])


def mindssc_descriptor(image: Tensor, radius: int, dilation: int, mask: Tensor | None = None) -> Tensor:
    """Return the MIND-SSC (self-similarity context) of an image.

    Parameters
    ----------
    image : (B, C, *shape) Tensor
        Any image.
    radius : int
        Patches have ``2 radius + 1`` voxels along each axis.
    dilation : int
        Distance of the neighbours, voxels.
    mask : (B, 1, *shape) Tensor, optional
        Voxels over which the mean variance is taken.

    Returns
    -------
    (B, C, K, *shape) Tensor
        One entry for each pair of direct neighbours that are not opposite: K is 12 in 3D, 4 in 2D.
    """
    flat = image.flatten(0, 1).unsqueeze(1)
    moved = list(_shifted(flat, _neighbours(image.ndim - 2), dilation))
    # neighbours are listed axis by axis: those of one axis are opposite
    pairs = [(a, b) for a, b in combinations(range(len(moved)), 2) if a // 2 != b // 2]
    differences = torch.cat([(moved[a] - moved[b]).square() for a, b in pairs], dim=1)
    distances = box_mean(differences, radius)
    # unlike MIND, the mean is taken of what exceeds the smallest distance, as in the authors' code
    return _normalised(distances - distances.amin(1, keepdim=True), mask, image.shape[1])


@settings
class MIND(Similarity):
    """Mean over the voxels of the squared mean absolute difference of the MINDs of two images; 0 is perfect."""

    sigma: float = option(
        0.5, "Standard deviation of the Gaussian that weights a patch, voxels; it ends at 1.5 times that", gt=0, le=64
    )

    def _compare(self, fixed: Tensor, moving: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss (B,): in [0, 1]."""
        a, b = (mind_descriptor(image, self.sigma, weight) for image in (fixed, moving))
        return masked_mean((a - b).abs().mean(2).square(), weight).mean(1)


@settings
class MINDSSC(Similarity):
    """Mean squared difference of the MIND-SSC of two images; 0 is perfect."""

    radius: int = option(1, "Patches have 2 radius + 1 voxels along each axis", ge=0, le=64)
    dilation: int = option(2, "Distance of the neighbours, voxels", ge=1, le=64)

    def _compare(self, fixed: Tensor, moving: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss (B,): in [0, 1]."""
        a, b = (mindssc_descriptor(image, self.radius, self.dilation, weight) for image in (fixed, moving))
        return masked_mean((a - b).square().mean(2), weight).mean(1)
