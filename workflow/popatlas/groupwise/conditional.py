"""Conditional atlas: a template for each value of a covariate, such as age, from the subjects near it.

For a value ``t`` the subjects get the weights of a Gaussian kernel. The template begins as their voxelwise weighted median,
which is sharper than the mean; then all are registered to it, their images are averaged, and the average goes to the
weighted mean shape, until it no longer changes. The weighted mean of the maps is taken away at each iteration, where the
network of Bastiaansen et al. (WBIR 2022, doi:10.1007/978-3-031-11203-4) is trained with a penalty on a running mean.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from popatlas.errors import InputError, first_few
from popatlas.groupwise.centre import centred_maps
from popatlas.groupwise.neighbours import ConditionalSettings, kernel_width, near
from popatlas.images.scan import check_image
from popatlas.registration.engines.instance.core import register
from popatlas.registration.engines.instance.settings import InstanceSettings, preset
from popatlas.transforms.fieldops import TensorOps, ops_for
from popatlas.transforms.jacobian import jacobian_determinant


@dataclass(frozen=True)
class ConditionalTemplate:
    """The template at one value.

    Attributes
    ----------
    value : float
        Of the covariate.
    template : (1, 1, *shape) Tensor
        Intensities.
    members : list of int
        Subjects that take part.
    weights : list of float
        Their weights, which sum to 1.
    maps : list of (1, D, *shape) Tensor
        Displacements from the template to each member, voxels; their weighted mean is zero.
    changes : list of float
        Root mean square change of each iteration, as a share of the range.
    """

    value: float
    template: Tensor
    members: list[int]
    weights: list[float]
    maps: list[Tensor]
    changes: list[float]

    @property
    def effective(self) -> float:
        """Number of subjects that the weights are worth."""
        return 1 / sum(weight**2 for weight in self.weights)

    def describe(self) -> str:
        """Return a line: value, subjects, how much the last iteration changed."""
        told = f"{self.value:g}: {len(self.members)} subjects (worth {self.effective:.1f})"
        return f"{told}, change {self.changes[-1]:.3f} in {len(self.changes)} iterations"


def conditional_atlas(
    images: Sequence[Tensor],
    covariate: Sequence[float],
    values: Sequence[float],
    plan: ConditionalSettings | None = None,
    *,
    schedule: InstanceSettings | None = None,
    masks: Sequence[Tensor] | None = None,
    names: Sequence[str] | None = None,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> list[ConditionalTemplate]:
    """Make a template for each value of a covariate.

    Parameters
    ----------
    images : sequence of (1, 1, *shape) Tensor
        Subjects in one pose (rigidly aligned, so that their sizes stay) on one grid with isotropic voxels, 2D or 3D.
    covariate : sequence of float
        Its value for each subject.
    values : sequence of float
        Where templates are made, within the range of the covariate.
    plan : ConditionalSettings, optional
        What to do.
    schedule : InstanceSettings, optional
        Of the registrations; the preset ``quick`` when left out.
    masks : sequence of (1, 1, *shape) Tensor, optional
        Where each image may be trusted.
    names : sequence of str, optional
        What messages call the subjects.
    threads : int
        Of the compiled kernels.
    progress : callable, optional
        Called with a line of text after each template.

    Returns
    -------
    list of ConditionalTemplate
        One for each value.

    Raises
    ------
    InputError
        For a missing or constant covariate, lists of different lengths, images that cannot be used or have different shapes,
        values outside of the covariate's range, and fewer than three subjects near a value.
    """
    chosen = plan or ConditionalSettings()
    called = list(names) if names is not None else [f"subject {i + 1}" for i in range(len(images))]
    _check(images, covariate, values, called)
    width = chosen.width or kernel_width(covariate)
    found = []
    for value in values:
        members, weights = near(covariate, value, width, called)
        found.append(template_of(value, images, members, weights, chosen, schedule=schedule, masks=masks, threads=threads))
        if progress is not None:
            progress(found[-1].describe())
    return found


def template_of(
    value: float,
    images: Sequence[Tensor],
    members: Sequence[int],
    weights: Sequence[float],
    plan: ConditionalSettings,
    *,
    schedule: InstanceSettings | None = None,
    masks: Sequence[Tensor] | None = None,
    threads: int = 1,
) -> ConditionalTemplate:
    """Make the template of some subjects with weights that sum to 1; see `conditional_atlas`."""
    given = None if masks is None else [masks[i] for i in members]
    made = _template([images[i] for i in members], list(weights), given, plan, schedule or preset("quick"), threads)
    return ConditionalTemplate(float(value), made[0], list(members), list(weights), made[1], made[2])


def _check(images: Sequence[Tensor], covariate: Sequence[float], values: Sequence[float], names: Sequence[str]) -> None:
    if not len(images) == len(covariate) == len(names):
        message = f"{len(images)} images, {len(covariate)} values of the covariate and {len(names)} names"
        raise InputError(message, remedy="give one for each subject")
    missing = [name for name, value in zip(names, covariate, strict=True) if not np.isfinite(value)]
    if missing:
        message = f"the covariate is missing for {first_few(missing)}"
        raise InputError(message, remedy="complete the column, or leave these subjects out")
    if len(set(map(float, covariate))) < 2:
        raise InputError("the covariate has one value only", remedy="build one template instead")
    outside = [f"{value:g}" for value in values if not min(covariate) <= value <= max(covariate)]
    if not len(values) or outside:
        message = f"templates are asked for at {first_few(outside) or 'no value'}"
        remedy = f"give values from {min(covariate):g} to {max(covariate):g}"
        raise InputError(message, remedy=remedy)
    for name, image in zip(names, images, strict=True):
        if image.shape != images[0].shape:
            message = f"{name} has shape {tuple(image.shape)}, {names[0]} {tuple(images[0].shape)}"
            raise InputError(message, remedy="bring all images to one grid")
        check_image(image, subject=name)


def _template(
    images: list[Tensor],
    weights: list[float],
    masks: list[Tensor] | None,
    plan: ConditionalSettings,
    schedule: InstanceSettings,
    threads: int,
) -> tuple[Tensor, list[Tensor], list[float]]:
    """Return a template, the centred maps to its members, and how much it changed at each iteration."""
    template = weighted_median(images, weights)
    ops = ops_for([template], threads)
    whole = torch.eye(template.ndim - 2, template.ndim - 1)[None]
    changes: list[float] = []
    maps: list[Tensor] = []
    for _ in range(plan.iterations):
        maps = []
        for number, image in enumerate(images):
            mask = None if masks is None else masks[number]
            maps.append(register(template, image, schedule, moving_mask=mask, threads=threads).forward)
        maps = centred_maps(maps, ops, weights)
        pieces = zip(images, maps, weights, strict=True)
        new = sum(w * ops.warp(image, field, 1, whole, template.shape[2:]) for image, field, w in pieces)
        assert isinstance(new, Tensor)
        changes.append(float((new - template).square().mean().sqrt() / (template.max() - template.min()).clamp(min=1e-12)))
        template = new
        if changes[-1] < plan.tolerance:
            break
    return template, maps, changes


def weighted_median(images: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the voxelwise weighted median of images, the smallest value that half of the weight does not exceed."""
    share = torch.tensor(list(weights), dtype=images[0].dtype)
    slabs = [
        _median_of(torch.stack([image.narrow(2, place, 1) for image in images]), share)
        for place in range(images[0].shape[2])
    ]  # one by one, for the memory of sorting
    return torch.cat(slabs, 2)


def _median_of(stack: Tensor, share: Tensor) -> Tensor:
    values, order = stack.sort(0)
    total = share[order].cumsum(0)
    at = (total < 0.5 * total[-1:]).sum(0, keepdim=True).clamp(max=len(stack) - 1)
    return values.gather(0, at)[0]


def structure_volumes(
    found: ConditionalTemplate,
    labels: Sequence[Tensor],
    numbers: Sequence[int],
    plan: ConditionalSettings,
    *,
    soft: bool = False,
) -> list[dict[str, float]]:
    """Return the volumes of structures in a template, with bands from draws of its subjects.

    Parameters
    ----------
    found : ConditionalTemplate
        The template and its maps.
    labels : sequence of (1, 1, *shape) Tensor
        Label images of all subjects, by the numbers of `conditional_atlas`.
    numbers : sequence of int
        Labels whose volume is asked for.
    plan : ConditionalSettings
        Draws, level and seed.
    soft : bool
        The images are shares of one structure, 0 to 1, and `numbers` is its name alone.

    Returns
    -------
    list of dict
        value, label, volume, low and high in voxels, for each label. A draw takes the subjects' weights times how often each
        was drawn; its mean shape follows from the same registrations.
    """

    def share_of(number: int) -> Callable[[int], Tensor]:
        return lambda i: labels[i] if soft else (labels[i] == number).float()

    rows = volumes_of(found, {number: share_of(number) for number in numbers}, plan)
    return [{"value": found.value, "label": number, **row} for number, row in rows.items()]


Name = TypeVar("Name", bound=Hashable)


def volumes_of(
    found: ConditionalTemplate, parts: Mapping[Name, Callable[[int], Tensor]], plan: ConditionalSettings
) -> dict[Name, dict[str, float]]:
    """Return the volumes of parts of a template, with bands from draws of its subjects.

    Parameters
    ----------
    found : ConditionalTemplate
        The template and its maps.
    parts : mapping
        Name to a function that returns the part of a subject, by the numbers of `conditional_atlas`: (1, 1, *shape) shares.
    plan : ConditionalSettings
        Draws, level and seed.

    Returns
    -------
    dict
        Name to volume, low and high, voxels.
    """
    ops, shape = TensorOps(), found.template.shape[2:]
    whole = torch.eye(found.template.ndim - 2, found.template.ndim - 1)[None]
    pairs = list(zip(found.members, found.maps, strict=True))
    seen: dict[Name, tuple[Tensor, Tensor]] = {}  # voxels where a part is in any subject, and its shares there
    for name, part in parts.items():
        moved = torch.cat([ops.warp(part(i), field, 1, whole, shape).flatten(1) for i, field in pairs])
        where = moved.any(0).nonzero()[:, 0]
        seen[name] = where, moved[:, where]
    volumes: dict[Name, list[float]] = {name: [] for name in parts}
    for row in _draws(found.weights, plan):
        mean = sum(float(weight) * field for weight, field in zip(row, found.maps, strict=True))
        assert isinstance(mean, Tensor)
        stretch = jacobian_determinant(mean).flatten()
        for name, (where, shares) in seen.items():
            volumes[name].append(float((row @ shares) @ stretch[where]))
    tail = 100 * (1 - plan.level) / 2
    bands = {name: np.percentile(drawn, [tail, 100 - tail]) for name, drawn in volumes.items()}
    return {
        name: {"volume": volumes[name][0], "low": float(low), "high": float(high)} for name, (low, high) in bands.items()
    }


def _draws(weights: Sequence[float], plan: ConditionalSettings) -> list[Tensor]:
    """Return the weights of the subjects, and those of each draw of them."""
    given = torch.tensor(list(weights), dtype=torch.float64)
    chance, found = np.random.default_rng(plan.seed), [given]
    for _ in range(plan.bootstrap):
        drawn = torch.from_numpy(chance.multinomial(len(given), np.full(len(given), 1 / len(given)))) * given
        found.append(drawn / drawn.sum() if float(drawn.sum()) > 0 else given)
    return [row.float() for row in found]
