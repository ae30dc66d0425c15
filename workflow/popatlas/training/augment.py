"""Random changes of real scans: pose, shape, side and look; image, labels and mask go through one resampling."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from popatlas.training.conform import Volume
from popatlas.training.motion import Motion, MotionSettings, displacement_of, random_motion
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


@dataclass(frozen=True)
class LookSettings:
    """How far the intensities of an image are changed; not at all by default.

    Attributes
    ----------
    gamma : float
        The logarithm of the exponent is uniform in ± this.
    noise : float
        Largest standard deviation of normal noise, as a share of the range of the image.
    bias : float
        Largest standard deviation of the logarithm of the bias field.
    bias_spacing : (float, float)
        Distance of its control points, voxels.
    invert : float
        Probability that bright becomes dark; the background stays.
    blur : float
        Largest standard deviation of a Gaussian, drawn for each axis, voxels.
    thick : float
        Probability of thick slices: one axis is blurred much more.
    slices : (float, float)
        Thickness of thick slices, voxels.

    Raises
    ------
    ValueError
        For a value that is negative, out of order or, where it is a share, above 1.
    """

    gamma: float = 0.0
    noise: float = 0.0
    bias: float = 0.0
    bias_spacing: Range = (24.0, 64.0)
    invert: float = 0.0
    blur: float = 0.0
    thick: float = 0.0
    slices: Range = (2.0, 4.0)

    def __post_init__(self) -> None:
        check_within("gamma", self.gamma, most=2.0)
        check_within("noise", self.noise, most=1.0)
        check_within("bias", self.bias)
        check_range("bias_spacing", self.bias_spacing, least=2.0)
        check_within("invert", self.invert, most=1.0)
        check_within("blur", self.blur)
        check_within("thick", self.thick, most=1.0)
        check_range("slices", self.slices, least=1.0)


@dataclass(frozen=True)
class AugmentSettings:
    """What is changed in a scan; nothing by default.

    Attributes
    ----------
    motion : MotionSettings
        Affine and bend.
    look : LookSettings
        Intensities.
    flip : float
        Probability that a scan, or both of a pair, are mirrored; 0 by default, since people are not symmetric.
    flip_axis : int
        Array axis that is mirrored.
    sides : tuple of (int, int)
        Labels that change places in a mirrored scan, left and right.

    Raises
    ------
    ValueError
        For an impossible probability or axis, or a label that has two partners.
    """

    motion: MotionSettings = field(default_factory=MotionSettings)
    look: LookSettings = field(default_factory=LookSettings)
    flip: float = 0.0
    flip_axis: int = 0
    sides: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        check_within("flip", self.flip, most=1.0)
        if self.flip_axis not in (0, 1, 2):
            raise ValueError(f"flip_axis: no axis {self.flip_axis}")
        named = [label for pair in self.sides for label in pair]
        if len(set(named)) < len(named) or min(named, default=0) < 0:
            raise ValueError(f"sides: each label has one partner and is at least 0, not {self.sides}")


def augment(
    volume: Volume,
    settings: AugmentSettings,
    generator: torch.Generator,
    *,
    before: Motion | None = None,
    flipped: bool | None = None,
) -> Volume:
    """Return a random variant of a scan.

    Parameters
    ----------
    volume : Volume
        Scan on the training grid.
    settings : AugmentSettings
        What may change.
    generator : Generator
        Source of all that is random; what it gives does not depend on whether there are labels or a mask.
    before : Motion, optional
        Motion that voxels of the result go through first, one that both scans of a pair have in common for example.
    flipped : bool, optional
        Whether the scan is mirrored; drawn when left out.

    Returns
    -------
    Volume
        Image interpolated linearly, once where its origin is known, labels and mask by the nearest voxel, 0 outside;
        the same voxels when nothing moves.
    """
    mirrored = chance(generator, settings.flip) if flipped is None else flipped
    shape, motions = volume.image.shape[2:], [] if before is None else [before]
    if mirrored or not settings.motion.still:
        axis = settings.flip_axis if mirrored else None
        motions.append(random_motion(shape, settings.motion, generator, volume.spacing, axis))
    if motions:
        volume = volume.moved(displacement_of(motions, shape, volume.image.device))
    labels = volume.labels
    if labels is not None and mirrored:
        labels = exchanged(labels, settings.sides)
    return Volume(changed_look(volume.image, settings.look, generator), volume.spacing, labels, volume.mask, volume.name)


def augment_pair(
    fixed: Volume,
    moving: Volume,
    settings: AugmentSettings,
    generator: torch.Generator,
    common: MotionSettings | None = None,
) -> tuple[Volume, Volume]:
    """Return random variants of two scans of one grid.

    Parameters
    ----------
    fixed, moving : Volume
        Scans on the training grid.
    settings, generator
        See `augment`. Both scans are mirrored or none is; motion and look are drawn for each.
    common : MotionSettings, optional
        A motion that both go through, on top of their own.

    Returns
    -------
    fixed, moving : Volume
        Each interpolated once.
    """
    if fixed.image.shape != moving.image.shape:
        raise ValueError(f"images of shape {tuple(fixed.image.shape)} and {tuple(moving.image.shape)}")
    flipped = chance(generator, settings.flip)
    shared = None
    if common is not None and not common.still:
        shared = random_motion(fixed.image.shape[2:], common, generator, fixed.spacing)
    return (
        augment(fixed, settings, generator, before=shared, flipped=flipped),
        augment(moving, settings, generator, before=shared, flipped=flipped),
    )


def exchanged(labels: Tensor, sides: tuple[tuple[int, int], ...]) -> Tensor:
    """Return a label map in which the labels of each pair have changed places."""
    result = labels.clone()
    for left, right in sides:
        result[labels == left] = right
        result[labels == right] = left
    return result


def changed_look(image: Tensor, settings: LookSettings, generator: torch.Generator) -> Tensor:
    """Change the intensities of an image at random.

    Parameters
    ----------
    image : (B, 1, *shape) Tensor
        Its smallest value is that of the background, which stays what it is: noise and bias of a skull-stripped image end at
        the skull.
    settings : LookSettings
        What may change.
    generator : Generator
        Source of all that is random.

    Returns
    -------
    (B, 1, *shape) Tensor
        Blurred, perhaps inverted, to the power of gamma, times the bias field, with noise; in the range of `image`.
    """
    if settings == LookSettings():
        return image
    low, high = image.min(), image.max()
    background = image == low
    unit = blurred(unit_range(image), _widths(image.ndim - 2, settings, generator))
    if chance(generator, settings.invert):
        unit = 1 - unit
    unit = unit.clamp(0, 1) ** math.exp(uniform(generator, -settings.gamma, settings.gamma))
    if settings.bias:
        unit = unit * bias_field(generator, image.shape[2:], settings.bias, settings.bias_spacing, image.device)
    if settings.noise:
        unit = unit + uniform(generator, 0.0, settings.noise) * normal(generator, image.shape, image.device)
    return torch.where(background, low, low + (high - low) * unit.clamp(0, 1))


def _widths(ndim: int, settings: LookSettings, generator: torch.Generator) -> list[float]:
    """Draw the Gaussian along each axis, voxels; a thick slice has the Gaussian of its full width at half maximum."""
    widths = [uniform(generator, 0.0, settings.blur) for _ in range(ndim)]
    thick = chance(generator, settings.thick)
    axis, thickness = int(uniform(generator, 0, ndim)), uniform(generator, *settings.slices)
    if thick:
        widths[axis] = max(widths[axis], thickness / 2.355)
    return widths
