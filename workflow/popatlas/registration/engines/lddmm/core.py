"""Registration by flows: velocities that change with time, whose energy is that of LDDMM.

The objective is ``similarity(fixed, moving(phi)) + weight * E(v)``, ``phi`` being the flow of the velocities ``v_t`` and
``E`` the mean over time and voxels of ``|L v|**2`` (Beg et al., 2005, doi:10.1023/B:VISI.0000043755.93987.aa). The slope of
the similarity is turned into that in the norm of ``L``, which smooths it. All velocities go one step of a fixed length along
it, half of it when nothing gets better. Velocities are those of a point that flows: they are read where it has come to.
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
from popatlas.registration.engines.io import between_voxels, write_fields
from popatlas.registration.engines.lddmm.settings import LDDMMSettings
from popatlas.registration.engines.levels import ImageLevel, Images
from popatlas.registration.types import Attempt, Deformation, settings_of
from popatlas.regularisers.sobolev import SobolevOperator
from popatlas.similarity.base import Similarity
from popatlas.similarity.combined import NMIMIND
from popatlas.similarity.registry import make
from popatlas.transforms.fields import invert, resize_field
from popatlas.transforms.velocity import integrate_stationary, integrate_time_varying

if TYPE_CHECKING:
    from popatlas.registration.pair import Pair

POWER, GAMMA = 2.0, 1.0  # of the operator: in 3D flows are diffeomorphic for powers above 1.75
SQUARINGS = 5  # of a stationary flow
PATIENCE = 3  # iterations without a lower loss before the step is halved
LEAST = 1 / 8  # of the step: with a shorter one a level has converged
WINDOW = 8  # iterations over which an improvement is measured


@dataclass(frozen=True)
class FlowResult:
    """What the engine found.

    Attributes
    ----------
    displacement : (B, D, *shape) Tensor
        Voxels of the fixed grid: a fixed point ``x`` goes to ``matrix (x + u(x))``.
    velocities : (T, B, D, *level shape) Tensor
        Of the last level, voxels of it, each multiplied by its time step.
    history : tuple of tuple of float
        Losses of each level, summed over the batch.
    diverged : bool
        A loss became infinite; the flow is the best one before that.
    """

    displacement: Tensor
    velocities: Tensor
    history: tuple[tuple[float, ...], ...]
    diverged: bool


def register(
    fixed: Tensor,
    moving: Tensor,
    settings: LDDMMSettings | None = None,
    *,
    matrix: Tensor | None = None,
    fixed_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
    subject: str | None = None,
) -> FlowResult:
    """Register a batch of pairs by flows.

    Parameters
    ----------
    fixed, moving : (B, C, *shape) Tensor
        Images of 2 or 3 axes, each in its own grid.
    settings : LDDMMSettings, optional
        What to do.
    matrix : (B, D, D + 1) Tensor, optional
        From voxels of `fixed` to voxels of `moving`; the identity when left out.
    fixed_mask, moving_mask : (B, 1, *shape) Tensor, optional
        Only voxels above 0 in both count.
    subject : str, optional
        Named in errors.

    Raises
    ------
    InputError
        From `Images.checked`.
    """
    images = Images.checked(fixed, moving, matrix, fixed_mask, moving_mask, subject)
    plan = settings or LDDMMSettings()
    similarity = make(plan.similarity, **plan.options)
    if isinstance(similarity, NMIMIND):
        similarity.reset()
    velocities, history, diverged = None, [], False
    for factor, iterations in zip(plan.shrink, plan.iterations, strict=True):
        level = _Level(images, factor, plan, similarity)
        velocities, losses = _descend(level, level.refined(velocities), iterations)
        history.append(losses)
        diverged |= bool(losses) and not math.isfinite(losses[-1])
    assert velocities is not None
    return FlowResult(resize_field(flow(velocities), fixed.shape[2:]), velocities, tuple(history), diverged)


def flow(velocities: Tensor) -> Tensor:
    """Return the displacement (B, D, *shape) of velocities (T, B, D, *shape)."""
    if len(velocities) == 1:
        return integrate_stationary(velocities[0], SQUARINGS)
    return integrate_time_varying(velocities)


def deform_lddmm(pair: Pair, attempt: Attempt, affine: Path, folder: Path, threads: int) -> Deformation:
    """Run the engine from an affine; see `popatlas.registration.engines.engine.Deform`. `threads` is that of torch."""
    fixed, moving = pair.scans()
    check_scans(fixed, moving, pair.subject)
    result = register(
        rescaled(fixed.image),
        rescaled(moving.image),
        settings_of(attempt, LDDMMSettings),
        matrix=between_voxels(affine, fixed.grid, moving.grid),
        fixed_mask=fixed.mask,
        moving_mask=moving.mask,
    )
    forward = result.displacement
    return write_fields(forward, invert(forward), fixed.grid, folder, diverged=result.diverged)


class _Level(ImageLevel):
    """Images, operator and objective of one level."""

    def __init__(self, images: Images, factor: int, plan: LDDMMSettings, similarity: Similarity) -> None:
        super().__init__(images, factor, similarity)
        self.plan = plan
        self.operator = SobolevOperator(plan.alpha, GAMMA, POWER, tuple(self.shape))

    def refined(self, coarser: Tensor | None) -> Tensor:
        """Return the velocities of a coarser level on this one, at first zero."""
        batch, ndim = self.fixed.shape[0], len(self.shape)
        if coarser is None:
            return self.fixed.new_zeros(self.plan.velocities, batch, ndim, *self.shape)
        return torch.stack([resize_field(velocity, self.shape) for velocity in coarser])

    def loss(self, velocities: Tensor) -> tuple[Tensor, Tensor]:
        """Return the similarity and the energy of each pair (B,)."""
        energies = torch.stack([self.operator.energy(velocity) for velocity in velocities])
        return self.compare(flow(velocities)), len(velocities) * energies.sum(0)

    def direction(self, velocities: Tensor, slope: Tensor) -> Tensor:
        """Return the descent in the norm of the operator for the slope of the similarity, longest vector 1 for each pair."""
        voxels = math.prod(self.shape)  # the energy is a mean over them
        smoothed = torch.stack([self.operator.smooth(part) for part in slope])
        step = -(voxels * smoothed + 2 * self.plan.weight * len(velocities) * velocities)
        longest = step.sum(0).norm(dim=1).flatten(1).amax(1)
        direction: Tensor = step / longest.clamp(min=1e-12).reshape(1, -1, *[1] * (step.ndim - 2))
        return direction


def _descend(level: _Level, start: Tensor, iterations: int) -> tuple[Tensor, tuple[float, ...]]:
    """Go down from some velocities; return the best ones for each pair and the losses."""
    batch, axes = start.shape[1], [1] * (start.ndim - 2)
    best, current = start, start
    lowest, waited = start.new_full((batch,), math.inf), torch.zeros(batch, dtype=torch.long)
    length = start.new_full((batch,), level.plan.step)
    losses: list[float] = []
    sums: list[float] = []  # of the lowest losses so far
    for _ in range(iterations):
        leaf = current.detach().requires_grad_()
        similarity, energy = level.loss(leaf)
        loss = (similarity + level.plan.weight * energy).detach()
        losses.append(float(loss.sum()))
        if not math.isfinite(losses[-1]):
            break
        better = loss < lowest
        best = torch.where(better.reshape(1, -1, *axes), leaf.detach(), best)
        lowest = torch.where(better, loss, lowest)
        waited = torch.where(better, 0, waited + 1)
        tired = waited >= PATIENCE
        length, waited = torch.where(tired, length / 2, length), torch.where(tired, 0, waited)
        sums.append(float(lowest.sum()))
        flat = len(sums) > WINDOW and sums[-1 - WINDOW] - sums[-1] < level.plan.tolerance * batch
        if flat or bool((length < LEAST * level.plan.step).all()):
            break
        slope = torch.autograd.grad(similarity.sum(), leaf)[0]
        step = length.reshape(1, -1, *axes) * level.direction(leaf.detach(), slope)
        # who waits too long goes on from the best
        current = torch.where(tired.reshape(1, -1, *axes), best, leaf.detach() + step)
    return best, tuple(losses)
