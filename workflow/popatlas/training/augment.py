"""Random changes of real scans: pose, shape, side and look; image, labels and mask go through one resampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from popatlas.training.conform import Volume
from popatlas.training.motion import Motion, displacement_of, random_motion
from popatlas.training.random_fields import bias_field, blurred, chance, normal, uniform, unit_range
from popatlas.training.settings import AugmentSettings, LookSettings, MotionSettings
from popatlas.training.structures import exchanged


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
