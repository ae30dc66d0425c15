"""Similarity of two gradient fields for all shifts at once, by FFT: the inner part of the CSNGF search (`csngf`).

The squared inner product of two gradient fields is a sum of D (D + 1) / 2 products of one factor from each image, so that
its sum over the overlap is a sum of cross-correlations, which are added before a single inverse FFT. Everything works in
2D and 3D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.fft import next_fast_len
from torch import Tensor


def erode(mask: Tensor) -> Tensor:
    """Return the voxels (B, 1, *shape), 0 or 1, whose central differences use only voxels of the mask."""
    result = mask
    for axis in range(2, mask.ndim):
        outside = torch.zeros_like(mask.narrow(axis, 0, 1))
        before = torch.cat([outside, mask.narrow(axis, 0, mask.shape[axis] - 1)], axis)
        after = torch.cat([mask.narrow(axis, 1, mask.shape[axis] - 1), outside], axis)
        result = result * before * after
    return result


def spectra(field: Tensor, mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the FFTs that the similarity of all shifts is made of.

    Parameters
    ----------
    field : (B, D, *shape) Tensor
        Normalised gradients.
    mask : (B, 1, *shape) Tensor
        0 or 1.
    size : tuple of int
        Zero-padded shape, from `padded`.

    Returns
    -------
    (B, D(D+1)/2 + 1, *half) complex Tensor
        Of the masked products n_i n_j, i <= j, those with i < j scaled by sqrt(2), and, last, of the mask.
    """
    ndim = field.shape[1]
    products = [
        field[:, i : i + 1] * field[:, j : j + 1] * (1.0 if i == j else 2**0.5) for i in range(ndim) for j in range(i, ndim)
    ]
    parts = torch.cat([*(mask * product for product in products), mask], 1)
    transformed: Tensor = torch.fft.rfftn(parts, s=size, dim=tuple(range(-ndim, 0)))
    return transformed


def similarity_map(
    fixed: Tensor, moving: Tensor, size: tuple[int, ...], shifts: Sequence[range], overlap: float
) -> tuple[Tensor, Tensor]:
    """Return the mean squared inner product of two gradient fields for every shift.

    Parameters
    ----------
    fixed, moving : (1 or B, K, *half) complex Tensor
        From `spectra`.
    size : tuple of int
        The padded shape that they were made with.
    shifts : sequence of range
        Shifts wanted along each axis; `size` must be large enough for them (see `padded`).
    overlap : float
        Least fraction of the largest overlap.

    Returns
    -------
    score : (B, *numbers of shifts) Tensor
        For each shift the mean over x of <n_fixed(x), n_moving(x + shift)>**2; -1 where too little overlaps.
    count : (B, *numbers of shifts) Tensor
        Overlapping voxels.
    """
    dims = tuple(range(-len(size), 0))
    conjugate = fixed.conj().resolve_conj()
    cross = conjugate[:, 0] * moving[:, 0]
    for part in range(1, fixed.shape[1] - 1):
        cross.addcmul_(conjugate[:, part], moving[:, part])
    both = torch.stack([cross, conjugate[:, -1] * moving[:, -1]], 1)
    maps = torch.fft.irfftn(both, s=size, dim=dims)
    for dim, wanted, length in zip(dims, shifts, size, strict=True):
        maps = maps.index_select(dim, torch.tensor([shift % length for shift in wanted], device=maps.device))
    total, count = maps[:, 0], maps[:, 1].round()
    enough = count >= (overlap * count.amax(dims, keepdim=True)).clamp(min=1)
    return torch.where(enough, total / count.clamp(min=1), torch.full_like(total, -1.0)), count


def padded(fixed: Sequence[int], moving: Sequence[int], overlap: float) -> tuple[tuple[int, ...], list[range]]:
    """Return the FFT's shape and the shifts along each axis that leave a part of the smaller of two boxes in the other.

    Shifts that do not can never reach the overlap (of full boxes), so they need no padding: for equal boxes and an
    overlap of one half this saves 58 % of the voxels in 3D.
    """
    shifts = []
    for a, b in zip(fixed, moving, strict=True):
        least = max(1, math.ceil(overlap * min(a, b)))
        shifts.append(range(least - a, b - least + 1))
    # a circular shift must not bring the other end of the moving image in: its last voxel at the lowest shift, its first
    # at the highest
    lengths = (max(b - s.start, a + s[-1]) for a, b, s in zip(fixed, moving, shifts, strict=True))
    return tuple(int(next_fast_len(length, real=True)) for length in lengths), shifts
