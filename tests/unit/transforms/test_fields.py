import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch.autograd import gradcheck

from popatlas.transforms import fields, jacobian

SHAPES = pytest.mark.parametrize("shape", [(9, 12, 10), (13, 11)], ids=["3d", "2d"])
MODES = pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def smooth(shape, amplitude, sigma=4.0, seed=0, batch=1):
    """Return a smooth displacement (batch, D, *shape), float64, longest component `amplitude` voxels."""
    parts = noise((batch, len(shape), *shape), seed)
    field = gaussian_filter(parts, (0, 0, *[sigma] * len(shape)))
    return torch.tensor(field * amplitude / np.abs(field).max())


def linear_field(shape, slopes, offset=0.0):
    """Return the displacement ``slopes @ x + offset`` (1, D, *shape), float64."""
    index = fields.coordinates(shape, dtype=torch.float64)
    return torch.einsum("ij,bj...->bi...", torch.as_tensor(slopes, dtype=torch.float64), index) + offset


def inside(shape, count, margin=0.0, seed=1):
    rng = np.random.default_rng(seed)
    return np.stack([rng.uniform(margin, n - 1 - margin, count) for n in shape])


def test_coordinates_are_indices_in_array_order():
    index = fields.coordinates((2, 3, 4))
    assert index.shape == (1, 3, 2, 3, 4)
    assert index[0, :, 1, 2, 3].tolist() == [1, 2, 3]


@SHAPES
@pytest.mark.parametrize(("mode", "order"), [("linear", 1), ("cubic", 3), ("nearest", 0)])
def test_sampling_agrees_with_scipy(shape, mode, order):
    image, at = noise(shape), inside(shape, 400)
    expected = map_coordinates(image, at, order=order, mode="mirror")
    found = fields.sample(torch.tensor(image)[None, None], torch.tensor(at)[None], mode)
    assert found.shape == (1, 1, 400)
    assert np.abs(found[0, 0].numpy() - expected).max() < 1e-10


@SHAPES
@MODES
def test_every_mode_returns_the_voxels_at_the_voxels(shape, mode):
    image = torch.tensor(noise((2, 3, *shape)))
    found = fields.sample(image, fields.coordinates(shape, dtype=torch.float64), mode)
    assert (found - image).abs().max() < 1e-10


def test_cubic_is_exact_on_a_cubic_polynomial_far_from_the_border():
    x = np.arange(40.0)
    image = torch.tensor(np.add.outer((x / 10) ** 3, (x / 20) ** 2))[None, None]
    at = inside((40, 40), 100, margin=14)  # the mirrored border decays by 0.27 a voxel
    expected = (at[0] / 10) ** 3 + (at[1] / 20) ** 2
    assert np.abs(fields.sample(image, torch.tensor(at)[None], "cubic")[0, 0].numpy() - expected).max() < 1e-6
    linear = fields.sample(image, torch.tensor(at)[None])[0, 0].numpy()
    assert np.abs(linear - expected).max() > 1e-3


@MODES
def test_outside_is_the_border_or_zero_beyond_half_a_voxel(mode):
    image = torch.arange(1.0, 13.0, dtype=torch.float64).reshape(1, 1, 3, 4)
    at = torch.tensor([[[-7.0, 0.0, -0.49, -0.51, 2.49, 2.51, 99.0], [0.0, 99.0, 0.0, 0.0, 3.0, 3.0, 99.0]]]).double()
    assert fields.sample(image, at, mode, "border")[0, 0].tolist() == pytest.approx([1, 4, 1, 1, 12, 12, 12])
    zeros = fields.sample(image, at, mode, "zeros")[0, 0]
    assert (zeros == 0).tolist() == [True, True, False, True, False, True, True]
    if mode != "cubic":  # the spline goes on for the half voxel
        assert zeros[[2, 4]].tolist() == pytest.approx([1, 12])


def test_an_axis_of_one_voxel_can_be_sampled():
    image = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 1, 3, 1)
    at = torch.tensor([[[0.0, 0.5, 1.5], [0.0, 0.0, 0.2]]])
    for mode in ("linear", "nearest", "cubic"):
        assert torch.isfinite(fields.sample(image, at, mode)).all()
    assert fields.sample(image, at)[0, 0].tolist() == pytest.approx([1.0, 1.5, 3.0])


def test_nearest_keeps_integers_that_floats_cannot_hold_and_rounds_halves_up():
    image = torch.tensor([[2**24 + 1, 2**40 + 1, 5]]).reshape(1, 1, 1, 3)
    at = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 1.4999, 1.5]]])
    assert fields.sample(image, at, "nearest")[0, 0].tolist() == [2**24 + 1, 2**40 + 1, 2**40 + 1, 5]


def test_coordinates_of_half_precision_images_stay_exact():
    image = (torch.arange(1000.0) - 900).reshape(1, 1, 1000, 1).expand(1, 1, 1000, 2).half()
    found = fields.sample(image, torch.tensor([[[901.3], [0.5]]]))
    assert found.dtype == torch.float16
    assert found.item() == pytest.approx(1.3, abs=0.01)  # half precision knows 901.5, but not 901.3


def test_a_batch_of_one_is_repeated():
    image, at = torch.tensor(noise((1, 2, 6, 7))), torch.tensor(np.stack([inside((6, 7), 5, seed=s) for s in (1, 2)]))
    both = fields.sample(image, at)
    assert both.shape == (2, 2, 5)
    assert torch.equal(both[1:], fields.sample(image, at[1:]))


@pytest.mark.parametrize(("image", "at", "options"), [
    (torch.zeros(1, 1, 4, 4), torch.zeros(1, 3, 5), {}),
    (torch.zeros(1, 1, 4), torch.zeros(1, 1, 5), {}),
    (torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 5), {"mode": "lanczos"}),
    (torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 5), {"padding": "wrap"}),
    (torch.zeros(1, 1, 4, 4, dtype=torch.int32), torch.zeros(1, 2, 5), {"mode": "linear"}),
])  # fmt: skip
def test_mixed_dimensions_and_unknown_options_are_refused(image, at, options):
    with pytest.raises(ValueError, match=r"shape|mode|interpolation"):
        fields.sample(image, at, **options)


@SHAPES
def test_a_point_goes_to_x_plus_u(shape):
    """warp(image, u)(x) = image(x + u(x)): the image of x**2 under a shift by +1 along axis 0 is (x + 1)**2."""
    index = fields.coordinates(shape)
    shift = torch.zeros(1, len(shape), *shape)
    shift[:, 0] = 1
    warped = fields.warp(index[:, :1] ** 2, shift)
    assert torch.allclose(warped[:, :, :-1], (index[:, :1, :-1] + 1) ** 2, atol=1e-3)
    with pytest.raises(ValueError, match="displacement of shape"):
        fields.warp(index[..., :-1], shift)


@SHAPES
@pytest.mark.parametrize("mode", ["nearest", "generic"])
def test_warped_labels_are_never_new(shape, mode):
    labels = torch.tensor(np.random.default_rng(0).choice([0, 3, 7, 1000001], (2, 1, *shape)))
    warped = fields.warp_labels(labels, smooth(shape, 3.0, 2.0, batch=2), mode)
    assert warped.dtype == labels.dtype
    assert set(warped.unique().tolist()) <= {0, 3, 7, 1000001}
    assert torch.equal(fields.warp_labels(labels, torch.zeros(2, len(shape), *shape), mode), labels)
    positive = labels.clamp(min=3)
    assert 0 not in fields.warp_labels(positive, smooth(shape, 9.0, 2.0, batch=2), mode)  # also where points leave the grid


@SHAPES
def test_generic_labels_are_the_argmax_of_all_warped_maps(shape):
    labels = torch.tensor(np.digitize(gaussian_filter(noise(shape), 1), [-0.1, 0, 0.1]))[None, None]
    u = smooth(shape, 2.0, 2.0)
    maps = torch.cat([fields.warp((labels == k).double(), u) for k in range(4)], dim=1)
    assert torch.equal(fields.warp_labels(labels, u, "generic"), maps.argmax(1, keepdim=True))
    assert not torch.equal(fields.warp_labels(labels, u, "nearest"), maps.argmax(1, keepdim=True))


def test_of_equal_maps_the_smaller_label_is_taken():
    labels = torch.tensor([[9, 4, 9, 4]]).expand(1, 1, 4, 4)
    half = torch.zeros(1, 2, 4, 4)
    half[:, 1] = 0.5
    assert (fields.warp_labels(labels, half, "generic")[..., :3] == 4).all()


def test_labels_outside_are_those_of_the_border_or_zero():
    labels = torch.full((1, 1, 4, 4), 5)
    away = torch.full((1, 2, 4, 4), 9.0)
    for mode in ("nearest", "generic"):
        assert (fields.warp_labels(labels, away, mode) == 5).all()
        assert (fields.warp_labels(labels, away, mode, "zeros") == 0).all()
    with pytest.raises(ValueError, match="no mode"):
        fields.warp_labels(labels, away, "linear")


@SHAPES
def test_composition_of_linear_fields_is_the_product_of_their_matrices(shape):
    ndim, rng = len(shape), np.random.default_rng(3)
    one, two = (np.eye(ndim) + rng.uniform(-0.04, 0.04, (ndim, ndim)) for _ in range(2))
    found = fields.compose(linear_field(shape, one - np.eye(ndim)), linear_field(shape, two - np.eye(ndim)))
    exact = linear_field(shape, two @ one - np.eye(ndim))  # the first transform is applied first: it stands right
    inner = (..., *[slice(2, -2)] * ndim)
    assert (found - exact)[inner].abs().max() < 1e-9
    swapped = linear_field(shape, one @ two - np.eye(ndim))
    assert (found - swapped)[inner].abs().max() > 1e-3


@SHAPES
def test_composing_and_warping_once_is_warping_twice(shape):
    """warp(warp(image, b), a) reads image at (x + a) + b(x + a): the point goes through a, then b."""
    image = linear_field(shape, np.ones((len(shape),) * 2))[:, :1]  # linear, so that interpolation is exact
    a, b = smooth(shape, 1.0, seed=1), smooth(shape, 1.0, seed=2)
    inner = (..., *[slice(3, -3)] * len(shape))
    twice = fields.warp(fields.warp(image, b), a)
    once = fields.warp(image, fields.compose(a, b))
    assert (twice - once)[inner].abs().max() < 1e-9


@pytest.mark.parametrize("shape", [(24, 20, 22), (40, 36)], ids=["3d", "2d"])
def test_inverse_undoes_the_field_on_both_sides(shape):
    u = smooth(shape, 3.0, 4.0, batch=2)
    v = fields.invert(u, tolerance=1e-4)
    back = fields.compose(v, u)
    assert back.norm(dim=1).max() < 1e-3
    inner = (..., *[slice(5, -5)] * len(shape))
    assert fields.compose(u, v)[inner].norm(dim=1).max() < 0.1
    assert u.norm(dim=1).max() > 2
    assert fields.inverse_error(u, -u)[0].min() > 5 * fields.inverse_error(u, v)[0].max()


@pytest.mark.parametrize("slope", [-0.6, 0.5, 1.5, 3.0])
def test_strong_stretches_are_inverted(slope):
    """At slopes above 1 the plain fixed-point iteration diverges."""
    shape = (41, 41)
    index = fields.coordinates(shape, dtype=torch.float64)
    u = slope * (index - 20)
    v = fields.invert(u, iterations=60, tolerance=1e-6)
    expected = -slope / (1 + slope) * (index - 20)
    inner = (..., slice(14, 27), slice(14, 27)) if slope < 0 else ...
    assert (v - expected)[inner].abs().max() < 1e-5


def test_inversion_stops_at_the_tolerance_and_never_diverges_on_a_fold():
    u = smooth((32, 32), 12.0, 2.0)
    assert jacobian.jacobian_determinant(u).min() < 0
    v = fields.invert(u)
    assert torch.isfinite(v).all()
    assert fields.inverse_error(v, u)[0] < fields.inverse_error(-u, u)[0]
    easy = smooth((32, 32), 2.0)
    assert (fields.compose(fields.invert(easy, tolerance=0.05), easy).norm(dim=1) <= 0.05).all()


def test_inverse_error_of_a_known_field():
    u = torch.zeros(2, 2, 5, 5)
    u[1, 0] = 3.0
    mean, largest = fields.inverse_error(u, torch.zeros_like(u))
    assert mean.tolist() == pytest.approx([0, 3])
    assert largest.tolist() == pytest.approx([0, 3])


@SHAPES
def test_jacobian_of_a_linear_field_is_its_determinant_everywhere(shape):
    slopes = np.random.default_rng(5).uniform(-0.4, 0.4, (len(shape),) * 2)
    determinant = jacobian.jacobian_determinant(linear_field(shape, slopes, 2.0))
    assert determinant.shape == (1, *shape)
    assert np.allclose(determinant.numpy(), np.linalg.det(np.eye(len(shape)) + slopes), atol=1e-10)


def test_jacobian_agrees_with_simpleitk_inside():
    import SimpleITK as sitk

    u = smooth((14, 13, 12), 2.0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(u[0].numpy().T), isVector=True)
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image)).T
    inner = (slice(1, -1),) * 3
    assert np.allclose(jacobian.jacobian_determinant(u)[0].numpy()[inner], theirs[inner], atol=1e-6)


def test_log_jacobian_lifts_folds_to_the_floor():
    folded = linear_field((6, 6), np.diag([-2.0, 0.0]))
    assert np.allclose(jacobian.log_jacobian(folded, floor=1e-2).numpy(), np.log(1e-2))
    assert np.allclose(jacobian.log_jacobian(linear_field((6, 6), np.diag([1.0, 0.5]))).numpy(), np.log(3.0))
    with pytest.raises(ValueError, match="one voxel"):
        jacobian.jacobian_determinant(torch.zeros(1, 2, 5, 1))


@SHAPES
def test_resized_fields_move_the_same_points_equally_far(shape):
    slopes = np.random.default_rng(6).uniform(-0.3, 0.3, (len(shape),) * 2)
    fine = tuple(2 * n - 1 for n in shape)  # the grid between the voxels: positions and vectors double
    found = fields.resize_field(linear_field(shape, slopes, 0.5), fine)
    assert (found - linear_field(fine, slopes, 1.0)).abs().max() < 1e-10
    back = fields.resize_field(found, shape)
    assert (back - linear_field(shape, slopes, 0.5)).abs().max() < 1e-10


@SHAPES
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_gradients_of_sampling(shape, mode, padding):
    small = tuple(n // 3 + 1 for n in shape)
    image = torch.tensor(noise((1, 2, *small))).requires_grad_()
    at = torch.tensor(inside(small, 6, seed=4)[None]).requires_grad_()
    assert gradcheck(lambda i, p: fields.sample(i, p, mode, padding), (image, at))


@pytest.mark.parametrize("shape", [(4, 3, 4), (5, 4)], ids=["3d", "2d"])
@pytest.mark.parametrize("function", [fields.compose, lambda u, v: fields.warp(v, u, "cubic")], ids=["compose", "warp"])
def test_gradients_of_composition(shape, function):
    pair = [(smooth(shape, 0.4, 1.0, seed) + 0.03).requires_grad_() for seed in (1, 2)]
    assert gradcheck(function, pair)


@pytest.mark.parametrize("function", [jacobian.jacobian_determinant, jacobian.log_jacobian,
                                      lambda u: fields.resize_field(u, (7, 5))], ids=["det", "log", "resize"])  # fmt: skip
def test_gradients_of_measures(function):
    assert gradcheck(function, (smooth((5, 4), 0.5, 1.0).requires_grad_(),))


def test_gradients_pass_through_the_inverse():
    """The inverse of a shift by a is the shift by -a."""
    shift = torch.tensor(1.5, requires_grad=True, dtype=torch.float64)
    v = fields.invert(shift * torch.ones(1, 2, 20, 20, dtype=torch.float64))
    (slope,) = torch.autograd.grad(v.mean(), shift)
    assert v.mean().item() == pytest.approx(-1.5)
    assert slope.item() == pytest.approx(-1.0)
