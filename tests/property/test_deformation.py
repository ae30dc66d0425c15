"""Properties of the deformations that simulated anatomies are made of."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popatlas.images.deformation import (
    DISK_STEP_MM,
    Grid,
    expansion_velocity,
    exponential,
    growth_times,
    jacobian_determinant,
    read_displacement,
    sample,
    scaling_velocity,
    smooth_velocity,
    write_displacement,
)

AFFINE = np.array([[4.0, 0, 0, -60], [0, 4, 0, -70], [0, 0, 4, -50], [0, 0, 0, 1]])
GRID = Grid((30, 34, 26), AFFINE)
INNER = np.s_[:, 5:-5, 5:-5, 5:-5]
seeds = st.integers(0, 2**32 - 1)


def after(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Displacement of `first`, then `second`."""
    return first + sample(second, GRID.affine, GRID.points() + first, mode="nearest")


@settings(max_examples=8, deadline=None)
@given(seed=seeds, sigma=st.floats(10, 25), mean=st.floats(0.5, 4))
def test_flow_back_undoes_flow(seed: int, sigma: float, mean: float) -> None:
    velocity = smooth_velocity(np.random.default_rng(seed), GRID, sigma, mean)
    forward, backward = exponential(velocity, GRID), exponential(-velocity, GRID)
    for rest in (after(forward, backward), after(backward, forward)):
        error = np.linalg.norm(rest[INNER], axis=0)
        assert error.mean() < 0.1
        assert error.max() < 1
    assert jacobian_determinant(forward, GRID.spacing).min() > 0
    assert jacobian_determinant(backward, GRID.spacing).min() > 0


@settings(max_examples=8, deadline=None)
@given(seed=seeds, mean=st.floats(0.1, 10))
def test_noise_has_the_length_asked_for_and_repeats(seed: int, mean: float) -> None:
    first, again = (smooth_velocity(np.random.default_rng(seed), GRID, 12, mean) for _ in range(2))
    assert np.linalg.norm(first, axis=0).mean() == pytest.approx(mean, rel=1e-4)
    np.testing.assert_array_equal(first, again)


@settings(max_examples=8, deadline=None)
@given(logs=st.tuples(*[st.floats(-0.15, 0.15)] * 3))
def test_scaling_flow_is_the_matrix_exponential(logs: tuple[float, float, float]) -> None:
    center = np.array([0.0, -2, 3])
    displacement = exponential(scaling_velocity(GRID, np.array(logs), center), GRID)
    expected = (np.exp(logs) - 1).reshape(3, 1, 1, 1) * (GRID.points() - center.reshape(3, 1, 1, 1))
    np.testing.assert_allclose(displacement[INNER], expected[INNER], atol=0.12)
    determinant = jacobian_determinant(displacement, GRID.spacing)[INNER[1:]]
    np.testing.assert_allclose(np.log(determinant), sum(logs), atol=0.01)


@settings(max_examples=8, deadline=None)
@given(gradient=st.lists(st.floats(-0.2, 0.2), min_size=9, max_size=9))
def test_determinant_of_a_linear_map_is_exact(gradient: list[float]) -> None:
    matrix = np.array(gradient).reshape(3, 3)
    displacement = np.tensordot(matrix, GRID.points(), axes=1)
    found = jacobian_determinant(displacement, GRID.spacing)
    np.testing.assert_allclose(found, np.linalg.det(np.eye(3) + matrix), rtol=1e-3)


def test_expansion_grows_the_region_and_leaves_the_rest() -> None:
    x, y, z = GRID.points()
    ball = (x**2 + y**2 + z**2 < 12**2).astype(np.float32)
    velocity = expansion_velocity(ball, GRID)
    times = np.array([-0.5, -0.05, 0.05, 0.5])
    logs = growth_times(velocity, ball, GRID, times)
    assert (np.diff(logs) > 0).all()
    np.testing.assert_allclose(logs[1:3], times[1:3], rtol=0.1)  # for short times the slope is 1
    far = x**2 + y**2 + z**2 > 40**2
    speed = np.linalg.norm(velocity, axis=0)
    assert speed[far].max() < 0.1 * speed.max()
    assert (velocity * np.stack([x, y, z])).sum(axis=0)[ball > 0].min() >= 0  # outwards


def test_sampling_reads_values_at_world_points() -> None:
    volume = np.einsum("c...->...", GRID.points()).astype(np.float32)
    points = np.random.default_rng(0).uniform(-40, 40, (3, 50)).astype(np.float32)
    np.testing.assert_allclose(sample(volume, AFFINE, points), points.sum(axis=0), atol=1e-3)
    np.testing.assert_allclose(sample(GRID.points(), AFFINE, points), points, atol=1e-3)
    outside = np.full((3, 1), 500, dtype=np.float32)
    assert sample(volume, AFFINE, outside) == 0
    assert sample(volume, AFFINE, outside, mode="nearest") == volume.max()


def test_files_hold_lps_millimetres_and_are_read_back(tmp_path: Path) -> None:
    import SimpleITK as sitk

    displacement = smooth_velocity(np.random.default_rng(3), GRID, 10, 3)
    write_displacement(displacement, AFFINE, tmp_path / "field.nii.gz")
    found, affine = read_displacement(tmp_path / "field.nii.gz")
    np.testing.assert_array_equal(affine, AFFINE)
    np.testing.assert_allclose(found, displacement, atol=DISK_STEP_MM / 2 + 1e-6)
    image = sitk.ReadImage(str(tmp_path / "field.nii.gz"), sitk.sitkVectorFloat64)
    where = image.TransformIndexToPhysicalPoint((11, 20, 7))
    end = np.array(sitk.DisplacementFieldTransform(image).TransformPoint(where)) * [-1, -1, 1]
    start = GRID.points()[:, 11, 20, 7]
    np.testing.assert_allclose(end, start + found[:, 11, 20, 7], atol=1e-4)
