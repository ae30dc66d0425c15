import ants
import nibabel as nib
import nitransforms
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.transforms.affine import read_affine
from popatlas.transforms.chain import Affine, Chain, Field
from popatlas.transforms.itk import read_displacement, step_mm, write_affine, write_displacement
from tests.unit.images.test_grid import OBLIQUE, OBLIQUE_2D, placed
from tests.unit.transforms.test_chain import affine_between, displacement

GRIDS = {
    "oblique": OBLIQUE,
    "flipped": placed((9, 7, 8), (2.0, 2.0, 2.0), (0, 0, 0), (-1, -1, 1), (8, 5, 0)),
    "thick": placed((12, 11, 4), (0.9, 0.9, 6.0), (0, 4, 0), (1, -1, 1), (8, 5, 0)),
    "2d": OBLIQUE_2D,
}
EACH = pytest.mark.parametrize("grid", list(GRIDS.values()), ids=list(GRIDS))
EACH_3D = pytest.mark.parametrize("grid", list(GRIDS.values())[:3], ids=list(GRIDS)[:3])
RAS = np.array([-1.0, -1.0, 1.0])


def inner_points(grid, count=40):
    last = np.array(grid.shape) - 1
    index = np.random.default_rng(7).uniform(0.1 * last, 0.9 * last, (count, grid.ndim))
    return index @ grid.affine[:-1, :-1].T + grid.origin


def voxel_centres(grid):
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1).reshape(-1, grid.ndim)
    return index @ grid.affine[:-1, :-1].T + grid.origin


@EACH
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_what_is_written_is_read_back(grid, suffix, tmp_path):
    path = tmp_path / "new" / f"field{suffix}"
    field = displacement(grid)[0]
    write_displacement(path, field, grid)
    found, read = read_displacement(path)
    assert read.same_as(grid)
    assert found.shape == tuple(field.shape)
    assert np.abs(found - field.numpy()).max() < 1e-5
    assert Grid.from_file(path).same_as(grid)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@EACH_3D
def test_a_rounded_field_is_small_and_every_reader_sees_the_same(grid, tmp_path):
    field = displacement(grid)
    for name, rounded in (("whole", False), ("rounded", True)):
        write_displacement(tmp_path / f"{name}.nii.gz", field[0], grid, rounded=rounded)
    (whole, _), (found, read) = (read_displacement(tmp_path / f"{name}.nii.gz") for name in ("whole", "rounded"))
    loss = np.linalg.norm((found - whole) * np.array(grid.spacing).reshape(3, 1, 1, 1), axis=0).max() / min(grid.spacing)
    assert read.same_as(grid) and 0 < loss < 0.002, "voxels, of the shortest edge"
    path = tmp_path / "rounded.nii.gz"
    points = voxel_centres(grid)
    moved = Chain((Field(torch.as_tensor(found)[None], grid),)).points(points).numpy()
    by_nibabel = points + np.asarray(nib.load(path).dataobj)[..., 0, :].reshape(-1, 3)
    by_nitransforms = nitransforms.nonlinear.load(str(path), fmt="itk").map(points * RAS) * RAS
    table = pd.DataFrame(points, columns=["x", "y", "z"])
    by_ants = ants.apply_transforms_to_points(3, table, [str(path)])[["x", "y", "z"]].to_numpy()
    for name, theirs in {"nibabel": by_nibabel, "nitransforms": by_nitransforms, "ants": by_ants}.items():
        assert np.abs(theirs - moved).max() < 1e-4, name


def test_rounding_takes_half_of_the_bytes(tmp_path):
    grid = placed((40, 40, 40), (1.0, 1.0, 1.0), (0, 0, 0), (1, 1, 1), (0, 0, 0))
    field = displacement(grid)[0]
    write_displacement(tmp_path / "whole.nii.gz", field, grid)
    write_displacement(tmp_path / "rounded.nii.gz", field, grid, rounded=True)
    assert (tmp_path / "rounded.nii.gz").stat().st_size < 0.5 * (tmp_path / "whole.nii.gz").stat().st_size
    assert step_mm(grid) == 2.0**-9


@EACH
def test_simpleitk_moves_points_as_we_do(grid, tmp_path):
    field = displacement(grid)
    write_displacement(tmp_path / "field.nii.gz", field[0], grid)
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "field.nii.gz"), sitk.sitkVectorFloat64))
    points = inner_points(grid)
    theirs = np.array([transform.TransformPoint(point) for point in points])
    assert np.abs(theirs - Chain((Field(field, grid),)).points(points).numpy()).max() < 1e-5
    assert np.abs(theirs - points).max() > 0.3


@EACH_3D
def test_nitransforms_moves_voxels_as_we_do(grid, tmp_path):
    """Between voxels it interpolates fields with cubic splines, so only voxel centres can agree to the last digit."""
    field = displacement(grid)
    write_displacement(tmp_path / "field.nii.gz", field[0], grid)
    transform = nitransforms.nonlinear.load(str(tmp_path / "field.nii.gz"), fmt="itk")
    points = voxel_centres(grid)
    ours = Chain((Field(field, grid),)).points(points).numpy()
    assert np.abs(transform.map(points * RAS) * RAS - ours).max() < 1e-4
    assert np.abs(ours - points).max() > 1


@EACH_3D
def test_nitransforms_resamples_the_same_image(grid, tmp_path):
    field = displacement(grid, amplitude=1.0)
    write_displacement(tmp_path / "field.nii.gz", field[0], grid)
    image = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    ras = np.diag([-1.0, -1, 1, 1]) @ grid.affine
    transform = nitransforms.nonlinear.load(str(tmp_path / "field.nii.gz"), fmt="itk")
    reference = nib.Nifti1Image(image, ras)
    theirs = nitransforms.resampling.apply(
        transform, reference, reference=reference, order=1, mode="nearest", prefilter=False
    )
    ours = Chain((Field(field, grid),)).apply(torch.tensor(image)[None, None], grid, grid, padding="border")[0, 0].numpy()
    assert np.abs(np.asarray(theirs.dataobj) - ours).max() < 1e-3


@EACH_3D
@pytest.mark.parametrize("suffix", [".mat", ".txt", ".tfm"])
@pytest.mark.parametrize("centred", [False, True])
def test_affines_go_to_file_and_back(grid, suffix, centred, tmp_path):
    matrix = affine_between(grid, grid)
    path = tmp_path / f"affine{suffix}"
    write_affine(path, torch.tensor(matrix), centre=grid.centre if centred else None)
    assert np.allclose(read_affine(path), matrix, atol=1e-5)
    transform = sitk.ReadTransform(str(path))
    points = inner_points(grid)
    ours = Chain((Affine(torch.tensor(matrix)),)).points(points).numpy()
    assert np.allclose([transform.TransformPoint(point) for point in points], ours, atol=1e-6)
    assert np.allclose(transform.GetFixedParameters(), grid.centre if centred else 0)


def test_nitransforms_moves_points_by_our_affine(tmp_path):
    matrix = affine_between(OBLIQUE, OBLIQUE)
    points = inner_points(OBLIQUE)
    expected = points @ matrix[:3, :3].T + matrix[:3, 3]
    for suffix in (".mat", ".txt"):
        write_affine(tmp_path / f"affine{suffix}", matrix, centre=OBLIQUE.centre)
        transform = nitransforms.linear.load(str(tmp_path / f"affine{suffix}"), fmt="itk")
        assert np.allclose(transform.map(points * RAS) * RAS, expected, atol=1e-4)


def test_ants_moves_points_by_our_2d_affine_and_it_is_read_back(tmp_path):
    matrix = affine_between(OBLIQUE_2D, OBLIQUE_2D)
    write_affine(tmp_path / "affine.mat", matrix, centre=(1.0, 2.0))
    transform = ants.read_transform(str(tmp_path / "affine.mat"))
    points = inner_points(OBLIQUE_2D)
    expected = points @ matrix[:2, :2].T + matrix[:2, 2]
    assert np.allclose([ants.apply_ants_transform_to_point(transform, list(p)) for p in points], expected, atol=1e-4)
    assert np.allclose(read_affine(tmp_path / "affine.mat"), matrix, atol=1e-5)


def test_fields_of_ants_are_read(tmp_path):
    """The other way round: a field that ANTs composes from our affine is our affine's displacement."""
    matrix = affine_between(OBLIQUE, OBLIQUE)
    write_affine(tmp_path / "affine.mat", matrix)
    image = ants.from_numpy(
        np.zeros(OBLIQUE.shape, np.float32),
        origin=OBLIQUE.origin.tolist(), spacing=OBLIQUE.spacing, direction=OBLIQUE.direction,
    )  # fmt: skip
    path = ants.apply_transforms(image, image, [str(tmp_path / "affine.mat")], compose=str(tmp_path / "field"))
    found, grid = read_displacement(path)
    assert grid.same_as(OBLIQUE)
    expected = Chain((Affine(torch.tensor(matrix)),)).as_field(OBLIQUE, dtype=torch.float64).displacement[0].numpy()
    assert np.abs(found - expected).max() < 1e-3


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "field.nii.gz"
    field = displacement(OBLIQUE)[0].numpy()
    write_displacement(path, field, OBLIQUE)
    before = path.read_bytes()
    broken = field.copy()
    broken[0, 1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        write_displacement(path, broken, OBLIQUE)
    with pytest.raises(ValueError, match="on a grid of shape"):
        write_displacement(path, field[:, 1:], OBLIQUE)
    with pytest.raises(ValueError, match="homogeneous"):
        write_affine(tmp_path / "affine.mat", np.full((4, 4), np.nan))
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_grids_with_shear_are_refused(tmp_path):
    sheared = np.eye(4)
    sheared[0, 1] = 0.1
    grid = Grid((4, 5, 6), sheared)
    with pytest.raises(InputError, match="not orthogonal"):
        write_displacement(tmp_path / "field.nii.gz", np.zeros((3, 4, 5, 6)), grid)


def test_files_that_are_no_field_are_refused(tmp_path):
    path = tmp_path / "broken.nii.gz"
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"broken\.nii\.gz"):
        read_displacement(path)
    image = sitk.GetImageFromArray(np.full((4, 5, 6, 3), np.nan, np.float32), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "nan.mha"))  # ITK itself reads NaN as 0 in NIfTI files
    with pytest.raises(InputError, match="not finite"):
        read_displacement(tmp_path / "nan.mha")
    sitk.WriteImage(sitk.Image(4, 5, 6, sitk.sitkFloat32), str(tmp_path / "scalar.nii.gz"))
    with pytest.raises(InputError, match="not a displacement field"):
        read_displacement(tmp_path / "scalar.nii.gz")
