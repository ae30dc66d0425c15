"""What all similarities share: the checks of their arguments and means over a mask.

Conventions of this package: images are (B, C, *shape) tensors with 2 or 3 spatial axes; a mask is (B or 1, 1, *shape),
boolean or weights >= 0; a loss is a (B,) tensor and **lower is better**. Measures of agreement (NCC, LNCC, NGF, MI, NMI,
Dice) enter with a minus sign, so that their loss is negative; measures of disagreement (SSD, MIND) as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from popatlas.transforms.fieldops import CompiledForce


class Similarity(ABC):
    """A loss with its parameters."""

    def __call__(self, fixed: Tensor, moving: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compare images.

        Parameters
        ----------
        fixed, moving : (B, C, *shape) Tensor
            Images on one grid; for `MultiscaleDice` one map for each label, 0 to 1.
        mask : (B or 1, 1, *shape) Tensor, optional
            Voxels that count, or their weights; no derivative is taken by them. Gradients and descriptors at its border use
            the voxels beside it.

        Returns
        -------
        (B,) Tensor
            One number for each pair, averaged over the channels; lower is better.

        Raises
        ------
        ValueError
            From `check_pair`: shapes that do not fit, an empty mask.
        """
        return self._compare(fixed, moving, check_pair(fixed, moving, mask))

    def compiled_force(self) -> CompiledForce | None:
        """Return the compiled force on volumes of one channel, where this loss has one."""
        return None

    @abstractmethod
    def _compare(self, fixed: Tensor, moving: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss (B,) of arguments that have been checked."""


def check_pair(fixed: Tensor, moving: Tensor, mask: Tensor | None) -> Tensor | None:
    """Check the arguments of a similarity.

    Parameters
    ----------
    fixed, moving : (B, C, *shape) Tensor
        Floating point, 2 or 3 spatial axes.
    mask : (B or 1, 1, *shape) Tensor or None
        Boolean or weights.

    Returns
    -------
    (B, 1, *shape) Tensor or None
        The mask in the type of the images, expanded to the batch.

    Raises
    ------
    ValueError
        When shapes or types do not fit, or a mask has no voxel.
    """
    if fixed.ndim not in (4, 5) or fixed.shape != moving.shape:
        raise ValueError(
            f"images must both be (B, C, *shape) of 2 or 3 axes, not {tuple(fixed.shape)}, {tuple(moving.shape)}"
        )
    if not (fixed.is_floating_point() and moving.is_floating_point()):
        raise ValueError(f"images must be floating point, not {fixed.dtype} and {moving.dtype}")
    if mask is None:
        return None
    batch, shape = fixed.shape[0], fixed.shape[2:]
    if mask.ndim != fixed.ndim or mask.shape[0] not in (1, batch) or mask.shape[1] != 1 or mask.shape[2:] != shape:
        raise ValueError(f"mask {tuple(mask.shape)} does not fit images {tuple(fixed.shape)}")
    empty = mask.flatten(1).sum(1) <= 0
    if bool(empty.any()):
        raise ValueError(f"empty mask: no voxel to compare in item {int(empty.nonzero()[0, 0])} of the batch")
    return mask.to(fixed.dtype).expand(batch, -1, *shape)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Average values over the voxels of a mask.

    Parameters
    ----------
    values : (B, C, *shape) Tensor
        One number for each voxel and channel.
    mask : (B, 1, *shape) Tensor or None
        Weights, as `check_pair` returns them.

    Returns
    -------
    (B, C) Tensor
        Weighted mean of each channel.
    """
    if mask is None:
        return values.flatten(2).mean(2)
    return (values * mask).flatten(2).sum(2) / mask.flatten(2).sum(2)


def spread_out(values: Tensor, like: Tensor) -> Tensor:
    """Give (B, C) numbers trailing axes, so that they broadcast over the voxels of `like`."""
    return values.reshape(*values.shape, *[1] * (like.ndim - values.ndim))


def quotient(numerator: Tensor, denominator: Tensor, undefined: float = 0.0) -> Tensor:
    """Divide, with a defined value and zero gradient where the denominator is not positive."""
    valid = denominator > 0
    safe = torch.where(valid, denominator, torch.ones_like(denominator))
    return torch.where(valid, numerator / safe, torch.full_like(numerator, undefined))
