import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch.autograd import gradcheck

from popatlas.transforms.ffd import control_shape, dense_from_control

CASES = pytest.mark.parametrize(("shape", "spacing"), [
    ((17, 13, 16), 4),
    ((17, 13, 16), (4, 3, 5.5)),
    ((21, 30), 2.5),
    ((9, 9), 1),
    ((5, 6), 40),
])  # fmt: skip
KINDS = pytest.mark.parametrize("kind", ["bspline", "linear"])


def positions(shape, spacing):
    """Return the voxel coordinates of the control points, one array for each axis."""
    gaps = np.broadcast_to(spacing, len(shape))
    return [(np.arange(n) - 1) * gap for n, gap in zip(control_shape(shape, spacing), gaps, strict=True)]


def linear_values(axes, slopes, offset):
    index = np.stack(np.meshgrid(*axes, indexing="ij"))
    return torch.tensor(np.einsum("ij,j...->i...", slopes, index) + offset)[None]


@CASES
def test_the_lattice_holds_what_each_voxel_needs_and_no_more(shape, spacing):
    for n, at in zip(shape, positions(shape, spacing), strict=True):
        gap = at[1] - at[0]
        assert at[0] == -gap
        assert at[-2] > n - 1  # the cell of the last voxel, and one more point
        assert at[-3] <= n - 1


@CASES
@KINDS
def test_linear_displacements_are_reproduced(shape, spacing, kind):
    slopes = np.random.default_rng(0).uniform(-1, 1, (len(shape),) * 2)
    found = dense_from_control(linear_values(positions(shape, spacing), slopes, 3.0), shape, spacing, kind)
    assert found.shape == (1, len(shape), *shape)
    assert (found - linear_values([np.arange(n) for n in shape], slopes, 3.0)).abs().max() < 1e-10


@CASES
@KINDS
def test_a_constant_lattice_is_a_translation(shape, spacing, kind):
    control = torch.full((2, len(shape), *control_shape(shape, spacing)), 1.5, dtype=torch.float64)
    assert (dense_from_control(control, shape, spacing, kind) - 1.5).abs().max() < 1e-12


def test_bspline_agrees_with_scipy():
    n, gap = 23, 4.0
    control = np.random.default_rng(1).normal(size=control_shape((n, n), gap)[0])
    knots = (np.arange(len(control) + 4) - 3) * gap  # the basis function of control point i is centred at (i - 1) gap
    expected = BSpline(knots, control, 3)(np.arange(n))
    lattice = torch.tensor(control)[None, None, :, None].expand(1, 2, -1, len(control)).contiguous()
    found = dense_from_control(lattice, (n, n), gap)
    assert np.allclose(found[0, 0, :, 5], expected)


def test_linear_passes_through_its_control_points_and_bspline_does_not():
    shape, gap = (13, 9), 4
    control = torch.tensor(np.random.default_rng(2).normal(size=(1, 2, *control_shape(shape, gap))))
    inner = control[..., 1:-2, 1:-2]
    linear = dense_from_control(control, shape, gap, "linear")[..., ::gap, ::gap]
    assert (linear - inner).abs().max() < 1e-12
    assert (dense_from_control(control, shape, gap)[..., ::gap, ::gap] - inner).abs().max() > 0.1


def test_a_control_point_moves_only_its_neighbourhood():
    shape, gap = (40, 40), 4
    control = torch.zeros(1, 2, *control_shape(shape, gap))
    control[0, 0, 5, 5] = 1  # at voxel 16
    dense = dense_from_control(control, shape, gap)[0, 0]
    assert dense[16, 16].item() == pytest.approx((2 / 3) ** 2)
    reached = torch.nonzero(dense)
    assert reached.min() == 16 - 2 * gap + 1
    assert reached.max() == 16 + 2 * gap - 1


@KINDS
def test_gradients_and_type(kind):
    shape, gap = (5, 4, 6), 2.5
    control = torch.tensor(np.random.default_rng(3).normal(size=(1, 3, *control_shape(shape, gap)))).requires_grad_()
    assert gradcheck(lambda c: dense_from_control(c, shape, gap, kind), (control,))
    assert dense_from_control(control.float(), shape, gap, kind).dtype == torch.float32


def test_wrong_lattices_are_refused():
    with pytest.raises(ValueError, match="is needed"):
        dense_from_control(torch.zeros(1, 2, 5, 5), (40, 40), 4)
    control = torch.zeros(1, 2, *control_shape((8, 8), 4))
    with pytest.raises(ValueError, match="no kind"):
        dense_from_control(control, (8, 8), 4, "quintic")
    for spacing in (0, (4, -1), (4, 4, 4)):
        with pytest.raises(ValueError, match="spacing"):
            control_shape((8, 8), spacing)
