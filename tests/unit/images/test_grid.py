from itertools import product

import ants
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from popatlas.errors import InputError
from popatlas.images.grid import Grid


def placed(shape, spacing, angles, flips, origin):
    """Return a grid with given spacing (mm), rotation (degrees), flipped axes (-1) and origin (LPS mm)."""
    rotation = (
        Rotation.from_euler("xyz", angles, degrees=True) if len(shape) == 3 else Rotation.from_euler("z", angles[0], True)
    )
    affine = np.eye(len(shape) + 1)
    affine[:-1, :-1] = rotation.as_matrix()[: len(shape), : len(shape)] @ np.diag(np.multiply(spacing, flips))
    affine[:-1, -1] = origin
    return Grid(shape, affine)


OBLIQUE = placed((9, 7, 8), (1.0, 2.5, 0.7), (20, -35, 50), (1, -1, -1), (-40, 12, 77))
OBLIQUE_2D = placed((9, 7), (1.0, 2.5), (30,), (-1, 1), (-40, 12))
BOTH = pytest.mark.parametrize("grid", [OBLIQUE, OBLIQUE_2D], ids=["3d", "2d"])


def world(image, index):
    return np.array(image.TransformIndexToPhysicalPoint([int(i) for i in index]))


def as_sitk(grid):
    image = sitk.Image(list(grid.shape), sitk.sitkFloat32)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin.tolist())
    image.SetDirection(grid.direction.ravel().tolist())
    return image


@BOTH
def test_voxels_lie_where_simpleitk_and_ants_place_them(grid):
    image = as_sitk(grid)
    last = np.array(grid.shape) - 1
    for corner in product((0, 1), repeat=grid.ndim):
        expected = world(image, last * corner)
        assert np.allclose(grid.affine[:-1, :-1] @ (last * corner) + grid.origin, expected, atol=1e-9)
    assert np.allclose(grid.centre, (world(image, last) + world(image, 0 * last)) / 2)
    assert Grid.from_sitk(image).same_as(grid, 1e-9)
    values = np.zeros(grid.shape, np.float32)
    theirs = ants.from_numpy(values, origin=grid.origin.tolist(), spacing=grid.spacing, direction=grid.direction)
    assert Grid.from_ants(theirs).same_as(grid, 1e-9)


@BOTH
def test_a_file_has_the_grid_that_itk_reads(grid, tmp_path):
    path = tmp_path / "image.nii.gz"
    sitk.WriteImage(as_sitk(grid), str(path))
    read = Grid.from_file(path)
    assert read.same_as(grid)
    assert np.allclose(read.spacing, grid.spacing, atol=1e-5)


def test_the_header_is_turned_from_ras_to_lps(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.diag([2.0, 2, 2, 1])), tmp_path / "ras.nii")
    assert np.allclose(Grid.from_file(tmp_path / "ras.nii").affine, np.diag([-2.0, -2, 2, 1]))


def test_the_sform_comes_before_the_qform(tmp_path):
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.eye(4))
    image.set_qform(np.diag([3.0, 3, 3, 1]), code=1)
    image.set_sform(np.diag([2.0, 2, 2, 1]), code=2)
    nib.save(image, tmp_path / "both.nii")
    assert Grid.from_file(tmp_path / "both.nii").spacing == (2, 2, 2)


@pytest.mark.parametrize(("shape", "intent", "expected"), [
    ((4, 5), "none", (4, 5)),
    ((4, 5, 1), "none", (4, 5, 1)),
    ((4, 5, 6, 10), "none", (4, 5, 6)),
    ((4, 5, 6, 1, 3), "vector", (4, 5, 6)),
    ((4, 5, 1, 1, 2), "vector", (4, 5)),
])  # fmt: skip
def test_axes_that_are_not_space_are_left_out(shape, intent, expected, tmp_path):
    image = nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4))
    image.header.set_intent(intent)
    nib.save(image, tmp_path / "image.nii")
    assert Grid.from_file(tmp_path / "image.nii").shape == expected


def test_a_2d_image_out_of_its_plane_and_damaged_files_are_refused(tmp_path):
    tilted = np.eye(4)
    tilted[:3, :3] = Rotation.from_euler("x", 30, degrees=True).as_matrix()
    nib.save(nib.Nifti1Image(np.zeros((4, 5), np.float32), tilted), tmp_path / "tilted.nii")
    with pytest.raises(InputError, match=r"tilted\.nii.*third axis"):
        Grid.from_file(tmp_path / "tilted.nii")
    (tmp_path / "broken.nii").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"broken\.nii"):
        Grid.from_file(tmp_path / "broken.nii")
    with pytest.raises(InputError, match=r"missing\.nii"):
        Grid.from_file(tmp_path / "missing.nii")


@pytest.mark.parametrize(("shape", "affine"), [
    ((4,), np.eye(2)),
    ((4, 5, 6, 7), np.eye(5)),
    ((4, 0, 6), np.eye(4)),
    ((4, 5, 6), np.eye(3)),
    ((4, 5), np.diag([1.0, 0, 1])),
    ((4, 5), np.diag([1.0, np.nan, 1])),
])  # fmt: skip
def test_what_is_no_grid_is_refused(shape, affine):
    with pytest.raises(ValueError, match=r"axes|affine"):
        Grid(shape, affine)


def test_a_grid_cannot_be_changed_from_outside():
    affine = np.eye(4)
    grid = Grid((2, 3, 4), affine)
    affine[0, 0] = 9
    assert grid.spacing == (1, 1, 1)
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 9


@BOTH
def test_resizing_keeps_the_outermost_voxel_centres(grid):
    shape = tuple(2 * n + 3 for n in grid.shape)
    other = grid.resized(shape)
    assert other.shape == shape
    assert np.allclose(other.corners(), grid.corners())
    assert np.allclose(other.spacing, np.array(grid.spacing) * (np.array(grid.shape) - 1) / (np.array(shape) - 1))
    assert other.resized(grid.shape).same_as(grid, 1e-9)


def test_resizing_a_single_voxel_is_refused():
    assert Grid.isotropic((4, 4, 1)).resized((7, 7, 1)).spacing == (0.5, 0.5, 1)
    for old, new in (((4, 4, 1), (4, 4, 2)), ((4, 4, 2), (4, 4, 1)), ((4, 4), (4, 4, 4))):
        with pytest.raises(ValueError, match="cannot be resized"):
            Grid.isotropic(old).resized(new)


def test_same_means_every_voxel_within_the_tolerance():
    grid = Grid.isotropic((101, 11, 11))
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", 1e-4).as_matrix()  # 0.01 mm at the far end
    assert not grid.same_as(Grid(grid.shape, turned))
    assert grid.same_as(Grid(grid.shape, turned), tolerance_mm=0.0102)
    assert not grid.same_as(Grid(grid.shape, turned), tolerance_mm=0.0098)


FLIPPED = np.diag([-1.0, 1, 1, 1])
SHIFTED = np.eye(4)
SHIFTED[0, 3] = 4


@pytest.mark.parametrize(("other", "named", "unnamed"), [
    (Grid.isotropic((5, 6)), "3 and 2 axes", "shape"),
    (Grid.isotropic((5, 6, 8)), r"shape \(5, 6, 7\) and \(5, 6, 8\)", "spacing"),
    (Grid.isotropic((5, 6, 7), 1.5), r"spacing \(1, 1, 1\) and \(1\.5, 1\.5, 1\.5\) mm", "direction"),
    (Grid((5, 6, 7), FLIPPED), r"direction .*\(-1, 0, 0", "spacing"),
    (Grid((5, 6, 7), SHIFTED), r"origin \(0, 0, 0\) and \(4, 0, 0\) mm", "direction"),
])  # fmt: skip
def test_a_difference_is_named(other, named, unnamed):
    grid = Grid.isotropic((5, 6, 7))
    grid.check_same(Grid.isotropic((5, 6, 7)))
    with pytest.raises(InputError, match=f"grids of T1w and mask differ: {named}.*resample") as caught:
        grid.check_same(other, ("T1w", "mask"), file="x.nii", subject="sub-01")
    assert unnamed not in str(caught.value)
    assert "sub-01" in str(caught.value)
    assert "x.nii" in str(caught.value)
