import ants
import numpy as np
import pytest
import SimpleITK as sitk

from popatlas.errors import InputError
from popatlas.images.io import load_image, save_image
from popatlas.transforms.displacement import compose, field_array, invert_field, mean_field, read_field, write_jacobian

SHAPE, SPACING = (24, 28, 20), 2.0


def write_grid(path):
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = (-20, -30, -15)
    save_image(np.random.default_rng(1).random(SHAPE, dtype=np.float32), affine, path)
    return path


def write_field(grid_path, function, path):
    """Write u(x) = function(points in LPS mm) on a grid."""
    grid = sitk.ReadImage(str(grid_path))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1).reshape(-1, 3)
    points = np.array([grid.TransformIndexToPhysicalPoint([int(v) for v in i]) for i in index])
    vectors = function(points).reshape(*SHAPE, 3).transpose(2, 1, 0, 3)
    field = sitk.GetImageFromArray(vectors.astype(np.float64), isVector=True)
    field.CopyInformation(grid)
    sitk.WriteImage(field, str(path))
    return path


@pytest.fixture
def grid(tmp_path):
    return write_grid(tmp_path / "grid.nii.gz")


def test_mean_of_opposite_fields_vanishes(grid, tmp_path):
    one = write_field(grid, lambda p: np.sin(p / 9), tmp_path / "a.nii.gz")
    other = write_field(grid, lambda p: -np.sin(p / 9), tmp_path / "b.nii.gz")
    assert np.abs(field_array(mean_field([one, other]))).max() < 1e-6


def test_inverse_of_a_known_expansion(grid, tmp_path):
    # x -> 1.1 x has the inverse x -> x / 1.1, whose displacement is -x / 11
    field = read_field(write_field(grid, lambda p: 0.1 * (p - [0, 2, 5]), tmp_path / "u.nii.gz"))
    inverse = field_array(invert_field(field))
    exact = field_array(read_field(write_field(grid, lambda p: -(p - [0, 2, 5]) / 11, tmp_path / "v.nii.gz")))
    inner = (slice(4, -4),) * 3
    assert np.abs(inverse[inner] - exact[inner]).max() < 0.05


def test_jacobian_of_a_known_expansion_is_its_cube(grid, tmp_path):
    path = write_field(grid, lambda p: 0.1 * p, tmp_path / "u.nii.gz")
    determinant = write_jacobian(path, grid, tmp_path / "log.nii.gz")
    inner = (slice(2, -2),) * 3
    assert np.allclose(determinant[inner], 1.1**3, atol=1e-3)
    log = load_image(tmp_path / "log.nii.gz").get_fdata()
    assert np.allclose(log[inner], 3 * np.log(1.1), atol=1e-3)


def test_composed_field_equals_the_chain_point_by_point(grid, tmp_path):
    """The documented order: a point goes through the first transform of the list first."""
    warp = write_field(grid, lambda p: np.sin(p / 15), tmp_path / "w.nii.gz")
    linear = np.array([[1.05, 0.02, 0], [0, 0.97, 0.01], [0, 0, 1.02]])
    affine = ants.new_ants_transform(
        transform_type="AffineTransform", parameters=[*linear.ravel(), 1.0, -2.0, 0.5], fixed_parameters=(0.0, 0.0, 0.0)
    )
    ants.write_transform(affine, str(tmp_path / "a.mat"))
    compose(grid, grid, [warp, tmp_path / "a.mat"], [False, False], tmp_path / "c.nii.gz")
    exact = write_field(grid, lambda p: (p + np.sin(p / 15)) @ linear.T + [1.0, -2.0, 0.5] - p, tmp_path / "exact.nii.gz")
    inner = (slice(2, -2),) * 3
    found, expected = (field_array(read_field(path))[inner] for path in (tmp_path / "c.nii.gz", exact))
    assert np.abs(found - expected).max() < 1e-3


def test_a_scalar_image_is_refused_as_field(grid):
    with pytest.raises(InputError, match="not a displacement field"):
        read_field(grid)
