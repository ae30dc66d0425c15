"""Tissues of a subject from its contrasts and an atlas: mixtures by expectation and maximisation, moves by ascent.

The likelihood of a voxel is ``sum_k p_k(D(x)) prod_i sum_c tau_ikc N(I_i(G_is(x)); mu_ikc, sigma_ikc)``: an atlas prior
``p`` with a deformation ``D``, a mixture of Gaussians ``c`` for each class ``k`` and contrast ``i``, a move ``G`` for each
slice ``s`` of a contrast, which undoes motion between slices. Classes and moves are improved by turns.

X. Zhuang, IEEE Transactions on Pattern Analysis and Machine Intelligence 2019;41(12):2933-2946,
doi:10.1109/TPAMI.2018.2869576 (multivariate mixture model, MvMM); as combined computing in Luo and Zhuang, 2023,
doi:10.1109/TPAMI.2022.3225418.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.groupwise.settings import MixtureSettings
from popatlas.regularisers.bending import bending
from popatlas.transforms.ffd import control_shape, dense_from_control
from popatlas.transforms.fieldops import TensorOps
from popatlas.transforms.fields import warp

FLOOR = 1e-6  # least prior of a class, and least share of a component
BLUR = 1.8  # voxels; noise that is interpolated halfway between pixels is weaker, and would draw every slice there
FLAT = 1e-4  # a prior that is the same for all classes but for this says nothing
MOST_FLAT = 4  # classes that such a prior may have
LEAST_SPREAD = 0.005  # of a Gaussian, as a share of the range of an image


@dataclass(frozen=True)
class Gaussians:
    """Mixtures of all contrasts and classes, each array (I, K, C): shares, means and standard deviations."""

    shares: Tensor
    means: Tensor
    spreads: Tensor

    def log_components(self, values: Tensor) -> Tensor:
        """Return the log density of each component (I, K, C, V) at intensities (I, V)."""
        rest = (values[:, None, None] - self.means[..., None]) / self.spreads[..., None]
        scale = (self.shares.clamp(min=FLOOR) / self.spreads).log() - 0.5 * math.log(2 * math.pi)
        return scale[..., None] - 0.5 * rest.square()

    def log_density(self, values: Tensor) -> Tensor:
        """Return the log density of each class (I, K, V) at intensities (I, V)."""
        return self.log_components(values).logsumexp(2)


@dataclass(frozen=True)
class MixtureResult:
    """What was found.

    Attributes
    ----------
    posterior : (K, *shape) Tensor
        Probability of each class; 0 outside of the mask.
    mixtures : Gaussians
        Appearance of the classes.
    log_likelihoods : list of float
        Mean log-likelihood of a voxel before each update and at the end; it never falls.
    slice_moves : (I, S, 2, 3) Tensor or None
        From pixels of a slice of the subject to pixels of the contrast.
    displacement : (1, D, *shape) Tensor or None
        Displacement of the prior, voxels.
    """

    posterior: Tensor
    mixtures: Gaussians
    log_likelihoods: list[float]
    slice_moves: Tensor | None
    displacement: Tensor | None

    def labels(self) -> Tensor:
        """Return the most probable class of each voxel (*shape), from 1; 0 outside of the mask."""
        return (self.posterior.argmax(0) + 1) * (self.posterior.sum(0) > 0)


def segment(
    images: Tensor,
    prior: Tensor,
    mask: Tensor | None = None,
    plan: MixtureSettings | None = None,
    progress: Callable[[str], None] | None = None,
) -> MixtureResult:
    """Find the classes of a subject.

    Parameters
    ----------
    images : (I, *shape) Tensor
        Contrasts of one subject on one grid of 2 or 3 axes.
    prior : (K, *shape) Tensor
        Probability of each class from an atlas, on that grid.
    mask : (*shape) Tensor, optional
        Voxels to be labelled (above 0); others get no class. All where the prior is above 0 when left out.
    plan : MixtureSettings, optional
        What to do.
    progress : callable, optional
        Called with a line of text.

    Returns
    -------
    MixtureResult
        Classes, mixtures and moves.

    Raises
    ------
    InputError
        For shapes that differ, values that are not finite, an empty mask, a contrast that is constant in it, a prior that is
        not one, and a class without any prior in it.
    """
    chosen = plan or MixtureSettings()
    inside = _checked(images, prior, mask)
    if chosen.slices != "none" and images.ndim != 4:
        raise InputError("slices move in volumes only", remedy="set slices to none for 2D images")
    low, high = _ends(images, inside)
    scaled = (images - low) / (high - low)
    problem = _Problem(scaled, prior, inside, chosen)
    mixtures = problem.first()
    for _ in range(chosen.rounds if problem.moves else 0):
        # one update only: mixtures that fit misplaced images well leave the moves nothing to gain
        mixtures, _ = problem.maximised(mixtures, 1)
        problem.move(mixtures)
    mixtures, losses = problem.maximised(mixtures, chosen.iterations)
    if progress is not None:
        progress(f"log-likelihood {losses[0]:.4f} -> {losses[-1]:.4f} in {len(losses) - 1} updates")
    posterior = torch.zeros_like(prior)
    posterior[:, inside] = problem.posterior(mixtures)[0]
    width = (high - low).reshape(-1, 1, 1)
    found = Gaussians(mixtures.shares, mixtures.means * width + low.reshape(-1, 1, 1), mixtures.spreads * width)
    return MixtureResult(posterior, found, losses, problem.slice_moves, problem.displacement)


def _checked(images: Tensor, prior: Tensor, mask: Tensor | None) -> Tensor:
    """Return the voxels to be labelled (*shape), boolean."""
    shape = images.shape[1:]
    if images.ndim not in (3, 4) or prior.shape[1:] != shape or (mask is not None and mask.shape != shape):
        sizes = [tuple(x.shape) for x in (images, prior, mask) if x is not None]
        raise InputError(f"contrasts, prior and mask have shapes {sizes}", remedy="bring them to one grid of 2 or 3 axes")
    if len(prior) < 2:
        raise InputError("a prior of fewer than two classes", remedy="give one map for each class")
    for name, rows in (("contrast", images), ("the prior of class", prior)):
        wrong = [int((~torch.isfinite(row)).sum()) for row in rows]
        if any(wrong):
            first = next(number for number, count in enumerate(wrong) if count)
            message = f"{name} {first + 1} has {wrong[first]} voxels that are NaN or infinite"
            raise InputError(message, remedy="replace them, by 0 outside of the field of view")
    if float(prior.min()) < 0 or float(prior.max()) > 1 + 1e-3:
        raise InputError("the prior has values below 0 or above 1", remedy="give probabilities")
    inside = prior.sum(0) > 0 if mask is None else mask > 0
    if not bool(inside.any()):
        raise InputError("no voxel is left to be labelled", remedy="check mask and prior")
    for number, image in enumerate(images):
        values = image[inside]
        if float(values.max()) <= float(values.min()):
            raise InputError(f"contrast {number + 1} is constant in the mask", remedy="check the file")
    for number, one in enumerate(prior):
        if float(one[inside].max()) <= FLOOR:
            message = f"class {number + 1} has no prior in the mask"
            raise InputError(message, remedy="check that prior and mask overlap, or leave the class out")
    return inside


def _ends(images: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 0.1st and 99.9th percentiles of each contrast in the mask, with trailing axes."""
    found = []
    for image in images:
        values = image[inside]
        ends = torch.quantile(values[:: max(1, len(values) // 1_000_000)], values.new_tensor([0.001, 0.999]))
        found.append(ends if float(ends[1]) > float(ends[0]) else torch.stack([values.min(), values.max()]))
    low, high = torch.stack(found, 1)
    shape = (-1, *[1] * (images.ndim - 1))
    return low.reshape(shape), high.reshape(shape)


class _Problem:
    """Contrasts and prior with their moves, and the updates."""

    def __init__(self, images: Tensor, prior: Tensor, inside: Tensor, plan: MixtureSettings) -> None:
        self.images, self.prior, self.inside, self.plan = images, prior, inside, plan
        self.slice_moves: Tensor | None = None
        self.control: Tensor | None = None
        self.displacement: Tensor | None = None
        self.log_amounts = torch.zeros(len(prior))
        if plan.slices != "none":
            self.blurred = in_plane(images, plan.slice_axis, BLUR)
        self._look(images, prior)

    def _look(self, images: Tensor, prior: Tensor) -> None:
        self.values = images[:, self.inside]
        self.log_prior = _log_prior(prior)[:, self.inside]

    def first(self) -> Gaussians:
        """Return mixtures from the prior: components share a class by its quantiles.

        A prior that is the same everywhere says nothing of places: classes are told by the first contrast then.
        """
        count, (classes, voxels) = self.plan.components, self.log_prior.shape
        weights = self.log_prior.exp()
        if float((weights - weights[:, :1]).abs().max()) < FLAT:
            weights = _by_intensity(self.values[0], classes)
        means = torch.empty(len(self.values), classes, count)
        spreads = torch.empty_like(means)
        for number, values in enumerate(self.values):
            order = values.argsort()
            for k in range(classes):
                total = weights[k][order].cumsum(0)
                at = (torch.arange(count) + 0.5) / count * total[-1]
                means[number, k] = values[order][torch.searchsorted(total, at).clamp(max=voxels - 1)]
                mean = float((weights[k] * values).sum() / weights[k].sum())
                spread = ((weights[k] * (values - mean).square()).sum() / weights[k].sum()).sqrt()
                spreads[number, k] = spread.clamp(min=LEAST_SPREAD)
        return Gaussians(torch.full_like(means, 1 / count), means, spreads)

    def posterior(self, mixtures: Gaussians) -> tuple[Tensor, Tensor]:
        """Return the probability of each class (K, V) and the log-likelihood of each voxel (V,)."""
        joint = self._log_shares() + mixtures.log_density(self.values).sum(0)
        total = joint.logsumexp(0)
        return (joint - total).exp(), total

    def _log_shares(self) -> Tensor:
        """Return the logarithm of the prior (K, V), weighted by the amounts of the classes."""
        if not self.plan.amounts:
            return self.log_prior
        weighted = self.log_prior + self.log_amounts[:, None]
        return weighted - weighted.logsumexp(0)

    def _weigh(self, classes: Tensor) -> None:
        """Update the amounts of the classes, by which the prior is weighted, from their posterior (K, V)."""
        total = (self.log_prior + self.log_amounts[:, None]).logsumexp(0)
        amounts = classes.double().sum(1) / (self.log_prior - total).exp().double().sum(1).clamp(min=1e-9)
        self.log_amounts = (amounts / amounts.sum()).clamp(min=FLOOR).log().float()

    def maximised(self, mixtures: Gaussians, iterations: int) -> tuple[Gaussians, list[float]]:
        """Return mixtures after expectation and maximisation, and the log-likelihood before each update and at the end."""
        losses: list[float] = []
        for _ in range(iterations):
            classes, total = self.posterior(mixtures)
            losses.append(float(total.mean()))
            if len(losses) > 1 and losses[-1] - losses[-2] < self.plan.tolerance:
                return mixtures, losses
            mixtures = self._updated(mixtures, classes)
            if self.plan.amounts:
                self._weigh(classes)
        losses.append(float(self.posterior(mixtures)[1].mean()))
        return mixtures, losses

    def _updated(self, mixtures: Gaussians, classes: Tensor) -> Gaussians:
        parts = []
        for number in range(len(self.values)):  # one contrast at a time: (K, C, V) is the largest array
            values = self.values[number]
            one = Gaussians(*(array[number : number + 1] for array in (mixtures.shares, mixtures.means, mixtures.spreads)))
            weight = torch.softmax(one.log_components(values[None])[0], 1) * classes[:, None]
            mass = weight.sum(2).double()
            safe = mass.clamp(min=1e-9)
            means = (weight * values).sum(2).double() / safe
            spreads = ((weight * (values - means[..., None].float()).square()).sum(2).double() / safe).sqrt()
            known = mass > 1e-6
            parts.append(
                (
                    (mass / mass.sum(1, keepdim=True).clamp(min=1e-9)).float(),
                    torch.where(known, means.float(), mixtures.means[number]),
                    torch.where(known, spreads.float(), mixtures.spreads[number]).clamp(min=LEAST_SPREAD),
                )
            )
        return Gaussians(*(torch.stack(arrays) for arrays in zip(*parts, strict=True)))

    @property
    def moves(self) -> bool:
        """Tell whether anything moves."""
        return self.plan.deform or self.plan.slices != "none"

    def move(self, mixtures: Gaussians) -> None:
        """Improve the moves that the settings ask for."""
        if self.plan.deform:
            self.displacement = self._deformed(mixtures)
        if self.plan.slices != "none":
            self.slice_moves = self._slices(mixtures)
        images, prior = self.images, self.prior
        if self.slice_moves is not None:
            images = moved_slices(images, self.slice_moves, self.plan.slice_axis)
        if self.displacement is not None:
            prior = warp(prior[None], self.displacement)[0]
        self._look(images, prior)

    def _ascend(self, moves: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the best moves on the way of Adam up a mean log-likelihood."""
        moves = moves.clone().requires_grad_()
        optimiser = torch.optim.Adam([moves], lr=self.plan.rate, eps=1e-12)
        best, highest = moves.detach().clone(), -math.inf
        for _ in range(self.plan.steps):
            likelihood = value(moves)
            reached = float(likelihood.detach())
            if reached > highest:
                best, highest = moves.detach().clone(), reached
            optimiser.zero_grad()
            torch.autograd.backward(-likelihood)
            optimiser.step()
        return best

    def _deformed(self, mixtures: Gaussians) -> Tensor:
        shape = tuple(self.prior.shape[1:])
        density = mixtures.log_density(self.values).sum(0) + self.log_amounts[:, None]
        if self.control is None:
            self.control = torch.zeros(1, len(shape), *control_shape(shape, self.plan.spacing))

        def value(points: Tensor) -> Tensor:
            moved = warp(self.prior[None], dense_from_control(points, shape, self.plan.spacing))[0]
            total = (_log_prior(moved)[:, self.inside] + density).logsumexp(0).mean()
            return total - self.plan.bending * bending(points).sum()

        self.control = self._ascend(self.control, value)
        return dense_from_control(self.control, shape, self.plan.spacing)

    def _slices(self, mixtures: Gaussians) -> Tensor:
        """Return the moves of all slices, one contrast after the other; the first says where the subject is, and stays."""
        axis = self.plan.slice_axis
        count = self.images.shape[1 + axis]
        found = torch.eye(2, 3).repeat(len(self.images), count, 1, 1) if self.slice_moves is None else self.slice_moves
        found = found.clone()
        densities = mixtures.log_density(self.values)
        for number in range(1, len(self.images)):
            rest = self._log_shares() + densities.sum(0) - densities[number]
            one = Gaussians(*(array[number : number + 1] for array in (mixtures.shares, mixtures.means, mixtures.spreads)))
            free = torch.zeros(2, 3)
            free[:, 2] = 1
            if self.plan.slices == "affine":
                free[:, :2] = 1 / max(self.images.shape[1:])

            def value(
                change: Tensor, number: int = number, rest: Tensor = rest, one: Gaussians = one, free: Tensor = free
            ) -> Tensor:
                image = moved_slices(self.blurred[number : number + 1], found[number : number + 1] + change * free, axis)
                return (rest + one.log_density(image[:, self.inside])[0]).logsumexp(0).mean()

            found[number] += (self._ascend(torch.zeros(1, count, 2, 3), value) * free)[0]
        return found


def _by_intensity(values: Tensor, classes: int) -> Tensor:
    """Return the class (K, V) of each voxel, 0 or 1, from dark to bright, by the best thresholds of its intensity.

    They maximise the variance between the classes (Otsu), which finds small ones too; more than `MOST_FLAT` take too long.
    """
    from skimage.filters import threshold_multiotsu

    if classes > MOST_FLAT:
        message = f"a prior of {classes} classes that is the same for all of them says nothing"
        raise InputError(message, remedy=f"give maps that tell the classes apart, or no more than {MOST_FLAT} classes")
    bins = 256 if classes < MOST_FLAT else 128
    try:
        middles = torch.from_numpy(np.asarray(threshold_multiotsu(values.numpy(), classes, nbins=bins), dtype=np.float32))
    except ValueError as error:
        raise InputError(f"its intensities do not tell {classes} classes apart", remedy="check the file") from error
    edges = middles + (values.max() - values.min()) / (2 * bins)  # a threshold is the middle of the last bin of its class
    return torch.nn.functional.one_hot(torch.bucketize(values, edges), classes).T.to(values)


def _log_prior(prior: Tensor) -> Tensor:
    return (prior.clamp(min=FLOOR) / prior.clamp(min=FLOOR).sum(0)).log()


def in_plane(images: Tensor, axis: int, sigma: float) -> Tensor:
    """Return volumes (I, *shape) whose slices along an axis are smoothed, each by itself (sigma in voxels)."""
    planes = images.movedim(1 + axis, 1)
    flat = planes.reshape(-1, 1, *planes.shape[2:])
    return TensorOps().smooth(flat, sigma).reshape(planes.shape).movedim(1, 1 + axis)


def moved_slices(images: Tensor, moves: Tensor, axis: int) -> Tensor:
    """Return images whose slices are read at other places of their planes.

    Parameters
    ----------
    images : (I, *shape) Tensor
        Volumes; what is read beyond their border repeats it.
    moves : (I, S, 2, 3) Tensor
        From pixels of a slice, about its middle, to pixels of the image, for each slice along `axis`.
    axis : int
        Axis across the slices.
    """
    planes = images.movedim(1 + axis, 1)
    count, height, width = planes.shape[1:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    middle = torch.tensor([(height - 1) / 2, (width - 1) / 2])
    at = torch.stack([rows - middle[0], columns - middle[1]], -1).to(images)
    there = torch.einsum("isab,hwb->ishwa", moves[..., :2], at) + moves[:, :, None, None, :, 2] + middle
    unit = there / torch.tensor([max(height - 1, 1), max(width - 1, 1)]) * 2 - 1
    flat = torch.nn.functional.grid_sample(
        planes.reshape(-1, 1, height, width),
        unit.flip(-1).reshape(-1, height, width, 2),
        padding_mode="border",
        align_corners=True,
    )
    return flat.reshape(len(images), count, height, width).movedim(1, 1 + axis)
