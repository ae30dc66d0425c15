"""Local normalised cross-correlation with analytic derivatives, at a cost that does not depend on the window.

The correlation of each window follows from six box sums, and each derivative from three more, because the adjoint of a box
sum is a box sum. Avants et al., Medical Image Analysis 2008;12:26-41, doi:10.1016/j.media.2007.06.004; here, when `exact`,
a voxel's derivative is the sum over all windows that hold it, which they approximate by the window around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from popatlas.images.filters import box_sum
from popatlas.settings import option, settings
from popatlas.similarity.base import Similarity, check_pair, masked_mean, spread_out
from popatlas.transforms.fieldops import CompiledForce, PlaneForce, Share, Volume

FLOOR = 1e-5
TINY = 1e-30


@dataclass(frozen=True)
class _Windows:
    """The images minus their means and, for the window of each voxel, what value and derivatives are made of."""

    images: tuple[Tensor, Tensor]
    means: tuple[Tensor, Tensor]
    slopes: tuple[Tensor, Tensor]  # covariance divided by the variance of each image
    agreement: Tensor  # the correlation, or its square
    gain: Tensor  # derivative of the agreement by the covariance, divided by the weight of the window
    weight: Tensor
    radius: int

    def value(self) -> Tensor:
        """Return the loss (B,)."""
        return -masked_mean(self.agreement, self.weight).mean(1)

    def force(self, of: int, exact: bool) -> Tensor:
        """Return the derivative (B, C, *shape) of the loss by image 0 or 1."""
        own, other = self.images[of], self.images[1 - of]
        mean, mean_other, slope = self.means[of], self.means[1 - of], self.slopes[of]
        if exact:
            gain = self.gain * self.weight
            parts = torch.cat([gain, gain * slope, gain * (slope * mean - mean_other)], dim=1)
            first, second, third = box_sum(parts, self.radius).chunk(3, dim=1)
            push = other * first - own * second + third
        else:
            push = self.gain * self._mass() * ((other - mean_other) - slope * (own - mean))
        share = self.weight / self.weight.flatten(1).sum(1).reshape(-1, *[1] * (own.ndim - 1))
        return -push * share / own.shape[1]

    def _mass(self) -> Tensor:
        return box_sum(self.weight, self.radius)


def _windows(fixed: Tensor, moving: Tensor, mask: Tensor | None, radius: int, floor: float, squared: bool) -> _Windows:
    weight = torch.ones_like(fixed[:, :1]) if mask is None else mask
    # the correlation does not change with the mean, but the rounding errors of the sums do
    means = [spread_out(masked_mean(x, mask), x) for x in (fixed, moving)]
    a, b = fixed - means[0], moving - means[1]
    wa, wb = weight * a, weight * b
    sums = box_sum(torch.cat([weight, wa, wb, wa * a, wb * b, wa * b], dim=1), radius)
    inverse = 1 / sums[:, :1].clamp(min=torch.finfo(sums.dtype).eps)
    ma, mb, aa, bb, ab = (sums[:, 1:] * inverse).chunk(5, dim=1)
    va, vb = (
        (square - mean.square()).clamp(min=0) + floor + _rounding(x, shift, mask)
        for square, mean, x, shift in ((aa, ma, a, means[0]), (bb, mb, b, means[1]))
    )
    covariance = ab - ma * mb
    slopes = (covariance / va, covariance / vb)
    if squared:
        agreement, gain = slopes[0] * slopes[1], 2 * slopes[0] / vb
    else:
        gain = (va.sqrt() * vb.sqrt()).reciprocal()
        agreement = covariance * gain
    return _Windows((a, b), (ma, mb), slopes, agreement, gain * inverse, weight, radius)


def _rounding(centred: Tensor, shift: Tensor, mask: Tensor | None) -> Tensor:
    """Return the variance (B, C, 1...) that rounding alone can give to a window."""
    eps = torch.finfo(centred.dtype).eps
    energy = spread_out(masked_mean(centred.square(), mask), centred)
    return 16 * eps * energy + (4 * eps * shift).square() + TINY


class _Kept(Protocol):
    """What torch keeps between the two passes."""

    needs_input_grad: tuple[bool, ...]
    windows: _Windows


class _Correlation(torch.autograd.Function):
    """The loss with its analytic derivatives; none by the mask."""

    @staticmethod
    def forward(
        ctx: _Kept, fixed: Tensor, moving: Tensor, mask: Tensor | None, radius: int, floor: float, squared: bool
    ) -> Tensor:
        windows = _windows(fixed, moving, mask, radius, floor, squared)
        if any(ctx.needs_input_grad[:2]):
            ctx.windows = windows
        return windows.value()

    @staticmethod
    @once_differentiable
    def backward(ctx: _Kept, slope: Tensor) -> tuple[Tensor | None, ...]:
        windows = ctx.windows
        scale = slope.reshape(-1, *[1] * (windows.weight.ndim - 1))
        forces = (windows.force(of, exact=True) * scale if ctx.needs_input_grad[of] else None for of in (0, 1))
        return (*forces, None, None, None, None)


@settings
class LNCC(Similarity):
    """Mean correlation of the windows around all voxels, with a minus sign; -1 is perfect.

    Windows are weighted by the mask inside, and each counts with the weight of its centre. Second derivatives and
    derivatives by the mask are not available. The default `floor` is for images scaled to 0..1; the loss is blind to
    intensities ``a I + b`` only as far as it is small.
    """

    radius: int = option(2, "Windows have 2 radius + 1 voxels along each axis", ge=1, le=64)
    squared: bool = option(True, "Square the correlation of each window: locally inverted contrast agrees too")
    floor: float = option(
        FLOOR,
        "Squared intensity that is added to both variances, so that windows that hold only noise neither count nor push",
        ge=0,
    )

    def compiled_force(self) -> CompiledForce | None:
        """Return the compiled force of the squared correlation; the plain one has none."""
        if not self.squared:
            return None
        from popatlas.similarity.kernels_lncc import lncc_force  # numba

        def force(fixed: Volume, moving: Volume, weight: Volume, share: Share) -> PlaneForce:
            return partial(lncc_force, fixed, moving, weight, self.radius, self.floor)

        return force

    def _compare(self, fixed: Tensor, moving: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss (B,): in [-1, 0] when squared, else in [-1, 1]; 0 when an image is constant."""
        value: Tensor = _Correlation.apply(fixed, moving, weight, self.radius, self.floor, self.squared)  # type: ignore[no-untyped-call]
        return value


@torch.no_grad()
def lncc_value_and_force(
    fixed: Tensor,
    moving: Tensor,
    radius: int,
    mask: Tensor | None = None,
    exact: bool = True,
    *,
    squared: bool = True,
    floor: float = FLOOR,
) -> tuple[Tensor, Tensor]:
    """Return the loss of `LNCC` and its derivative by the moving image, without autograd.

    Parameters
    ----------
    fixed, moving : (B, C, *shape) Tensor
        Images on one grid.
    radius, squared, floor : int, bool, float
        As in `LNCC`.
    mask : (B or 1, 1, *shape) Tensor, optional
        Voxels that count, or their weights.
    exact : bool
        Sum over all windows that hold a voxel (what autograd gives). Otherwise take the window around it for all of them, as
        Avants et al. do: three box sums fewer, nearly the same direction.

    Returns
    -------
    (B,) Tensor
        The loss.
    (B, C, *shape) Tensor
        Its derivative by `moving`.

    Raises
    ------
    ValueError
        From `check_pair`: shapes that do not fit, an empty mask.
    """
    windows = _windows(fixed, moving, check_pair(fixed, moving, mask), radius, floor, squared)
    return windows.value(), windows.force(1, exact)
