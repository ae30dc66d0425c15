"""Sum of squared differences, as a mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from popatlas.similarity.base import check_pair, masked_mean


@dataclass(frozen=True)
class SSD:
    """Mean squared difference of two images of one modality and one intensity scale; 0 is perfect."""

    def __call__(self, fixed: Tensor, moving: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compare images.

        Parameters
        ----------
        fixed, moving : (B, C, *shape) Tensor
            Images on one grid.
        mask : (B or 1, 1, *shape) Tensor, optional
            Voxels that count, or their weights.

        Returns
        -------
        (B,) Tensor
            Mean of ``(fixed - moving) ** 2`` over the mask and the channels.

        Raises
        ------
        ValueError
            From `check_pair`: shapes that do not fit, an empty mask.
        """
        weight = check_pair(fixed, moving, mask)
        return masked_mean((fixed - moving).square(), weight).mean(1)
