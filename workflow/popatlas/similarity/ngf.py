"""Normalised gradient fields: edges at the same place with the same orientation, whatever their contrast."""

from __future__ import annotations

import torch
from torch import Tensor

from popatlas.settings import option, settings
from popatlas.similarity.base import Similarity, masked_mean


def normalised_gradient(image: Tensor, epsilon: float) -> Tensor:
    """Return the regularised gradient direction of an image.

    Parameters
    ----------
    image : (B, C, *shape) Tensor
        Any image, at least two voxels along each axis.
    epsilon : float
        Edge strength, intensity per voxel, at which a gradient begins to count; > 0.

    Returns
    -------
    (B, C, D, *shape) Tensor
        ``grad / sqrt(|grad|**2 + epsilon**2)``, central differences per voxel, one-sided at the border.
    """
    gradient = torch.stack(torch.gradient(image, dim=list(range(2, image.ndim))), dim=2)
    return gradient / (gradient.square().sum(2, keepdim=True) + epsilon**2).sqrt()


@settings
class NGF(Similarity):
    """Mean inner product of the normalised gradients, with a minus sign; -1 is perfect.

    Haber and Modersitzki, Methods of Information in Medicine 2007;46:292-299, doi:10.1160/ME9046. The value is that of
    cross-similarity search (CSNGF, WBIR 2022): flat regions give 0, not the best value.

    The loss has a slope of ``1 / epsilon`` in flat regions: an exhaustive search, which takes no derivative, can use 1e-5;
    an optimiser cannot.
    """

    epsilon: float = option(0.01, "Edge strength that counts, intensity per voxel, for images scaled to 0..1", gt=0)
    squared: bool = option(True, "Square the inner product: edges of inverted contrast agree; without, they disagree")

    def _compare(self, fixed: Tensor, moving: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss (B,): in [-1, 0] when squared, else in [-1, 1]; 0 when an image is constant."""
        product = (normalised_gradient(fixed, self.epsilon) * normalised_gradient(moving, self.epsilon)).sum(2)
        return -masked_mean(product.square() if self.squared else product, weight).mean(1)
