"""Total variation: smooth inside of regions, free to slide between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from popatlas.regularisers.differences import check_field, physical, step


def total_variation(displacement: Tensor, spacing: Sequence[float] | None = None, epsilon: float = 1e-3) -> Tensor:
    """Return the total variation: the mean length, not the square, of the first derivatives.

    Rudin et al., Physica D 1992;60:259-268, doi:10.1016/0167-2789(92)90242-F, all components of a voxel taken together. A
    jump costs its height, however steep it is, while the squares of `diffusion` make it cheaper when it is blurred.

    Parameters
    ----------
    displacement : (B, D, *shape) Tensor
        Voxels of its own grid.
    spacing : sequence of float, optional
        Voxel sizes; derivatives are then those of the physical displacement by the physical position.
    epsilon : float
        Derivatives below it cost their square instead, so that there is a gradient at zero; > 0.

    Returns
    -------
    (B,) Tensor
        Mean over the voxels of ``sqrt(|grad u|**2 + epsilon**2) - epsilon``, forward differences, zero past the last voxel.

    Raises
    ------
    ValueError
        When the field is not one, or an axis has a single voxel.
    """
    ndim = check_field(displacement, 2)
    if epsilon <= 0:
        raise ValueError(f"epsilon must be positive, not {epsilon}")
    field, sizes = physical(displacement, spacing)
    squares = []
    for axis in range(ndim):
        padding = [0] * (2 * ndim)
        padding[2 * (ndim - 1 - axis) + 1] = 1  # `pad` counts axes from the last
        squares.append(functional.pad(step(field, axis) / sizes[axis], padding).square().sum(1))
    length = torch.stack(squares).sum(0)
    # this form of sqrt(s + e^2) - e does not cancel for small s
    return (length / ((length + epsilon**2).sqrt() + epsilon)).flatten(1).mean(1)
