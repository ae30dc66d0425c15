"""The instance engine on phantoms with a known deformation."""

from __future__ import annotations

import math
import platform
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from popatlas.config import default_config
from popatlas.errors import InputError
from popatlas.registration import instance
from popatlas.registration.allocation import kept_memory
from popatlas.registration.compositive import Stop
from popatlas.registration.fieldops import CompiledOps, TensorOps
from popatlas.registration.instance import PRESETS, InstanceResult, Settings, level_matrix, preset, register
from popatlas.registration.instance_files import settings_from_config
from popatlas.registration.instance_inputs import prepare
from popatlas.transforms.fields import compose, coordinates, invert, jacobian_determinant, sample, warp

SHAPES = {2: (64, 56), 3: (36, 40, 32)}
SMALL = Settings(shrink=(2, 1), iterations=(40, 30), field_shrink=(1, 1))


def texture(shape: tuple[int, ...], seed: int) -> Tensor:
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    image = gaussian_filter(noise, 1.5)
    return torch.from_numpy((image - image.min()) / np.ptp(image))[None, None]


def bump(shape: tuple[int, ...], size: float = 2.5) -> Tensor:
    """A smooth displacement that is zero at the border."""
    at = coordinates(shape)
    limits = torch.tensor(shape).reshape(1, -1, *[1] * len(shape)) - 1
    window = torch.sin(torch.pi * at / limits).prod(1, keepdim=True)
    return size * window * torch.cos(4 * at.flip(1) / limits)


def pair(ndim: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Fixed, moving and the displacement that maps fixed to moving points."""
    shape = SHAPES[ndim]
    moving, truth = texture(shape, seed), bump(shape)
    noise = 0.01 * torch.from_numpy(np.random.default_rng(seed + 1).standard_normal(shape).astype(np.float32))
    return warp(moving, truth) + noise, moving, truth


def inner(values: Tensor, margin: int = 4) -> Tensor:
    return values[(..., *[slice(margin, -margin)] * (values.ndim - 2))]


def error(result: InstanceResult, truth: Tensor) -> float:
    return float(inner(result.forward - truth).norm(dim=1).mean())


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("field_shrink", [(1, 1), (1, 2)])
def test_a_known_field_is_found_without_folds_and_with_its_inverse(
    ndim: int, symmetric: bool, field_shrink: tuple[int, int]
) -> None:
    fixed, moving, truth = pair(ndim)
    result = register(fixed, moving, replace(SMALL, symmetric=symmetric, field_shrink=field_shrink))
    before = float(inner(truth).norm(dim=1).mean())
    assert before > 1
    assert error(result, truth) < 0.25 * before
    assert float(jacobian_determinant(result.forward).min()) > 0
    assert float(compose(result.forward, result.inverse).norm(dim=1).mean()) < 0.1
    assert not result.diverged


def test_exchanging_the_images_of_the_symmetric_variant_gives_the_inverse() -> None:
    fixed, moving, _ = pair(3)
    settings = replace(SMALL, symmetric=True)
    one, other = register(fixed, moving, settings), register(moving, fixed, settings)
    assert float((one.forward - other.inverse).norm(dim=1).mean()) < 0.02


def test_the_plain_variant_is_not_symmetric() -> None:
    """Otherwise the test above would show nothing."""
    fixed, moving, _ = pair(3)
    settings = replace(SMALL, symmetric=False)
    one, other = register(fixed, moving, settings), register(moving, fixed, settings)
    assert float((one.forward - other.inverse).norm(dim=1).mean()) > 0.02


def test_compiled_kernels_and_tensors_give_the_same_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors take the exact derivative, kernels that of the voxel's own window: alike, not equal."""
    fixed, moving, truth = pair(3)
    compiled = register(fixed, moving, SMALL, threads=2)
    monkeypatch.setattr(instance, "choose_ops", lambda *_: TensorOps())
    tensors = register(fixed, moving, SMALL)
    assert error(compiled, truth) == pytest.approx(error(tensors, truth), abs=0.1)
    assert float(inner(compiled.forward - tensors.forward).norm(dim=1).mean()) < 0.35


@pytest.mark.parametrize(
    ("shape", "precision", "compiled"),
    [
        ((8, 8, 8), "float32", True),
        ((8, 8), "float32", False),
        ((8, 8, 8), "bfloat16", False),
        ((8, 8, 2), "float32", False),  # the kernels leave out the border, and a slab is nothing else
    ],
)
def test_operations_are_chosen_by_dimension_and_type(shape: tuple[int, ...], precision: str, compiled: bool) -> None:
    image = torch.rand((1, 1, *shape))
    settings = replace(SMALL, shrink=(1,), iterations=(1,), field_shrink=(1,), precision=precision)
    level = instance._level(prepare(image, image), settings, 0)
    assert isinstance(instance.choose_ops(level, 1), CompiledOps) == compiled


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_pair_gets_the_same_field_in_every_batch(ndim: int, symmetric: bool) -> None:
    """Also where the pairs of the batch converge at different iterations."""
    settings = replace(SMALL, symmetric=symmetric)
    pairs = [pair(ndim, 0), pair(ndim, 5)]
    pairs.append((pairs[0][1] + 0.001, pairs[0][1], 0 * pairs[0][2]))  # aligned from the start
    both = register(*(torch.cat([p[i] for p in pairs]) for i in (0, 1)), settings)
    for row, (fixed, moving, _) in enumerate(pairs):
        alone = register(fixed, moving, settings)
        assert [len(level.losses[row]) for level in both.levels] == [len(level.losses[0]) for level in alone.levels]
        torch.testing.assert_close(both.forward[row : row + 1], alone.forward, atol=5e-3, rtol=0)
    assert len({len(losses) for losses in both.levels[0].losses}) > 1


def test_low_precision_stays_near_full_precision() -> None:
    fixed, moving, truth = pair(2)
    low = register(fixed, moving, replace(SMALL, precision="bfloat16"))
    assert error(low, truth) < error(register(fixed, moving, SMALL), truth) + 0.3


@pytest.mark.parametrize("similarity", ["ssd", "ncc", "nmi", "mattes", "mind", "mindssc", "ngf"])
def test_every_similarity_drives_the_engine(similarity: str) -> None:
    fixed, moving, truth = pair(2)
    result = register(fixed, moving, replace(SMALL, similarity=similarity, options={}, tolerance=-1.0))
    assert error(result, truth) < 0.7 * float(inner(truth).norm(dim=1).mean())


def test_a_moving_image_on_its_own_grid_is_read_through_the_matrix() -> None:
    """The moving image is flipped along an axis, coarser along another, and shifted."""
    fixed, moving, truth = pair(3)
    n = moving.shape[2]
    at = coordinates((n, 30, 32))
    matrix = torch.tensor([[-1.0, 0, 0, n - 1], [0, 0.75, 0, 0.0], [0, 0, 1, 0]])  # fixed to moving voxels
    scale = torch.tensor([-1.0, 0.75, 1.0]).reshape(1, 3, 1, 1, 1)
    offset = torch.tensor([n - 1.0, 0, 0]).reshape(1, 3, 1, 1, 1)
    own = sample(moving, (at - offset) / scale)
    result = register(fixed, own, SMALL, matrix=matrix[None])
    assert error(result, truth) < 0.35 * float(inner(truth).norm(dim=1).mean())


def test_level_matrix_maps_the_centres_of_coarse_voxels() -> None:
    matrix = torch.tensor([[[0.5, 0.1, 3.0], [-0.2, 1.5, -1.0]]])
    coarse = level_matrix(matrix, 4, [2, 4])
    for point in ((0.0, 0.0), (3.0, 5.0)):
        fine = torch.tensor(point) * 4 + 1.5
        there = matrix[0, :, :2] @ fine + matrix[0, :, 2]
        expected = (there + 0.5) / torch.tensor([2.0, 4.0]) - 0.5
        torch.testing.assert_close(coarse[0, :, :2] @ torch.tensor(point) + coarse[0, :, 2], expected)


def test_an_initial_field_is_kept_when_there_is_nothing_to_do() -> None:
    fixed, moving, truth = pair(3)
    idle = replace(SMALL, iterations=(0, 0))
    assert error(register(fixed, moving, idle, initial=truth), truth) < 0.25
    assert float(register(fixed, moving, idle).forward.abs().max()) == 0


def test_labels_join_structures_that_the_images_do_not_show() -> None:
    """Flat images with noise of their own: only the labels know where the disc went."""
    at = coordinates((48, 48))
    discs = [(((at - centre) ** 2).sum(1, keepdim=True) < 64).float() for centre in (20.0, 26.0)]
    images = [torch.rand((1, 1, 48, 48), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    settings = replace(SMALL, shrink=(4, 2), iterations=(40, 40), label_weight=2.0, tolerance=-1.0)
    with_labels = register(*images, settings, fixed_labels=discs[0], moving_labels=discs[1])
    overlap = [2 * (discs[0] * w).sum() / (discs[0] + w).sum() for w in (discs[1], warp(discs[1], with_labels.forward))]
    assert float(overlap[0]) < 0.6
    assert float(overlap[1]) > 0.8


@pytest.mark.parametrize("symmetric", [False, True])
def test_landmarks_draw_their_partners(symmetric: bool) -> None:
    images = [texture((48, 48), seed) for seed in (1, 2)]
    fixed, moving = torch.tensor([[15.0, 20.0], [30.0, 30.0]]), torch.tensor([[19.0, 20.0], [30.0, 27.0]])
    settings = replace(SMALL, landmark_weight=4.0, symmetric=symmetric, tolerance=-1.0)

    def miss(result: InstanceResult) -> float:
        where = [sample(result.forward, p.reshape(1, 2, 1, 1)).flatten() + p - q for p, q in zip(fixed, moving, strict=True)]
        return float(torch.stack(where).norm(dim=1).mean())

    before = miss(register(*images, replace(settings, iterations=(0, 0))))
    assert before == pytest.approx(3.5)
    # the unrelated images push against them at every step
    assert miss(register(*images, settings, landmarks=(fixed, moving))) < 0.5 * before
    assert miss(register(*images, settings)) > 0.8 * before


def test_voxels_outside_of_the_mask_do_not_count() -> None:
    """A bright lesion in one image drags the field; masked, it does not."""
    fixed, moving, truth = pair(3)
    harmed = fixed.clone()
    region = (..., slice(12, 22), slice(14, 26), slice(10, 22))
    harmed[region] = texture((10, 12, 12), 9)[0, 0] + 1
    mask = torch.ones_like(fixed)
    mask[region] = 0
    outside = inner(mask) > 0

    def miss(result: InstanceResult) -> float:
        return float((inner(result.forward - truth).norm(dim=1, keepdim=True))[outside].mean())

    assert miss(register(harmed, moving, SMALL, fixed_mask=mask)) < miss(register(harmed, moving, SMALL))


def test_a_diverging_run_gives_its_last_good_field(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moving, truth = pair(3)
    good = CompiledOps.force
    calls = {"n": 0}

    def break_late(self: CompiledOps, *arguments: object) -> tuple[Tensor, Tensor]:
        value, force = good(self, *arguments)  # type: ignore[arg-type]
        calls["n"] += 1
        return (value * float("nan"), force * float("nan")) if calls["n"] > 45 else (value, force)

    monkeypatch.setattr(CompiledOps, "force", break_late)
    result = register(fixed, moving, replace(SMALL, tolerance=-1.0))
    assert result.diverged
    assert result.levels[-1].stopped == ["diverged"]
    assert torch.isfinite(result.forward).all()
    assert error(result, truth) < 0.5 * float(inner(truth).norm(dim=1).mean())


def test_stop_tells_convergence_from_divergence() -> None:
    stop = Stop(window=3, tolerance=1e-3)
    assert stop.reason([-0.1]) is None
    assert stop.reason([-0.1, -0.2, -0.3, -0.4, -0.5, -0.6]) is None
    assert stop.reason([-0.5] * 6) == "converged"
    assert stop.reason([-0.5, -0.1]) is None  # a jump: the step becomes shorter
    assert stop.reason([-0.1, float("nan")]) == "diverged"
    assert stop.reason([0.0, float("inf")]) == "diverged"


def test_folds_are_smoothed_away() -> None:
    field = bump((32, 32), 2.0)
    field[..., 14:18, 14:18] = torch.randn((1, 2, 4, 4), generator=torch.Generator().manual_seed(0)) * 4
    assert float(jacobian_determinant(field).min()) < 0
    mended = instance.unfolded(field, TensorOps())
    assert float(jacobian_determinant(mended).min()) > 0
    far = (..., slice(0, 5), slice(0, 5))
    torch.testing.assert_close(mended[far], field[far])


def test_inverse_equals_the_one_of_the_algebra() -> None:
    field = bump((24, 24, 24), 1.5)
    torch.testing.assert_close(instance.invert(field, CompiledOps(), 30, 1e-4), invert(field, 60, 1e-4), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shrink": (2, 1, 1)}, "one entry for each level"),
        ({"shrink": (8, 1)}, "at most twice as fine"),
        ({"precision": "int8"}, "none of float32"),
        ({"shrink": (3, 1)}, "powers of two"),
        ({"shrink": (3,), "iterations": (5,), "field_shrink": (1,)}, "powers of two"),
        ({"shrink": (1,), "iterations": (5,), "field_shrink": (4,)}, "1 or 2"),
        ({"step": -0.5}, "must be positive"),
        ({"iterations": (5, -1)}, "at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)


def test_presets() -> None:
    assert set(PRESETS) == {"quick", "fast", "default", "accurate"}
    assert not preset("fast", symmetric=False).symmetric
    with pytest.raises(ValueError, match="none of quick"):
        preset("slow")


def test_the_shipped_configuration_states_the_presets() -> None:
    shipped = default_config()["register"]["presets"]["instance"]
    assert {name: settings_from_config(values) for name, values in shipped.items()} == PRESETS


BAD = {
    "NaN": (lambda a, b: (a * float("nan"), b), "NaN"),
    "constant": (lambda a, b: (a * 0, b), "constant"),
    "shapes": (lambda a, b: (a[..., :-2], b), "no matrix between their grids"),
    "2D and 3D": (lambda a, b: (a[..., 0], b), "2 axes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_one_clear_error(case: str) -> None:
    spoil, words = BAD[case]
    fixed, moving, _ = pair(3)
    with pytest.raises(InputError, match=words) as caught:
        register(*spoil(fixed, moving), SMALL, subject="sub-01")
    assert caught.value.remedy
    assert "sub-01" in str(caught.value)


def test_an_empty_mask_is_refused() -> None:
    fixed, moving, _ = pair(3)
    with pytest.raises(InputError, match="mask is empty"):
        register(fixed, moving, SMALL, moving_mask=torch.zeros_like(moving))


def test_a_pair_that_is_already_aligned_converges_instead_of_diverging() -> None:
    """With nothing to gain, steps of a fixed length only jump about; they have to become shorter."""
    fixed = texture(SHAPES[3], 3)
    noise = 0.02 * torch.randn(fixed.shape, generator=torch.Generator().manual_seed(1))
    result = register(
        fixed + noise, fixed, replace(SMALL, shrink=(4, 2, 1), iterations=(60, 40, 20), field_shrink=(1, 1, 1))
    )
    assert not result.diverged
    assert result.levels[0].stopped == ["converged"]
    assert float(inner(result.forward).norm(dim=1).mean()) < 0.3


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
    inverse = instance.invert(field, CompiledOps())
    assert float(inner(compose(inverse, field)).norm(dim=1).max()) < 0.3


def test_a_mask_ends_where_its_image_ends() -> None:
    """Beyond the moving image nothing is known; its last plane, repeated, would pull."""
    fixed, moving, _ = pair(3)
    cut, ones = moving[..., :20], torch.ones_like(moving[..., :20])
    matrix = torch.eye(3, 4)[None]
    found = prepare(fixed, cut, matrix=matrix, masks=(None, ones))
    level = instance._level(found, replace(SMALL, shrink=(1,), iterations=(1,), field_shrink=(1,)), 0)
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
    assert float(instance.rescaled(image).max()) == 1.0
    ball = torch.zeros((1, 1, 40, 40))
    ball[..., 10:30, 10:30] = torch.rand(20, 20) + 5
    assert float(instance.rescaled(ball, (ball > 0).float())[ball > 0].median()) == pytest.approx(0.5, abs=0.15)


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the GNU allocator")
def test_large_arrays_do_not_fault_again_while_memory_is_kept() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.empty(2**24).fill_(1.0)  # 64 MB
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    outside = faults()
    with kept_memory():
        faults()
        inside = faults()
    assert inside < outside / 10
    assert faults() > 10 * inside  # given back, and as before
