"""Penalties on displacement fields: closed forms, independent stencils, and what each of them is for."""

from inspect import signature

import numpy as np
import pytest
import torch

from popatlas.regularisers.bending import bending
from popatlas.regularisers.diffusion import diffusion, magnitude
from popatlas.regularisers.folding import folding_penalty
from popatlas.regularisers.registry import REGULARISERS, find_regulariser
from popatlas.regularisers.sobolev import SobolevOperator
from popatlas.regularisers.tv import total_variation

SHAPES = {2: (9, 7), 3: (7, 6, 8)}
PENALTIES = [find_regulariser(name) for name in REGULARISERS]


def grid(ndim):
    return torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in SHAPES[ndim]], indexing="ij"))


def random_field(ndim, seed=0, batch=1, scale=1.0):
    values = np.random.default_rng(seed).standard_normal((batch, ndim, *SHAPES[ndim]))
    return torch.as_tensor(scale * values)


def linear(ndim, matrix):
    return torch.einsum("ij,j...->i...", torch.as_tensor(matrix, dtype=torch.float64), grid(ndim))[None] + 3.0


def random_matrix(ndim):
    return np.random.default_rng(5).standard_normal((ndim, ndim))


@pytest.mark.parametrize("ndim", [2, 3])
def test_diffusion_of_a_linear_field_is_the_squared_norm_of_its_matrix(ndim):
    matrix = random_matrix(ndim)
    assert float(diffusion(linear(ndim, matrix))) == pytest.approx((matrix**2).sum())
    sizes = np.array([0.5, 2.0, 3.0][:ndim])
    physical = sizes[:, None] * matrix / sizes
    assert float(diffusion(linear(ndim, matrix), sizes.tolist())) == pytest.approx((physical**2).sum())


def test_diffusion_equals_numpy_differences():
    field = random_field(3, batch=2)
    expected = [sum((np.diff(item, axis=axis) ** 2).sum(0).mean() for axis in (1, 2, 3)) for item in field.numpy()]
    np.testing.assert_allclose(diffusion(field), expected)


def test_magnitude_is_the_mean_squared_length():
    field = torch.tensor([3.0, -4.0]).reshape(1, 2, 1, 1).expand(1, 2, 5, 6)
    assert float(magnitude(field)) == 25
    assert float(magnitude(field, (2.0, 0.5))) == 40


@pytest.mark.parametrize("ndim", [2, 3])
def test_bending_of_an_affine_displacement_is_zero(ndim):
    assert float(bending(linear(ndim, random_matrix(ndim)))) < 1e-20
    assert float(diffusion(linear(ndim, random_matrix(ndim)))) > 0.1


@pytest.mark.parametrize("ndim", [2, 3])
def test_bending_of_a_quadratic_is_the_squared_norm_of_its_second_derivatives(ndim):
    """The full form: mixed derivatives count twice. Without them this fails."""
    hessians = np.random.default_rng(3).standard_normal((ndim, ndim, ndim))
    hessians = hessians + hessians.transpose(0, 2, 1)
    x = grid(ndim)
    field = 0.5 * torch.einsum("cij,i...,j...->c...", torch.as_tensor(hessians), x, x)[None]
    assert float(bending(field)) == pytest.approx((hessians**2).sum())
    sizes = np.array([0.5, 2.0, 3.0][:ndim])
    physical = sizes[:, None, None] * hessians / sizes[:, None] / sizes
    assert float(bending(field, sizes.tolist())) == pytest.approx((physical**2).sum())


@pytest.mark.parametrize("axes", [(0, 1), (0, 2), (1, 2)])
def test_each_mixed_derivative_counts_twice(axes):
    x = grid(3)
    field = torch.zeros((1, 3, *SHAPES[3]), dtype=torch.float64)
    field[0, 1] = x[axes[0]] * x[axes[1]]
    assert float(bending(field)) == pytest.approx(2)


def test_bending_sees_an_alternating_field():
    """Mixed derivatives over two voxels would not see a checkerboard, and a diagonal saddle would be free."""
    i, j = grid(2)
    field = torch.zeros((1, 2, *SHAPES[2]), dtype=torch.float64)
    field[0, 0] = (-1) ** (i + j)
    assert float(bending(field)) == pytest.approx(4**2 + 4**2 + 2 * 4**2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_total_variation_of_a_step_is_its_height_times_its_area(axis):
    field = torch.zeros((1, 3, *SHAPES[3]), dtype=torch.float64)
    upper = [slice(None)] * 3
    upper[axis] = slice(4, None)
    field[(0, slice(None), *upper)] = torch.tensor([3.0, 0.0, -4.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    share = 1 / SHAPES[3][axis]  # one plane of voxels looks across the step
    for epsilon in (1e-6, 0.1):
        expected = share * (np.sqrt(25 + epsilon**2) - epsilon)
        assert float(total_variation(field, epsilon=epsilon)) == pytest.approx(expected)
    sizes = (2.0, 3.0, 0.5)
    jump = np.hypot(3 * sizes[0], 4 * sizes[2]) / sizes[axis]
    assert float(total_variation(field, sizes, 1e-9)) == pytest.approx(share * jump)


def test_total_variation_of_a_quadrant_is_the_length_of_its_edges():
    """Forward differences: the two edges of this corner meet in no voxel; those of the opposite corner meet in one."""
    field = torch.zeros((2, 2, 9, 7), dtype=torch.float64)
    field[0, 0, 4:, 3:] = 1
    field[1, 1, :4, :3] = 1
    edges = total_variation(field, epsilon=1e-9) * 63
    assert edges.tolist() == pytest.approx([4 + 5, 2 + 3 + np.sqrt(2)])


def test_total_variation_does_not_mind_how_steep_a_rise_is_and_diffusion_does():
    def rise(width):
        ramp = (torch.arange(20, dtype=torch.float64) / width - 3).clamp(0, 1)
        field = torch.zeros((1, 2, 20, 5), dtype=torch.float64)
        field[0, 0] = 2 * ramp[:, None]
        return field

    steep, gentle = rise(1.0), rise(4.0)
    assert float(total_variation(steep, epsilon=1e-9)) == pytest.approx(float(total_variation(gentle, epsilon=1e-9)))
    assert float(diffusion(steep)) == pytest.approx(4 * float(diffusion(gentle)))


def test_total_variation_keeps_a_sliding_boundary_that_diffusion_blurs():
    true = torch.zeros((1, 2, 16, 16), dtype=torch.float64)
    true[:, 0, :, 8:], true[:, 0, :, :8] = 2, -2
    seen = true + 0.3 * torch.as_tensor(np.random.default_rng(1).standard_normal(true.shape))
    jumps, errors = {}, {}
    for name, penalty, weight in (("tv", total_variation, 0.6), ("diffusion", diffusion, 0.6)):
        field = seen.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([field], lr=0.05)
        for _ in range(150):
            optimiser.zero_grad()
            ((field - seen).square().sum(1).mean() + weight * penalty(field)).sum().backward()
            optimiser.step()
        result = field.detach()
        jumps[name] = float((result[:, 0, :, 8] - result[:, 0, :, 7]).mean())
        errors[name] = float((result - true).square().mean())
    assert jumps["tv"] > 3.2 > 2.6 > jumps["diffusion"]
    assert errors["tv"] < 0.5 * errors["diffusion"]
    assert errors["tv"] < 0.5 * float((seen - true).square().mean()), "and it removes noise"


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_no_displacement_costs_nothing_and_pulls_nowhere(penalty, ndim):
    field = torch.zeros((2, ndim, *SHAPES[ndim]), requires_grad=True)
    value = penalty(field)
    assert value.tolist() == [0, 0]
    (slope,) = torch.autograd.grad(value.sum(), field)
    assert (slope == 0).all()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("penalty", [penalty for penalty in PENALTIES if penalty is not magnitude])
def test_moving_everything_alike_costs_nothing(penalty, ndim):
    field = torch.full((2, ndim, *SHAPES[ndim]), 2.5, dtype=torch.float64)
    field[1, 0] = -7.0
    assert penalty(field).tolist() == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_penalty_is_never_a_reward(penalty, ndim):
    for seed in range(5):
        value = penalty(random_field(ndim, seed, batch=2, scale=0.1 * 10**seed))
        assert value.shape == (2,) and torch.isfinite(value).all() and (value >= 0).all()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_batches_are_independent_and_gradients_exact(penalty, ndim):
    field = random_field(ndim, batch=3)
    torch.testing.assert_close(penalty(field), torch.cat([penalty(field[i : i + 1]) for i in range(3)]))
    assert float(penalty(field).min()) > 0
    few = field[(slice(0, 1), slice(None), *[slice(0, 3)] * ndim)].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(penalty, (few,))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_what_is_no_field_is_an_error(penalty):
    for wrong in (torch.zeros(2, 5, 5), torch.zeros(1, 3, 5, 5), torch.zeros((1, 2, 5, 5), dtype=torch.int64)):
        with pytest.raises(ValueError, match="displacement is"):
            penalty(wrong)
    if penalty is not magnitude:
        with pytest.raises(ValueError, match="voxels"):
            penalty(torch.zeros(1, 2, 5, 1))
    if "spacing" in signature(penalty).parameters:
        with pytest.raises(ValueError, match="spacing"):
            penalty(torch.zeros(1, 2, 5, 5), (1.0, 1.0, 1.0))


def test_total_variation_needs_a_positive_epsilon():
    with pytest.raises(ValueError, match="epsilon"):
        total_variation(torch.zeros(1, 2, 5, 5), epsilon=0)


def test_the_folding_penalty_is_the_depth_of_the_fold():
    x = grid(3)
    field = torch.zeros((2, 3, *SHAPES[3]), dtype=torch.float64)
    field[0, 1] = -2 * x[1]  # y -> -y: determinant -1
    field[1, 1] = -0.9 * x[1]  # determinant 0.1, no fold
    assert folding_penalty(field).tolist() == pytest.approx([1, 0])
    assert folding_penalty(field, floor=0.3).tolist() == pytest.approx([1.3, 0.2])


def test_the_folding_penalty_unfolds():
    field = random_field(2, scale=0.9).requires_grad_(True)
    assert float(folding_penalty(field.detach())) > 0.01
    optimiser = torch.optim.Adam([field], lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        folding_penalty(field, 0.05).sum().backward()
        optimiser.step()
    assert float(folding_penalty(field.detach())) == 0


def operator(ndim, power=2.0):
    return SobolevOperator(0.7, 0.3, power, SHAPES[ndim])


def stencil(field, power, alpha=0.7, gamma=0.3):
    """The operator by differences on a periodic grid, as often as its power says."""
    for _ in range(power):
        laplacian = sum(
            torch.roll(field, 1, axis) - 2 * field + torch.roll(field, -1, axis) for axis in range(2, field.ndim)
        )
        field = -alpha * laplacian + gamma * field
    return field


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_sobolev_operator_equals_its_stencil(ndim, power):
    field = random_field(ndim, batch=2)
    torch.testing.assert_close(operator(ndim, power).apply(field), stencil(field, power), rtol=1e-10, atol=1e-10)
    single = operator(ndim, power).apply(field.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), stencil(field, power), rtol=1e-4, atol=1e-5 * 4.5**power)


@pytest.mark.parametrize("power", [0.75, 1.5, 2.0])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_sobolev_operator_is_self_adjoint_positive_and_invertible(ndim, power):
    lift = operator(ndim, power)
    v, w = random_field(ndim, 1), random_field(ndim, 2)
    torch.testing.assert_close((lift.apply(v) * w).sum(), (v * lift.apply(w)).sum())
    assert float((lift.apply(v) * v).sum()) >= 0.3**power * float((v * v).sum())
    torch.testing.assert_close(lift.inverse(lift.apply(v)), v)
    torch.testing.assert_close(lift.smooth(v), lift.inverse(lift.inverse(v)))


def test_a_constant_velocity_is_multiplied_by_gamma_to_the_power():
    field = torch.full((1, 3, *SHAPES[3]), 2.0, dtype=torch.float64)
    torch.testing.assert_close(operator(3, 2).apply(field), 0.09 * field)


def test_the_energy_is_the_square_of_the_operator_at_its_full_power():
    """Released code applied the operator once and squared twice."""
    field = random_field(3)
    lift = operator(3, 2)
    expected = stencil(field, 2).square().sum(1).mean()
    assert float(lift.energy(field)) == pytest.approx(float(expected))
    assert float(lift.energy(3 * field)) == pytest.approx(9 * float(expected)), "of degree 2, not 4"
    assert float(lift.norm(field)) == pytest.approx(float(expected) ** 0.5)
    once = stencil(field, 1).square().square().sum(1).mean()
    assert float(once) != pytest.approx(float(expected), rel=0.1)


def test_the_energy_has_the_gradient_that_smooth_undoes():
    field = random_field(2).requires_grad_(True)
    lift = operator(2)
    (slope,) = torch.autograd.grad(lift.energy(field).sum(), field)
    voxels = field[0, 0].numel()
    torch.testing.assert_close(lift.smooth(slope) * voxels / 2, field.detach())
    zero = torch.zeros_like(field).requires_grad_(True)
    (flat,) = torch.autograd.grad(lift.energy(zero).sum(), zero)
    assert (flat == 0).all()


@pytest.mark.parametrize("wrong", [(-1, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_sobolev_operator_without_inverse_is_an_error(wrong):
    with pytest.raises(ValueError, match="gamma > 0"):
        SobolevOperator(*wrong, (5, 5))


def test_the_sobolev_operator_checks_the_grid():
    with pytest.raises(ValueError, match="is for"):
        operator(2).apply(torch.zeros(1, 2, 5, 5))
