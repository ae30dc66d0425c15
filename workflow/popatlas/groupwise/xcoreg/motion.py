"""How the images of a group move: linear maps, a lattice of control points, or composed diffeomorphic updates.

In each, the images share the moves: their mean over the group is taken away, so that the common space is the middle of the
group and no image is its reference.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from popatlas.groupwise.centre import centred_maps
from popatlas.groupwise.xcoreg.group import Group, View, Views
from popatlas.groupwise.xcoreg.metric import GroupMetric
from popatlas.groupwise.xcoreg.settings import XCoRegSettings
from popatlas.regularisers.bending import bending
from popatlas.transforms.ffd import control_shape, dense_from_control
from popatlas.transforms.fieldops import coarse_shape, double, gradient
from popatlas.transforms.fields import coordinates, sample
from popatlas.transforms.linear import identity_parameters, matrix

State = list[Tensor]


class GroupMotion(ABC):
    """The moves of all images at one resolution after the other."""

    group: Group

    @abstractmethod
    def begin(self, group: Group, threads: int) -> None:
        """Go on with the images of a finer resolution."""

    @abstractmethod
    def view(self, number: int) -> View:
        """Return an image in the common space."""

    @abstractmethod
    def move(self, views: Views, metric: GroupMetric, length: float) -> None:
        """Move all images up the slope of the metric, by about `length` voxels."""

    @abstractmethod
    def state(self) -> State:
        """Return the moves, to come back to them."""

    @abstractmethod
    def load(self, state: State) -> None:
        """Come back to moves."""

    @abstractmethod
    def penalty(self) -> float:
        """Return what the moves cost; it is taken from the metric."""

    @abstractmethod
    def finish(self) -> None:
        """Take the mean of the moves away; called at the end of each resolution."""

    @abstractmethod
    def displacement(self, number: int) -> Tensor:
        """Return the displacement (1, D, *shape) of the common grid for an image, in voxels of the level."""

    def matrix(self, number: int) -> Tensor:
        """Return the matrix (1, D, D + 1) from the displaced point to voxels of the level's image."""
        return self.group.matrices[number]


class _Adam:
    """Steps of Adam on some tensors; keeps the running moments that torch's optimiser keeps."""

    def __init__(self, values: State) -> None:
        self.values = [value.detach().clone().requires_grad_() for value in values]
        self._make()

    def _make(self) -> None:
        # slopes of means over large images are tiny: the usual 1e-8 would slow them down
        self.optimiser = torch.optim.Adam(self.values, lr=1.0, eps=1e-12)

    def load(self, state: State) -> None:
        self.values = [value.detach().clone().requires_grad_() for value in state]
        self._make()

    def step(self, rate: float, *, is_centred: bool) -> None:
        self.optimiser.param_groups[0]["lr"] = rate
        self.optimiser.step()
        if is_centred:
            centre(self.values)
        self.optimiser.zero_grad()


def centre(values: Sequence[Tensor]) -> None:
    """Take the mean over a group away, in place."""
    with torch.no_grad():
        mean = torch.stack([value.detach() for value in values]).mean(0)
        for value in values:
            value -= mean


class LinearMotion(GroupMotion):
    """Rigid or affine moves about the middle of the common grid, in its voxels, which are isotropic."""

    def __init__(self, settings: XCoRegSettings, count: int, ndim: int) -> None:
        self.kind = settings.motion
        self.adam = _Adam([identity_parameters(self.kind, ndim) for _ in range(count)])

    def begin(self, group: Group, threads: int) -> None:
        """Go on with a finer resolution; shifts are in voxels of the full grid throughout."""
        self.group = group
        self.middle = torch.tensor([(n - 1) / 2 for n in group.shape], dtype=torch.float64)
        radius = 0.5 * math.sqrt(sum((n * group.shrink) ** 2 for n in group.shape)) / 2
        count = self.adam.values[0].shape[1]
        scale = torch.full((1, count), 1 / radius)
        scale[:, : group.ndim] = 1
        self.scale = scale
        self.voxels = coordinates(group.shape)

    def linear(self, number: int) -> Tensor:
        """Return the move (1, D, D + 1) in voxels of the level."""
        scaled = self.adam.values[number] * self.scale
        shift = torch.ones_like(self.scale)
        shift[:, : self.group.ndim] = 1 / self.group.shrink
        return matrix((scaled * shift).double(), self.kind, self.middle)[:, :-1]

    def matrix(self, number: int) -> Tensor:
        """Return the matrix to voxels of the image, the move included."""
        own = self.group.matrices[number].double()
        return _after(own, self.linear(number)).float()

    def view(self, number: int) -> View:
        """Return an image in the common space."""
        with torch.no_grad():
            move = self.linear(number)
            return self._sampled(number, move), self._weight(number, move)

    def _sampled(self, number: int, move: Tensor) -> Tensor:
        at = _points(_after(self.group.matrices[number].double(), move).float(), self.voxels)
        return sample(self.group.images[number], at).flatten()

    def _weight(self, number: int, move: Tensor) -> Tensor:
        at = _points(_after(self.group.mask_matrices[number].double(), move).float(), self.voxels)
        return sample(self.group.masks[number], at).flatten()

    def move(self, views: Views, metric: GroupMetric, length: float) -> None:
        """Take a step of Adam; its mean over the group is taken away."""
        for number in range(len(self.group)):
            slope = metric.slope(number, *views[number])
            values = self._sampled(number, self.linear(number))
            torch.autograd.backward(values, -slope)
        self.adam.step(length * self.group.shrink, is_centred=True)

    def state(self) -> State:
        """Return the parameters."""
        return [value.detach().clone() for value in self.adam.values]

    def load(self, state: State) -> None:
        """Set the parameters."""
        self.adam.load(state)

    def penalty(self) -> float:
        """Return 0: linear moves cost nothing."""
        return 0.0

    def finish(self) -> None:
        """Do nothing: the mean is taken away at each step."""

    def displacement(self, number: int) -> Tensor:
        """Return zeros: the matrix holds the move."""
        return torch.zeros(1, self.group.ndim, *self.group.shape)


def _after(second: Tensor, first: Tensor) -> Tensor:
    """Return the matrix (1, D, D + 1) of going through `first`, then `second`."""
    linear, offset = second[:, :, :-1], second[:, :, -1:]
    return torch.cat([linear @ first[:, :, :-1], linear @ first[:, :, -1:] + offset], dim=2)


def _points(move: Tensor, at: Tensor) -> Tensor:
    """Return where points (1, D, *shape) go."""
    return (move[:, :, :-1] @ at.flatten(2) + move[:, :, -1:]).reshape(at.shape)


class ControlPoints(GroupMotion):
    """Free-form deformation; its bending energy is that of the lattice (Rueckert et al., 1999)."""

    def __init__(self, settings: XCoRegSettings) -> None:
        self.spacings, self.weight = iter(settings.spacing), settings.bending
        self.spacing = 0.0
        self.adam: _Adam | None = None

    def begin(self, group: Group, threads: int) -> None:
        """Go on with a finer lattice that moves about as the last one did."""
        before, self.spacing = self.spacing, next(self.spacings, self.spacing)
        shape = control_shape(group.shape, self.spacing)
        first = [torch.zeros(1, group.ndim, *shape) for _ in group.images]
        if self.adam is not None:
            ratio = self.group.shrink / group.shrink
            at = (coordinates(shape) - 1) * (self.spacing / (before * ratio)) + 1
            first = [ratio * sample(value.detach(), at) for value in self.adam.values]
        self.group, self.adam = group, _Adam(first)
        self.voxels = coordinates(group.shape)

    @property
    def control(self) -> State:
        """Displacements of the control points of each image."""
        assert self.adam is not None
        return self.adam.values

    def displacement(self, number: int) -> Tensor:
        """Return the displacement of the voxels."""
        return dense_from_control(self.control[number], self.group.shape, self.spacing)

    def view(self, number: int) -> View:
        """Return an image in the common space."""
        with torch.no_grad():
            at = self.voxels + self.displacement(number)
            weight = sample(self.group.masks[number], _points(self.group.mask_matrices[number], at))
            return self._sampled(number, at), weight.flatten()

    def _sampled(self, number: int, at: Tensor) -> Tensor:
        return sample(self.group.images[number], _points(self.group.matrices[number], at)).flatten()

    def move(self, views: Views, metric: GroupMetric, length: float) -> None:
        """Take a step of Adam; the mean over the group is taken away."""
        assert self.adam is not None
        for number in range(len(self.group)):
            slope = metric.slope(number, *views[number])
            values = self._sampled(number, self.voxels + self.displacement(number))
            torch.autograd.backward(values, -slope)
            if self.weight:
                torch.autograd.backward(self._energy(number))
        self.adam.step(length, is_centred=True)

    def _energy(self, number: int) -> Tensor:
        return self.weight * bending(self.control[number]).sum()

    def state(self) -> State:
        """Return the control points."""
        return [value.detach().clone() for value in self.control]

    def load(self, state: State) -> None:
        """Set the control points."""
        assert self.adam is not None
        self.adam.load(state)

    def penalty(self) -> float:
        """Return the bending energy of all images, weighted."""
        with torch.no_grad():
            return float(sum(self._energy(number) for number in range(len(self.group)))) if self.weight else 0.0

    def finish(self) -> None:
        """Do nothing: the mean is taken away at each step."""


class Diffeomorphic(GroupMotion):
    """Composed updates: the velocities of an iteration are smoothed, lose their mean over the group, and are composed.

    At the end of a level each map goes through the inverse of their mean map first, after which their mean is the identity.
    They stay one-to-one, as they might not if the mean were subtracted.
    """

    def __init__(self, settings: XCoRegSettings) -> None:
        self.settings = settings
        self.fields: State = []

    def begin(self, group: Group, threads: int) -> None:
        """Go on with finer fields."""
        self.ops = group.ops(threads)
        if self.fields:
            self.fields = [_refined(field, group.shape) for field in self.fields]
        else:
            self.fields = [torch.zeros(1, group.ndim, *group.shape).to(group.images[0]) for _ in group.images]
        self.group = group

    def view(self, number: int) -> View:
        """Return an image in the common space."""
        group, field = self.group, self.fields[number]
        values = self.ops.warp(group.images[number], field, 1, group.matrices[number], group.shape)
        weight = self.ops.warp(group.masks[number], field, 1, group.mask_matrices[number], group.shape)
        return values.flatten(), weight.flatten()

    def move(self, views: Views, metric: GroupMetric, length: float) -> None:
        """Compose a smoothed, centred step with each map; its longest vector over the group is `length` voxels."""
        forces = []
        for number in range(len(self.group)):
            values, weight = views[number]
            slope = metric.slope(number, values, weight).reshape(1, 1, 1, *self.group.shape)
            push = (slope * gradient(values.reshape(1, 1, *self.group.shape)))[:, 0]
            forces.append(self.ops.smooth(push.contiguous(), self.settings.fluid))
        centre(forces)
        longest = max(float(force.square().sum(1).max()) for force in forces) ** 0.5
        if not math.isfinite(longest) or longest <= 0:
            return
        for number, force in enumerate(forces):
            moved = self.ops.compose(force * (length / longest), self.fields[number])
            self.fields[number] = self.ops.even_out(self.ops.smooth(moved, self.settings.elastic), self.settings.bulk)

    def state(self) -> State:
        """Return the fields; a step makes new ones, so that these stay."""
        return list(self.fields)

    def load(self, state: State) -> None:
        """Set the fields."""
        self.fields = list(state)

    def penalty(self) -> float:
        """Return 0: smoothing takes the place of a penalty."""
        return 0.0

    def finish(self) -> None:
        """Take the mean map away."""
        self.fields = centred_maps(self.fields, self.ops)

    def displacement(self, number: int) -> Tensor:
        """Return the field of an image."""
        return self.fields[number]


def _refined(field: Tensor, shape: Sequence[int]) -> Tensor:
    if tuple(field.shape[2:]) == tuple(shape):
        return field
    assert coarse_shape(shape, 2) == tuple(field.shape[2:])
    return double(field, shape)


def motion_of(settings: XCoRegSettings, group: Group) -> GroupMotion:
    """Return the motion that the settings name."""
    if settings.motion in ("rigid", "affine"):
        return LinearMotion(settings, len(group), group.ndim)
    if settings.motion == "ffd":
        return ControlPoints(settings)
    return Diffeomorphic(settings)
