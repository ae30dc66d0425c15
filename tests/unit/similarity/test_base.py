"""What holds for every similarity, and the separable windows."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, uniform_filter
from torch.utils.flop_counter import FlopCounterMode

from popatlas.images.filters import box_mean, box_sum, gaussian_smooth
from popatlas.similarity.base import masked_mean
from popatlas.similarity.lncc import LNCC
from popatlas.similarity.registry import SIMILARITIES, make
from tests.unit.similarity_images import noise, scene

SHAPES = {2: (16, 13), 3: (16, 9, 11)}
NAMES = sorted(SIMILARITIES)
IMAGES = [name for name in NAMES if SIMILARITIES[name].images]
OPTIONS = {"dice": {"sigmas": [0.0, 1.0]}, "nmi": {"bins": 20}, "nmi_mind": {"strategy": "fixed", "nmi": {"bins": 20}}}
BEST = {"ssd": 0, "ncc": -1, "lncc": -1, "mind": 0, "mindssc": 0}  # of an image with itself
FLAT = {"ncc": 0, "lncc": 0, "mattes": 0, "nmi": -1, "ngf": 0}  # of images of which one is constant


def loss(name):
    return make(name, **OPTIONS.get(name, {}))


def pair(ndim, batch=1, channels=1, dtype=torch.float64):
    """Two images in 0..1 that have something in common."""
    a, b = (noise(SHAPES[ndim], seed, 1.5, batch, channels, dtype) for seed in (1, 2))
    return torch.sigmoid(a), torch.sigmoid(a + 0.5 * b)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_the_value_of_each_of_its_pairs(name, ndim):
    fixed, moving = pair(ndim, batch=3)
    mask = torch.rand((3, 1, *SHAPES[ndim]), generator=torch.Generator().manual_seed(0)) > 0.3
    together = loss(name)(fixed, moving, mask)
    alone = [loss(name)(fixed[i : i + 1], moving[i : i + 1], mask[i : i + 1]) for i in range(3)]
    assert together.shape == (3,)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", IMAGES)
def test_channels_are_averaged(name):
    fixed, moving = pair(2, channels=2)
    moving.requires_grad_(True)
    alone = torch.stack([loss(name)(fixed[:, i : i + 1], moving[:, i : i + 1]) for i in range(2)]).mean(0)
    together = loss(name)(fixed, moving)
    torch.testing.assert_close(together, alone)
    slopes = [torch.autograd.grad(value.sum(), moving)[0] for value in (together, alone)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_an_image_agrees_best_with_itself(name, ndim):
    fixed, moving = pair(ndim)
    own, other = float(loss(name)(fixed, fixed)), float(loss(name)(fixed, moving))
    if name not in IMAGES:  # a soft map can share more with a larger one than with itself
        fixed, moving = (fixed > 0.5).double(), (moving > 0.5).double()
        own, other = float(loss(name)(fixed, fixed)), float(loss(name)(fixed, moving))
    assert own < other
    if name in BEST:
        assert own == pytest.approx(BEST[name], abs=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_mask_changes_nothing_and_one_mask_serves_a_batch(name):
    fixed, moving = pair(3, batch=2)
    ones = torch.ones((1, 1, *SHAPES[3]))
    torch.testing.assert_close(loss(name)(fixed, moving, ones), loss(name)(fixed, moving))
    torch.testing.assert_close(loss(name)(fixed, moving, 3 * ones), loss(name)(fixed, moving))
    torch.testing.assert_close(loss(name)(fixed, moving, ones > 0), loss(name)(fixed, moving))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_far_outside_of_the_mask_does_not_matter(name):
    fixed, moving = pair(3)
    mask = torch.zeros((1, 1, *SHAPES[3]))
    mask[:, :, :7] = 1
    changed = moving.clone()
    changed[:, :, 12:] = 5 * torch.flip(changed[:, :, 12:], (2, 3))
    moving.requires_grad_(True)
    value = loss(name)(fixed, moving, mask)
    torch.testing.assert_close(loss(name)(fixed, changed, mask), value)
    (slope,) = torch.autograd.grad(value.sum(), moving)
    assert (slope[:, :, 12:] == 0).all()
    assert (slope[:, :, :7] != 0).any()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_change_of_the_value(name, ndim):
    shape = {2: (24, 20), 3: (20, 16, 16)}[ndim]
    fixed = scene(shape)
    shift = torch.tensor(0.83, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(name)(fixed, scene(shape, shift)).sum(), shift)
    h = 0.02
    values = [float(loss(name)(fixed, scene(shape, 0.83 + step))) for step in (-h, h)]
    # histograms are cut to a range that shifts a little with the image, and linear windows have kinks
    assert float(slope) == pytest.approx(
        (values[1] - values[0]) / (2 * h), rel=0.1 if name in ("nmi", "mattes", "nmi_mind") else 0.02
    )
    assert slope > 0, "moving away from the fixed image must cost something"


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_good_enough(name):
    fixed, moving = pair(3)
    exact = loss(name)(fixed, moving)
    value = loss(name)(fixed.float(), moving.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_mask_is_an_error_that_names_the_item(name):
    fixed, moving = pair(2, batch=2)
    mask = torch.ones((2, 1, *SHAPES[2]))
    mask[1] = 0
    with pytest.raises(ValueError, match=r"empty mask.* item 1 of"):
        loss(name)(fixed, moving, mask)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, m: (f, m[:, :, :-1], None), "must both be"),
        (lambda f, m: (f[0], m[0], None), "must both be"),
        (lambda f, m: (f.long(), m, None), "floating point"),
        (lambda f, m: (f, m, torch.ones((1, 1, 5, 5))), "does not fit"),
        (lambda f, m: (f, m, torch.ones((1, 2, *SHAPES[2]))), "does not fit"),
        (lambda f, m: (f, m, torch.ones(SHAPES[2])), "does not fit"),
    ],
)
def test_arguments_that_do_not_fit_are_errors(name, change, message):
    with pytest.raises(ValueError, match=message):
        loss(name)(*change(*pair(2)))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("level", [0.0, 0.3, 1000.7])
@pytest.mark.parametrize("name", IMAGES)
def test_constant_images_have_a_defined_value_and_a_finite_gradient(name, level, ndim):
    image, _ = pair(ndim, dtype=torch.float32)
    flat = torch.full_like(image, level)
    for fixed, moving in ((flat, image), (image, flat), (flat, flat)):
        moving = moving.clone().requires_grad_(True)
        value = loss(name)(fixed, moving)
        (slope,) = torch.autograd.grad(value.sum(), moving)
        assert torch.isfinite(slope).all()
        assert torch.isfinite(value).all()
        expected = FLAT.get(name)
        if expected is not None:
            assert float(value.detach()) == pytest.approx(expected, abs=1e-6)


def test_constant_images_are_alike_for_measures_of_difference():
    flat = torch.full((1, 1, 8, 8), 2.0)
    for name in ("mind", "mindssc"):
        assert float(loss(name)(flat, flat + 1)) == 0
    assert float(loss("ssd")(flat, flat + 3)) == 9


def test_masked_mean_is_the_weighted_average():
    values, weight = np.random.default_rng(0).random((2, 3, 4, 5)), np.random.default_rng(1).random((2, 1, 4, 5))
    expected = [[np.average(values[b, c], weights=weight[b, 0]) for c in range(3)] for b in range(2)]
    np.testing.assert_allclose(masked_mean(torch.as_tensor(values), torch.as_tensor(weight)), expected)


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("ndim", [2, 3])
def test_box_sums_equal_scipy(radius, ndim):
    image = noise(SHAPES[ndim], 3)
    size = 2 * radius + 1
    expected = uniform_filter(image[0, 0].numpy(), size, mode="constant") * size**ndim
    np.testing.assert_allclose(box_sum(image, radius)[0, 0], expected, atol=1e-9)
    inside = uniform_filter(np.ones(SHAPES[ndim]), size, mode="constant") * size**ndim
    np.testing.assert_allclose(box_mean(image, radius)[0, 0], expected / inside, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.5, 1.3, 4.0])
@pytest.mark.parametrize("ndim", [2, 3])
def test_gaussian_smoothing_equals_scipy(sigma, ndim):
    image = noise(SHAPES[ndim], 4)
    expected, inside = (
        gaussian_filter(x, sigma, mode="constant", truncate=3.0) for x in (image[0, 0].numpy(), np.ones(SHAPES[ndim]))
    )
    np.testing.assert_allclose(gaussian_smooth(image, sigma, renormalise=False)[0, 0], expected, atol=1e-12)
    np.testing.assert_allclose(gaussian_smooth(image, sigma)[0, 0], expected / inside, atol=1e-12)


def test_gaussian_smoothing_takes_one_sigma_for_each_axis():
    image = noise(SHAPES[3], 5)
    expected = gaussian_filter(image[0, 0].numpy(), (1.5, 0, 0.8), mode="constant", truncate=3.0)
    np.testing.assert_allclose(gaussian_smooth(image, (1.5, 0, 0.8), renormalise=False)[0, 0], expected, atol=1e-12)
    with pytest.raises(ValueError, match="does not fit"):
        gaussian_smooth(image, (1.0, 1.0))


def operations(radius):
    fixed, moving = pair(3)
    moving.requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        LNCC(radius)(fixed, moving).sum().backward()
    return counter.get_total_flops()


def test_local_correlation_costs_the_same_for_every_radius():
    assert operations(2) == operations(9) > 0
