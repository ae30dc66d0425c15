"""The losses of deep combined computing: chi of the warped images, labels against the common anatomy, and segmentation.

All are of one group. Images are given by the positions of their intensities on the axes of their histograms
(`popatlas.groupwise.chi.Intensities`), which carry the slope.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from popatlas.groupwise.chi import FLOOR, ORDER, information, log_appearance, normalised
from popatlas.groupwise.deepcc.settings import CombinedSettings
from popatlas.similarity.parzen import Axis, window
from popatlas.transforms.fields import warp


def soft_joint(position: Tensor, classes: Tensor, bins: int, weight: Tensor | None = None) -> Tensor:
    """Return the joint distribution (K, bins) of intensities (V,) and classes (K, V), with slopes by both.

    The values are those of `popatlas.groupwise.chi.joint_distribution`.
    """
    first, values, _ = window(position, Axis(bins, ORDER, 1, bins - 3))
    shares = classes if weight is None else classes * weight
    sums = torch.zeros(len(classes), bins, dtype=position.dtype, device=position.device)
    for step, value in enumerate(values):
        sums = sums.index_add(1, first + step, shares * value)
    return sums / shares.sum()


@dataclass(frozen=True)
class GroupViews:
    """A group on its way through the losses; N images of V voxels, K classes.

    Attributes
    ----------
    native, warped : list of (V,) Tensor
        Positions of the intensities, before and after the registration.
    maps : list of (K, V) Tensor
        Softened labels where an image has any, else the network's prediction, on the grid of the image.
    moved : list of (K, V) Tensor
        The same in the common space.
    predicted : list of (K, V) Tensor
        The network's prediction for every image.
    labelled : tuple of bool
        Which images have labels.
    """

    native: list[Tensor]
    warped: list[Tensor]
    maps: list[Tensor]
    moved: list[Tensor]
    predicted: list[Tensor]
    labelled: tuple[bool, ...]


def posterior(views: GroupViews, plan: CombinedSettings, prior: Tensor | None = None) -> Tensor:
    """Return the classes (K, V) of the common space, in two passes and without slopes.

    The classes of the first pass are named by what has names: an atlas, else the images with labels, each on its own grid,
    else the prediction of the first image. The appearance of the second pass follows from the classes of the first: all
    other images take their names from the common anatomy. Had their own predictions a vote in them, a network that took one
    tissue for another in one contrast would move the images until they agree.

    Parameters
    ----------
    views : GroupViews
        The group.
    plan : CombinedSettings
        Bins, floor, and whether warped labels count.
    prior : (K, V) Tensor, optional
        Class probabilities of an atlas in the common space, in place of the shares of the classes.
    """
    with torch.no_grad():
        everyone = list(range(len(views.native)))
        named = [number for number in everyone if views.labelled[number]] or [0]
        if prior is None:
            joints = {number: soft_joint(views.native[number], views.maps[number], plan.bins) for number in named}
        else:
            joints = {number: soft_joint(views.warped[number], prior, plan.bins) for number in everyone}
        classes = _classes(views, joints, plan, prior)
        joints = {number: soft_joint(views.warped[number], classes, plan.bins) for number in everyone}
        return _classes(views, joints, plan, prior)


def _classes(views: GroupViews, joints: Mapping[int, Tensor], plan: CombinedSettings, prior: Tensor | None) -> Tensor:
    """Return the classes (K, V) that some images, whose appearance is known, and the labels speak for."""
    shares = torch.stack([joint.sum(1) for joint in joints.values()]).mean(0)
    total = shares.clamp(min=FLOOR).log()[:, None] if prior is None else prior.clamp(min=plan.floor).log()
    for number, joint in joints.items():
        position = views.warped[number]
        lower = position.floor().long()
        part = position - lower
        logs = log_appearance(joint)
        total = total + logs[:, lower] * (1 - part) + logs[:, lower + 1] * part
    for moved, has_labels in zip(views.moved, views.labelled, strict=True):
        if has_labels and plan.use_labels:
            total = total + moved.clamp(min=FLOOR).log()
    return normalised(total, plan.floor)


def chi_loss(views: GroupViews, classes: Tensor, plan: CombinedSettings) -> Tensor:
    """Return ``-chi`` of the warped images and the common classes, the mean over the images (L1 without its penalty)."""
    return -torch.stack([information(soft_joint(image, classes, plan.bins)) for image in views.warped]).mean()


def anatomy_loss(views: GroupViews, classes: Tensor) -> Tensor:
    """Return the cross entropy of the warped maps against the common classes, the mean over the images (L2).

    It is no less than the entropy of the classes, and equal to it when all maps agree with them.
    """
    terms = [-(classes * moved.clamp(min=FLOOR).log()).sum(0).mean() for moved in views.moved]
    return torch.stack(terms).mean()


def segmentation_loss(views: GroupViews, plan: CombinedSettings) -> Tensor:
    """Return how well the predictions explain each image, and its labels where it has any, the mean over the images (L3)."""
    terms = []
    for number, predicted in enumerate(views.predicted):
        explained = -information(soft_joint(views.native[number], predicted, plan.bins))
        if views.labelled[number]:
            labels = views.maps[number]
            entropy = -(labels * predicted.clamp(min=FLOOR).log()).sum(0).mean()
            terms.append(explained + entropy + 1 - soft_dice(predicted, labels))
        else:
            terms.append(explained - (predicted * predicted.clamp(min=FLOOR).log()).sum(0).mean())
    return torch.stack(terms).mean()


def soft_dice(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean over the classes of the Dice coefficient of two probability maps (K, V)."""
    return (2 * (one * other).sum(1) / (one.sum(1) + other.sum(1)).clamp(min=FLOOR)).mean()


def moved_maps(maps: Tensor, displacement: Tensor) -> Tensor:
    """Return maps (K, *shape) in the common space as (K, V), by a displacement (1, D, *shape)."""
    return warp(maps[None], displacement)[0].flatten(1)
