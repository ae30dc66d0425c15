"""Global normalised cross-correlation."""

from __future__ import annotations

import torch
from torch import Tensor

from popatlas.settings import option, settings
from popatlas.similarity.base import Similarity, masked_mean, quotient, spread_out


@settings
class NCC(Similarity):
    """Pearson correlation over the whole mask, with a minus sign; -1 is perfect."""

    squared: bool = option(False, "Take the square, which does not see an inversion of the contrast")

    def _compare(self, fixed: Tensor, moving: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss (B,): in [-1, 1] ([-1, 0] when squared); 0 when an image is constant."""
        a, b = (x - spread_out(masked_mean(x, weight), x) for x in (fixed, moving))
        scale = _deviation(a, fixed, weight) * _deviation(b, moving, weight)
        correlation = quotient(masked_mean(a * b, weight), scale)
        return -(correlation.square() if self.squared else correlation).mean(1)


def _deviation(centred: Tensor, image: Tensor, weight: Tensor | None) -> Tensor:
    """Return the standard deviation (B, C); 0, with zero gradient, where rounding explains it."""
    variance = masked_mean(centred.square(), weight)
    rounding = 8 * torch.finfo(image.dtype).eps * image.detach().abs().flatten(2).amax(2)
    structured = variance > rounding.square()
    return torch.where(structured, torch.where(structured, variance, 1.0).sqrt(), 0.0)
