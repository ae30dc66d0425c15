"""How synthetic images look: grey values of labels, or other ones for those of a scan, blur, bias field, noise and gamma."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popatlas.training.random_fields import (
    Range,
    bias_field,
    blurred,
    chance,
    check_range,
    check_within,
    normal,
    uniform,
    unit_range,
)

KNOTS = 6  # of a curve from grey values to others
MOST_LABELS = 2**16  # the look-up table has an entry for each value up to the largest


@dataclass(frozen=True)
class ContrastSettings:
    """How images look; grey values are shares of the full range.

    Attributes
    ----------
    mean, sd : (float, float)
        Range of the mean of each label and of the standard deviation of its noise.
    noise : float
        Largest standard deviation of noise that is added after the blur, to all labels alike.
    blur : float
        Largest standard deviation of a Gaussian, drawn for each axis, voxels.
    bias : float
        Largest standard deviation of the logarithm of the bias field.
    bias_spacing : (float, float)
        Distance of its control points, voxels.
    gamma : float
        Standard deviation of the logarithm of the exponent.
    strip : float
        Probability that the background, label 0, is 0 as in a skull-stripped image; else it is a label as any other.
    classes : tuple of tuple of (int, int)
        Labels of one tissue, each class as ranges of label values, both ends included: they get the same grey value, as
        regions of the cortex have, whose borders no image shows. All other labels are classes of their own.
    spread : float
        Standard deviation of the means of the labels of a class about its grey value.

    Raises
    ------
    ValueError
        For a value that is negative, out of order or, where it is a share, above 1.
    """

    mean: Range = (0.1, 0.9)
    sd: Range = (0.02, 0.1)
    noise: float = 0.02
    blur: float = 1.0
    bias: float = 0.3
    bias_spacing: Range = (24.0, 64.0)
    gamma: float = 0.25
    strip: float = 0.5
    classes: tuple[tuple[tuple[int, int], ...], ...] = ()
    spread: float = 0.02

    def __post_init__(self) -> None:
        members = [label for ranges in self.classes for low, high in ranges for label in range(low, high + 1)]
        if any(not 0 <= low <= high for ranges in self.classes for low, high in ranges) or len(set(members)) < len(members):
            raise ValueError(f"classes {self.classes}: ranges of labels from 0, each label in one of them at most")
        check_within("spread", self.spread, most=1.0)
        check_range("mean", self.mean, most=1.0)
        check_range("sd", self.sd, most=1.0)
        check_within("noise", self.noise, most=1.0)
        check_within("blur", self.blur)
        check_within("bias", self.bias)
        check_range("bias_spacing", self.bias_spacing, least=2.0)
        check_within("gamma", self.gamma, most=2.0)
        check_within("strip", self.strip, most=1.0)


def random_table(size: int, settings: ContrastSettings, generator: torch.Generator) -> Tensor:
    """Draw the grey values of labels.

    Parameters
    ----------
    size : int
        Number of labels, from 0.
    settings : ContrastSettings
        Their ranges, and how often the background is stripped.
    generator : Generator
        Source of the numbers.

    Returns
    -------
    (2, size) float32 Tensor
        Mean and standard deviation of each label; both 0 for a stripped background.
    """
    draws = torch.rand((2, size), generator=generator, device=generator.device)
    bounds = torch.tensor([settings.mean, settings.sd], device=draws.device)
    table = bounds[:, :1] + (bounds[:, 1:] - bounds[:, :1]) * draws
    if settings.classes:
        jitter = settings.spread * normal(generator, (size,)).to(table.device)
    for ranges in settings.classes:
        members = [label for first, last in ranges for label in range(first, min(last + 1, size))]
        table[:, members] = table[:, members[:1]].clone()
        table[0, members] += jitter[members]
    if chance(generator, settings.strip):
        table[:, 0] = 0
    return table


def paint(labels: Tensor, table: Tensor, generator: torch.Generator) -> Tensor:
    """Give each voxel the grey value of its label: the mean of the table and normal noise of its standard deviation.

    Parameters
    ----------
    labels : (B, 1, *shape) integer Tensor
        Values from 0 to n - 1.
    table : (2, n) Tensor
        See `random_table`.
    generator : Generator
        Source of the noise.

    Returns
    -------
    (B, 1, *shape) float32 Tensor
        On the device of the labels.
    """
    index = labels.flatten().long()
    mean, sd = table.to(labels.device)
    image: Tensor = mean.index_select(0, index)
    if bool(sd.any()):
        image = torch.addcmul(image, sd.index_select(0, index), normal(generator, index.shape, labels.device))
    return image.reshape(labels.shape)


def random_contrast(
    labels: Tensor, settings: ContrastSettings, generator: torch.Generator, table: Tensor | None = None
) -> Tensor:
    """Make an image of a label map.

    Parameters
    ----------
    labels : (B, 1, *shape) integer Tensor
        Values of at least 0; the images of a batch have one contrast.
    settings : ContrastSettings
        What the image may look like.
    generator : Generator
        Source of all that is random.
    table : (2, n) Tensor, optional
        Grey values of the labels, drawn when left out; see `random_table`. A background of 0 is kept free of noise.

    Returns
    -------
    (B, 1, *shape) float32 Tensor
        Grey values of the labels, blurred, times a bias field, with noise, from 0 to 1, to the power of a random gamma.
    """
    if table is None:
        table = random_table(table_size([labels]), settings, generator)
    background = None if bool(table[:, 0].any()) else labels == 0
    return _imaged(paint(labels, table, generator), background, settings, generator)


def random_recolouring(scan: Tensor, settings: ContrastSettings, generator: torch.Generator) -> Tensor:
    """Give a scan another contrast, by a random curve from its grey values to others.

    Tissues keep their texture and partial volumes, which no painted image has; the curve may rise and fall.

    Parameters
    ----------
    scan : (B, 1, *shape) float Tensor
        Values from 0 to 1; what is 0 is background and stays so.
    settings : ContrastSettings
        What the image may look like; the curve is linear between values in the range of `mean`.
    generator : Generator
        Source of all that is random.

    Returns
    -------
    (B, 1, *shape) float32 Tensor
        See `random_contrast`.
    """
    values = torch.tensor([uniform(generator, *settings.mean) for _ in range(KNOTS)], device=scan.device)
    place = scan.clamp(0, 1) * (KNOTS - 1)
    below = place.floor().clamp_(max=KNOTS - 2)
    image = torch.lerp(values[below.long()], values[below.long() + 1], place - below)
    return _imaged(image, scan <= 0, settings, generator)


def _imaged(image: Tensor, background: Tensor | None, settings: ContrastSettings, generator: torch.Generator) -> Tensor:
    """Blur, bias field, noise, the full range and gamma; the background is set to 0, as brain extraction would."""
    shape, device = image.shape[2:], image.device
    image = blurred(image, [uniform(generator, 0.0, settings.blur) for _ in shape])
    if settings.bias:
        image = image * bias_field(generator, shape, settings.bias, settings.bias_spacing, device)
    noise = uniform(generator, 0.0, settings.noise)
    if noise:
        image = image + noise * normal(generator, image.shape, device)
    image = image.clamp_(min=0.0)
    if background is not None:
        image = image.masked_fill_(background, 0.0)
    image = unit_range(image)
    exponent = float(normal(generator, ()))
    curved: Tensor = image ** math.exp(settings.gamma * exponent)
    return curved


def table_size(maps: Sequence[Tensor]) -> int:
    """Return how many entries the table of label maps has, the largest value plus one.

    Raises
    ------
    ValueError
        For maps that are not integers from 0 to 65535.
    """
    for labels in maps:
        if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= MOST_LABELS:
            raise ValueError(f"label maps hold integers from 0 to {MOST_LABELS - 1}")
    return max(int(labels.max()) for labels in maps) + 1
