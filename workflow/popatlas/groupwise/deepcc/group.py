"""A group on its way through the network: scaled images in, views for the losses, or a finished result, out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from popatlas.errors import InputError
from popatlas.groupwise.chi import Intensities
from popatlas.groupwise.deepcc.labels import softened
from popatlas.groupwise.deepcc.losses import GroupViews, moved_maps, posterior
from popatlas.groupwise.deepcc.network import CombinedNet
from popatlas.groupwise.deepcc.settings import CombinedSettings
from popatlas.groupwise.xcoreg.core import GroupResult
from popatlas.networks.segmentation import evaluating
from popatlas.transforms.fields import warp

ENDS = (0.5, 99.5)  # percentiles of an image that become 0 and 1


def scaled(image: Tensor, name: str = "the image") -> Tensor:
    """Return an image (1, 1, *shape) with its low and high percentiles at 0 and 1.

    Raises
    ------
    InputError
        For a constant image, and for values that are not finite.
    """
    if not bool(torch.isfinite(image).all()):
        raise InputError(f"{name} has voxels that are not finite", remedy="replace them")
    found = Intensities.of(image, None, 32, ENDS)
    if found.scale == 0:
        raise InputError(f"{name} is constant", remedy="give an image with some contrast")
    return ((image.float() - found.low) / (found.high - found.low)).clamp(-0.5, 1.5)


def padded(image: Tensor, stride: int) -> Tensor:
    """Return an image (B, C, *shape) whose sizes are multiples of a stride; its last voxels are repeated."""
    padding = [side for n in reversed(image.shape[2:]) for side in (0, -n % stride)]
    return functional.pad(image, padding, mode="replicate") if any(padding) else image


def views_of(
    images: Sequence[Tensor],
    maps: Sequence[Tensor],
    displacements: Sequence[Tensor],
    labels: Sequence[Tensor | None],
    plan: CombinedSettings,
) -> GroupViews:
    """Return one group as the losses need it.

    Parameters
    ----------
    images : sequence of (1, 1, *shape) Tensor
        Scaled images.
    maps : sequence of (K, *shape) Tensor
        Predictions of the network.
    displacements : sequence of (1, D, *shape) Tensor
        From the common space to each image.
    labels : sequence of (*shape) Tensor or None
        Labels of an image, where it has any.
    plan : CombinedSettings
        Bins and softness.
    """
    axes = [Intensities.of(image, None, plan.bins, ENDS) for image in images]
    soft = [None if one is None else softened(one, plan.classes, plan.softness) for one in labels]
    known = [one if have is None else have for one, have in zip(maps, soft, strict=True)]
    pairs = list(zip(images, displacements, strict=True))
    return GroupViews(
        native=[axis.positions(image.flatten()) for axis, image in zip(axes, images, strict=True)],
        warped=[axis.positions(warp(image, field).flatten()) for axis, (image, field) in zip(axes, pairs, strict=True)],
        maps=[one.flatten(1) for one in known],
        moved=[moved_maps(one, field) for one, (_, field) in zip(known, pairs, strict=True)],
        predicted=[one.flatten(1) for one in maps],
        labelled=tuple(have is not None for have in labels),
    )


@torch.no_grad()
def predict_group(
    net: CombinedNet,
    images: Sequence[Tensor],
    domains: Sequence[int],
    plan: CombinedSettings,
    *,
    labels: Sequence[Tensor | None] | None = None,
    prior: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> tuple[GroupResult, list[Tensor]]:
    """Register and segment a group by a trained network.

    Parameters
    ----------
    net : CombinedNet
        The network.
    images : sequence of (1, 1, *shape) Tensor
        Two or more images on one grid.
    domains : sequence of int
        Contrast of each, as in training.
    plan : CombinedSettings
        Of the training.
    labels : sequence of (*shape) Tensor or None, optional
        Labels of some images, which then count in the posterior.
    prior : (K, *shape) Tensor, optional
        Class probabilities of an atlas in the common space.
    names : sequence of str, optional
        What messages call the images.

    Returns
    -------
    GroupResult
        Displacements, warped images, classes of the common space.
    list of (K, *shape) Tensor
        Class probabilities of each image.

    Raises
    ------
    InputError
        For fewer than two images, shapes that differ, constant images, values that are not finite, unknown contrasts.
    """
    called = list(names) if names is not None else [f"image {j + 1}" for j in range(len(images))]
    _check(net, images, domains, called)
    shape = tuple(images[0].shape[2:])
    inputs = [padded(scaled(image, name), plan.stride) for image, name in zip(images, called, strict=True)]
    with evaluating(net):
        maps, fields = net(inputs, domains)
    inner = tuple(slice(n) for n in shape)
    cut = (slice(None), slice(None), *inner)
    maps, fields = [one[cut] for one in maps], [one[cut] for one in fields]
    views = views_of(
        [scaled(image) for image in images], [one[0] for one in maps], fields, labels or [None] * len(images), plan
    )
    classes = posterior(views, plan, None if prior is None else prior.flatten(1))
    ndim = len(shape)
    result = GroupResult(
        displacements=fields,
        matrices=[torch.eye(ndim, ndim + 1)[None]] * len(images),
        warped=[warp(image.float(), field) for image, field in zip(images, fields, strict=True)],
        posterior=classes.reshape(-1, *shape),
        proportions=classes.double().mean(1),
        history=[],
    )
    return result, [one[0] for one in maps]


def _check(net: CombinedNet, images: Sequence[Tensor], domains: Sequence[int], names: Sequence[str]) -> None:
    if len(images) < 2:
        raise InputError(f"a group of {len(images)} images", remedy="give two or more images")
    if len(domains) != len(images) or any(not 0 <= domain < net.domains for domain in domains):
        message = f"contrasts {list(domains)} of {len(images)} images, where the network knows 0 to {net.domains - 1}"
        raise InputError(message, remedy="name the contrast of each image, as in the training")
    for image, name in zip(images, names, strict=True):
        if image.ndim != net.ndim + 2 or image.shape != images[0].shape:
            message = f"{name} has shape {tuple(image.shape[2:])}, where {tuple(images[0].shape[2:])} is needed"
            raise InputError(message, remedy=f"bring all images to one grid of {net.ndim} axes")
