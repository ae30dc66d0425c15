import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass
from scipy.spatial.transform import Rotation

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.scan import Scan
from popatlas.registration.initialisation import STARTS, centre_of_mass, geometry_centre, mass_moments, moments
from tests.unit.pairs import about, ball, corner_error, moved, rigid_about, texture


def oblique(shape, spacing=(1.0, 1.5, 2.0), turn=(0.3, -0.2, 0.1), origin=(10, -20, 30)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(turn).as_matrix() * spacing
    affine[:3, 3] = origin
    return Grid(shape, affine)


def body(shape=(36, 30, 22), seed=0, grid=None, radius=(0.42, 0.36, 0.30)):
    """A textured ellipsoid with three different axes, on a dark background."""
    mask = ball(shape, torch.tensor(radius[: len(shape)]).reshape(-1, *[1] * len(shape)))
    image = (0.4 + texture(shape, 2.5, seed)) * mask
    return Scan(image, grid or Grid.isotropic(shape), mask)


def test_geometry_centres_meet():
    fixed, moving = oblique((9, 8, 7)), Grid.isotropic((5, 6, 4), 3.0)
    matrix = geometry_centre(Scan(texture((9, 8, 7)), fixed), Scan(texture((5, 6, 4)), moving))
    assert np.allclose(matrix @ [*fixed.centre, 1], [*moving.centre, 1])
    assert np.array_equal(matrix[:3, :3], np.eye(3))


def test_the_centre_of_mass_is_scipys_in_world_space():
    grid = oblique((12, 10, 8))
    image = texture(grid.shape, 2.0, 1) + 5  # an offset must not matter
    expected = grid.affine @ [*center_of_mass((image - image.min())[0, 0].double().numpy()), 1]
    assert np.allclose(mass_moments(Scan(image, grid))[0], expected[:3], atol=1e-4)
    fixed = body()
    assert np.allclose(centre_of_mass(fixed, Scan(image, grid)) @ [*mass_moments(fixed)[0], 1], expected, atol=1e-4)


def test_the_covariance_is_that_of_the_voxels_of_the_mask():
    grid = oblique((14, 9, 11))
    mask = (texture(grid.shape, 1.0, 2) > 0.5).float()
    points = np.argwhere(mask[0, 0].numpy()) @ grid.affine[:3, :3].T + grid.origin
    centre, covariance = mass_moments(Scan(texture(grid.shape), grid, mask))
    assert np.allclose(centre, points.mean(0))
    assert np.allclose(covariance, np.cov(points.T, bias=True))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("masked", [True, False])
def test_moments_recover_any_pose_on_other_grids(seed, masked):
    fixed = body(seed=seed)
    truth = about(fixed.grid.centre, Rotation.random(random_state=seed).as_matrix(), (15, -22, 31))
    target = (truth @ [*fixed.grid.centre, 1])[:3]
    grid = oblique((50, 36, 28))
    affine = np.array(grid.affine)
    affine[:3, 3] += target - grid.centre + 2
    moving = moved(fixed, truth, Grid(grid.shape, affine), padding="zeros")
    # with masks the contrast does not matter
    pair = [fixed, Scan(1.4 - moving.image, moving.grid, moving.mask)] if masked else [
        Scan(scan.image.clamp(min=0), scan.grid) for scan in (fixed, moving)
    ]  # fmt: skip
    matrix = moments(*pair)
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
    assert corner_error(matrix, truth, fixed.grid) < 3
    assert corner_error(centre_of_mass(*pair), truth, fixed.grid) > 10


def test_bodies_that_are_as_wide_as_high_are_told_apart_by_their_inside():
    """The order of the principal axes is then a matter of noise."""
    fixed = body((32, 32, 32), radius=(0.44, 0.36, 0.355))
    truth = rigid_about(fixed.grid.centre, (90, 0, 0), (0, 0, 0))
    stretched = about(fixed.grid.centre, np.diag([1.0, 1.03, 0.97]), (0, 0, 0)) @ truth
    assert corner_error(moments(fixed, moved(fixed, stretched, fixed.grid, padding="zeros")), truth, fixed.grid) < 5


def test_a_left_handed_grid_gives_a_proper_rotation():
    fixed = body()
    mirrored = np.array(fixed.grid.affine)
    mirrored[0, 0], mirrored[0, 3] = -1, fixed.grid.shape[0] - 1
    moving = Scan(fixed.image.flip(2), Grid(fixed.grid.shape, mirrored), fixed.mask.flip(2))
    assert np.allclose(moments(fixed, moving), np.eye(4), atol=1e-4)  # the same body in world space


def test_two_axes():
    fixed = body((40, 30), radius=(0.42, 0.3))
    truth = rigid_about(fixed.grid.centre, 160, (4, -3))
    moving = moved(fixed, truth, Grid((48, 48), np.array([[1, 0, -4], [0, 1, -9], [0, 0, 1]])), padding="zeros")
    assert corner_error(moments(fixed, moving), truth, fixed.grid) < 2


@pytest.mark.parametrize("name", ["mass", "moments"])
def test_bad_input_is_refused(name):
    fixed = body()
    with pytest.raises(InputError, match="moving mask is empty"):
        STARTS[name](fixed, Scan(fixed.image, fixed.grid, torch.zeros_like(fixed.image)))
    with pytest.raises(InputError, match="3 axes and the moving one 2"):
        STARTS[name](fixed, body((20, 20)))
