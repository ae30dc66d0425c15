"""Rotations by Euler angles: about x, then y, then z, all of them axes that stay where they are; in 2D one angle."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation_of(angles: Tensor) -> Tensor:
    """Return rotations (B, D, D) for angles (B, 3) or, in 2D, (B, 1), radians: ``Rz Ry Rx``."""
    cosines, sines = angles.cos(), angles.sin()
    if angles.shape[1] == 1:
        c, s = cosines[:, 0], sines[:, 0]
        return torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)
    cx, cy, cz = cosines.unbind(1)
    sx, sy, sz = sines.unbind(1)
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def angles_of(rotation: Tensor) -> Tensor:
    """Return the angles of `rotation_of`, the second one within 90 degrees; (B, D, D) to (B, 3) or (B, 1), radians."""
    if rotation.shape[1] == 2:
        return torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0]).unsqueeze(1)
    up = rotation[:, 2, 0].clamp(-1 + 1e-6, 1 - 1e-6)  # where the slope of the arc sine is finite
    first = torch.atan2(rotation[:, 2, 1], rotation[:, 2, 2])
    third = torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0])
    return torch.stack([first, -up.asin(), third], 1)
