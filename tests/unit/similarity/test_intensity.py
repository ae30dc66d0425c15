"""SSD, NCC and normalised gradient fields: closed forms and known answers."""

import numpy as np
import pytest
import torch

from popatlas.similarity.ncc import NCC
from popatlas.similarity.ngf import NGF, normalised_gradient
from popatlas.similarity.ssd import SSD
from tests.unit.similarity_images import noise, scene

SHAPES = [(14, 11), (9, 8, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_ssd_and_its_gradient_are_the_closed_form(shape):
    fixed, moving = noise(shape, 1, batch=2), noise(shape, 2, batch=2).requires_grad_(True)
    mask = (noise(shape, 3, batch=2) > 0).double()
    value = SSD()(fixed, moving, mask)
    for item in range(2):
        inside = mask[item] > 0
        difference = (fixed - moving.detach())[item][inside]
        assert float(value[item].detach()) == pytest.approx(float((difference**2).mean()))
    (slope,) = torch.autograd.grad(value.sum(), moving)
    count = mask.flatten(1).sum(1).reshape(-1, *[1] * (slope.ndim - 1))
    torch.testing.assert_close(slope, 2 * (moving.detach() - fixed) * mask / count)


@pytest.mark.parametrize("shape", SHAPES)
def test_ncc_is_the_pearson_correlation(shape):
    fixed, moving, inside = noise(shape, 1), noise(shape, 2), noise(shape, 3) > 0
    expected = np.corrcoef(fixed[inside], moving[inside])[0, 1]
    assert float(NCC()(fixed, moving, inside)) == pytest.approx(-expected)
    assert float(NCC(squared=True)(fixed, moving, inside)) == pytest.approx(-(expected**2))


@pytest.mark.parametrize(("gain", "plain"), [(0.01, -1), (-3.0, 1), (250.0, -1)])
def test_ncc_sees_only_the_sign_of_a_linear_change(gain, plain):
    image = noise((9, 8, 7), 1)
    assert float(NCC()(image, gain * image + 7)) == pytest.approx(plain)
    assert float(NCC(squared=True)(image, gain * image + 7)) == pytest.approx(-1)


def test_ncc_has_an_exact_gradient():
    fixed, moving = noise((5, 4), 1), noise((5, 4), 2).requires_grad_(True)
    for loss in (NCC(), NCC(squared=True)):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(fixed, x), (moving,))


def test_ncc_of_faint_images_on_a_high_level_is_not_lost_in_rounding():
    image = 1000 + 0.5 * noise((12, 12, 12), 1, dtype=torch.float32)
    assert float(NCC()(image, image)) == pytest.approx(-1, abs=1e-4)


def test_normalised_gradient_of_a_ramp_is_the_closed_form():
    i, j, k = torch.meshgrid(*[torch.arange(6, dtype=torch.float64)] * 3, indexing="ij")
    ramp = (0.3 * i - 0.4 * j + 1.2 * k)[None, None]
    length = np.sqrt(0.3**2 + 0.4**2 + 1.2**2 + 0.5**2)
    expected = torch.tensor([0.3, -0.4, 1.2], dtype=torch.float64) / length
    got = normalised_gradient(ramp, 0.5)
    assert got.shape == (1, 1, 3, 6, 6, 6)
    torch.testing.assert_close(got[0, 0], expected[:, None, None, None].expand_as(got[0, 0]))


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2, 2.5])
def test_ngf_of_two_ramps_is_the_cosine_of_their_angle(angle):
    i, j = torch.meshgrid(*[torch.arange(8, dtype=torch.float64)] * 2, indexing="ij")
    turned = np.cos(angle) * i + np.sin(angle) * j
    share = 1 / (1 + 0.1**2)  # both gradients have length 1 before epsilon
    cosine = np.cos(angle) * share
    assert float(NGF(0.1, squared=False)(i[None, None], turned[None, None])) == pytest.approx(-cosine, abs=1e-12)
    assert float(NGF(0.1)(i[None, None], turned[None, None])) == pytest.approx(-(cosine**2), abs=1e-12)


def test_squared_ngf_is_blind_to_inverted_contrast_and_the_plain_one_is_not():
    fixed, moving = scene((16, 12, 12)), scene((16, 12, 12), 1.0)
    torch.testing.assert_close(NGF()(fixed, 1 - moving), NGF()(fixed, moving))
    torch.testing.assert_close(NGF(squared=False)(fixed, 1 - moving), -NGF(squared=False)(fixed, moving))


def test_the_right_shift_of_an_inverted_image_is_the_worst_for_plain_ngf():
    """The trap of the unsquared form between modalities: it drives the images apart."""
    fixed = scene((24, 20))
    shifts = np.arange(-4, 5)
    values = {
        squared: [float(NGF(squared=squared)(fixed, 1 - scene((24, 20), s))) for s in shifts] for squared in (True, False)
    }
    assert shifts[np.argmin(values[True])] == 0
    assert shifts[np.argmax(values[False])] == 0


def test_flat_regions_count_as_nothing_in_ngf():
    image = scene((24, 20))
    flat = torch.zeros_like(image)
    wide = torch.cat([image, flat], 2)
    assert float(NGF()(wide, wide)) > 0.55 * float(NGF()(image, image)), (
        "half of the voxels are flat, half of the agreement is gone"
    )
    assert float(NGF()(image, image)) < -0.3
