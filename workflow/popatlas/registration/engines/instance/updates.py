"""The loop of the instance engine: one resolution level after the other, by compositive updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popatlas.similarity.overlap import MultiscaleDice
from popatlas.transforms.fieldops import Loss, TensorOps, coarse_shape, double

PATIENCE = 3  # iterations without a better loss before the step is halved


@dataclass(frozen=True)
class Level:
    """Images of one resolution.

    Attributes
    ----------
    fixed, moving : (B, 1, *shape) Tensor
        Images; the moving image has its own grid.
    fixed_mask, moving_mask : (B, 1, *shape) Tensor or None
        Weights of the voxels, 0 to 1.
    fixed_labels, moving_labels : (B, L, *shape) Tensor or None
        One map for each label, 0 to 1.
    matrix, mask_matrix : (B, D, D + 1) Tensor
        From voxels of `fixed` to voxels of `moving` and of `moving_mask`, which has a border of zeros.
    shrink : int
        Voxels of the full fixed grid along each axis of a voxel.
    field_shrink : int
        Voxels of `fixed` along each axis of a voxel of the field.
    iterations : int
        Most iterations.
    """

    fixed: Tensor
    moving: Tensor
    fixed_mask: Tensor | None
    moving_mask: Tensor | None
    fixed_labels: Tensor | None
    moving_labels: Tensor | None
    matrix: Tensor
    mask_matrix: Tensor
    shrink: int
    field_shrink: int
    iterations: int

    @property
    def field_shape(self) -> tuple[int, ...]:
        """Shape of the field grid."""
        return coarse_shape(self.fixed.shape[2:], self.field_shrink)


@dataclass(frozen=True)
class Halves:
    """The two halves of a map, both on the field grid of the middle; `to_fixed` stays zero in the plain variant."""

    to_fixed: Tensor
    to_moving: Tensor

    def refined(self, shape: Sequence[int]) -> Halves:
        """Return the halves on a grid of `shape`, the same or twice as fine."""
        if tuple(self.to_moving.shape[2:]) == tuple(shape):
            return self
        return Halves(double(self.to_fixed, shape), double(self.to_moving, shape))


@dataclass(frozen=True)
class Terms:
    """What is optimised: similarity of the images, Dice of the labels that a level has, landmarks, with their weights."""

    image: Loss
    landmarks: Landmarks | None = None
    label_weight: float = 0.5
    landmark_weight: float = 0.5


@dataclass(frozen=True)
class Step:
    """Sizes of an update; see `popatlas.registration.engines.instance.core.Settings`."""

    length: float
    fluid: float
    elastic: float
    bulk: float
    symmetric: bool


@dataclass(frozen=True)
class Stop:
    """When a level ends; see `popatlas.registration.engines.instance.core.Settings`."""

    window: int
    tolerance: float

    def reason(self, losses: Sequence[float]) -> str | None:
        """Return "diverged" (the loss is not finite), "converged" or None."""
        if not math.isfinite(losses[-1]):
            return "diverged"
        n = self.window
        if len(losses) >= 2 * n and sum(losses[-2 * n : -n]) / n - sum(losses[-n:]) / n < self.tolerance:
            return "converged"
        return None


@dataclass(frozen=True)
class LevelReport:
    """What a level did for each pair of the batch.

    Attributes
    ----------
    shrink : int
        Resolution.
    losses : list of list of float
        Loss of each iteration of each pair.
    stopped : list of str
        Why the level ended for each pair: converged, iterations or diverged.
    """

    shrink: int
    losses: list[list[float]]
    stopped: list[str]

    def __str__(self) -> str:
        pairs = zip(self.losses, self.stopped, strict=True)
        changes = (f"loss {one[0]:.4f} -> {one[-1]:.4f}, {len(one)} iterations, {why}" for one, why in pairs if one)
        return f"shrink {self.shrink}: {'; '.join(changes) or 'no iteration'}"


def run_level(
    level: Level, halves: Halves, terms: Terms, step: Step, stop: Stop, ops: TensorOps
) -> tuple[Halves, LevelReport]:
    """Improve the halves at one resolution and return the best that were seen, for each pair on its own.

    Steps have a fixed length, so near the optimum they jump over it: after `PATIENCE` iterations without a better loss a
    pair goes back to its best halves and takes half the step; it has converged when the step is down to a sixteenth. A pair
    that has ended stays as it is while the others of its batch go on.
    """
    halves = halves.refined(level.field_shape)
    batch = halves.to_moving.shape[0]
    searches = [Search(step.length, stop) for _ in range(batch)]
    best = halves
    for _ in range(level.iterations):
        lengths = torch.tensor([search.length for search in searches], device=halves.to_moving.device)
        values, update = _update(level, halves, terms, step, lengths, ops)
        for search, value in zip(searches, values.tolist(), strict=True):
            search.note(value)
        best = _choose([search.improved for search in searches], halves, best)
        if all(search.ended for search in searches):
            break
        moves = [not search.ended and not search.back for search in searches]
        moved = _advance(halves, update, step, ops) if any(moves) else halves
        halves = _choose([not move for move in moves], best, moved)
    last = [not search.ended and not search.worse for search in searches]  # after the last step nobody looked at the loss
    reports = LevelReport(level.shrink, [one.losses for one in searches], [one.ended or "iterations" for one in searches])
    return _choose(last, halves, best), reports


class Search:
    """The step length of one pair, and when it goes back or ends."""

    def __init__(self, length: float, stop: Stop) -> None:
        self.length, self.shortest, self.stop = length, length / 16, stop
        self.losses: list[float] = []
        self.lowest, self.worse, self.ended = math.inf, 0, ""
        self.improved = self.back = False

    def note(self, value: float) -> None:
        """Take the loss of the present halves and decide what comes next."""
        self.improved = False
        if self.ended:
            return
        again, self.back = self.back, False
        self.losses.append(value)
        self.improved = value < self.lowest
        self.lowest = min(self.lowest, value)
        far = value > self.losses[0] + 0.1 * abs(self.losses[0])  # jumped over the optimum
        self.worse = 0 if self.improved or again else PATIENCE if far else self.worse + 1
        self.ended = self.stop.reason(self.losses) or ""
        if not self.ended and self.worse >= PATIENCE:
            self.length, self.worse, self.back = self.length / 2, 0, True
            self.ended = "converged" if self.length < self.shortest else ""


def _choose(first: Sequence[bool], one: Halves, other: Halves) -> Halves:
    """Return the halves of `one` for the pairs where `first` holds, and of `other` elsewhere."""
    if all(first):
        return one
    if not any(first):
        return other
    where = torch.tensor(first, device=one.to_moving.device).reshape(-1, *[1] * (one.to_moving.ndim - 1))
    return Halves(torch.where(where, one.to_fixed, other.to_fixed), torch.where(where, one.to_moving, other.to_moving))


def _advance(halves: Halves, update: Tensor, step: Step, ops: TensorOps) -> Halves:
    to_moving = _regular(ops.compose(update, halves.to_moving), step, ops)
    if not step.symmetric:
        return Halves(halves.to_fixed, to_moving)
    return Halves(_regular(ops.compose(-update, halves.to_fixed), step, ops), to_moving)


def _regular(field: Tensor, step: Step, ops: TensorOps) -> Tensor:
    return ops.even_out(ops.smooth(field, step.elastic), step.bulk)


def _update(
    level: Level, halves: Halves, terms: Terms, step: Step, lengths: Tensor, ops: TensorOps
) -> tuple[Tensor, Tensor]:
    """Return the loss (B,) and the update of `to_moving`; `to_fixed` takes its negative in the symmetric variant."""
    mask = _warped_mask(level, halves, step, ops)
    value, update = _pull(terms.image, level.fixed, level.moving, mask, level, halves, step, lengths, ops)
    if level.fixed_labels is not None and level.moving_labels is not None:
        dice = MultiscaleDice(spacing=float(level.shrink))  # its Gaussians are the same at every level
        loss, push = _pull(dice, level.fixed_labels, level.moving_labels, None, level, halves, step, lengths, ops)
        value, update = value + terms.label_weight * loss, update + terms.label_weight * push
    if terms.landmarks is not None:
        loss, push = terms.landmarks.pull(level, halves, terms.landmark_weight * lengths, ops)
        value, update = value + terms.landmark_weight * loss, update + push
    return value, update / 2 if step.symmetric else update


def _warp_fixed(image: Tensor, level: Level, halves: Halves, ops: TensorOps) -> Tensor:
    batch, ndim = halves.to_fixed.shape[:2]
    eye = torch.eye(ndim, ndim + 1, device=image.device).expand(batch, -1, -1)
    return ops.warp(image, halves.to_fixed, level.field_shrink, eye, level.fixed.shape[2:])


def _warp_moving(image: Tensor, level: Level, halves: Halves, ops: TensorOps) -> Tensor:
    return ops.warp(image, halves.to_moving, level.field_shrink, level.matrix, level.fixed.shape[2:])


def _warped_mask(level: Level, halves: Halves, step: Step, ops: TensorOps) -> Tensor | None:
    fixed = level.fixed_mask
    if fixed is not None and step.symmetric:
        fixed = _warp_fixed(fixed, level, halves, ops)
    if level.moving_mask is None:
        return fixed
    moving = ops.warp(level.moving_mask, halves.to_moving, level.field_shrink, level.mask_matrix, level.fixed.shape[2:])
    return moving if fixed is None else fixed * moving


def _pull(
    loss: Loss,
    fixed: Tensor,
    moving: Tensor,
    mask: Tensor | None,
    level: Level,
    halves: Halves,
    step: Step,
    lengths: Tensor,
    ops: TensorOps,
) -> tuple[Tensor, Tensor]:
    """Return the loss (B,) and its smoothed descent direction, whose longest vector gets the length `lengths` (B,)."""
    warped = _warp_moving(moving, level, halves, ops)
    still = _warp_fixed(fixed, level, halves, ops) if step.symmetric else fixed
    value, force = ops.force(loss, still.float(), warped, mask, level.field_shrink, step.symmetric)
    force = ops.smooth(force, step.fluid)
    longest = force.square().sum(1).flatten(1).amax(1).sqrt().clamp(min=1e-12)
    shape = (-1, *[1] * (force.ndim - 1))
    good = torch.isfinite(longest) & torch.isfinite(value)
    if not good.all():  # one bad pair must not reach the positions at which the others are sampled
        force = torch.where(good.reshape(shape), force, 0.0)
        value, longest = torch.where(good, value, math.nan), torch.where(good, longest, 1.0)
    return value, force * (lengths / longest).reshape(shape)


@dataclass(frozen=True)
class Landmarks:
    """Corresponding points.

    Attributes
    ----------
    fixed, moving : (N, D) Tensor
        Voxel coordinates in the full fixed and moving grids.
    matrix : (B, D, D + 1) Tensor
        From voxels of the full fixed grid to voxels of the full moving grid.
    reach : float
        Standard deviation of the pull of a landmark, voxels of the field.
    """

    fixed: Tensor
    moving: Tensor
    matrix: Tensor
    reach: float = 3.0

    def residual(self, halves: Halves, factor: int) -> tuple[Tensor, Tensor]:
        """Return the middle points and what they miss, both (B, N, D), in voxels of a field `factor` times coarser."""
        ndim = self.fixed.shape[1]
        target = (self.moving - self.matrix[:, :, ndim].unsqueeze(1)).movedim(1, 2)
        wanted = torch.linalg.solve(self.matrix[:, :, :ndim], target).movedim(1, 2)
        start = ((self.fixed + 0.5) / factor - 0.5).expand(self.matrix.shape[0], -1, -1)
        wanted = (wanted + 0.5) / factor - 0.5
        middle = start
        for _ in range(5):  # the point of the middle that goes to the fixed landmark
            middle = start - _at(halves.to_fixed, middle)
        return middle, wanted - middle - _at(halves.to_moving, middle)

    def pull(self, level: Level, halves: Halves, lengths: Tensor, ops: TensorOps) -> tuple[Tensor, Tensor]:
        """Return the loss (B,) and an update that closes the gaps, by at most `lengths` (B,) voxels of the field.

        The loss is the mean distance that the landmarks miss, in tens of voxels of the full fixed grid.
        """
        factor = level.shrink * level.field_shrink
        middle, missing = self.residual(halves, factor)
        loss = missing.norm(dim=-1).mean(1) * factor / 10
        most = lengths.reshape(-1, 1, 1).clamp(min=1e-12)
        missing = missing * (most / missing.norm(dim=-1, keepdim=True).maximum(most))
        batch, count, ndim = middle.shape
        shape = halves.to_moving.shape[2:]
        size = torch.tensor(shape, device=middle.device)
        index = middle.round().long().clamp(min=0).minimum(size - 1)
        spread = torch.zeros((batch, ndim + 1, *shape), device=middle.device)
        for b in range(batch):
            for n in range(count):
                where = tuple(index[b, n].tolist())
                spread[(b, slice(0, ndim), *where)] += missing[b, n]
                spread[(b, ndim, *where)] += 1
        spread = ops.smooth(spread, self.reach)
        weight = spread[:, ndim:]
        floor = 0.05 * weight.flatten(1).amax(1).reshape(-1, *[1] * (ndim + 1))
        return loss, spread[:, :ndim] / (weight + floor)


def _at(field: Tensor, points: Tensor) -> Tensor:
    """Return the vectors (B, N, D) of a field at points (B, N, D), linear, border repeated."""
    ndim = points.shape[-1]
    size = torch.tensor(field.shape[2:], device=field.device).clamp(min=2) - 1
    unit = (points / size * 2 - 1).flip(-1).reshape(points.shape[0], -1, *[1] * (ndim - 1), ndim)
    values = torch.nn.functional.grid_sample(field, unit, align_corners=True, padding_mode="border")
    return values.reshape(*field.shape[:2], -1).movedim(1, 2)
