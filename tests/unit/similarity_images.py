"""Images for the tests of similarities: smooth noise, and a scene that can be shifted by any amount."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter


def noise(shape, seed, sigma=1.0, batch=1, channels=1, dtype=torch.float64):
    """Smooth noise (batch, channels, *shape) of mean 0 and standard deviation 1."""
    values = np.random.default_rng(seed).standard_normal((batch, channels, *shape))
    values = gaussian_filter(values, [0, 0] + [sigma] * len(shape))
    axes = tuple(range(2, values.ndim))
    values = (values - values.mean(axes, keepdims=True)) / values.std(axes, keepdims=True)
    return torch.as_tensor(values, dtype=dtype)


def scene(shape, shift=0.0):
    """Blobs (1, 1, *shape) in 0..1, moved along the first axis by `shift` voxels; exact and differentiable by it."""
    axes = [torch.arange(n, dtype=torch.float64) for n in shape]
    grid = torch.meshgrid(*axes, indexing="ij")
    image = torch.zeros(shape, dtype=torch.float64)
    for seed, (height, width) in enumerate([(1.0, 2.2), (0.7, 1.8), (0.5, 2.6), (0.85, 1.5)]):
        centre = np.random.default_rng(seed).uniform(0.25, 0.75, len(shape)) * np.array(shape)
        distance = sum((x - c - (shift if i == 0 else 0)) ** 2 for i, (x, c) in enumerate(zip(grid, centre, strict=True)))
        image = image + height * torch.exp(-0.5 * distance / width**2)
    return image[None, None]
