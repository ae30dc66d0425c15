"""What the instance engine is given besides two images: labels, landmarks, masks, batches, number types, and bad input."""

from __future__ import annotations

import math
import platform
import resource
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.images.intensity import rescaled
from popatlas.registration.engines.instance import core
from popatlas.registration.engines.instance.core import InstanceResult, register
from popatlas.registration.engines.instance.inputs import prepare
from popatlas.registration.malloc import kept_memory
from popatlas.transforms.fieldops import CompiledOps, TensorOps
from popatlas.transforms.fields import compose, coordinates, warp
from popatlas.transforms.jacobian import jacobian_determinant
from tests.unit.registration.test_instance import SHAPES, SMALL, error, inner, pair, texture


def test_labels_win_against_images_that_are_already_alike() -> None:
    """The images alone would stay where they are."""
    image = texture(SHAPES[2], 0)
    at = coordinates(SHAPES[2])
    maps = [
        ((at - torch.tensor([centre, 28.0]).reshape(1, 2, 1, 1)).norm(dim=1, keepdim=True) < 9).float()
        for centre in (28, 34)
    ]

    def dice(result: InstanceResult) -> float:
        moved = warp(maps[1], result.forward)
        return float(2 * (moved * maps[0]).sum() / (moved + maps[0]).sum())

    settings = replace(SMALL, label_weight=5.0)
    before = float(2 * (maps[0] * maps[1]).sum() / (maps[0] + maps[1]).sum())
    assert dice(register(image, image, settings)) == pytest.approx(before, abs=0.02)
    assert dice(register(image, image, settings, fixed_labels=maps[0], moving_labels=maps[1])) > before + 0.2


@pytest.mark.parametrize("similarity", ["lncc", "ssd"])
def test_a_landmark_wins_against_images_that_are_already_alike(similarity: str) -> None:
    image = texture(SHAPES[2], 0)
    points = torch.tensor([[30.0, 28.0]]), torch.tensor([[34.0, 28.0]])
    settings = replace(SMALL, similarity=similarity, options={}, landmark_weight=4.0, tolerance=-1.0)
    result = register(image, image, settings, landmarks=points)
    assert not result.diverged
    moved = points[0] + result.forward[0, :, 30, 28]
    assert float((moved - points[1]).norm()) < 1.5


@pytest.mark.parametrize("similarity", ["ssd", "nmi", "mattes", "mindssc", "mind", "ngf", "ncc"])
def test_a_long_step_is_shortened_before_a_run_counts_as_diverged(similarity: str) -> None:
    _, moving, truth = pair(2)
    nearly = warp(moving, 0.25 * truth)
    noise = 0.02 * torch.randn(nearly.shape, generator=torch.Generator().manual_seed(1))
    settings = replace(SMALL, similarity=similarity, options={}, step=2.0, tolerance=-1.0)
    result = register(nearly + noise, moving, settings)
    assert not result.diverged
    assert error(result, 0.25 * truth) < 0.9 * float(inner(0.25 * truth).norm(dim=1).mean())


def test_strong_stretches_have_an_inverse() -> None:
    """The plain fixed-point iteration diverges where the field rises by more than a voxel for each voxel."""
    at = coordinates((32, 32, 32))
    centred = at - 15.5
    radius = centred.norm(dim=1, keepdim=True)
    field = 1.5 * centred * torch.exp(-((radius / 8) ** 2))
    assert float(jacobian_determinant(field).min()) > 0
    for ops, rest in ((CompiledOps(), 0.02), (TensorOps(), 0.3)):
        assert float(inner(compose(ops.invert(field), field)).norm(dim=1).max()) < rest


def test_a_mask_ends_where_its_image_ends() -> None:
    """Beyond the moving image nothing is known; its last plane, repeated, would pull."""
    fixed, moving, _ = pair(3)
    cut, ones = moving[..., :20], torch.ones_like(moving[..., :20])
    matrix = torch.eye(3, 4)[None]
    found = prepare(fixed, cut, matrix=matrix, masks=(None, ones))
    level = core._level(found, replace(SMALL, shrink=(1,), iterations=(1,), field_shrink=(1,)), 0)
    assert level.moving_mask is not None
    warped = CompiledOps().warp(level.moving_mask, torch.zeros_like(moving).expand(1, 3, *moving.shape[2:]).contiguous(), 1,
                                level.mask_matrix, fixed.shape[2:])  # fmt: skip
    assert (warped[..., :20] == 1).all() and (warped[..., 21:] < 1e-3).all()
    masked, free = (register(fixed, cut, SMALL, matrix=matrix, moving_mask=mask) for mask in (ones, None))
    beyond = [float(result.forward[..., 26:].norm(dim=1).mean()) for result in (masked, free)]
    assert beyond[0] < beyond[1]


@pytest.mark.parametrize("ndim", [2, 3])
def test_one_mask_and_one_matrix_serve_a_whole_batch(ndim: int) -> None:
    pairs = [pair(ndim, 0), pair(ndim, 5)]
    fixed, moving = (torch.cat([p[i] for p in pairs]) for i in (0, 1))
    mask = torch.zeros_like(fixed[:1])
    mask[(..., *[slice(6, -6)] * ndim)] = 1
    eye = torch.eye(ndim, ndim + 1)[None]
    shared = register(fixed, moving, SMALL, matrix=eye, fixed_mask=mask, moving_mask=mask)
    both = torch.cat([mask, mask])
    own = register(fixed, moving, SMALL, matrix=eye.expand(2, -1, -1), fixed_mask=both, moving_mask=both)
    torch.testing.assert_close(shared.forward, own.forward)


def test_one_bad_pair_leaves_the_others_of_its_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [pair(3, 0), pair(3, 5)]
    good = CompiledOps.force

    def spoil(self: CompiledOps, *arguments: object) -> tuple[Tensor, Tensor]:
        value, force = good(self, *arguments)  # type: ignore[arg-type]
        if len(value) == 2:
            force[1, 0, 3, 3, 3] = math.nan
        return value, force

    alone = register(*pairs[0][:2], SMALL)
    monkeypatch.setattr(CompiledOps, "force", spoil)
    both = register(*(torch.cat([p[i] for p in pairs]) for i in (0, 1)), SMALL)
    assert [level.stopped[1] for level in both.levels] == ["diverged"] * 2
    assert (both.forward[1] == 0).all()
    torch.testing.assert_close(both.forward[:1], alone.forward, atol=5e-3, rtol=0)


def test_an_image_with_little_foreground_keeps_its_scale() -> None:
    image = torch.zeros((1, 1, 40, 40))
    image[..., 20, 20] = 7.0
    assert float(rescaled(image).max()) == 1.0
    ball = torch.zeros((1, 1, 40, 40))
    ball[..., 10:30, 10:30] = torch.rand(20, 20) + 5
    assert float(rescaled(ball, (ball > 0).float())[ball > 0].median()) == pytest.approx(0.5, abs=0.15)


def test_other_number_types_and_gradients_are_taken() -> None:
    fixed, moving, _ = pair(2)
    plain = register(fixed, moving, SMALL, fixed_mask=torch.ones_like(fixed))
    other = register(
        fixed.double().requires_grad_(), moving.double(), SMALL, matrix=torch.eye(2, 3, dtype=torch.float64)[None],
        fixed_mask=torch.ones_like(fixed, dtype=torch.bool),
    )  # fmt: skip
    torch.testing.assert_close(other.forward, plain.forward)


def nan(values: Tensor) -> Tensor:
    values = values.clone()
    values.flatten()[0] = math.nan
    return values


WRONG = {
    "NaN in the initial field": (lambda f: {"initial": nan(torch.zeros((1, 2, *f.shape[2:])))}, "initial field holds"),
    "NaN landmark": (lambda f: {"landmarks": (nan(torch.ones(3, 2)), torch.ones(3, 2))}, "landmark is NaN"),
    "NaN label": (lambda f: {"fixed_labels": nan(f), "moving_labels": f}, "fixed label maps holds"),
    "NaN matrix": (lambda f: {"matrix": nan(torch.eye(2, 3)[None])}, "matrix holds"),
    "matrix without batch": (lambda f: {"matrix": torch.eye(2, 3)}, r"matrix has shape \(2, 3\)"),
    "initial field of another shape": (lambda f: {"initial": torch.zeros((1, 2, 30, 30))}, "initial field has shape"),
    "labels of one image": (lambda f: {"fixed_labels": f}, "one image only"),
    "labels of another grid": (lambda f: {"fixed_labels": f, "moving_labels": f[..., :-1]}, "moving label maps has shape"),
    "unequal landmarks": (lambda f: {"landmarks": (torch.ones(2, 2), torch.ones(1, 2))}, "landmarks of shapes"),
    "masks apart": (lambda f: {"fixed_mask": half(f, 0), "moving_mask": half(f, 1)}, "no voxel in common"),
    "batch of masks": (lambda f: {"fixed_mask": torch.ones((3, *f.shape[1:]))}, "fixed mask has shape"),
}


def half(image: Tensor, which: int) -> Tensor:
    mask = torch.zeros_like(image)
    middle = image.shape[2] // 2
    mask[:, :, slice(0, middle - 2) if which == 0 else slice(middle + 2, None)] = 1
    return mask


@pytest.mark.parametrize("case", list(WRONG))
def test_arguments_that_do_not_fit_are_named(case: str) -> None:
    fixed, moving, _ = pair(2)
    make, words = WRONG[case]
    with pytest.raises(InputError, match=words):
        register(fixed, moving, SMALL, **make(fixed))


def faults() -> int:
    """Return how many pages five large arrays take from the system."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.empty(2**24).fill_(1.0)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def faults_around_kept_memory() -> tuple[int, int, int]:
    outside = faults()
    with kept_memory():
        faults()
        inside = faults()
    return outside, inside, faults()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the GNU allocator")
def test_large_arrays_do_not_fault_again_while_memory_is_kept() -> None:
    """In a process of its own: the allocator keeps no large memory for other threads than the main one."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        outside, inside, after = pool.submit(faults_around_kept_memory).result()
    assert inside < outside / 10
    assert after > 10 * inside  # given back, and as before
