"""The log Jacobian that the registration writes, and its summary."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from popatlas.images.io import load_image, save_image
from popatlas.measures.jacobian import LOG_FLOOR, summarise_log_jacobian
from popatlas.transforms.displacement import write_jacobian


def write_field(path: Path, affine: np.ndarray, shape: tuple[int, ...], matrix: np.ndarray) -> None:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    points = nib.affines.apply_affine(affine, index) * [-1, -1, 1]
    image = nib.Nifti1Image((points @ matrix.T).astype(np.float32)[:, :, :, None, :], affine)
    image.header.set_intent(1007)
    nib.save(image, path)
    save_image(np.zeros(shape, np.float32), affine, path.with_name("grid.nii.gz"))


def log_jacobian(folder: Path) -> np.ndarray:
    """Return the image that a registration writes, as the measures read it."""
    write_jacobian(folder / "field.nii.gz", folder / "grid.nii.gz", folder / "log.nii.gz")
    return np.asarray(load_image(folder / "log.nii.gz").dataobj)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_jacobian_of_a_linear_map_on_grids_of_any_orientation(tmp_path: Path, flips: tuple[int, int, int]) -> None:
    import SimpleITK as sitk

    affine = np.diag([1.5 * flips[0], 2.0 * flips[1], 2.5 * flips[2], 1])
    matrix = np.random.default_rng(0).normal(0, 0.1, (3, 3))
    write_field(tmp_path / "field.nii.gz", affine, (12, 11, 10), matrix)
    expected = np.log(np.linalg.det(np.eye(3) + matrix))
    found = log_jacobian(tmp_path)
    np.testing.assert_allclose(found[3:-3, 3:-3, 3:-3], expected, atol=1e-5)
    # the reason for ANTs: SimpleITK leaves the direction of the axes out
    naive = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(sitk.ReadImage(str(tmp_path / "field.nii.gz"))))
    right = bool(np.isclose(np.log(naive[5, 5, 5]), expected, atol=1e-4))
    assert right == (flips == (-1, -1, 1))  # LPS axes in RAS numbers


def test_folding_is_counted(tmp_path: Path) -> None:
    write_field(tmp_path / "field.nii.gz", np.diag([1.0, 1, 1, 1]), (10, 10, 10), np.diag([-1.5, 0, 0]))
    found = log_jacobian(tmp_path)[3:-3, 3:-3, 3:-3]
    assert summarise_log_jacobian(found, np.ones(found.shape))["nonpositive_jacobian"] == 1
    mixed = np.array([0.0, 0.2, -np.inf, np.nan, LOG_FLOOR, 0.4])
    summary = summarise_log_jacobian(mixed, np.array([1, 1, 1, 1, 0, 0]))
    assert summary["nonpositive_jacobian"] == 0.5
    assert summary["log_jacobian_mean"] == pytest.approx((0.2 + 2 * LOG_FLOOR) / 4)
    assert np.isnan(summarise_log_jacobian(mixed, np.zeros(6))["log_jacobian_sd"])
