"""Pairs with known motions, and the two losses that compare a map with it."""

import itertools
import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from popatlas.errors import InputError
from popatlas.networks.cascade import affine_displacement
from popatlas.similarity.ncc import NCC
from popatlas.training.conform import Volume
from popatlas.training.pose import euler_error, grid_distance
from popatlas.training.recipe import load_recipe
from popatlas.training.sections import AugmentSection
from popatlas.training.settings import AugmentSettings, MotionSettings
from popatlas.training.sources import moved_pair
from popatlas.transforms.euler import angles_of, rotation_of
from popatlas.transforms.fields import warp
from tests.unit.pairs import texture


def rigid(angles, shift):
    turn = rotation_of(torch.tensor([angles], dtype=torch.float64).deg2rad())
    return torch.cat([turn, torch.tensor(shift, dtype=torch.float64).reshape(1, -1, 1)], 2)


def test_euler_angles_are_those_of_scipy_and_come_back():
    angles = torch.tensor([[30.0, -40.0, 170.0], [-100.0, 80.0, 5.0]], dtype=torch.float64).deg2rad()
    assert rotation_of(angles).numpy() == pytest.approx(Rotation.from_euler("xyz", angles.numpy()).as_matrix())
    assert angles_of(rotation_of(angles)) == pytest.approx(angles)
    flat = torch.tensor([[0.7]], dtype=torch.float64)
    assert angles_of(rotation_of(flat)) == pytest.approx(flat)


def test_the_known_motion_is_the_one_that_brings_the_copy_back():
    motion = MotionSettings(rotation=25.0, shift=6.0)
    settings = AugmentSection(common=MotionSettings(rotation=10.0, scale=0.1), each=AugmentSettings(motion=motion))
    volume = Volume(texture((28, 26, 30), 2.5, 3), (2.0, 2.0, 2.0))
    pair = moved_pair(volume, settings, torch.Generator().manual_seed(1))
    back = warp(pair.moving, affine_displacement(pair.truth, torch.zeros(1, 1, 28, 26, 30)))
    inner = (slice(None), slice(None), *[slice(9, -9)] * 3)
    assert -float(NCC()(pair.fixed[inner], back[inner])) > 0.98 > 0.9 > -float(NCC()(pair.fixed[inner], pair.moving[inner]))


def test_the_distance_of_grids_is_that_of_their_voxels_and_does_not_depend_on_the_angles_that_make_a_rotation():
    shape, spacing, one, other = (5, 4, 6), 3.0, rigid((10, 20, -30), (1, 2, 3)), rigid((-5, 0, 15), (0, -2, 1))
    points = torch.tensor(list(itertools.product(*map(range, shape))), dtype=torch.float64)
    points = points - (torch.tensor(shape) - 1) / 2
    apart = (points @ (one - other)[0, :, :3].T + (one - other)[0, :, 3]) * spacing
    assert float(grid_distance(one, other, shape, spacing)) == pytest.approx(float(apart.square().sum(1).mean().sqrt()))
    # two sets of angles of one rotation: nothing lies between them but the error of their angles
    same = [rigid(angles, (0, 0, 0)) for angles in ((30.0, 90.0, 0.0), (50.0, 90.0, 20.0))]
    assert float(grid_distance(*same, shape, spacing)) < 2e-3
    assert float(euler_error(one, other, spacing)) == pytest.approx((15**2 + 20**2 + 45**2 + 9 + 144 + 36) / 6)
    assert math.isclose(float(euler_error(one, one, spacing)), 0.0, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"pairs": "different"}}, "motion between two scans is not known"),
        ({"augment": {"each": {"motion": {"bend": 1.0}}}}, "known as an affine"),
        ({"augment": {"each": {"motion": {"rotation": 0.0, "shift": 0.0}}}}, "nothing moves"),
        ({"data": {"source": "labels"}}, "synthesis.options.same says it"),
    ],
)
def test_a_recipe_without_a_known_motion_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        load_recipe("rigid", changes)
