"""NMI and MIND in one loss, with three ways to bring them to one scale.

NMI sees the intensities of the whole image, MIND the structure around each voxel; their values and slopes differ by orders
of magnitude, so that a weight means little before the two are balanced.

Tanner et al., arXiv:1807.07349 (2018); there MIND is summed over the voxels, here it is their mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from popatlas.settings import option, settings
from popatlas.similarity.base import Similarity, quotient
from popatlas.similarity.mi import NMI
from popatlas.similarity.mind import MIND

LARGEST_FACTOR = 10.0  # by which one update may change the scale: a measure that has not moved yet says nothing


def gradient_scale(first: Tensor, second: Tensor, by: Tensor) -> Tensor:
    """Return the factor of the second loss that gives both gradients the same length.

    Parameters
    ----------
    first, second : (B,) Tensor
        Losses whose graph holds `by`.
    by : (B, ...) Tensor
        What is optimised: the moving image, a displacement, control points.

    Returns
    -------
    (B,) Tensor
        ``|d first / d by| / |d second / d by|``; 1 where either is zero.
    """
    lengths = [torch.autograd.grad(loss.sum(), by, retain_graph=True)[0].flatten(1).norm(dim=1) for loss in (first, second)]
    return _ratio(lengths[0], lengths[1], torch.ones_like(lengths[0]))


def change_scale(first: Tensor, second: Tensor, otherwise: Tensor) -> Tensor:
    """Return the factor of the second loss that makes both count the same for what they have changed.

    Parameters
    ----------
    first, second : (B,) Tensor
        Change of each loss so far.
    otherwise : (B,) Tensor
        The factor in use: kept where either has not changed, and left by at most `LARGEST_FACTOR`.

    Returns
    -------
    (B,) Tensor
        ``|first| / |second|``.
    """
    scale = _ratio(first.abs(), second.abs(), otherwise)
    return torch.minimum(torch.maximum(scale, otherwise / LARGEST_FACTOR), otherwise * LARGEST_FACTOR)


def _ratio(first: Tensor, second: Tensor, otherwise: Tensor) -> Tensor:
    return torch.where((first > 0) & (second > 0), quotient(first, second), otherwise)


@dataclass
class _Balance:
    """Scale in use and since when.

    Attributes
    ----------
    shape : tuple of int
        Of the images of the last call.
    scale, offset : (B,) Tensor
        Factor and summand of MIND.
    start : pair of (B,) Tensor
        Both measures at the first call with this shape.
    calls : int
        Calls with this shape.
    """

    shape: tuple[int, ...] = ()
    scale: Tensor = field(default_factory=lambda: torch.ones(0))
    offset: Tensor = field(default_factory=lambda: torch.zeros(0))
    start: tuple[Tensor, Tensor] = field(default_factory=lambda: (torch.zeros(0), torch.zeros(0)))
    calls: int = 0


@settings
class NMIMIND(Similarity):
    """``beta * NMI + (1 - beta) * scale * MIND``.

    An object remembers its scale: use a new one, or `reset`, for a new registration. Images of a new shape are a new level
    of resolution.

    How the scale is chosen (`strategy`): "fixed", it is `scale`; "gradients", both gradients by the moving image have the
    same length at the first call of each level, for each pair of a batch; "change", so at the first call, and then it is
    set, every `period` calls, to what makes both count the same for their change since the level began; a summand keeps the
    loss continuous.
    """

    beta: float = option(0.5, "Weight of NMI", ge=0, le=1)
    strategy: Literal["fixed", "gradients", "change"] = option("gradients", "How the scale of MIND is chosen")
    scale: float = option(1.0, "Scale of MIND, for the strategy fixed", gt=0)
    period: int = option(10, "Calls between changes of the scale, for the strategy change", ge=1)
    nmi: NMI = option(NMI(), "Options of the normalised mutual information")
    mind: MIND = option(MIND(), "Options of the descriptors")
    if TYPE_CHECKING:  # what an object remembers is no option
        _balance: _Balance = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the scale, for a new registration."""
        object.__setattr__(self, "_balance", _Balance())

    def _compare(self, fixed: Tensor, moving: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss (B,): the combined loss."""
        first, second = self.nmi(fixed, moving, weight), self.mind(fixed, moving, weight)
        if self.strategy == "fixed":
            return self.beta * first + (1 - self.beta) * self.scale * second
        self._update(fixed, moving, weight, first.detach(), second.detach())
        return self.beta * first + (1 - self.beta) * (self._balance.scale * second + self._balance.offset)

    def _update(self, fixed: Tensor, moving: Tensor, mask: Tensor | None, first: Tensor, second: Tensor) -> None:
        state = self._balance
        if state.shape != tuple(fixed.shape):
            # "change" carries its scale from level to level, unless the batch is another one
            if self.strategy == "gradients" or len(state.scale) != len(first):
                state.scale = self._gradient_scale(fixed, moving, mask)
            state.shape, state.start, state.offset, state.calls = (
                tuple(fixed.shape),
                (first, second),
                torch.zeros_like(first),
                0,
            )
        elif self.strategy == "change" and state.calls % self.period == 0:
            scale = change_scale(first - state.start[0], second - state.start[1], state.scale)
            state.offset = state.offset + (state.scale - scale) * second
            state.scale = scale
        state.calls += 1

    def _gradient_scale(self, fixed: Tensor, moving: Tensor, mask: Tensor | None) -> Tensor:
        with torch.enable_grad():
            leaf = moving.detach().requires_grad_()
            return gradient_scale(self.nmi(fixed.detach(), leaf, mask), self.mind(fixed.detach(), leaf, mask), leaf)
