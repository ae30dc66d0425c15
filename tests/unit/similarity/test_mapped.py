"""Local correlation of mapped intensities: contrasts that are functions of each other are as good as one contrast."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from popatlas.images.miniature import draw_miniature
from popatlas.similarity.lncc import LNCC
from popatlas.similarity.mapped import FLOOR, MappedLNCC, find_mapping
from popatlas.transforms.fieldops import CompiledOps, TensorOps


def brain(contrast: str = "T1w", seed: int = 1) -> Tensor:
    return draw_miniature(seed, contrast=contrast, noise=0.01).scan().image


def inverted(image: Tensor) -> Tensor:
    return torch.where(image > 0, 1.3 - image, image)


def test_images_of_one_contrast_are_compared_as_they_are() -> None:
    one, other = brain(seed=1), brain(seed=2)
    assert torch.equal(MappedLNCC()(one, other), LNCC(radius=2, floor=FLOOR)(one, other))


CHANGES = [inverted, lambda image: image * (2 - image), lambda image: (image - 0.6).abs() + 0.05]


@pytest.mark.parametrize("change", CHANGES, ids=["inverted", "saturated", "folded"])
def test_a_function_of_the_intensities_costs_nothing(change: Callable[[Tensor], Tensor]) -> None:
    """The loss of an image and itself in another contrast is that of one contrast, and misalignment costs as much."""
    plain, mapped = LNCC(radius=2, floor=FLOOR), MappedLNCC()
    losses = []
    for shift in (0, 1):
        one, other = brain(), brain().roll(shift, dims=2)
        losses.append((float(plain(one, other)), float(mapped(one, torch.where(other > 0, change(other), other)))))
    (plain_there, mapped_there), (plain_off, mapped_off) = losses
    assert mapped_there == pytest.approx(plain_there, abs=0.015)
    assert mapped_off - mapped_there > 0.9 * (plain_off - plain_there)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_compiled_force_points_where_that_of_torch_does(symmetric: bool) -> None:
    one, other = brain(seed=1), inverted(brain(seed=2))
    value, push = TensorOps().force(MappedLNCC(), one, other, None, 1, symmetric)
    found, force = CompiledOps().force(MappedLNCC(), one, other, None, 1, symmetric)
    assert float(found) == pytest.approx(float(value), abs=0.01)
    alike = torch.nn.functional.cosine_similarity(push.flatten(), force.flatten(), dim=0)
    assert float(alike) > 0.8  # the compiled derivative is that of the window at the voxel alone


def test_the_mapping_is_the_mean_of_the_other_image() -> None:
    joint = np.zeros((16, 16))
    for low, high in ((2, 13), (7, 7), (13, 2)):
        joint[low, high] = 1
    found = find_mapping(joint, [(0.0, 15.0), (0.0, 15.0)], 0.1)
    assert found.values is not None and found.values[[13, 7, 2]] == pytest.approx([2, 7, 13], abs=1.5)
    assert find_mapping(np.eye(16), [(0.0, 15.0), (0.0, 15.0)], 0.1).values is None
    assert find_mapping(np.zeros((16, 16)), [(0.0, 15.0), (0.0, 15.0)], 0.1).values is None


def test_the_direction_that_is_a_function_is_taken() -> None:
    """Two tissues of one image have one intensity in the other: the other way round nobody could tell them apart."""
    joint = np.zeros((16, 16))
    joint[2, 5] = joint[13, 5] = joint[7, 10] = 1  # fixed 2 and 13 are both 5 in the moving image
    assert find_mapping(joint, [(0.0, 15.0), (0.0, 15.0)], 0.1).image == 0


def test_constant_and_empty_images_have_no_mapping() -> None:
    zero = torch.zeros(1, 1, 6, 6, 6)
    assert float(MappedLNCC()(zero, brain()[..., :6, :6, :6])) == pytest.approx(0, abs=1e-6)
