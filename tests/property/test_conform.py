"""Conforming keeps the world: properties over random oblique, flipped and anisotropic grids."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from popatlas.images.io import save_image
from popatlas.preprocess.conform import isotropic_grid, load_single_volume, resample_isotropic

FWHM_PER_SD = np.sqrt(8 * np.log(2))
angles = st.floats(-60, 60)
spacings = st.floats(0.8, 4.0)
grids = st.tuples(
    st.tuples(*[st.integers(20, 28)] * 3),
    st.tuples(spacings, spacings, spacings),
    st.tuples(angles, angles, angles),
    st.permutations([0, 1, 2]),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.tuples(*[st.floats(-120, 120)] * 3),
)


def make_affine(spacing, degrees, order, signs, origin) -> np.ndarray:
    affine = np.eye(4)
    turned = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(signs) @ np.eye(3)[:, order]
    affine[:3, :3] = turned * np.asarray(spacing)
    affine[:3, 3] = origin
    return affine


def world(shape, affine) -> np.ndarray:
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def blob(shape, affine, centre, sd_mm) -> np.ndarray:
    square = ((world(shape, affine) - centre) ** 2).sum(-1)
    return np.exp(-square / (2 * sd_mm**2)).astype(np.float32)


def egg(shape) -> np.ndarray:
    """A Gaussian off the middle, a ninth of the image wide along each axis."""
    at = (np.moveaxis(np.indices(shape), 0, -1) - (np.asarray(shape) - 1) / 2 - 0.7) * 9 / np.asarray(shape)
    return np.exp(-(at**2).sum(-1) / 2).astype(np.float32)


def centroid(image: nib.Nifti1Image) -> np.ndarray:
    data = np.asarray(image.dataobj, dtype=np.float64)
    return (world(data.shape, image.affine) * data[..., None]).sum((0, 1, 2)) / data.sum()


@settings(max_examples=40, deadline=None)
@given(grid=grids, resolution=st.floats(1.0, 4.0))
def test_the_new_grid_covers_the_old_one_and_only_the_spacing_changes(grid, resolution) -> None:
    shape, *rest = grid
    affine = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(shape, np.float32), make_affine(*rest))).affine
    canonical_shape = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(shape, np.float32), make_affine(*rest))).shape
    new_shape, new_affine = isotropic_grid(canonical_shape, affine, resolution)
    np.testing.assert_allclose(np.linalg.norm(new_affine[:3, :3], axis=0), resolution)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(new_affine[:3, :3] / resolution, directions, atol=1e-9)
    edges = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in canonical_shape])).reshape(3, -1).T
    points = edges @ affine[:3, :3].T + affine[:3, 3]
    found = (points - new_affine[:3, 3]) @ np.linalg.inv(new_affine[:3, :3]).T
    slack = 2e-3  # a field of view that misses a whole voxel by less than a thousandth gets no extra voxel
    assert (found >= -0.5 - slack).all()
    assert (found <= np.array(new_shape) - 0.5 + slack).all()
    assert (
        np.array(new_shape) * resolution < np.array(canonical_shape) * np.linalg.norm(affine[:3, :3], axis=0) + resolution
    ).all()


@settings(max_examples=25, deadline=None)
@given(grid=grids, resolution=st.floats(1.5, 3.0))
def test_world_coordinates_survive(tmp_path_factory, grid, resolution) -> None:
    shape, *rest = grid
    affine = make_affine(*rest)
    path = tmp_path_factory.mktemp("conform") / "raw.nii.gz"
    # along each axis narrow enough to fade out before the edge, and wide enough for its voxels
    save_image(egg(shape), affine, path)
    raw = load_single_volume(path)
    conformed = resample_isotropic(raw, resolution)
    assert nib.aff2axcodes(conformed.affine) == ("R", "A", "S")
    assert np.abs(centroid(conformed) - centroid(nib.load(path))).max() < 0.1 * resolution
    data = np.asarray(conformed.dataobj)
    assert data.dtype == np.float32
    assert data.min() >= 0
    assert data.max() <= np.asarray(raw.dataobj).max()


@pytest.mark.parametrize("resolution", [1.5, 2.0, 3.0])
def test_a_gaussian_widens_by_the_antialias_filter_only(resolution: float) -> None:
    """Closed form: variances of Gaussians add, and the filter's FWHM is sqrt(new^2 - old^2)."""
    shape, affine, centre, sd = (64, 64, 64), np.diag([1.5, 1.5, 1.5, 1.0]), np.array([47.0, 48.0, 46.0]), 8.0
    result = resample_isotropic(nib.Nifti1Image(blob(shape, affine, centre, sd), affine), resolution)
    total = sd**2 + (resolution**2 - 1.5**2) / FWHM_PER_SD**2
    expected = (sd**2 / total) ** 1.5 * blob(result.shape, result.affine, centre, np.sqrt(total))
    np.testing.assert_allclose(np.asarray(result.dataobj), expected, atol=6e-3)


def test_a_pattern_finer_than_the_new_grid_averages_out() -> None:
    checker = (np.indices((48, 48, 48)).sum(0) % 2).astype(np.float32)
    result = np.asarray(resample_isotropic(nib.Nifti1Image(checker, np.eye(4)), 3.0).dataobj)
    assert np.abs(result[2:-2, 2:-2, 2:-2] - 0.5).max() < 0.1


def test_an_image_on_the_grid_already_is_returned_as_it_is() -> None:
    image = nib.Nifti1Image(np.random.default_rng(0).random((9, 8, 7), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert resample_isotropic(image, 2.0) is image
