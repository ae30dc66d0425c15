from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from popatlas.measures.overlap import dice
from popatlas.regularisers.sobolev import SobolevOperator
from popatlas.transforms.fields import compose, coordinates, sample, warp
from popatlas.transforms.jacobian import jacobian_determinant
from popatlas.transforms.velocity import integrate_stationary, integrate_time_varying, inverse_time_varying

SIDE = 64
MIDDLE = (SIDE - 1) / 2
STEPS = (4, 8, 16, 32)


def disk(radius):
    return (coordinates((SIDE, SIDE)) - MIDDLE).norm(dim=1)[0] < radius


def turning(angle, window=None):
    """Return the velocity (1, 2, 64, 64) of a rotation by `angle`, faded out with a Gaussian of `window` voxels."""
    offset = coordinates((SIDE, SIDE), dtype=torch.float64) - MIDDLE
    velocity = angle * torch.stack([-offset[:, 1], offset[:, 0]], 1)
    return velocity if window is None else velocity * torch.exp(-offset.square().sum(1, keepdim=True) / (2 * window**2))


def rotation(angle):
    offset = coordinates((SIDE, SIDE), dtype=torch.float64) - MIDDLE
    turn = torch.tensor([[np.cos(angle) - 1, -np.sin(angle)], [np.sin(angle), np.cos(angle) - 1]])
    return torch.einsum("ij,bj...->bi...", turn, offset)


def changing(steps):
    """Return velocities of a swirl whose centre moves while it turns."""
    offset = coordinates((SIDE, SIDE), dtype=torch.float64)
    fields = []
    for t in (np.arange(steps) + 0.5) / steps:
        away = offset - torch.tensor([MIDDLE - 10 + 20 * t, MIDDLE + 8 - 16 * t]).reshape(1, 2, 1, 1)
        swirl = torch.stack([-away[:, 1], away[:, 0]], 1)
        fields.append(swirl * torch.exp(-away.square().sum(1, keepdim=True) / (2 * 9.0**2)) * 1.6 / steps)
    return torch.stack(fields)


def residual(forward, back):
    """Return the largest distance in voxels that points end from their start, on both ways."""
    return max(compose(a, b)[0].norm(dim=0).max().item() for a, b in ((forward, back), (back, forward)))


def test_time_varying_flow_of_a_rotation_converges_with_the_time_step():
    """Card TM-TVF, test 1: O(1 / N)."""
    angle, where = 0.6, disk(22)
    errors = [
        (integrate_time_varying([turning(angle / n)] * n) - rotation(angle))[0].norm(dim=0)[where].max().item()
        for n in STEPS
    ]
    assert errors[0] < 1.5
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, abs=0.2)


def test_hazard_velocities_warped_by_themselves_do_not_converge():
    """Reading v_t at x + v_t(x) instead of at x + u(x), as published code does, misses the rotation at any step size."""
    angle, where = 0.6, disk(22)

    def wrong(n):
        velocity = turning(angle / n)
        return n * sample(velocity, coordinates((SIDE, SIDE), dtype=torch.float64) + velocity)

    errors = [(wrong(n) - rotation(angle))[0].norm(dim=0)[where].max().item() for n in STEPS]
    assert errors[-1] > errors[0]
    assert errors[-1] > 3


def test_reversed_flow_is_the_inverse_and_its_error_halves():
    """Card TM-TVF, test 2; Id - u, as the paper prints the inverse, fails it."""
    largest, errors, naive = [], [], []
    for n in (8, 16, 32):
        velocities = [turning(0.9 / n, window=16)] * n
        forward = integrate_time_varying(velocities)
        largest.append(forward[0].norm(dim=0).max().item())
        errors.append(residual(forward, inverse_time_varying(velocities)))
        naive.append(residual(forward, -forward))
    assert largest[0] > 7
    assert errors[0] < 0.2 * largest[0]
    assert naive[0] > 0.2 * largest[0]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.4)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.4)
    assert naive[2] == pytest.approx(naive[0], rel=0.3)


def test_hazard_the_inverse_runs_through_time_backwards():
    """With velocities that change, -v_t in their original order is no inverse, however small the steps."""
    reversed_order, same_order, naive = [], [], []
    for n in (8, 32):
        velocities = changing(n)
        forward = integrate_time_varying(velocities)
        reversed_order.append(residual(forward, inverse_time_varying(velocities)))
        same_order.append(residual(forward, integrate_time_varying(-velocities)))
        naive.append(residual(forward, -forward))
    assert reversed_order[1] < 0.35 * reversed_order[0]
    assert same_order[1] > 0.7 * same_order[0]
    assert reversed_order[0] < min(same_order[0], naive[0])
    assert reversed_order[1] < 0.2 * min(same_order[1], naive[1])


def ellipse(*radii):
    """Return an image (1, 1, 64, 64) of an ellipse with an edge about as wide as a voxel."""
    offset = (coordinates((SIDE, SIDE)) - MIDDLE) / torch.tensor(radii).reshape(1, 2, 1, 1)
    return torch.sigmoid(min(radii) * (1 - offset.norm(dim=1, keepdim=True)))


def test_free_velocities_register_a_disk_to_an_ellipse_without_folds():
    """Card TM-TVF, test 4: 200 steps of Adam; the velocities are smoothed parameters, and their energy is penalised."""
    moving, fixed = ellipse(16, 16), ellipse(22, 11.5)
    operator = SobolevOperator(alpha=1.0, gamma=1.0, power=2.0, shape=(SIDE, SIDE))
    parameters = torch.zeros(8, 2, SIDE, SIDE, requires_grad=True)
    optimiser = torch.optim.Adam([parameters], lr=0.02)

    def velocities():
        return operator.smooth(parameters).unsqueeze(1)

    for _ in range(200):
        found = velocities()
        loss = (warp(moving, integrate_time_varying(found)) - fixed).square().mean()
        loss = loss + 1e-3 * operator.energy(found.squeeze(1)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    final = velocities().detach()
    forward, back = integrate_time_varying(final), inverse_time_varying(final)
    overlaps = [dice(image.numpy() > 0.5, fixed.numpy() > 0.5) for image in (moving, warp(moving, forward))]
    assert overlaps[0] < 0.8
    assert overlaps[1] > 0.97
    assert jacobian_determinant(forward).min() > 0.1
    assert residual(forward, back) < 0.4 * residual(forward, -forward)


def test_no_velocity_is_the_identity_exactly():
    still = torch.zeros(5, 2, 3, 6, 7, 8)
    assert integrate_time_varying(still).abs().max() == 0
    assert inverse_time_varying(still).abs().max() == 0
    assert integrate_stationary(still[0]).abs().max() == 0
    with pytest.raises(ValueError, match="no velocities"):
        integrate_time_varying([])


def test_sequence_and_stack_are_the_same_and_the_first_step_is_exact():
    velocities = changing(4)
    assert torch.equal(integrate_time_varying(velocities), integrate_time_varying(list(velocities)))
    assert torch.equal(integrate_time_varying(velocities[:1]), velocities[0])


def test_scaling_and_squaring_of_a_linear_velocity_is_the_matrix_exponential():
    found = integrate_stationary(turning(0.6), steps=10)
    assert (found - rotation(0.6))[0].norm(dim=0)[disk(22)].max() < 0.02


def bump(shape, finer=1):
    """Return a smooth velocity, the same one on a grid that is `finer` times finer."""
    size = [finer * (n - 1) + 1 for n in shape]
    middle = torch.tensor([(n - 1) / 2 for n in shape]).reshape(1, -1, *[1] * len(shape))
    offset = coordinates(size, dtype=torch.float64) / finer - middle
    window = torch.exp(-offset.square().sum(1, keepdim=True) / (2 * 4.0**2))
    return finer * 2.5 * window * torch.cat([torch.cos(offset.sum(1, keepdim=True) / 6)] * len(shape), 1)


@pytest.mark.parametrize("shape", [(18, 16, 19), (30, 26)], ids=["3d", "2d"])
def test_stationary_flow_there_and_back(shape):
    """What is left is interpolation error: it falls faster than the voxel size."""
    errors = []
    for finer in (1, 2):
        forward, back = (integrate_stationary(sign * bump(shape, finer), steps=10) for sign in (1, -1))
        errors.append(residual(forward, back) / finer)
        assert jacobian_determinant(forward).min() > 0
        assert forward.norm(dim=1).max() / finer > 2
        assert residual(forward, -forward) / finer > 3 * errors[-1]
    assert errors[0] < 0.3
    assert errors[0] / errors[1] > 2.5
    assert torch.equal(integrate_stationary(bump(shape), steps=0), bump(shape))


def test_both_integrators_agree_on_a_stationary_velocity():
    velocity = turning(0.9, window=16)
    many = integrate_time_varying([velocity / 128] * 128)
    assert (many - integrate_stationary(velocity)).norm(dim=1).max() < 0.1


def test_gradients_of_integration():
    rng = np.random.default_rng(0)
    velocity = torch.tensor(rng.uniform(-0.4, 0.4, (3, 1, 2, 4, 5))).requires_grad_()
    assert gradcheck(lambda v: integrate_stationary(v[0], steps=3), (velocity,))
    assert gradcheck(integrate_time_varying, (velocity,))
    assert gradcheck(inverse_time_varying, (velocity,))
    volume = torch.tensor(rng.uniform(-0.4, 0.4, (1, 3, 3, 4, 3))).requires_grad_()
    assert gradcheck(lambda v: integrate_stationary(v, steps=2), (volume,))
