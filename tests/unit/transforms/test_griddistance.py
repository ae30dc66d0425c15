import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck

from popatlas.images.grid import Grid
from popatlas.transforms import linear
from popatlas.transforms.griddistance import grid_distance_mm, squared_grid_distance
from tests.unit.images.test_grid import OBLIQUE, OBLIQUE_2D

BOTH = pytest.mark.parametrize("grid", [OBLIQUE, OBLIQUE_2D], ids=["3d", "2d"])
CENTRED = Grid((9, 9, 9), np.array([[1.0, 0, 0, -4], [0, 1, 0, -4], [0, 0, 1, -4], [0, 0, 0, 1]]))


def transforms(grid, seed, batch=3):
    count = linear.parameter_count("affine", grid.ndim)
    parameters = (
        np.random.default_rng(seed).uniform(-0.5, 0.5, (batch, count)) * np.r_[[9] * grid.ndim, [1] * (count - grid.ndim)]
    )
    return linear.matrix(torch.tensor(parameters), "affine", grid.centre)


def rotated(rotation, shift=(0, 0, 0)):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation.as_matrix()
    matrix[:3, 3] = shift
    return matrix


@BOTH
def test_closed_form_is_the_mean_over_all_voxels(grid):
    """Card TGD, test (a)."""
    one, two = transforms(grid, 1), transforms(grid, 2)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1).reshape(-1, grid.ndim)
    points = np.c_[index @ grid.affine[:-1, :-1].T + grid.origin, np.ones(len(index))]
    expected = [np.square(points @ (a - b).T).sum(1).mean() for a, b in zip(one.numpy(), two.numpy(), strict=True)]
    assert np.allclose(squared_grid_distance(one, two, grid), expected, rtol=1e-12)
    assert grid_distance_mm(one[0], two[0].numpy(), grid) == pytest.approx(np.sqrt(expected[0]))


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 0, 1), (1, -2, 3)])
@pytest.mark.parametrize("angle", [30, 90, 180])
def test_rotation_of_a_centred_cube(axis, angle):
    """8 s**2 sin(angle / 2)**2 about any axis: 26.667 at 90 and 53.333 at 180 degrees for 9**3 voxels."""
    turn = Rotation.from_rotvec(np.deg2rad(angle) * np.array(axis) / np.linalg.norm(axis))
    found = squared_grid_distance(torch.tensor(rotated(turn)), torch.eye(4).double(), CENTRED).item()
    assert found == pytest.approx(8 * (80 / 12) * np.sin(np.deg2rad(angle) / 2) ** 2)
    if angle > 30:
        assert found == pytest.approx({90: 26.667, 180: 53.333}[angle], abs=1e-3)


def test_a_translation_is_its_length_in_millimetres():
    assert grid_distance_mm(rotated(Rotation.identity(), (2, 3, 6)), np.eye(4), OBLIQUE) == pytest.approx(7)
    assert grid_distance_mm(np.eye(4), np.eye(4), OBLIQUE) == 0


def test_different_angles_of_the_same_rotation_have_no_distance():
    """Card TGD, test (b)."""
    triples = (30, 90, 0), (50, 90, 20)
    one, two = (rotated(Rotation.from_euler("xyz", angles, degrees=True)) for angles in triples)
    assert np.mean(np.square(np.subtract(*triples))) == pytest.approx(266.7, abs=0.1)
    assert grid_distance_mm(one, two, OBLIQUE) < 1e-12


@BOTH
def test_the_order_of_the_transforms_does_not_matter_and_batches_are_repeated(grid):
    """Card TGD, test (d)."""
    one, two = transforms(grid, 3), transforms(grid, 4)
    assert torch.equal(squared_grid_distance(one, two, grid), squared_grid_distance(two, one, grid))
    repeated = squared_grid_distance(one[0], two, grid)
    assert repeated.shape == (3,)
    assert repeated[2] == squared_grid_distance(one[:1], two[2:], grid)


@pytest.mark.parametrize("seed", range(4))
def test_descent_finds_the_pose_from_far_rotations(seed):
    """Card TGD, test (c): rotations up to 170 degrees."""
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    start = np.deg2rad(rng.uniform(90, 170)) * axis / np.linalg.norm(axis)
    parameters = torch.tensor([[*rng.uniform(-5, 5, 3), *start]]).requires_grad_()
    optimiser = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")
    target = torch.eye(4).double()

    def loss():
        optimiser.zero_grad()
        value = squared_grid_distance(linear.matrix(parameters, "rigid", CENTRED.centre), target, CENTRED).sum()
        value.backward()
        return value

    assert loss().item() > 10
    optimiser.step(loss)
    assert loss().item() < 1e-3


def test_gradient_exists_at_the_minimum_and_agrees_with_differences():
    grid = OBLIQUE
    parameters = torch.zeros(1, 12, dtype=torch.float64, requires_grad=True)
    value = squared_grid_distance(linear.matrix(parameters, "affine", grid.centre), torch.eye(4).double(), grid)
    (slope,) = torch.autograd.grad(value.sum(), parameters)
    assert slope.abs().max() == 0
    one, two = (transforms(grid, seed).requires_grad_() for seed in (5, 6))
    assert gradcheck(lambda a, b: squared_grid_distance(a, b, grid), (one, two))


def test_mixed_dimensions_are_refused():
    with pytest.raises(ValueError, match="axes"):
        squared_grid_distance(torch.eye(3), torch.eye(4), OBLIQUE)
