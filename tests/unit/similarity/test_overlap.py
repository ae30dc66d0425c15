"""Multiscale Dice of label maps."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from popatlas.similarity.overlap import MultiscaleDice

SIGMAS = MultiscaleDice().sigmas


def disc(centre, steepness=4.0):
    """A soft disc of radius 4 in 128 x 128, (1, 1, 128, 128)."""
    y, x = torch.meshgrid(*[torch.arange(128, dtype=torch.float64)] * 2, indexing="ij")
    distance = ((x - centre) ** 2 + (y - 64) ** 2 + 1e-12).sqrt()
    return torch.sigmoid(steepness * (4 - distance))[None, None]


def at_separation(distance, loss):
    shift = torch.tensor(float(distance), dtype=torch.float64, requires_grad=True)
    value = -loss(disc(44), disc(44 + shift))
    (slope,) = torch.autograd.grad(value.sum(), shift)
    return float(value.detach()), float(slope)


def random_labels(shape, seed, labels=2, batch=1):
    values = np.random.default_rng(seed).random((batch, labels, *shape)) < 0.2
    return torch.as_tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("distance", "value"), [(0, 0.331), (3, 0.233), (6, 0.097), (10, 0.021), (20, 0.004), (40, 0.001)])
def test_value_falls_steadily_with_the_separation_of_two_discs(distance, value):
    assert at_separation(distance, MultiscaleDice())[0] == pytest.approx(value, abs=6e-4)


def test_the_pull_reaches_further_than_the_labels():
    assert at_separation(20, MultiscaleDice())[1] == pytest.approx(-4.65e-4, rel=0.01)
    assert at_separation(40, MultiscaleDice())[1] == pytest.approx(-5.1e-5, rel=0.03)
    assert abs(at_separation(20, MultiscaleDice(sigmas=(0.0,)))[1]) < 1e-19, "plain Dice does not see the other disc"


def test_the_value_at_perfect_overlap_is_not_that_of_dice():
    """It is a loss, not an overlap score: small structures stay far below 1."""
    small = (disc(44) > 0.5).double()
    assert float(MultiscaleDice()(small, small)) == pytest.approx(-0.346, abs=1e-3)
    assert float(MultiscaleDice(sigmas=(0.0,))(small, small)) == -1


@pytest.mark.parametrize("shape", [(20, 18), (12, 11, 10)])
def test_the_scales_are_added_and_smoothed_on_both_sides(shape):
    """The published equation lost its sum over the scales. Direct smoothing of both maps, by another library."""
    fixed, moving = random_labels(shape, 1), random_labels(shape, 2)
    sigmas = (0.0, 1.0, 2.0, 4.0)
    values = []
    for sigma in sigmas:
        for label in range(2):
            maps = [x[0, label].numpy() for x in (fixed, moving)]
            a, b = (gaussian_filter(m, sigma, mode="constant", truncate=3.0) if sigma else m for m in maps)
            values.append(2 * (a * b).sum() / (a.sum() + b.sum()))
    assert float(MultiscaleDice(sigmas)(fixed, moving)) == pytest.approx(-np.mean(values), rel=1e-9)


def test_a_mask_weights_the_smoothed_maps():
    fixed, moving, mask = random_labels((20, 18), 1, 1), random_labels((20, 18), 2, 1), random_labels((20, 18), 3, 1)
    a, b = (gaussian_filter(x[0, 0].numpy(), 2.0, mode="constant", truncate=3.0) for x in (fixed, moving))
    inside = mask[0, 0].numpy() > 0
    expected = 2 * (a * b)[inside].sum() / (a + b)[inside].sum()
    assert float(MultiscaleDice((2.0,))(fixed, moving, mask)) == pytest.approx(-expected)


def test_plain_dice_is_the_closed_form():
    fixed, moving = torch.zeros((1, 1, 10, 10)), torch.zeros((1, 1, 10, 10))
    fixed[..., 2:6, 2:6], moving[..., 4:8, 2:6] = 1, 1
    assert float(MultiscaleDice(sigmas=(0.0,))(fixed, moving)) == -0.5


def test_both_maps_have_the_same_gradient_when_exchanged():
    a, b = random_labels((12, 11, 10), 1).requires_grad_(True), random_labels((12, 11, 10), 2).requires_grad_(True)
    there = torch.autograd.grad(MultiscaleDice()(a, b).sum(), (a, b))
    back = torch.autograd.grad(MultiscaleDice()(b, a).sum(), (a, b))
    for one, other in zip(there, back, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.autograd.gradcheck(
        lambda x, y: MultiscaleDice((0.0, 1.0))(x, y),
        (a[:, :, :3, :3, :3].detach().requires_grad_(True), b[:, :, :3, :3, :3]),
    )


def test_sigmas_are_millimetres():
    fixed, moving = random_labels((20, 18), 1), random_labels((20, 18), 2)
    torch.testing.assert_close(
        MultiscaleDice((1.0, 4.0), spacing=2.0)(fixed, moving), MultiscaleDice((0.5, 2.0))(fixed, moving)
    )
    stretched = MultiscaleDice((4.0,), spacing=(1.0, 4.0))(fixed, moving)
    a, b = (gaussian_filter(x[0].numpy(), (0, 4, 1), mode="constant", truncate=3.0) for x in (fixed, moving))
    expected = np.mean(2 * (a * b).sum((1, 2)) / (a + b).sum((1, 2)))
    assert float(stretched) == pytest.approx(-expected)


def test_labels_that_neither_map_has_do_not_count():
    fixed, moving = random_labels((16, 14), 1), random_labels((16, 14), 2)
    nothing = torch.zeros_like(fixed[:, :1])
    torch.testing.assert_close(
        MultiscaleDice()(torch.cat([fixed, nothing], 1), torch.cat([moving, nothing], 1)), MultiscaleDice()(fixed, moving)
    )
    lost = MultiscaleDice()(torch.cat([fixed, nothing], 1), torch.cat([moving, nothing + 1], 1))
    assert float(lost) > float(MultiscaleDice()(fixed, moving)), "a label that only one map has does count"


def test_no_labels_at_all_give_zero_and_a_finite_gradient():
    empty = torch.zeros((2, 3, 8, 8), requires_grad=True)
    value = MultiscaleDice()(empty.detach(), empty)
    assert value.tolist() == [0, 0]
    (slope,) = torch.autograd.grad(value.sum(), empty)
    assert torch.isfinite(slope).all()
