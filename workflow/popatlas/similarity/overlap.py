"""Overlap of label maps as a loss that still pulls when the labels do not touch."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from popatlas.images.filters import gaussian_smooth
from popatlas.settings import Positive, option, settings
from popatlas.similarity.base import Similarity, quotient

Deviation = Annotated[float, Field(ge=0)]


@settings
class MultiscaleDice(Similarity):
    """Mean soft Dice of label maps smoothed by several Gaussians, with a minus sign.

    Hu et al., Medical Image Analysis 2018;49:1-13, doi:10.1016/j.media.2018.07.002 (in print, Eq. 5 lacks the sum over the
    Gaussians). **Not an overlap score**: for perfect overlap of a small label the value is far from -1, because a smoothed
    map has a smaller sum of squares than sum. Report Dice from `popatlas.measures.overlap`.

    Kernels end at three standard deviations, and outside of the grid there are no labels.
    """

    sigmas: tuple[Deviation, ...] = option(
        (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0), "Standard deviations of the Gaussians, mm; 0 is the map itself", min_length=1
    )
    spacing: Positive | Annotated[tuple[Positive, ...], Field(min_length=2, max_length=3)] = option(
        1.0, "Voxel size of all axes or of each, mm"
    )

    def _compare(self, fixed: Tensor, moving: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss (B,), in [-1, 0]: mean over the Gaussians, then over the labels that either map has, else 0."""
        if weight is None:
            weight = torch.ones_like(fixed[:1, :1])
        dice = torch.stack([self._dice(fixed, moving, weight, sigma) for sigma in self.sigmas]).mean(0)
        present = ((fixed + moving).detach().flatten(2).sum(2) > 0).to(dice.dtype)
        return -quotient((dice * present).sum(1), present.sum(1))

    def _dice(self, fixed: Tensor, moving: Tensor, weight: Tensor, sigma: float) -> Tensor:
        """Return the soft Dice (B, L) of the smoothed maps.

        The smoothing G is symmetric, so ``sum(w * Ga * Gb) == sum(G(w * Ga) * b)``: the moving map, which changes with every
        iteration, need not be smoothed, nor the gradient by it.
        """
        voxels = self.spacing if isinstance(self.spacing, tuple) else (self.spacing,) * (fixed.ndim - 2)
        sigmas = [sigma / size for size in voxels]

        def smooth(values: Tensor) -> Tensor:
            return gaussian_smooth(values, sigmas, renormalise=False)

        common = (smooth(weight * smooth(fixed)) * moving).flatten(2).sum(2)
        total = (smooth(weight) * (fixed + moving)).flatten(2).sum(2)
        return quotient(2 * common, total)
