"""Sum of squared differences, as a mean."""

from __future__ import annotations

from torch import Tensor

from popatlas.settings import settings
from popatlas.similarity.base import Similarity, masked_mean


@settings
class SSD(Similarity):
    """Mean squared difference of two images of one modality and one intensity scale; 0 is perfect."""

    def _compare(self, fixed: Tensor, moving: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss (B,): mean of ``(fixed - moving) ** 2`` over the mask and the channels."""
        return masked_mean((fixed - moving).square(), weight).mean(1)
