"""Textures and turned copies of them, for the tests of the registration engines."""

from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from popatlas.images.grid import Grid
from popatlas.images.scan import Scan
from popatlas.transforms.fields import coordinates, sample
from popatlas.transforms.linear import move, voxel_matrix


@lru_cache(maxsize=32)
def _noise(shape, sigma, seed):
    values = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return (values - values.min()) / (values.max() - values.min())


def texture(shape, sigma=1.5, seed=0, dtype=torch.float32):
    """Gaussian-filtered noise, 0 to 1, (1, 1, *shape)."""
    return torch.tensor(_noise(tuple(shape), sigma, seed), dtype=dtype)[None, None]


def ball(shape, radius=0.45):
    """Mask of an ellipsoid in the middle, (1, 1, *shape)."""
    middle = torch.tensor([(n - 1) / 2 for n in shape]).reshape(-1, *[1] * len(shape))
    size = radius * torch.tensor(shape).reshape(middle.shape)
    return ((((coordinates(shape)[0] - middle) / size) ** 2).sum(0) <= 1).float()[None, None]


def rigid_about(point, degrees, shift):
    """Matrix of a rotation about a point (rotation vector, in 2D an angle) and a shift, mm."""
    degrees = np.atleast_1d(degrees)
    vector = degrees if len(degrees) == 3 else np.array([0, 0, degrees[0]])
    turn = Rotation.from_rotvec(np.deg2rad(vector)).as_matrix()[: len(point), : len(point)]
    return about(point, turn, shift)


def about(point, linear, shift):
    """Matrix of a linear map about a point and a shift, mm."""
    matrix = np.eye(len(point) + 1)
    matrix[:-1, :-1] = linear
    matrix[:-1, -1] = np.asarray(point) + shift - linear @ point
    return matrix


def moved(fixed: Scan, truth, grid: Grid, change=lambda values: values, padding="border") -> Scan:
    """The scan that `truth` (fixed to moving, LPS mm) leads to, on another grid, by one cubic interpolation."""
    back = voxel_matrix(torch.as_tensor(np.linalg.inv(truth)), grid, fixed.grid).to(fixed.image)
    at = move(back, coordinates(grid.shape).to(fixed.image))
    mask = None if fixed.mask is None else sample(fixed.mask, at, "nearest", "zeros")
    return Scan(change(sample(fixed.image, at, "cubic", padding)), grid, mask)


def corner_error(matrix, truth, grid):
    """Mean distance of the corners of a grid after two transforms, mm."""
    corners = np.c_[grid.corners(), np.ones(2**grid.ndim)]
    return float(np.linalg.norm(corners @ (matrix - truth).T, axis=1).mean())
