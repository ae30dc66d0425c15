"""Control-point registration: a lattice of displacements, any similarity, L2 or total variation.

The objective is ``similarity(fixed, moving(x + d(k))) + weight * R(k) + folding * F(d(k))`` over the displacements `k` of
the control points, F being the depth of the folds, as in the NMI+MIND registration of CT and MR: total variation lets organs
slide along each other where squares blur the border. The control points of each level are a fixed number of its voxels
apart, so that they become denser as the images do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from popatlas.images.intensity import rescaled
from popatlas.images.scan import check_scans
from popatlas.registration.engines.ffd.settings import FLOOR, FFDSettings
from popatlas.registration.engines.io import between_voxels, write_fields
from popatlas.registration.engines.levels import ImageLevel, Images
from popatlas.registration.types import Attempt, Deformation, settings_of
from popatlas.regularisers.folding import folding_penalty
from popatlas.regularisers.registry import find_regulariser
from popatlas.similarity.base import Similarity
from popatlas.similarity.combined import NMIMIND
from popatlas.similarity.registry import make
from popatlas.transforms.ffd import control_shape, dense_from_control
from popatlas.transforms.fields import coordinates, invert, resize_field, sample

if TYPE_CHECKING:
    from popatlas.registration.pair import Pair


@dataclass(frozen=True)
class Stop:
    """A level ends when the best loss of the last `window` iterations is less than `tolerance` below the best before."""

    window: int = 10
    tolerance: float = 1e-4


@dataclass(frozen=True)
class FFDResult:
    """What the engine found.

    Attributes
    ----------
    displacement : (B, D, *shape) Tensor
        Voxels of the fixed grid: a fixed point ``x`` goes to ``matrix (x + u(x))``.
    history : tuple of tuple of float
        Losses of each level, summed over the batch.
    converged : bool
        The last level ended because its loss no longer fell.
    diverged : bool
        A loss became infinite; the displacement is the best one before that.
    """

    displacement: Tensor
    history: tuple[tuple[float, ...], ...]
    converged: bool
    diverged: bool


def register(
    fixed: Tensor,
    moving: Tensor,
    settings: FFDSettings | None = None,
    *,
    matrix: Tensor | None = None,
    fixed_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
    similarity: Similarity | None = None,
    stop: Stop | None = None,
    subject: str | None = None,
) -> FFDResult:
    """Register a batch of pairs by control points.

    Parameters
    ----------
    fixed, moving : (B, C, *shape) Tensor
        Images of 2 or 3 axes, each in its own grid.
    settings : FFDSettings, optional
        What to do.
    matrix : (B, D, D + 1) Tensor, optional
        From voxels of `fixed` to voxels of `moving`; the identity when left out.
    fixed_mask, moving_mask : (B, 1, *shape) Tensor, optional
        Only voxels above 0 in both count.
    similarity : Similarity, optional
        Instead of the one that the settings name.
    stop : Stop, optional
        When a level ends.
    subject : str, optional
        Named in errors.

    Returns
    -------
    FFDResult
        Displacement on the fixed grid.

    Raises
    ------
    InputError
        From `check_pair`, and for images of different shapes without a matrix.
    """
    images = Images.checked(fixed, moving, matrix, fixed_mask, moving_mask, subject)
    plan = settings or FFDSettings()
    loss = similarity or make(plan.similarity, **plan.options)
    if isinstance(loss, NMIMIND):
        loss.reset()
    runs: list[_Run] = []
    level: _Level | None = None
    control = torch.zeros(0)
    for factor, iterations in zip(plan.shrink, plan.iterations, strict=True):
        finer = _Level(images, factor, plan, loss)
        start = finer.zero() if level is None else finer.refined(control, level)
        level = finer
        runs.append(_optimise(level, start, iterations, plan.rate, stop or Stop()))
        control = runs[-1].control
    assert level is not None
    return FFDResult(
        displacement=resize_field(level.dense(control), fixed.shape[2:]),
        history=tuple(run.losses for run in runs),
        converged=runs[-1].converged,
        diverged=any(run.diverged for run in runs),
    )


def deform_ffd(pair: Pair, attempt: Attempt, affine: Path, folder: Path, threads: int) -> Deformation:
    """Run the free-form engine from an affine; `threads` is that of torch.

    Parameters
    ----------
    pair : Pair
        Images.
    attempt : Attempt
        With `FFDSettings`.
    affine : Path
        Affine, fixed to moving points.
    folder : Path
        Existing folder for the fields.
    threads : int
        Not used: torch's number of threads is set by the step.
    """
    fixed, moving = pair.scans()
    check_scans(fixed, moving, pair.subject)
    result = register(
        rescaled(fixed.image),
        rescaled(moving.image),
        settings_of(attempt, FFDSettings),
        matrix=between_voxels(affine, fixed.grid, moving.grid),
        fixed_mask=fixed.mask,
        moving_mask=moving.mask,
    )
    forward = result.displacement.detach()
    return write_fields(forward, invert(forward), fixed.grid, folder, diverged=result.diverged)


class _Level(ImageLevel):
    """Images, lattice and objective of one level."""

    def __init__(self, images: Images, factor: int, plan: FFDSettings, similarity: Similarity) -> None:
        super().__init__(images, factor, similarity)
        self.plan = plan
        self.regulariser = find_regulariser(plan.regulariser)

    def zero(self) -> Tensor:
        """Return control points that do not move."""
        shape = control_shape(self.shape, self.plan.spacing)
        return self.fixed.new_zeros(len(self.fixed), len(shape), *shape)

    def dense(self, control: Tensor) -> Tensor:
        """Return the displacement in voxels of the level."""
        return dense_from_control(control, self.shape, self.plan.spacing, self.plan.kind)

    def refined(self, control: Tensor, coarser: _Level) -> Tensor:
        """Return the control points of this level that move about as those of a coarser one do."""
        ratio = coarser.fixed_scale / self.fixed_scale
        empty = self.zero()
        points = coordinates(empty.shape[2:], device=empty.device, dtype=empty.dtype)
        return ratio * sample(control, (points - 1) / ratio + 1)

    def loss(self, control: Tensor) -> Tensor:
        """Return the objective of each pair (B,)."""
        displacement = self.dense(control)
        value = self.compare(displacement) + self.plan.weight * self.regulariser(control / self.plan.spacing)
        return value + self.plan.folding * folding_penalty(displacement, FLOOR) if self.plan.folding else value


@dataclass(frozen=True)
class _Run:
    control: Tensor
    losses: tuple[float, ...]
    converged: bool
    diverged: bool


def _optimise(level: _Level, start: Tensor, iterations: int, rate: float, stop: Stop) -> _Run:
    """Minimise from `start` by Adam; the best control points are returned."""
    control = start.detach().clone().requires_grad_()
    # gradients of means over large images are tiny: the usual 1e-8 would slow them down
    optimiser = torch.optim.Adam([control], lr=rate, eps=1e-12)
    best, lowest = start, torch.full_like(start.flatten(1)[:, 0], math.inf)
    losses: list[float] = []
    sums: list[float] = []  # of the lowest losses so far
    for _ in range(iterations):
        loss = level.loss(control)
        losses.append(float(loss.detach().sum()))
        if not math.isfinite(losses[-1]):
            return _Run(best, tuple(losses), converged=False, diverged=True)
        better = loss.detach() < lowest
        best = torch.where(better.reshape(-1, *[1] * (start.ndim - 1)), control.detach(), best)
        lowest = torch.where(better, loss.detach(), lowest)
        sums.append(float(lowest.sum()))
        if len(sums) > stop.window and sums[-1 - stop.window] - sums[-1] < stop.tolerance * len(start):
            return _Run(best, tuple(losses), converged=True, diverged=False)
        optimiser.zero_grad()
        torch.autograd.backward(loss.sum())
        optimiser.step()
    return _Run(best, tuple(losses), converged=False, diverged=False)
