"""Conditional atlas: a template for each value of a covariate, such as age, from the subjects near it.

For a value ``t`` the subjects get the weights of a Gaussian kernel. The template begins as their voxelwise weighted median,
which is sharper than the mean; then all are registered to it, their images are averaged, and the average goes to the
weighted mean shape, until it no longer changes. The weighted mean of the maps is taken away at each iteration, where the
network of Bastiaansen et al. (WBIR 2022, doi:10.1007/978-3-031-11203-4) is trained with a penalty on a running mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from popatlas.errors import InputError, first_few
from popatlas.groupwise.centre import centred_maps
from popatlas.images.scan import check_image
from popatlas.registration.engines.instance.core import register
from popatlas.registration.engines.instance.settings import InstanceSettings, preset
from popatlas.settings import option, settings
from popatlas.transforms.fieldops import TensorOps, ops_for
from popatlas.transforms.jacobian import jacobian_determinant

LEAST_WEIGHT = 0.02  # of the largest: subjects with less take no part
FEWEST = 3  # subjects of a template


@settings
class ConditionalSettings:
    """How the templates are made."""

    width: float = option(
        0.0, "Standard deviation of the kernel, units of the covariate; 0: from the data (Silverman)", ge=0
    )
    iterations: int = option(4, "Most iterations of a template", ge=1, le=50)
    tolerance: float = option(0.01, "A template is done when it changes by less, as a share of its range", gt=0)
    bootstrap: int = option(200, "Draws of the subjects for the bands of the volumes", ge=0)
    level: float = option(0.95, "Share of the draws within the bands", gt=0, lt=1)
    seed: int = option(0, "Of the draws", ge=0)


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


def kernel_width(covariate: Sequence[float]) -> float:
    """Return Silverman's rule of thumb, ``0.9 min(sd, IQR / 1.34) n^(-1/5)``."""
    values = np.asarray(covariate, dtype=float)
    quartiles = np.percentile(values, [25, 75])
    return float(0.9 * min(values.std(ddof=1), (quartiles[1] - quartiles[0]) / 1.34) * len(values) ** -0.2)


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
        given = None if masks is None else [masks[i] for i in members]
        one = _template([images[i] for i in members], weights, given, chosen, schedule or preset("quick"), threads)
        found.append(ConditionalTemplate(float(value), one[0], members, weights, one[1], one[2]))
        if progress is not None:
            told = f"{value:g}: {len(members)} subjects (worth {found[-1].effective:.1f})"
            progress(f"{told}, change {one[2][-1]:.3f} in {len(one[2])} iterations")
    return found


def near(covariate: Sequence[float], value: float, width: float, names: Sequence[str]) -> tuple[list[int], list[float]]:
    """Return the subjects near a value and their weights."""
    odds = np.exp(-0.5 * ((np.asarray(covariate, dtype=float) - value) / width) ** 2)
    members = [int(i) for i in np.flatnonzero(odds >= LEAST_WEIGHT * max(odds.max(), 1e-300))]
    weights = odds[members] / odds[members].sum()
    if len(members) < FEWEST or 1 / float((weights**2).sum()) < 2:
        message = f"near {value:g} there are too few subjects ({first_few(names[i] for i in members)}; width {width:.3g})"
        raise InputError(message, remedy="leave that value out, or set a larger width")
    return members, weights.tolist()


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
    stack = torch.stack(list(images))
    values, order = stack.sort(0)
    total = torch.tensor(list(weights), dtype=stack.dtype)[order].cumsum(0)
    at = (total < 0.5 * total[-1:]).sum(0, keepdim=True).clamp(max=len(images) - 1)
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
    weights = torch.tensor(found.weights, dtype=torch.float64)
    chance = np.random.default_rng(plan.seed)
    draws = [weights]
    for _ in range(plan.bootstrap):
        drawn = torch.from_numpy(chance.multinomial(len(weights), np.full(len(weights), 1 / len(weights)))) * weights
        draws.append(drawn / drawn.sum() if float(drawn.sum()) > 0 else weights)
    shares = torch.stack(draws).float()  # (B, N)
    ops = TensorOps()
    whole = torch.eye(found.template.ndim - 2, found.template.ndim - 1)[None]
    shape = found.template.shape[2:]
    fields = torch.cat(found.maps)
    maps = {
        number: torch.cat(
            [
                ops.warp(labels[i] if soft else (labels[i] == number).float(), field, 1, whole, shape)
                for i, field in zip(found.members, found.maps, strict=True)
            ]
        )
        for number in numbers
    }
    volumes: dict[int, list[float]] = {number: [] for number in numbers}
    for row in shares:
        mean = torch.tensordot(row, fields, 1)[None]
        stretch = jacobian_determinant(mean)[0]
        for number in numbers:
            volumes[number].append(float((torch.tensordot(row, maps[number], 1)[0] * stretch).sum()))
    tail = 100 * (1 - plan.level) / 2
    rows = []
    for number in numbers:
        low, high = np.percentile(volumes[number], [tail, 100 - tail])
        rows.append(
            {"value": found.value, "label": number, "volume": volumes[number][0], "low": float(low), "high": float(high)}
        )
    return rows
