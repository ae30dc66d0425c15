"""Local correlation and its analytic derivatives, against direct windows and autograd."""

import pytest
import torch

from popatlas.similarity.lncc import LNCC, lncc_value_and_force
from popatlas.similarity.ncc import NCC
from popatlas.transforms.fieldops import CompiledOps, TensorOps
from tests.unit.similarity_images import noise

SHAPES = [(9, 7), (6, 7, 5)]


def windows(x, radius):
    """All windows (B, 1, *shape, window) of an image, zeros outside, by slicing: an implementation without box sums."""
    ndim = x.ndim - 2
    padded = torch.nn.functional.pad(x, [radius] * (2 * ndim))
    for axis in range(2, x.ndim):
        padded = padded.unfold(axis, 2 * radius + 1, 1)
    return padded.flatten(-ndim)


def direct(fixed, moving, mask, radius, floor, squared):
    weight = windows(mask, radius)
    mass = weight.sum(-1).clamp(min=1e-12)

    def mean(v):
        return (weight * v).sum(-1) / mass

    a, b = windows(fixed, radius), windows(moving, radius)
    a, b = a - mean(a).unsqueeze(-1), b - mean(b).unsqueeze(-1)
    covariance, va, vb = mean(a * b), mean(a * a) + floor, mean(b * b) + floor
    agreement = covariance**2 / (va * vb) if squared else covariance / (va * vb).sqrt()
    return -(agreement * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)


def arguments(shape, masked):
    fixed, moving = noise(shape, 1, batch=2), noise(shape, 2, batch=2)
    mask = (noise(shape, 3, batch=2) > -0.3).double() if masked else torch.ones((2, 1, *shape), dtype=torch.float64)
    return fixed, moving, mask


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("radius", [1, 2, 3, 9])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_both_forces_equal_autograd_of_direct_windows(shape, radius, masked, squared):
    fixed, moving, mask = arguments(shape, masked)
    images = [x.clone().requires_grad_(True) for x in (fixed, moving)]
    expected = direct(*images, mask, radius, 0.01, squared)
    slopes = torch.autograd.grad(expected @ torch.tensor([1.0, 2.0], dtype=torch.float64), images)
    ours = [x.clone().requires_grad_(True) for x in (fixed, moving)]
    given = mask if masked else None
    value = LNCC(radius, squared, 0.01)(*ours, given)
    torch.testing.assert_close(value, expected)
    for force, slope in zip(
        torch.autograd.grad(value @ torch.tensor([1.0, 2.0], dtype=torch.float64), ours), slopes, strict=True
    ):
        torch.testing.assert_close(force, slope, rtol=1e-6, atol=1e-10)
    explicit, force = lncc_value_and_force(fixed, moving, radius, given, squared=squared, floor=0.01)
    torch.testing.assert_close(explicit, expected)
    torch.testing.assert_close(
        force, slopes[1] / torch.tensor([1.0, 2.0]).reshape(2, *[1] * (force.ndim - 1)), rtol=1e-6, atol=1e-10
    )


def test_gradient_passes_finite_differences():
    fixed, moving = noise((4, 5), 1).requires_grad_(True), noise((4, 5), 2).requires_grad_(True)
    assert torch.autograd.gradcheck(LNCC(radius=1), (fixed, moving))


@pytest.mark.parametrize("squared", [True, False])
def test_the_short_force_is_that_of_the_window_around_the_voxel(squared):
    fixed, moving, mask = arguments((6, 7, 5), True)
    a, b = windows(fixed, 1), windows(moving, 1)
    weight = windows(mask, 1)
    mass = weight.sum(-1).clamp(min=1e-12)
    ma, mb = ((weight * x).sum(-1) / mass for x in (a, b))
    covariance = (weight * a * b).sum(-1) / mass - ma * mb
    va, vb = ((weight * x * x).sum(-1) / mass - m**2 + 0.01 for x, m in ((a, ma), (b, mb)))
    outer = 2 * covariance / (va * vb) if squared else 1 / (va * vb).sqrt()
    expected = -outer * ((fixed - ma) - covariance / vb * (moving - mb)) * mask
    expected = expected / mask.flatten(1).sum(1).reshape(2, 1, 1, 1, 1)
    value, force = lncc_value_and_force(fixed, moving, 1, mask, exact=False, squared=squared, floor=0.01)
    torch.testing.assert_close(force, expected, rtol=1e-6, atol=1e-10)
    exact_value, exact = lncc_value_and_force(fixed, moving, 1, mask, squared=squared, floor=0.01)
    torch.testing.assert_close(value, exact_value)
    assert torch.cosine_similarity(force.flatten(), exact.flatten(), dim=0) > 0.7
    assert float((force - exact).norm() / exact.norm()) > 0.05, "otherwise `exact` does nothing"


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_changes_of_intensity_are_perfect(shape):
    image = noise(shape, 1)
    for gain, offset in ((0.2, 5.0), (40.0, -3.0)):
        assert float(LNCC(floor=0)(image, gain * image + offset)) == pytest.approx(-1, abs=1e-9)
        assert float(LNCC(floor=0, squared=False)(image, gain * image + offset)) == pytest.approx(-1, abs=1e-9)
        assert float(LNCC(floor=0)(image, -gain * image + offset)) == pytest.approx(-1, abs=1e-9)
        assert float(LNCC(floor=0, squared=False)(image, -gain * image + offset)) == pytest.approx(1, abs=1e-9)
    assert float(LNCC()(image.float(), 2 * image.float() + 1)) == pytest.approx(-1, abs=1e-3), "with the default floor"


def test_a_slow_bias_field_hurts_local_correlation_less_than_global():
    image = noise((24, 24), 1, 1.0)
    ramp = torch.linspace(-8, 8, 24, dtype=torch.float64)
    biased = image + ramp[:, None] + ramp
    assert float(LNCC(radius=1)(image, biased)) < 2.5 * float(NCC(squared=True)(image, biased)) < -0.25


def test_exchanging_the_images_changes_nothing():
    fixed, moving, mask = arguments((6, 7, 5), True)
    torch.testing.assert_close(LNCC()(fixed, moving, mask), LNCC()(moving, fixed, mask))


def test_raw_intensities_far_from_zero_do_not_lose_digits():
    """Sums of squares of 1e4 leave nothing of a variance of 25 in float32 unless the images are centred first."""
    fixed, moving = 1e4 + 5 * noise((12, 12, 12), 1), 1e4 + 5 * noise((12, 12, 12), 2)
    exact = LNCC()(fixed, moving)
    torch.testing.assert_close(LNCC()(fixed.float(), moving.float()).double(), exact, rtol=5e-3, atol=0)


def test_the_floor_keeps_noise_from_counting_and_pushing():
    generator = torch.Generator().manual_seed(0)
    fixed, moving = (1e-4 * torch.randn((1, 1, 16, 16), generator=generator, dtype=torch.float64) for _ in range(2))
    value, force = lncc_value_and_force(fixed, moving, 2)
    loud, push = lncc_value_and_force(fixed, moving, 2, floor=0)
    assert float(value) > -1e-6
    assert float(loud) < -0.01
    assert float(force.norm()) < 1e-2 * float(push.norm())


def test_constant_images_without_floor_do_not_divide_by_zero():
    flat = torch.full((1, 1, 8, 8), 0.7)
    image = noise((8, 8), 1, dtype=torch.float32)
    for fixed, moving in ((flat, flat), (flat, image), (image, flat)):
        value, force = lncc_value_and_force(fixed, moving, 2, floor=0)
        assert abs(float(value)) < 1e-3
        assert torch.isfinite(force).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("radius", [1, 2, 4])
def test_the_compiled_kernel_computes_the_same_value(radius, masked):
    """A 3D registration on the CPU must minimise what a GPU minimises."""
    fixed, moving = noise((9, 10, 8), 1, dtype=torch.float32), noise((9, 10, 8), 2, dtype=torch.float32)
    mask = (noise((9, 10, 8), 3) > 0).float() if masked else None
    loss = LNCC(radius, floor=1e-3)
    compiled, tensor = (ops.force(loss, fixed, moving, mask, 1, False)[0] for ops in (CompiledOps(), TensorOps()))
    torch.testing.assert_close(tensor, loss(fixed, moving, mask))
    torch.testing.assert_close(compiled.to(tensor), tensor, rtol=1e-4, atol=0)
