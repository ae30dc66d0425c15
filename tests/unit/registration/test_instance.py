"""The instance engine on phantoms with a known deformation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from popatlas.config.load import default_content
from popatlas.errors import InputError
from popatlas.registration.engines.instance import core
from popatlas.registration.engines.instance.core import InstanceResult, level_matrix, register
from popatlas.registration.engines.instance.inputs import prepare
from popatlas.registration.engines.instance.settings import PRESETS, InstanceSettings, Settings, preset
from popatlas.registration.engines.instance.updates import Stop
from popatlas.settings import settings_from
from popatlas.transforms.fieldops import CompiledOps, TensorOps
from popatlas.transforms.fields import compose, coordinates, invert, sample, warp
from popatlas.transforms.jacobian import jacobian_determinant

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


def test_evening_out_volumes_finds_a_flow_that_keeps_them_in_noise() -> None:
    """A flow along the lines of a stream function changes no volume."""
    shape = SHAPES[2]
    at = coordinates(shape)
    limits = torch.tensor(shape).reshape(1, -1, 1, 1) - 1
    stream = 32 * torch.sin(torch.pi * at / limits).square().prod(1)[0] * torch.cos(4 * at / limits).sum(1)[0]
    truth = torch.stack([torch.gradient(stream, dim=1)[0], -torch.gradient(stream, dim=0)[0]])[None]
    moving = texture(shape, 3)
    noise = torch.from_numpy(np.random.default_rng(5).standard_normal(shape).astype(np.float32))
    fixed = warp(moving, truth) + 0.05 * noise
    found = {bulk: register(fixed, moving, replace(SMALL, bulk=bulk)) for bulk in (0.0, 0.2)}
    spread = {bulk: float(jacobian_determinant(one.forward).log().std()) for bulk, one in found.items()}
    assert float(truth.norm(dim=1).mean()) > 0.8
    assert error(found[0.2], truth) < 0.95 * error(found[0.0], truth)
    assert spread[0.2] < 0.8 * spread[0.0]


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
    monkeypatch.setattr(core, "choose_ops", lambda *_: TensorOps())
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
    level = core._level(prepare(image, image), settings, 0)
    assert isinstance(core.choose_ops(level, 1), CompiledOps) == compiled


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
    mended = core.unfolded(field, TensorOps())
    assert float(jacobian_determinant(mended).min()) > 0
    far = (..., slice(0, 5), slice(0, 5))
    torch.testing.assert_close(mended[far], field[far])


def test_inverse_equals_the_one_of_the_algebra() -> None:
    field = bump((24, 24, 24), 1.5)
    exact = invert(field, 60, 1e-4)
    for ops in (CompiledOps(), TensorOps()):
        torch.testing.assert_close(ops.invert(field, 1e-4), exact, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shrink": (2, 1, 1)}, "one entry for each level"),
        ({"shrink": (8, 1)}, "may halve from level"),
        ({"precision": "int8"}, "should be 'float32'"),
        ({"shrink": (3, 1)}, "should be 1, 2, 4 or 8"),
        ({"shrink": (3,), "iterations": (5,), "field_shrink": (1,)}, "should be 1, 2, 4 or 8"),
        ({"shrink": (1,), "iterations": (5,), "field_shrink": (4,)}, "1 or 2"),
        ({"step": -0.5}, "greater than 0"),
        ({"iterations": (5, -1)}, "greater than or equal to 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)


def test_presets() -> None:
    assert set(PRESETS) == {"quick", "fast", "default", "accurate"}
    assert not preset("fast", symmetric=False).symmetric
    with pytest.raises(InputError, match=r"no preset is called 'slow'.*use one of quick"):
        preset("slow")
    with pytest.raises(InputError, match="unknown key 'fluids', did you mean 'fluid'"):
        preset("quick", fluids=2)
    with pytest.raises(InputError, match=r"schedule\.fluid: -1"):
        preset("quick", fluid=-1)


def test_another_similarity_takes_its_own_options() -> None:
    assert preset("quick", similarity="ngf").options == {} and preset("quick", options={"radius": 3}).options == {
        "radius": 3
    }
    found = preset("quick").with_similarity("nmi", bins=16)
    assert (found.similarity, found.options, found.iterations) == ("nmi", {"bins": 16}, (60, 30, 8))
    for name, options, words in (("nmi", {"bin": 16}, "did you mean 'bins'"), ("nim", {}, "'nim' should be")):
        with pytest.raises(InputError, match=words):
            preset("quick").with_similarity(name, **options)


def test_the_shipped_configuration_states_the_presets() -> None:
    shipped = default_content()["register"]["presets"]["instance"]
    assert {name: settings_from(InstanceSettings, values, name) for name, values in shipped.items()} == PRESETS


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
