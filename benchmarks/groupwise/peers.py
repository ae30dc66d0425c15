"""Other agreements of a group, a few lines each over the same moves, levels and steps; and ANTs, image by image.

* `mi-reference`: mutual information of each image with the first.
* `mi-pairs`: mutual information of all pairs ("accumulated pairwise estimates"; quadratic in the images).
* `ssd-mean`: squares of the differences from the mean image (Joshi et al., 2004); for one contrast.
* `mi-template`: mutual information of each image with the first principal component of the group (after Polfliet et al.,
  2018, doi:10.1016/j.media.2018.02.003; the conditional entropy that they take can be lowered by moving an image away).
* `ants`: SyN with Mattes mutual information, each image to the first (Avants et al., 2008), with as many iterations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.groupwise.cases import Case
from popatlas.groupwise.xcoreg.group import Group, Views
from popatlas.similarity.parzen import entropy, intensity_range, joint_histogram, tight_axis

BINS, FLOOR = 32, 1e-12
AXIS = tight_axis(BINS, 1)
ANTS = {"syn_metric": "mattes", "reg_iterations": (160, 80, 60, 30), "random_seed": 1}
Value = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def information(one: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """Return the mutual information of two images (V,)."""
    joint = _joint(one, other, weight)
    together, first, second = entropy(joint, FLOOR), entropy(joint.sum(2), FLOOR), entropy(joint.sum(1), FLOOR)
    return (first + second - together)[0]


def _joint(one: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    rows = [image.unsqueeze(0) for image in (one, other)]
    with torch.no_grad():
        ends = [intensity_range(row, weight.unsqueeze(0), (0.1, 99.9)) for row in rows]
    positions = [AXIS.positions(row, *end) for row, end in zip(rows, ends, strict=True)]
    return joint_histogram(positions[0], positions[1], weight.unsqueeze(0), (AXIS, AXIS))


def to_reference(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return the information of all images about the first, which does not move by it."""
    pairs = zip(values[1:], weights[1:], strict=True)
    return torch.stack([information(values[0].detach(), value, weight * weights[0]) for value, weight in pairs]).sum()


def all_pairs(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return the information of all pairs."""
    found = [information(values[i], values[j], weights[i] * weights[j]) for j in range(len(values)) for i in range(j)]
    return torch.stack(found).sum() * 2 / (len(values) - 1)


def to_mean(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return the negative variance over the group, in variances of the images."""
    stack, shares = torch.stack(list(values)), torch.stack(list(weights))
    scale = stack.detach().std(1, keepdim=True)
    rest = stack / scale
    rest = rest - rest.mean(0).detach()
    return -(rest.square() * shares).sum() / shares.sum() * len(values)


def to_template(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return the information of the images about the group's first principal component."""
    stack = torch.stack([value.detach() for value in values])
    standard = (stack - stack.mean(1, keepdim=True)) / stack.std(1, keepdim=True)
    _, axes = torch.linalg.eigh(standard @ standard.T)
    template = axes[:, -1] @ standard
    pairs = zip(values, weights, strict=True)
    return torch.stack([information(value, template, weight) for value, weight in pairs]).sum()


AGREEMENTS: dict[str, Value] = {
    "mi-reference": to_reference,
    "mi-pairs": all_pairs,
    "ssd-mean": to_mean,
    "mi-template": to_template,
}


class Agreement:
    """An agreement as a group metric: value and slopes by automatic differentiation."""

    def __init__(self, value: Value) -> None:
        self.function = value
        self.slopes: list[Tensor] = []

    def begin(self, group: Group, views: Views) -> None:
        """Do nothing: there is no state."""

    def value(self, views: Views) -> float:
        """Return the agreement, and keep its slopes."""
        seen = [views[j] for j in range(len(views))]
        values = [one.detach().requires_grad_() for one, _ in seen]
        total = self.function(values, [weight for _, weight in seen])
        torch.autograd.backward(total)
        self.slopes = [torch.zeros_like(one) if one.grad is None else one.grad for one in values]
        return float(total)

    def slope(self, number: int, values: Tensor, weight: Tensor) -> Tensor:
        """Return the slope by one image."""
        return self.slopes[number]


def ants_to_first(case: Case) -> tuple[list[Tensor], float]:
    """Return the displacements (voxels) of ANTs from the first image to each, and its CPU seconds."""
    import ants

    images = [ants.from_numpy(image[0, 0].numpy().astype(np.float32)) for image in case.images]
    started = time.process_time()
    fields = [torch.zeros_like(case.truth[0])]
    for moving in images[1:]:
        found = ants.registration(images[0], moving, "SyNOnly", **ANTS)
        warps = [ants.image_read(name).numpy() for name in found["fwdtransforms"] if name.endswith("Warp.nii.gz")]
        fields.append(torch.from_numpy(np.moveaxis(warps[0], -1, 0).copy())[None])
    return fields, time.process_time() - started
