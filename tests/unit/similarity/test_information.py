"""Mutual information, its normalised form, and NMI with MIND: exact values, ITK, and the three scales."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from skimage.metrics import normalized_mutual_information

from popatlas.similarity.combined import NMIMIND, change_scale, gradient_scale
from popatlas.similarity.mi import NMI, MattesMI
from popatlas.similarity.mind import MIND
from popatlas.similarity.parzen import SAMPLE, Axis, entropy, intensity_range, joint_histogram, tight_axis, window
from popatlas.transforms.fields import resize_field, warp
from tests.unit.similarity_images import noise, scene


def discrete(shape, levels, seed, batch=1):
    values = np.random.default_rng(seed).integers(0, levels, (batch, 1, *shape))
    return torch.as_tensor(values, dtype=torch.float32)


@pytest.mark.parametrize("axis", [tight_axis(9, 0), tight_axis(9, 1), tight_axis(9, 3), Axis(9, 0, 2, 5), Axis(9, 3, 2, 5)])
def test_windows_are_partitions_of_unity_that_stay_on_the_axis(axis):
    low, high = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    values = torch.cat([torch.linspace(-0.5, 1.5, 301, dtype=torch.float64)])[None]
    first, weights, slopes = window(axis.positions(values, low, high), axis)
    torch.testing.assert_close(torch.stack(weights).sum(0), torch.ones_like(values))
    torch.testing.assert_close(torch.stack(slopes).sum(0), torch.zeros_like(values))
    assert int(first.min()) >= 0
    assert int(first.max()) + len(weights) <= axis.bins
    assert min(float(w.min()) for w in weights) >= 0


def test_cubic_windows_are_the_b_spline():
    from scipy.interpolate import BSpline

    position = torch.linspace(2.0, 6.0, 41, dtype=torch.float64)
    first, weights, _ = window(position, Axis(9, 3, 2, 5))
    spline = BSpline.basis_element(np.arange(-2, 3))
    for offset, weight in enumerate(weights):
        distance = (position - first - offset).numpy()
        inside = np.abs(distance) <= 2
        np.testing.assert_allclose(weight.numpy(), np.where(inside, spline(np.clip(distance, -2, 2)), 0), atol=1e-12)


@pytest.mark.parametrize("orders", [(1, 1), (3, 3), (1, 3)])
def test_the_histogram_has_exact_derivatives_by_both_positions(orders):
    axes = tuple(tight_axis(7, order) for order in orders)
    generator = torch.Generator().manual_seed(0)
    fixed, moving = (
        (1.05 + 3.9 * torch.rand((2, 9), generator=generator, dtype=torch.float64)).requires_grad_(True) for _ in range(2)
    )
    weight = torch.rand((2, 9), generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f, m: joint_histogram(f, m, weight, axes), (fixed, moving), eps=1e-7, atol=1e-5)


def test_plain_counting_is_numpys_histogram():
    a, b = noise((40, 30), 1).flatten(1), noise((40, 30), 2).flatten(1)
    weight = (noise((40, 30), 3).flatten(1) > 0).double()
    axis = tight_axis(12, 0)
    low, high = (torch.tensor([v], dtype=torch.float64) for v in (-3.3, 3.3))
    joint = joint_histogram(axis.positions(a, low, high), axis.positions(b, low, high), weight, (axis, axis))[0]
    inside = weight[0] > 0
    clipped = [np.clip(x[0][inside].numpy(), -3.3, 3.3) for x in (a, b)]
    expected, *_ = np.histogram2d(*clipped, bins=12, range=[(-3.3, 3.3)] * 2)
    np.testing.assert_allclose(joint, expected / expected.sum(), atol=1e-12)


def test_percentiles_of_large_images_come_from_all_of_the_image():
    """The sample must not stay on a few planes, whatever the shape."""
    shape = (37, 185, 160)  # about five times the sample
    ramp = torch.arange(160, dtype=torch.float32).expand(shape).reshape(1, -1)
    assert ramp.shape[1] > 4 * SAMPLE
    low, high = intensity_range(ramp, torch.ones_like(ramp), (10.0, 90.0))
    assert float(low) == pytest.approx(0.1 * 159, abs=1)
    assert float(high) == pytest.approx(0.9 * 159, abs=1)


def test_entropy_of_known_distributions():
    uniform = torch.full((1, 8), 1 / 8, dtype=torch.float64)
    sure = torch.eye(8, dtype=torch.float64)[:1]
    assert float(entropy(uniform, 1e-16)) == pytest.approx(np.log(8))
    assert float(entropy(sure, 1e-3)) == 0


@pytest.mark.parametrize("levels", [2, 4, 10, 12, 34, 100])
def test_nmi_of_a_discrete_image_with_itself_is_exactly_minus_two(levels):
    """Levels on the centres of bins, most bins empty: each empty bin must add nothing, only its logarithm is bounded."""
    image = discrete((30, 30, 30), levels, 0)
    assert float(NMI(percentiles=(0, 100))(image, image)) == -2.0
    if levels < 100:
        assert float(NMI()(image, image)) == -2.0, "with the default percentiles"


@pytest.mark.parametrize("levels", [3, 5, 7, 60])
def test_plain_counting_gives_minus_two_for_any_discrete_image(levels):
    image = discrete((30, 30), levels, 0)
    assert float(NMI(order=0)(image, image)) == -2.0
    relabelled = (levels - image) ** 2
    assert float(NMI(order=0, percentiles=(0, 100), bins=5000)(image, relabelled)) == pytest.approx(-2.0, abs=1e-6)


def test_replacing_zero_probabilities_themselves_would_miss_minus_two():
    """The literal reading of the published rule: every empty bin gets 1 / (2 N)."""
    image = discrete((30, 30), 4, 0)
    positions = tight_axis(100, 1).positions(image.flatten(1).double(), torch.zeros(1), torch.full((1,), 3.0))
    joint = joint_histogram(positions, positions, torch.ones_like(positions), (tight_axis(100, 1),) * 2)
    filled = [torch.where(p > 0, p, 0.5 / 900) for p in (joint, joint.sum(1), joint.sum(2))]
    together, first, second = (float(entropy(p, 1e-16)) for p in filled)
    assert (first + second) / together < 1.5


def test_the_logarithm_is_bounded_at_half_a_voxel():
    """Between the bins a window leaves shares of voxels so small that the bound changes the value."""
    a, b = noise((12, 11), 1), noise((12, 11), 2)
    axis = tight_axis(16, 3)
    positions = [axis.positions(x.flatten(1), x.min().reshape(1), x.max().reshape(1)) for x in (a, b)]
    joint = joint_histogram(*positions, torch.ones_like(positions[0]), (axis, axis))[0].numpy()

    def bits(p, floor):
        return -(p * np.log(np.maximum(p, floor))).sum()

    def ratio(floor):
        return (bits(joint.sum(0), floor) + bits(joint.sum(1), floor)) / bits(joint, floor)

    value = float(NMI(bins=16, percentiles=(0, 100), order=3)(a, b))
    assert value == pytest.approx(-ratio(0.5 / 132), rel=1e-9)
    assert value != pytest.approx(-ratio(1 / 132), rel=1e-4)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_nmi_of_independent_images_tends_to_minus_one(order):
    bias = []
    for side in (16, 64):
        a, b = discrete((side, side, side), 32, 1), discrete((side, side, side), 32, 2)
        bias.append(-1 - float(NMI(bins=32, order=order)(a, b)))
    assert 0 < bias[1] < 1e-3
    assert bias[0] > 10 * bias[1], "the bias falls with the number of voxels"


def test_plain_counting_equals_scikit_image():
    a, b = noise((25, 24), 1), noise((25, 24), 2) + noise((25, 24), 1)
    expected = normalized_mutual_information(a[0, 0].numpy(), b[0, 0].numpy(), bins=20)
    assert float(NMI(bins=20, percentiles=(0, 100), order=0)(a, b)) == pytest.approx(-expected, rel=1e-9)


@pytest.mark.parametrize("order", [1, 3])
def test_nmi_is_symmetric_in_value_and_gradient(order):
    a, b = noise((10, 9, 8), 1).requires_grad_(True), (noise((10, 9, 8), 2) + noise((10, 9, 8), 1)).requires_grad_(True)
    there = NMI(bins=24, order=order)(a, b)
    back = NMI(bins=24, order=order)(b, a)
    torch.testing.assert_close(there, back)
    slopes = [torch.autograd.grad(v.sum(), (a, b)) for v in (there, back)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)
        assert float(one.norm()) > 0


def test_outliers_beyond_the_percentiles_do_not_empty_the_bins():
    a, b = noise((20, 20, 10), 1), noise((20, 20, 10), 2)
    b = a + 0.3 * b
    spiked = b.clone()
    spiked[0, 0, 3, 4, 5] = 1e4
    close = float(NMI(bins=32)(a, spiked)) - float(NMI(bins=32)(a, b))
    lost = float(NMI(bins=32, percentiles=(0, 100))(a, spiked)) - float(NMI(bins=32, percentiles=(0, 100))(a, b))
    assert abs(close) < 2e-3
    assert lost > 0.05


@pytest.mark.parametrize("bins", [16, 32, 50])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(30, 28), (20, 18, 16)])
def test_mattes_equals_simpleitk(shape, masked, bins):
    generator = np.random.default_rng(7)
    a = noise(shape, 1, 1.5)[0, 0].numpy().astype(np.float32)
    b = (np.sin(2 * a) + 0.1 * generator.standard_normal(shape)).astype(np.float32)
    metric = sitk.ImageRegistrationMethod()
    metric.SetMetricAsMattesMutualInformation(bins)
    metric.SetInterpolator(sitk.sitkLinear)
    metric.SetInitialTransform(sitk.Transform(len(shape), sitk.sitkIdentity))
    mask = None
    if masked:
        inside = np.zeros(shape, np.uint8)
        inside[3:-4, 2:-5] = 1
        metric.SetMetricFixedMask(sitk.GetImageFromArray(inside))
        metric.SetMetricMovingMask(sitk.GetImageFromArray(inside))
        mask = torch.as_tensor(inside)[None, None]
    expected = metric.MetricEvaluate(sitk.GetImageFromArray(a), sitk.GetImageFromArray(b))
    value = float(MattesMI(bins)(torch.as_tensor(a)[None, None], torch.as_tensor(b)[None, None], mask))
    assert value == pytest.approx(expected, rel=1e-4 if masked else 1e-6)


def test_mattes_has_no_pull_on_the_fixed_image():
    a, b = scene((16, 14)).requires_grad_(True), scene((16, 14), 1.0).requires_grad_(True)
    fixed, moving = torch.autograd.grad(MattesMI()(a, b).sum(), (a, b))
    assert float(fixed.norm()) == 0 < float(moving.norm())


@pytest.mark.parametrize("loss", [MattesMI(), NMI(bins=32), NMI(bins=32, order=3)])
def test_the_derivative_is_that_of_the_value_where_the_range_stays(loss):
    fixed, moving = scene((18, 16)), scene((18, 16), 1.3)
    inner = (moving > moving.quantile(0.1)) & (moving < moving.quantile(0.9))  # the extremes and percentiles do not move
    direction = noise((18, 16), 5) * inner * 1e-7  # few voxels cross a kink of the linear windows
    base = moving.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(fixed, base).sum(), base)
    change = float(loss(fixed, moving + direction)) - float(loss(fixed, moving - direction))
    assert 2 * float((slope * direction).sum()) == pytest.approx(change, rel=1e-4)


def gradients(loss, fixed, field, moving):
    return torch.autograd.grad(loss(fixed, warp(moving, resize_field(field, fixed.shape[2:]))).sum(), field)[0]


def test_a_fixed_scale_is_the_weighted_sum():
    fixed, moving = scene((16, 14)), 1 - scene((16, 14), 1.0)
    expected = 0.3 * NMI()(fixed, moving) + 0.7 * 20 * MIND()(fixed, moving)
    torch.testing.assert_close(NMIMIND(0.3, "fixed", 20.0)(fixed, moving), expected)


def test_scale_from_gradients_makes_both_pull_alike_at_the_start():
    fixed = torch.cat([scene((20, 18)), 3 * scene((20, 18), 2.0)])
    moving = 1 - torch.cat([scene((20, 18), 1.0), scene((20, 18), 0.4)])
    moving.requires_grad_(True)
    both = NMIMIND(0.5, "gradients")
    value = both(fixed, moving)
    parts = [torch.autograd.grad(loss(fixed, moving).sum(), moving)[0] for loss in (both.nmi, both.mind)]
    pulls = [(0.5 * parts[0]).flatten(1).norm(dim=1), (0.5 * both._balance.scale[:, None] * parts[1].flatten(1)).norm(dim=1)]
    torch.testing.assert_close(pulls[0], pulls[1])
    (slope,) = torch.autograd.grad(value.sum(), moving)
    torch.testing.assert_close(slope, 0.5 * parts[0] + 0.5 * both._balance.scale.reshape(-1, 1, 1, 1) * parts[1])
    assert float(both._balance.scale[0]) != pytest.approx(float(both._balance.scale[1]), rel=1e-3), "one scale for each pair"


def test_scale_from_gradients_by_control_points():
    """The published rule balances the gradients by what is optimised."""
    fixed, moving = scene((20, 18)), 1 - scene((20, 18), 1.0)
    field = torch.zeros((1, 2, 5, 5), dtype=torch.float64, requires_grad=True)
    moved = warp(moving, resize_field(field, (20, 18)))
    scale = gradient_scale(NMI()(fixed, moved), MIND()(fixed, moved), field)
    both = replace(NMIMIND(), strategy="fixed", scale=float(scale))
    first, second = gradients(both.nmi, fixed, field, moving), gradients(both.mind, fixed, field, moving)
    assert float(0.5 * first.norm()) == pytest.approx(float(0.5 * both.scale * second.norm()))
    torch.testing.assert_close(gradients(both, fixed, field, moving), 0.5 * first + 0.5 * both.scale * second)


def test_scale_from_gradients_is_kept_until_the_resolution_changes():
    both = NMIMIND()
    fixed, moving = scene((20, 18)), 1 - scene((20, 18), 1.0)
    both(fixed, moving)
    kept = float(both._balance.scale)
    both(fixed, 1 - scene((20, 18), 0.3))
    assert float(both._balance.scale) == kept
    both(fixed[..., ::2, ::2], moving[..., ::2, ::2])
    assert float(both._balance.scale) != kept
    both.reset()
    both(fixed, moving)
    assert float(both._balance.scale) == kept


def test_scale_from_change_makes_both_count_the_same_for_what_they_gained():
    fixed = scene((20, 18))
    steps = [1 - scene((20, 18), shift) for shift in (1.6, 1.4, 1.2, 1.0)]
    both = NMIMIND(0.5, "change", period=3)
    values = [both(fixed, moving) for moving in steps]
    gained = [abs(float(loss(fixed, steps[3]) - loss(fixed, steps[0]))) for loss in (both.nmi, both.mind)]
    assert float(both._balance.scale) * gained[1] == pytest.approx(gained[0])
    started = NMIMIND(0.5, "gradients")
    before = [started(fixed, moving) for moving in steps]
    assert float(both._balance.scale) != pytest.approx(float(started._balance.scale), rel=1e-3)
    torch.testing.assert_close(values, before)  # the value does not jump when the scale changes


def test_scale_from_change_is_carried_to_the_next_resolution():
    fixed = scene((20, 18))
    both = NMIMIND(0.5, "change", period=1)
    for shift in (1.6, 1.0):
        both(fixed, 1 - scene((20, 18), shift))
    kept = float(both._balance.scale)
    half, moved = fixed[..., ::2, ::2], 1 - scene((20, 18), 1.0)[..., ::2, ::2]
    assert float(both(half, moved)) == pytest.approx(
        0.5 * float(both.nmi(half, moved)) + 0.5 * kept * float(both.mind(half, moved))
    )
    both(torch.cat([fixed, fixed]), torch.cat([fixed, 1 - scene((20, 18), 1.0)]))
    assert both._balance.scale.shape == (2,), "another batch starts from its gradients"


def test_change_scale_keeps_what_it_cannot_know():
    old = torch.tensor([2.0, 2.0, 2.0, 2.0])
    new = change_scale(torch.tensor([-3.0, 0.0, 1.0, -9.0]), torch.tensor([-1.0, -1.0, 1e-9, 0.0]), old)
    assert new.tolist() == [3.0, 2.0, 20.0, 2.0]


def test_identical_images_have_no_gradient_to_balance_and_get_scale_one():
    both = NMIMIND()
    flat = torch.ones((1, 1, 8, 8))
    assert torch.isfinite(both(flat, flat)).all()
    assert float(both._balance.scale) == 1


def test_nmi_with_mind_recovers_a_warp_of_an_inverted_image():
    shape = (32, 32)
    texture = torch.sigmoid(2 * noise(shape, 1, 2.0))
    coarse = noise((5, 5), 4, 1.0, channels=2) * 1.2
    true = resize_field(coarse * 4 / 31, shape)  # control points are 31 / 4 voxels apart
    fixed, moving = 1 - warp(texture, true), texture
    start = float(true.norm(dim=1).mean())
    assert start > 1
    field = torch.zeros((1, 2, 5, 5), dtype=torch.float64, requires_grad=True)
    both, optimiser = NMIMIND(nmi=NMI(bins=32)), torch.optim.Adam([field], lr=0.02)
    for _ in range(120):
        optimiser.zero_grad()
        both(fixed, warp(moving, resize_field(field, shape))).sum().backward()
        optimiser.step()
    error = (resize_field(field.detach(), shape) - true).norm(dim=1).mean()
    assert float(error) < min(1.0, 0.5 * start)
