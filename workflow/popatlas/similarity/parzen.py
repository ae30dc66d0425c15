"""Joint histograms with B-spline Parzen windows and the entropies that information measures are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SAMPLE = (
    200_003  # voxels from which percentiles are taken; a prime, so that the steps do not stay on some planes of an image
)


@dataclass(frozen=True)
class Axis:
    """How intensities become positions on one axis of a histogram.

    Attributes
    ----------
    bins : int
        Bins of the axis.
    order : int
        Order of the B-spline window: 0 (plain counting, no derivative), 1 or 3.
    first : int
        Position of the lowest intensity, in bins.
    cells : int
        Bin widths between the lowest and the highest intensity.
    """

    bins: int
    order: int
    first: int
    cells: int

    def __post_init__(self) -> None:
        if self.cells < 1:
            raise ValueError(f"{self.bins} bins are too few for windows of order {self.order}")

    def positions(self, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Map intensities (N, V) from [low, high], (N,) each, to the axis; others to its ends, a constant to its start."""
        width = (high - low).unsqueeze(1)
        scale = torch.where(width > 0, self.cells / torch.where(width > 0, width, 1.0), 0.0)
        return self.first + ((values - low.unsqueeze(1)) * scale).clamp(0, self.cells)


def tight_axis(bins: int, order: int) -> Axis:
    """Return an axis on which the windows just fit: with order 1, the extremes lie on the centres of the outer bins."""
    try:
        first, lost = {0: (0, 0), 1: (0, 1), 3: (1, 3)}[order]
    except KeyError:
        raise ValueError(f"window order {order} is none of 0, 1, 3") from None
    return Axis(bins, order, first, bins - lost)


def window(position: Tensor, axis: Axis) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the B-spline window of each position.

    Parameters
    ----------
    position : Tensor
        In bins.
    axis : Axis
        The axis.

    Returns
    -------
    Tensor
        Number of the first bin that the window reaches (int64).
    list of Tensor
        Weight of that bin and of those after it; the weights sum to 1.
    list of Tensor
        Their derivatives by the position.
    """
    lower = position.floor().clamp(axis.first, axis.first + axis.cells - 1)
    t = position - lower
    if axis.order == 0:
        return lower.long(), [torch.ones_like(t)], [torch.zeros_like(t)]
    if axis.order == 1:
        return lower.long(), [1 - t, t], [-torch.ones_like(t), torch.ones_like(t)]
    s = 1 - t
    weights = [s**3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (3 * s**3 - 6 * s**2 + 4) / 6, t**3 / 6]
    slopes = [-(s**2) / 2, 1.5 * t**2 - 2 * t, 2 * s - 1.5 * s**2, t**2 / 2]
    return lower.long() - 1, weights, slopes


class _Kept(Protocol):
    """What torch keeps between the two passes."""

    saved_tensors: tuple[Tensor, ...]
    axes: tuple[Axis, Axis]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _JointHistogram(torch.autograd.Function):
    """The histogram and its derivatives by the positions; only the positions are kept between the two passes."""

    @staticmethod
    def forward(ctx: _Kept, fixed: Tensor, moving: Tensor, weight: Tensor, axes: tuple[Axis, Axis]) -> Tensor:
        ctx.save_for_backward(fixed, moving, weight)
        ctx.axes = axes
        count, cells = fixed.shape[0], axes[0].bins * axes[1].bins
        joint = torch.zeros(count * cells, dtype=torch.float64, device=fixed.device)
        for index, first, second, _, _ in _entries(fixed, moving, axes):
            joint += torch.bincount(index.flatten(), (first * second * weight).flatten().double(), minlength=count * cells)
        joint = joint.reshape(count, axes[0].bins, axes[1].bins)
        return joint / weight.double().sum(1).reshape(-1, 1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Kept, slope: Tensor) -> tuple[Tensor | None, ...]:
        fixed, moving, weight = ctx.saved_tensors
        flat = (slope / weight.double().sum(1).reshape(-1, 1, 1)).to(fixed.dtype).flatten()
        forces = [torch.zeros_like(fixed), torch.zeros_like(moving)]
        for index, first, second, first_slope, second_slope in _entries(fixed, moving, ctx.axes):
            pull = flat[index] * weight
            forces[0] += pull * first_slope * second
            forces[1] += pull * first * second_slope
        return forces[0], forces[1], None, None


def _entries(
    fixed: Tensor, moving: Tensor, axes: tuple[Axis, Axis]
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Yield, for each pair of bins under the two windows, their flat index, both weights and both derivatives."""
    rows, row_weights, row_slopes = window(fixed, axes[0])
    columns, column_weights, column_slopes = window(moving, axes[1])
    item = torch.arange(fixed.shape[0], device=fixed.device).unsqueeze(1)
    corner = (item * axes[0].bins + rows) * axes[1].bins + columns
    for i, (first, first_slope) in enumerate(zip(row_weights, row_slopes, strict=True)):
        for j, (second, second_slope) in enumerate(zip(column_weights, column_slopes, strict=True)):
            yield corner + i * axes[1].bins + j, first, second, first_slope, second_slope


def joint_histogram(fixed: Tensor, moving: Tensor, weight: Tensor, axes: tuple[Axis, Axis]) -> Tensor:
    """Return the joint distribution of two sets of positions.

    Parameters
    ----------
    fixed, moving : (N, V) Tensor
        Positions on the two axes, from `Axis.positions`.
    weight : (N, V) Tensor
        Weight of each pair; no derivative is taken by it.
    axes : pair of Axis
        Axes of `fixed` (rows) and `moving` (columns).

    Returns
    -------
    (N, bins of fixed, bins of moving) Tensor
        Sums to 1; float64, because millions of small weights are added.
    """
    joint: Tensor = _JointHistogram.apply(fixed, moving, weight, axes)  # type: ignore[no-untyped-call]
    return joint


def entropy(distribution: Tensor, floor: Tensor | float) -> Tensor:
    """Return the entropy in nats of (N, ...) distributions.

    The logarithm of a probability below `floor` is that of `floor`: an empty bin adds nothing to the entropy, and its
    derivative is finite. (Adding `floor` to the probability itself would give each of thousands of empty bins a weight.)
    """
    flat = distribution.flatten(1)
    low = floor.reshape(-1, 1) if isinstance(floor, Tensor) else floor
    return -(flat * torch.maximum(flat, torch.as_tensor(low, dtype=flat.dtype, device=flat.device)).log()).sum(1)


@torch.no_grad()
def intensity_range(values: Tensor, weight: Tensor, percentiles: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return two percentiles of the intensities that have weight.

    Parameters
    ----------
    values, weight : (N, V) Tensor
        Intensities and weights.
    percentiles : pair of float
        From 0 to 100; (0, 100) is the exact range, others come from a regular sample of `SAMPLE` voxels.

    Returns
    -------
    tuple of (N,) Tensor
        Low and high.
    """
    inside = weight > 0
    if percentiles == (0.0, 100.0):
        low = torch.where(inside, values, torch.inf).amin(1)
        return low, torch.where(inside, values, -torch.inf).amax(1)
    levels = torch.tensor(percentiles, dtype=values.dtype, device=values.device) / 100
    pairs = [torch.quantile(_sample(row[chosen]), levels) for row, chosen in zip(values, inside, strict=True)]
    low, high = torch.stack(pairs, dim=1)
    return low, high


def _sample(values: Tensor) -> Tensor:
    """Return at most `SAMPLE` of the values, evenly spread."""
    if len(values) <= SAMPLE:
        return values
    return values[torch.linspace(0, len(values) - 1, SAMPLE, dtype=torch.float64, device=values.device).long()]
