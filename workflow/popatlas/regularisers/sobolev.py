"""The Sobolev norm of velocity fields (LDDMM) by FFT on a periodic grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def _symbol(
    shape: tuple[int, ...], alpha: float, gamma: float, power: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the factors (shape of an rfftn) by which the operator multiplies the frequencies."""
    total = torch.full((), gamma, dtype=torch.float64)
    for axis, n in enumerate(shape):
        count = n // 2 + 1 if axis == len(shape) - 1 else n
        # of the second difference, not of the continuous Laplacian: the operator then equals its stencil exactly
        waves = 2 - 2 * torch.cos(2 * math.pi * torch.arange(count, dtype=torch.float64) / n)
        total = total + alpha * waves.reshape(-1, *[1] * (len(shape) - 1 - axis))
    return total.pow(power).to(dtype=dtype, device=device)


@dataclass(frozen=True)
class SobolevOperator:
    """``L = (-alpha * Laplacian + gamma) ** power``, applied to each component of a field.

    Beg et al., International Journal of Computer Vision 2005;61:139-157, doi:10.1023/B:VISI.0000043755.93987.aa.
    Self-adjoint and positive. A flow of velocities of finite ``|L v|`` is a diffeomorphism for power > 1.5.

    Attributes
    ----------
    alpha : float
        Smoothness, >= 0.
    gamma : float
        Cost of a constant velocity, > 0: the inverse multiplies it by ``gamma ** -power``.
    power : float
        Of the operator, > 0.
    shape : tuple of int
        Grid; its Laplacian is the second difference per voxel, periodic.
    """

    alpha: float
    gamma: float
    power: float
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.gamma <= 0 or self.power <= 0:
            raise ValueError(f"alpha >= 0, gamma > 0 and power > 0 are needed, not {self.alpha}, {self.gamma}, {self.power}")

    def _filtered(self, field: Tensor, exponent: int) -> Tensor:
        axes = tuple(range(2, field.ndim))
        if tuple(field.shape[2:]) != tuple(self.shape):
            raise ValueError(f"the operator is for {tuple(self.shape)}, not for {tuple(field.shape[2:])}")
        factors = _symbol(tuple(self.shape), self.alpha, self.gamma, exponent * self.power, field.dtype, field.device)
        result: Tensor = torch.fft.irfftn(torch.fft.rfftn(field, dim=axes) * factors, s=list(self.shape), dim=axes)
        return result

    def apply(self, field: Tensor) -> Tensor:
        """Return ``L v`` of a field (B, D, *shape).

        Raises
        ------
        ValueError
            When the field has another shape; so do the other methods.
        """
        return self._filtered(field, 1)

    def inverse(self, field: Tensor) -> Tensor:
        """Return ``L**-1 v`` of a field (B, D, *shape)."""
        return self._filtered(field, -1)

    def smooth(self, field: Tensor) -> Tensor:
        """Return ``L**-2 v``: turns a gradient in L2 into the gradient in the norm of this operator."""
        return self._filtered(field, -2)

    def energy(self, field: Tensor) -> Tensor:
        """Return the mean over the voxels of ``|L v|**2`` (B,), the penalty of LDDMM."""
        return self.apply(field).square().sum(1).flatten(1).mean(1)

    def norm(self, field: Tensor) -> Tensor:
        """Return the root mean square of ``L v`` (B,); minimise `energy`, whose gradient exists at zero."""
        return self.energy(field).sqrt()
