"""MIND and MIND-SSC: the formula voxel by voxel, invariance, and another implementation."""

import numpy as np
import pytest
import torch

from popatlas.similarity.mind import LOWEST, MIND, MINDSSC, mind_descriptor, mindssc_descriptor
from tests.unit.similarity_images import noise, scene

SHAPES = [(14, 12), (9, 10, 8)]


def formula(image, sigma, at):
    """MIND at one voxel, from its definition: Gaussian patches, the mean distance, the largest entry 1."""
    ndim, half = image.ndim, int(1.5 * sigma + 0.5)
    reach = np.stack(np.meshgrid(*[np.arange(-half, half + 1)] * ndim, indexing="ij"), -1).reshape(-1, ndim)
    weights = np.exp(-0.5 * (reach**2).sum(1) / sigma**2)
    weights /= weights.sum()

    def distance(offset):
        return sum(
            w * (image[tuple(at + r)] - image[tuple(at + r + offset)]) ** 2 for w, r in zip(weights, reach, strict=True)
        )

    offsets = [sign * np.eye(ndim, dtype=int)[axis] for axis in range(ndim) for sign in (-1, 1)]
    distances = np.array([distance(offset) for offset in offsets])
    values = np.exp(-distances / distances.mean())
    return values / values.max()


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.4])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_descriptor_is_the_formula(shape, sigma):
    image = noise(shape, 1)
    descriptor = mind_descriptor(image, sigma)
    assert descriptor.shape == (1, 1, 2 * len(shape), *shape)
    for at in (np.array(shape) // 2, np.array(shape) // 2 - 1):
        expected = formula(image[0, 0].numpy(), sigma, at)
        np.testing.assert_allclose(descriptor[(0, 0, slice(None), *at)], expected, rtol=1e-9)


def ssc_formula(image, radius, dilation, at):
    """MIND-SSC at one voxel, sorted: box patches around pairs of neighbours sqrt(2) apart."""
    ndim = image.ndim
    reach = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * ndim, indexing="ij"), -1).reshape(-1, ndim)
    offsets = [sign * np.eye(ndim, dtype=int)[axis] for axis in range(ndim) for sign in (-1, 1)]
    pairs = [(p, q) for i, p in enumerate(offsets) for q in offsets[:i] if ((p - q) ** 2).sum() == 2]
    distances = np.array(
        [
            np.mean([(image[tuple(at + r + dilation * p)] - image[tuple(at + r + dilation * q)]) ** 2 for r in reach])
            for p, q in pairs
        ]
    )
    excess = distances - distances.min()
    return np.sort(np.exp(-excess / excess.mean()))


@pytest.mark.parametrize(("radius", "dilation"), [(1, 1), (1, 2), (0, 2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_self_similarity_context_is_the_formula(shape, radius, dilation):
    image = noise(shape, 1)
    at = np.array(shape) // 2
    ours = mindssc_descriptor(image, radius, dilation)[(0, 0, slice(None), *at)]
    assert len(ours) == {2: 4, 3: 12}[len(shape)]
    np.testing.assert_allclose(np.sort(ours.numpy()), ssc_formula(image[0, 0].numpy(), radius, dilation, at), rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_is_the_mean_of_the_squared_mean_difference(shape):
    fixed, moving, mask = noise(shape, 1), noise(shape, 2), noise(shape, 3) > 0
    a, b = (mind_descriptor(x, 0.5, mask.double())[0, 0] for x in (fixed, moving))
    expected = (a - b).abs().mean(0).square()[mask[0, 0]].mean()
    assert float(MIND()(fixed, moving, mask)) == pytest.approx(float(expected))
    c, d = (mindssc_descriptor(x, 1, 2, mask.double())[0, 0] for x in (fixed, moving))
    assert float(MINDSSC()(fixed, moving, mask)) == pytest.approx(float((c - d).square().mean(0)[mask[0, 0]].mean()))


@pytest.mark.parametrize("describe", [lambda x: mind_descriptor(x, 0.7), lambda x: mindssc_descriptor(x, 1, 2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_descriptors_do_not_change_with_gain_sign_and_offset(shape, describe):
    image = noise(shape, 1)
    for gain, offset in ((3.0, 100.0), (-0.02, 4.0), (1e4, 0.0)):
        torch.testing.assert_close(describe(gain * image + offset), describe(image), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", [MIND(), MINDSSC()])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_and_its_inverse_are_perfect(shape, loss):
    image = noise(shape, 1)
    assert float(loss(image, image)) == 0
    assert float(loss(image, 5 - 3 * image)) < 1e-12
    assert float(loss(image, noise(shape, 2))) > 0.01


@pytest.mark.parametrize(("radius", "dilation"), [(1, 1), (1, 2), (2, 2)])
def test_mindssc_equals_convexadam_inside(radius, dilation):
    reference_mindssc = pytest.importorskip("convexAdam.convex_adam_utils").MINDSSC
    image = noise((17, 16, 15), 1, dtype=torch.float32)
    theirs = reference_mindssc(image, radius, dilation, device="cpu")[0]
    ours = mindssc_descriptor(image, radius, dilation)[0, 0]
    assert ours.shape == theirs.shape == (12, 17, 16, 15)
    # the two extend patches over the border differently; the channels are in another order
    inside = (slice(None), *[slice(radius + dilation, -radius - dilation)] * 3)
    torch.testing.assert_close(ours[inside].sort(0).values, theirs[inside].sort(0).values, rtol=1e-4, atol=1e-5)
    other = noise((17, 16, 15), 2, dtype=torch.float32)
    difference = (theirs - reference_mindssc(other, radius, dilation, device="cpu")[0]).square().mean(0)
    mask = torch.zeros((1, 1, 17, 16, 15))
    mask[(0, 0, *inside[1:])] = 1
    expected = float(difference[inside[1:]].mean())
    assert float(MINDSSC(radius, dilation)(image, other, mask)) == pytest.approx(expected, rel=1e-3)


def test_mindssc_has_four_pairs_in_2d_and_none_of_opposite_neighbours():
    assert mindssc_descriptor(noise((9, 8), 1), 1, 1).shape == (1, 1, 4, 9, 8)
    # opposite neighbours of a ramp differ most and alike; without them each axis shows in every pair
    ramp = torch.arange(9, dtype=torch.float64).reshape(1, 1, 9, 1).expand(1, 1, 9, 9)
    inner = mindssc_descriptor(ramp, 0, 1)[0, 0, :, 4, 4]
    torch.testing.assert_close(inner, torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("describe", [lambda x: mind_descriptor(x, 0.5), lambda x: mindssc_descriptor(x, 1, 2)])
def test_the_largest_entry_is_one_and_a_constant_image_is_one_everywhere(describe):
    descriptor = describe(noise((10, 9, 8), 1))
    torch.testing.assert_close(descriptor.amax(2), torch.ones((1, 1, 10, 9, 8), dtype=torch.float64))
    assert float(descriptor.min()) > 0
    assert (describe(torch.full((1, 1, 6, 6, 6), 3.7)) == 1).all()


def test_faint_noise_in_a_flat_background_is_not_blown_up():
    """Divided by its own tiny variance, noise would look like structure: the variance has a floor."""
    image = scene((24, 20))
    image = image * (image > 0.2)
    whisper = 1e-3 * noise((24, 20), 5)
    flat = (image == 0) & (mind_variance(image + whisper) < 0.1 * LOWEST * mind_variance(image + whisper).mean())
    assert flat.sum() > 50
    quiet = mind_descriptor(image + whisper, 0.5)[0, 0].amin(0)[flat[0, 0]]
    loud = mind_descriptor(whisper, 0.5)[0, 0].amin(0)[flat[0, 0]]
    assert float(quiet.mean()) > 0.7 > 0.35 > float(loud.mean())


def mind_variance(image):
    moved = [torch.roll(image, shift, axis) for axis in (2, 3) for shift in (-1, 1)]
    return torch.stack([(m - image) ** 2 for m in moved]).mean(0)


@pytest.mark.parametrize("loss", [MIND(), MIND(1.0), MINDSSC(), MINDSSC(1, 1)])
def test_the_right_shift_of_another_contrast_wins(loss):
    fixed = scene((28, 24))
    shifts = np.arange(-4, 5)
    values = [float(loss(fixed, torch.exp(-2 * scene((28, 24), float(s))))) for s in shifts]
    assert shifts[np.argmin(values)] == 0


@pytest.mark.parametrize("ndim", [2, 3])
def test_mixed_precision_does_not_touch_descriptors(ndim):
    image = 0.7 + 0.05 * noise([16] * ndim, seed=1, dtype=torch.float32)
    exact = mindssc_descriptor(image, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mindssc_descriptor(image, 1, 1), exact)
