"""Random motions: affines and diffeomorphisms as one displacement, so that images and labels are resampled once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from popatlas.images.grid import Grid
from popatlas.training.random_fields import log_uniform, smooth_noise, uniform
from popatlas.training.settings import MotionSettings, Range
from popatlas.transforms.fields import coordinates, resize_field, sample
from popatlas.transforms.linear import matrix, move, parameter_count, voxel_matrix
from popatlas.transforms.velocity import integrate_stationary

STEPS = 4  # voxels of the coarse grid between control points: enough for a cubic B-spline to look smooth
SQUARINGS = 5  # the drawn velocities move a point by a few voxels


@dataclass(frozen=True, eq=False)
class Motion:
    """Where the voxels of a result lie in an image: bent first, then moved by an affine.

    Attributes
    ----------
    matrix : (1, D + 1, D + 1) float64 Tensor
        Voxel to voxel.
    bend : (1, D, *shape) Tensor or None
        Displacement, voxels.
    """

    matrix: Tensor
    bend: Tensor | None = None


def displacement_of(motions: Sequence[Motion], shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Return motions one after the other as one displacement, so that whatever is moved is resampled once.

    Parameters
    ----------
    motions : sequence of Motion
        A voxel of the result goes through the first one first; between them nothing is interpolated but bends.
    shape : sequence of int
        Voxels along each axis, the same for all bends.
    device : optional
        Of the result.

    Returns
    -------
    (1, D, *shape) float32 Tensor
        Voxels.
    """
    index = coordinates(shape, device=device)
    at = index
    for motion in motions:
        if motion.bend is not None:
            bend = motion.bend.to(at.device)
            at = at + (bend if at is index else sample(bend, at))
        at = move(motion.matrix.to(at), at)
    return at - index


def random_velocity(shape: Sequence[int], max_sd: float, spacing: Range, generator: torch.Generator) -> Tensor:
    """Draw a smooth stationary velocity on a coarse grid.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the image along each axis.
    max_sd : float
        The standard deviation of each component is uniform from 0 to this, voxels of the image, and at most an eighth of the
        distance of the control points, so that the flow does not fold.
    spacing : (float, float)
        The logarithm of the distance of control points is uniform between those of these, voxels of the image.
    generator : Generator
        Source of the numbers.

    Returns
    -------
    (1, D, *coarse) Tensor
        Voxels of the coarse grid, whose outermost voxels are those of the image; see `flow`.
    """
    gap = log_uniform(generator, spacing)
    sd = min(uniform(generator, 0.0, max_sd), gap / 8)
    step = max(gap / STEPS, 1.0)
    coarse = [max(math.ceil((n - 1) / step) + 1, 2) for n in shape]
    noise = smooth_noise(generator, coarse, gap / step, channels=len(shape))
    ratios = torch.tensor([(small - 1) / (n - 1) for small, n in zip(coarse, shape, strict=True)], device=noise.device)
    return sd * noise * ratios.reshape(1, -1, *[1] * len(shape))


def flow(velocity: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the flow of a velocity on its coarse grid as displacement (1, D, *shape), voxels of an image."""
    return resize_field(integrate_stationary(velocity, SQUARINGS), shape)


def random_matrix(
    shape: Sequence[int], settings: MotionSettings, generator: torch.Generator, spacing: Sequence[float] | None = None
) -> Tensor:
    """Draw an affine about the middle of an image.

    Parameters
    ----------
    shape : sequence of int
        Voxels along each axis.
    settings : MotionSettings
        Its limits.
    generator : Generator
        Source of the numbers.
    spacing : sequence of float, optional
        Voxel size, millimetres; 1 along each axis when left out.

    Returns
    -------
    (1, D + 1, D + 1) float64 Tensor
        Voxel of the result to voxel of the image; never a reflection.
    """
    ndim = len(shape)
    voxel = np.ones(ndim) if spacing is None else np.array(spacing, dtype=np.float64)
    turns = ndim * (ndim - 1) // 2
    limits = [settings.shift] * ndim + [math.radians(settings.rotation)] * turns
    limits += [settings.scale] * ndim + [settings.shear] * turns
    size = (1, parameter_count("affine", ndim))
    draws = torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    grid = Grid(tuple(shape), np.diag([*voxel, 1.0]))
    drawn = (2 * draws - 1) * torch.tensor(limits, dtype=torch.float64)
    return voxel_matrix(matrix(drawn, "affine", grid.centre.copy()), grid, grid)


def random_motion(
    shape: Sequence[int],
    settings: MotionSettings,
    generator: torch.Generator,
    spacing: Sequence[float] | None = None,
    reflected: int | None = None,
) -> Motion:
    """Draw a motion.

    Parameters
    ----------
    shape, settings, generator, spacing
        See `random_matrix`.
    reflected : int, optional
        Array axis that is mirrored at the end, about the middle of the image.

    Returns
    -------
    Motion
        Its bend is on the device of the generator.
    """
    if reflected is not None and not 0 <= reflected < len(shape):
        raise ValueError(f"no axis {reflected} to mirror in an image of {len(shape)} axes")
    linear = random_matrix(shape, settings, generator, spacing)
    if reflected is not None:
        linear[:, reflected] *= -1
        linear[:, reflected, -1] += shape[reflected] - 1
    if not settings.bend:
        return Motion(linear)
    return Motion(linear, flow(random_velocity(shape, settings.bend, settings.bend_spacing, generator), shape))
