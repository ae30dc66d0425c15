"""Sets of rotations: the uniform ones of a global search, small ones round a pose, and the symmetries of the cube.

Rotations are (N, D, D) float64 arrays, D = 2 or 3. Uniform Euler angles crowd the poles, so they are not used: in 3D a
uniform set is a super-Fibonacci spiral on the quaternions (Alexa, CVPR 2022), whose largest gap at 600 rotations is 25
degrees where random ones leave 33; within a cone it is the ball of rotation vectors with the density of the Haar measure.
"""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

Array = npt.NDArray[np.float64]

SPIRAL = np.sqrt(2.0), 1.533751168755204288118041  # irrational pair of the spiral: psi solves psi**4 = psi + 4
KRONECKER = 1.2207440846057596 ** -np.arange(1, 4)  # low-discrepancy steps in the unit cube, from the root of x**4 = x + 1


def uniform_rotations(count: int, ndim: int, max_angle: float = 180.0) -> Array:
    """Return rotations that cover all orientations, or those near the identity, evenly.

    Parameters
    ----------
    count : int
        How many.
    ndim : int
        2 or 3.
    max_angle : float
        Largest angle of rotation in degrees.

    Returns
    -------
    (count, ndim, ndim) ndarray
        Proper rotations, the same ones at each call.
    """
    step = (np.arange(count) + 0.5) / max(count, 1)
    if ndim == 2:
        return _turns(np.deg2rad(max_angle) * (2 * step - 1))
    if max_angle < 180:
        return _ball(count, np.deg2rad(max_angle))
    first, second = (2 * np.pi * count * step / irrational for irrational in SPIRAL)
    inner, outer = np.sqrt(step), np.sqrt(1 - step)
    quaternions = [inner * np.sin(first), inner * np.cos(first), outer * np.sin(second), outer * np.cos(second)]
    return _matrices(Rotation.from_quat(np.stack(quaternions, axis=1)), count)


def _ball(count: int, limit: float) -> Array:
    """Return rotations up to an angle (radians): uniform axes, angles by the inverse of the Haar measure's t - sin t."""
    share, height, turn = ((0.5 + np.arange(1, count + 1)[:, None] * KRONECKER) % 1).T
    table = np.linspace(0, limit, 4001)
    angle = np.interp(share * (limit - np.sin(limit)), table - np.sin(table), table)
    z, around = 1 - 2 * height, 2 * np.pi * turn
    axis = np.stack([np.sqrt(1 - z**2) * np.cos(around), np.sqrt(1 - z**2) * np.sin(around), z], axis=1)
    return _matrices(Rotation.from_rotvec(angle[:, None] * axis), count)


def _turns(angles: Array) -> Array:
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _matrices(rotations: Rotation, count: int) -> Array:
    return np.asarray(rotations.as_matrix(), dtype=np.float64).reshape(count, 3, 3)


def perturbed(parents: Array, count: int, step: float, rng: np.random.Generator) -> Array:
    """Return rotations near given ones, each parent getting the same number of children (give or take one).

    Parameters
    ----------
    parents : (P, D, D) ndarray
        Rotations, best first.
    count : int
        How many children in all.
    step : float
        Each component of a child's rotation vector (2D: its angle) is uniform in [-step, step] degrees; unlike steps in
        Euler angles these mean the same at every parent.
    rng : numpy Generator
        Source of the steps.
    """
    ndim = parents.shape[-1]
    vectors = np.deg2rad(rng.uniform(-step, step, (count, 3 if ndim == 3 else 1)))
    small = _turns(vectors[:, 0]) if ndim == 2 else _matrices(Rotation.from_rotvec(vectors), count)
    return np.asarray(parents[np.arange(count) % len(parents)] @ small)


def angle_between(first: Array, second: Array) -> Array:
    """Return the angle in degrees between rotations (..., D, D), broadcasting."""
    trace = np.einsum("...ij,...ij->...", first, second)
    cosine = trace / 2 if first.shape[-1] == 2 else (trace - 1) / 2
    return np.asarray(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))


def cube_rotations(ndim: int) -> Array:
    """Return the proper signed permutation matrices: 24 in 3D, 4 in 2D, the identity first."""
    axes = np.eye(ndim)
    signed = [axes[list(order)] * np.array(signs)[:, None] for order in permutations(range(ndim))
              for signs in product((1.0, -1.0), repeat=ndim)]  # fmt: skip
    return np.stack([matrix for matrix in signed if np.linalg.det(matrix) > 0])
