"""Mutual information, plain (Mattes) and normalised, from Parzen-window histograms."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from popatlas.settings import option, settings
from popatlas.similarity.base import Similarity
from popatlas.similarity.parzen import Axis, entropy, intensity_range, joint_histogram, tight_axis
from popatlas.transforms.fieldops import CompiledForce, PlaneForce, Share, Volume

Percent = Annotated[float, Field(ge=0, le=100)]
SMALLEST = 1e-16  # below it a probability counts as zero
SAMPLE = 50_000  # voxels from which the compiled force takes percentiles at each call


def _joint(
    fixed: Tensor, moving: Tensor, weight: Tensor | None, axes: tuple[Axis, Axis], percentiles: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return the joint distribution (B * C, rows, columns) and the number of voxels (B * C,) of images (B, C, *shape)."""
    whole = torch.ones_like(fixed) if weight is None else weight.expand_as(fixed)
    weights = whole.detach().flatten(0, 1).flatten(1)
    positions = []
    for image, axis in zip((fixed, moving), axes, strict=True):
        values = image.flatten(0, 1).flatten(1)
        positions.append(axis.positions(values, *intensity_range(values, weights, percentiles)))
    return joint_histogram(positions[0], positions[1], weights, axes), (weights > 0).sum(1)


@settings
class MattesMI(Similarity):
    """Mutual information in nats with a minus sign, as ITK computes it.

    Mattes et al., IEEE Transactions on Medical Imaging 2003;22:120-128, doi:10.1109/TMI.2003.809072: zero-order windows for
    the fixed image, cubic B-splines for the moving one, two bins of padding on each side, bins over the exact range.
    There is, as in ITK, no derivative by the fixed image (it is zero): where both images move, use `NMI`.
    """

    bins: int = option(32, "Bins of each image, padding included", ge=5, le=8192)

    def _axes(self) -> tuple[Axis, Axis]:
        return Axis(self.bins, 0, 2, self.bins - 4), Axis(self.bins, 3, 2, self.bins - 4)

    def _compare(self, fixed: Tensor, moving: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss (B,): at most 0; 0 when an image is constant."""
        joint, _ = _joint(fixed, moving, weight, self._axes(), (0.0, 100.0))
        shared = entropy(joint.sum(2), SMALLEST) + entropy(joint.sum(1), SMALLEST) - entropy(joint, SMALLEST)
        return -shared.reshape(fixed.shape[:2]).mean(1).to(moving.dtype)


@settings
class NMI(Similarity):
    """Normalised mutual information ``-(H(A) + H(B)) / H(A, B)``: -2 is perfect, -1 is nothing in common.

    Studholme et al., Pattern Recognition 1999;32:71-86, doi:10.1016/S0031-3203(98)00091-0, with equal bins between two
    percentiles. Symmetric in the two images. The windows of order 1 make the value of an image with itself -2 only when its
    intensities lie on the centres of bins (``bins - 1`` steps from the low to the high percentile): between them a window
    spreads over two bins. Order 0 is exact for any discrete image.
    """

    bins: int = option(100, "Bins of each image", ge=1, le=8192)
    percentiles: tuple[Percent, Percent] = option(
        (0.5, 99.5), "Intensities of the first and the last bin; those outside count as these, and nothing pulls them"
    )
    order: Literal[0, 1, 3] = option(
        1, "Parzen windows: 1 linear, 3 cubic B-spline; 0 plain counting for measuring only, its derivative is zero"
    )

    def __post_init__(self) -> None:
        tight_axis(self.bins, self.order)
        if self.percentiles[0] >= self.percentiles[1]:
            raise ValueError(f"percentiles must rise, not {self.percentiles}")

    def compiled_force(self) -> CompiledForce | None:
        """Return the compiled force with linear windows; others have none."""
        if self.order != 1 or self.bins == 1:
            return None
        from popatlas.similarity.kernels_nmi import joint_sums, nmi_force  # numba

        def force(fixed: Volume, moving: Volume, weight: Volume, share: Share) -> PlaneForce:
            ends = [_ends(image, weight, self.percentiles) for image in (fixed, moving)]
            low = np.array([low for low, _ in ends], np.float32)
            scale = np.array([(self.bins - 1) / (high - low) if high > low else 0.0 for low, high in ends], np.float32)
            images = (fixed, moving, weight, low, scale)
            joint = np.sum(share(partial(joint_sums, *images, self.bins)), axis=0)
            voxels = np.count_nonzero(weight > 0) if weight.shape[0] > 1 else fixed.size
            value, slope = nmi_and_slope(joint / joint.sum(), 0.5 / voxels)

            def push(shrink: int, symmetric: bool, out: Volume, lo: int, hi: int) -> tuple[float, float]:
                mass = float(nmi_force(*images, slope, shrink, symmetric, out, lo, hi))
                return value * mass, mass

            return push

        return force

    def _compare(self, fixed: Tensor, moving: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss (B,): in [-2, -1]; -1 when an image is constant."""
        axis = tight_axis(self.bins, self.order)
        joint, voxels = _joint(fixed, moving, weight, (axis, axis), self.percentiles)
        floor = 0.5 / voxels.double()
        together = entropy(joint, floor)
        apart = entropy(joint.sum(2), floor) + entropy(joint.sum(1), floor)
        varied = together > SMALLEST
        ratio = torch.where(varied, apart / torch.where(varied, together, 1.0), 1.0)
        return -ratio.reshape(fixed.shape[:2]).mean(1).to(moving.dtype)


def nmi_and_slope(joint: npt.NDArray[np.float64], floor: float) -> tuple[float, Volume]:
    """Return the normalised mutual information of a joint distribution (rows, columns) and its derivative by each entry.

    The logarithm of a probability below `floor` is that of `floor`, as in `popatlas.similarity.parzen.entropy`.
    """
    marginals = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    entropies, slopes = [], []
    for part in (*marginals, joint):
        logarithm = np.log(np.maximum(part, floor))
        entropies.append(-float((part * logarithm).sum()))
        slopes.append(-logarithm - (part > floor))
    apart, together = entropies[0] + entropies[1], entropies[2]
    if together <= SMALLEST:
        return 1.0, np.zeros(joint.shape, np.float32)
    slope = (slopes[0] + slopes[1] - apart / together * slopes[2]) / together
    return apart / together, np.ascontiguousarray(slope, np.float32)


def _ends(image: Volume, weight: Volume, percentiles: tuple[float, float]) -> tuple[float, float]:
    """Return two percentiles of the intensities that have weight, of a regular sample of a large image."""
    values = image.ravel() if weight.shape[0] == 1 else image.ravel()[weight.ravel() > 0]
    low, high = np.percentile(values[:: max(1, values.size // SAMPLE)], percentiles)
    return float(low), float(high)
