"""How synthetic images look: grey values of labels, or other ones for those of a scan, blur, bias field, noise and gamma."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from popatlas.training.random_fields import bias_field, blurred, chance, normal, uniform, unit_range
from popatlas.training.settings import MOST_LABELS, ContrastSettings

KNOTS = 6  # of a curve from grey values to others


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
