"""What synthesis and augmentation are drawn from: smooth noise, bias field, blur, gamma; all from a torch.Generator.

Numbers are drawn on the device of the generator and moved to where they are needed, so that a generator of the CPU gives the
same images on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from popatlas.images.filters import gaussian_smooth
from popatlas.training.settings import Range
from popatlas.transforms.ffd import control_shape, dense_from_control

BLUR_STEP = 1 / 16  # voxels; few different widths keep the cache of smoothing matrices useful
# mean over an axis of the sum of squared weights of the cubic B-spline: how much variance it leaves of random coefficients
SPLINE_VARIANCE = 151 / 315


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Draw a number."""
    return low + (high - low) * float(torch.rand((), generator=generator, device=generator.device, dtype=torch.float64))


def chance(generator: torch.Generator, probability: float) -> bool:
    """Draw whether something happens; it always takes one number from the generator."""
    return uniform(generator, 0.0, 1.0) < probability


def normal(generator: torch.Generator, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Draw standard normal numbers, float32, on a device, that of the generator by default."""
    return torch.randn(tuple(shape), generator=generator, device=generator.device).to(device or generator.device)


def log_uniform(generator: torch.Generator, values: Range) -> float:
    """Draw a number whose logarithm is uniform between those of two positive ones."""
    return math.exp(uniform(generator, math.log(values[0]), math.log(values[1])))


def smooth_noise(
    generator: torch.Generator,
    shape: Sequence[int],
    spacing: float,
    channels: int = 1,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw smooth noise: a cubic B-spline with independent normal coefficients.

    Parameters
    ----------
    generator : Generator
        Source of the coefficients.
    shape : sequence of int
        Voxels along each axis.
    spacing : float
        Distance of the coefficients, voxels.
    channels : int
        Independent images.
    device : optional
        Of the result, that of the generator by default.

    Returns
    -------
    (1, channels, *shape) Tensor
        Mean 0 and standard deviation 1 over draws, on average over the voxels.
    """
    coefficients = normal(generator, (1, channels, *control_shape(shape, spacing)), device)
    return dense_from_control(coefficients * SPLINE_VARIANCE ** (-len(shape) / 2), shape, spacing)


def bias_field(
    generator: torch.Generator, shape: Sequence[int], sd: float, spacing: Range, device: torch.device | str | None = None
) -> Tensor:
    """Draw a smooth positive field (1, 1, *shape) whose logarithm has a standard deviation between 0 and `sd`."""
    strength, gap = uniform(generator, 0.0, sd), log_uniform(generator, spacing)
    return (strength * smooth_noise(generator, shape, gap, device=device)).exp_()


def blurred(image: Tensor, sds: Sequence[float]) -> Tensor:
    """Smooth an image (B, C, *shape) by a Gaussian; standard deviations in voxels, rounded to a 16th."""
    return gaussian_smooth(image, [round(sd / BLUR_STEP) * BLUR_STEP for sd in sds])


def unit_range(image: Tensor) -> Tensor:
    """Scale an image linearly so that its values go from 0 to 1; a constant one becomes 0."""
    low, high = image.min(), image.max()
    return (image - low) / (high - low).clamp(min=torch.finfo(image.dtype).tiny)
