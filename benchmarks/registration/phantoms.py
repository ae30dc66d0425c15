"""Phantoms with a known field: the head model's brain, textured, deformed by the flow of a smooth random velocity.

Both images of a pair are read from the 1 mm model with one interpolation, so none is smoother than the other. Each has its
own noise, bias field and gain: sums of squared differences suffer, as they do on real scans. There is no affine difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.registration.cases import Array, Case, Mask
from popatlas.images.deformation import Grid, Shape, exponential, sample, smooth_velocity
from popatlas.images.phantom import HeadModel, head_model

MARGIN = 6  # voxels between the brain and the border
TEXTURE, NOISE, BIAS = 0.06, 0.05, 0.2  # relative to the brightest tissue; the last is the largest logarithm of the gain
FINE_SHARE = 0.35  # part of the velocity that varies at half of its length


@dataclass(frozen=True)
class Recipe:
    """Size of a phantom.

    Attributes
    ----------
    shape : tuple of int
        Voxels.
    smoothness : float
        Standard deviation of the Gaussian that smooths the velocity, voxels.
    mean_shift : float
        Mean length of the velocity, voxels; the displacement is a little shorter.
    """

    shape: Shape
    smoothness: float
    mean_shift: float


def make_phantom(recipe: Recipe, seed: int) -> Case:
    """Return a pair whose displacement is known.

    Parameters
    ----------
    recipe : Recipe
        Its size and how far its points move.
    seed : int
        Changes texture, displacement, noise, bias and gain.
    """
    rng = np.random.default_rng(seed)
    model = head_model()
    grid = brain_grid(model, recipe.shape)
    spacing = float(grid.spacing[0])
    image = textured(model, spacing, rng)
    labels = sample(model.labels, model.affine, grid.points(), order=0)
    velocity = random_velocity(rng, grid, recipe, labels > 0)
    forward, backward = exponential(velocity, grid), exponential(-velocity, grid)
    moved = grid.points() + backward
    moving_labels = sample(labels, grid.affine, moved, order=0)
    fixed, moving = (
        _seen(sample(image, model.affine, points), brain, rng)
        for points, brain in ((grid.points(), labels > 0), (moved, moving_labels > 0))
    )
    return Case(
        fixed=fixed,
        moving=moving,
        fixed_labels=labels.astype(np.int16),
        moving_labels=moving_labels.astype(np.int16),
        to_moving=np.eye(4),
        spacing=spacing,
        truth=forward / np.float32(spacing),
    )


def brain_grid(model: HeadModel, shape: Shape) -> Grid:
    """Return the isotropic grid of a shape that just holds the model's brain, in RAS millimetres."""
    inside = np.argwhere(model.labels > 0)
    low, high = inside.min(axis=0), inside.max(axis=0)
    spacing = float(((high - low + 1) / (np.array(shape) - 2 * MARGIN)).max())  # the model has voxels of 1 mm
    affine = np.diag([spacing, spacing, spacing, 1.0])
    centre = model.affine @ np.append((low + high) / 2, 1.0)
    affine[:3, 3] = centre[:3] - spacing * (np.array(shape) - 1) / 2
    return Grid(shape, affine)


def textured(model: HeadModel, spacing: float, rng: np.random.Generator) -> Array:
    """Return the model's brain with texture of 1 and 2 voxels, smoothed for a grid of that spacing; about 0 to 1."""
    smooth: Array = gaussian_filter(model.t1w / model.t1w.max(), 0.5 * max(spacing**2 - 1, 0) ** 0.5)
    texture = np.zeros(smooth.shape, np.float32)
    for width in (spacing, 2 * spacing):
        layer = gaussian_filter(rng.standard_normal(smooth.shape).astype(np.float32), width)
        texture += layer / layer.std()
    return np.asarray(smooth * (1 + TEXTURE * texture / texture.std()), np.float32)


def random_velocity(rng: np.random.Generator, grid: Grid, recipe: Recipe, brain: Mask) -> Array:
    """Return a velocity in millimetres of two scales, whose mean length in the brain is the recipe's."""
    spacing = float(grid.spacing[0])
    coarse, fine = (smooth_velocity(rng, grid, recipe.smoothness * spacing * part, 1.0) for part in (1.0, 0.5))
    velocity = coarse + np.float32(FINE_SHARE) * fine
    length = np.linalg.norm(velocity, axis=0)[brain].mean()
    return np.asarray(velocity * np.float32(recipe.mean_shift * spacing / length), np.float32)


def _seen(tissue: Array, brain: Mask, rng: np.random.Generator) -> Array:
    """Return an image with bias, gain and noise of its own, 0 outside of the brain."""
    bias = gaussian_filter(rng.standard_normal(brain.shape).astype(np.float32), min(brain.shape) / 4)
    gain = rng.uniform(0.8, 1.25) * np.exp(BIAS * bias / np.abs(bias).max())
    noise = NOISE * rng.standard_normal(brain.shape)
    return np.where(brain, np.clip(tissue * gain + noise, 0.01, None), 0).astype(np.float32)
