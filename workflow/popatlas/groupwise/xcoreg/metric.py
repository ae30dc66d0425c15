"""What a group metric is, and the chi metric as one: classes by expectation and maximisation, slopes by histograms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.groupwise.chi import (
    Intensities,
    add_log_likelihood,
    information,
    information_slope,
    intensity_slope,
    joint_distribution,
    log_appearance,
    normalised,
)
from popatlas.groupwise.xcoreg.group import Group, Views
from popatlas.groupwise.xcoreg.settings import XCoRegSettings
from popatlas.transforms.fieldops import block_mean


class GroupMetric(Protocol):
    """Agreement of a group; higher is better."""

    def begin(self, group: Group, views: Views) -> None:
        """Get ready for the images of another resolution."""

    def value(self, views: Views) -> float:
        """Return the agreement, summed over the images."""

    def slope(self, number: int, values: Tensor, weight: Tensor) -> Tensor:
        """Return its derivative (V,) by the intensities of one image, at the last `value`."""


@dataclass(frozen=True)
class Anatomy:
    """The classes of the common space.

    Attributes
    ----------
    posterior : (K, V) Tensor
        Probability of each class at each voxel.
    proportions : (K,) Tensor
        Their shares of the space.
    joints : list of (K, bins) Tensor
        Joint distribution of each image with the classes.
    """

    posterior: Tensor
    proportions: Tensor
    joints: list[Tensor]

    @property
    def chi(self) -> float:
        """Return the chi metric, nats."""
        return float(sum(information(joint) for joint in self.joints))


class ChiMetric:
    """The chi metric; see `popatlas.groupwise.chi`.

    Each `value` updates the classes once: posterior from the appearance of the last anatomy, anatomy from the posterior.
    That is a heuristic (it need not raise the likelihood at each step), so the value is watched, not relied on.

    Parameters
    ----------
    group : Group
        At full resolution; gives the bins of each image.
    settings : XCoRegSettings
        Classes, bins, starts.
    prior : (K, *shape) Tensor, optional
        Probability of each class at each voxel of the full common grid, in place of their proportions.
    """

    def __init__(self, group: Group, settings: XCoRegSettings, prior: Tensor | None = None) -> None:
        self.settings, self.prior = settings, prior
        ends = (settings.low, settings.high)
        inner = (slice(None), slice(None), *[slice(1, -1)] * group.ndim)
        self.axes = [
            Intensities.of(image, mask[inner], settings.bins, ends)
            for image, mask in zip(group.images, group.masks, strict=True)
        ]
        for number, axis in enumerate(self.axes):
            if axis.scale == 0:
                message = f"image {number + 1} of the group is constant between its percentiles {ends[0]} and {ends[1]}"
                raise InputError(message, remedy="give a mask, or set low and high to 0 and 100")
        self.anatomy: Anatomy | None = None
        self.slopes: list[Tensor] = []
        self.log_prior: Tensor | None = None

    def begin(self, group: Group, views: Views) -> None:
        """Bring the prior to the resolution, and take the best of the classes so far and of new ones from chance.

        Classes that were found while the images were far apart may have merged two tissues and split noise.
        """
        if self.prior is not None:
            small = block_mean(self.prior[None].float(), [group.shrink] * group.ndim)[0].reshape(len(self.prior), -1)
            self.log_prior = small.clamp(min=self.settings.posterior_floor).log()
        if self.anatomy is not None and (group.shrink == 1 or self.prior is not None):
            return  # the classes of the level before will do, and at full resolution new ones cost more than the moves
        runs = [self._from_chance(views, start) for start in range(1 if self.prior is not None else self.settings.starts)]
        if self.anatomy is not None:
            runs.append(self._warmed(self.anatomy, views))
        self.anatomy = _ordered(max(runs, key=lambda anatomy: anatomy.chi), ordered=self.prior is None)

    def value(self, views: Views) -> float:
        """Update the classes and return chi."""
        assert self.anatomy is not None
        self.anatomy = self.updated(self.anatomy, views)
        self.slopes = [information_slope(joint) for joint in self.anatomy.joints]
        return self.anatomy.chi

    def slope(self, number: int, values: Tensor, weight: Tensor) -> Tensor:
        """Return the derivative of chi by intensities."""
        assert self.anatomy is not None
        axis = self.axes[number]
        position = axis.positions(values)
        found = intensity_slope(position, weight, self.anatomy.posterior, self.slopes[number])
        return found * axis.scale * axis.counted(values)

    def seen(self, views: Views) -> Anatomy:
        """Return the anatomy with a posterior of 0 where no image has weight."""
        assert self.anatomy is not None
        inside = torch.stack([views[number][1] for number in range(len(views))]).amax(0) > 0
        return replace(self.anatomy, posterior=self.anatomy.posterior * inside)

    def updated(self, anatomy: Anatomy, views: Views) -> Anatomy:
        """Return the anatomy after one expectation and maximisation."""
        likelihood = self._log_shares(anatomy, len(views[0][0]))
        for number, joint in enumerate(anatomy.joints):
            values, weight = views[number]
            add_log_likelihood(likelihood, self.axes[number].positions(values), weight, log_appearance(joint))
        return self._maximised(normalised(likelihood, self.settings.posterior_floor), views)

    def _log_shares(self, anatomy: Anatomy, voxels: int) -> Tensor:
        if self.log_prior is not None:
            return self.log_prior.clone()
        return anatomy.proportions.clamp(min=1e-12).log().float()[:, None].repeat(1, voxels)

    def _maximised(self, posterior: Tensor, views: Views) -> Anatomy:
        bins = self.settings.bins
        seen = torch.zeros_like(posterior[0])
        joints = []
        for number in range(len(views)):
            values, weight = views[number]
            seen += weight
            joints.append(joint_distribution(self.axes[number].positions(values), weight, posterior, bins))
        inside = (seen > 0).to(posterior)
        shares = (posterior * inside).double().sum(1) / inside.double().sum()
        return Anatomy(posterior, shares, joints)

    def _from_chance(self, views: Views, start: int) -> Anatomy:
        """Return the anatomy after the warm-up from classes round random voxels, or from the prior."""
        chance = torch.Generator().manual_seed(1_000_003 * self.settings.seed + start)
        first = torch.softmax(self.log_prior, 0) if self.log_prior is not None else self._scattered(views, chance)
        return self._warmed(self._maximised(first, views), views)

    def _scattered(self, views: Views, chance: torch.Generator) -> Tensor:
        """Return classes round voxels that differ from each other in some image.

        Each voxel is drawn with a chance that grows with the square of its difference from those before it (k-means++). The
        paper begins with noise, which often ends with two tissues in one class and noise in another.
        """
        seen = torch.stack([weight for _, weight in map(views.__getitem__, range(len(views)))]).amin(0) > 0
        candidates = (seen if bool(seen.any()) else torch.ones_like(seen)).float()
        nearest = torch.full_like(candidates, torch.inf)
        distances: list[Tensor] = []
        for _ in range(self.settings.classes):
            odds = candidates if not distances else candidates * nearest
            odds = odds if float(odds.sum()) > 0 else candidates
            distances.append(self._differences(views, _drawn(odds, chance)))
            nearest = torch.minimum(nearest, distances[-1])
        width = float((nearest * candidates).sum() / candidates.sum())
        return torch.softmax(-torch.stack(distances) / max(width, 1e-6), 0)

    def _differences(self, views: Views, voxel: int) -> Tensor:
        """Return the squared difference (V,) of all voxels from one, in bins, summed over the images that see both."""
        total = torch.zeros_like(views[0][0])
        for number in range(len(views)):
            values, weight = views[number]
            position = self.axes[number].positions(values)
            total += weight * weight[voxel] * (position - position[voxel]).square()
        return total

    def _warmed(self, anatomy: Anatomy, views: Views) -> Anatomy:
        for _ in range(self.settings.warmup):
            anatomy = self.updated(anatomy, views)
        return anatomy


def _drawn(odds: Tensor, chance: torch.Generator) -> int:
    """Return the number of an entry drawn by its odds."""
    total = odds.double().cumsum(0)
    at = torch.rand(1, generator=chance, dtype=torch.float64).to(total) * total[-1]
    return min(int(torch.searchsorted(total, at)), len(odds) - 1)


def _ordered(anatomy: Anatomy, *, ordered: bool) -> Anatomy:
    """Return the classes from dark to bright in the first image, so that their numbers do not depend on chance."""
    if not ordered:
        return anatomy
    joint = anatomy.joints[0]
    levels = torch.arange(joint.shape[1], dtype=joint.dtype, device=joint.device)
    means = (joint * levels).sum(1) / joint.sum(1).clamp(min=1e-12)
    order = torch.argsort(means)
    return Anatomy(anatomy.posterior[order], anatomy.proportions[order], [one[order] for one in anatomy.joints])
