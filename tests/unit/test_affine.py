import ants
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from popatlas.errors import InputError
from popatlas.transforms.affine import apply_affine, decompose, mean_affine, read_affine, stretch_about


def matrix(angles=(0, 0, 0), scales=(1, 1, 1), translation=(0, 0, 0)):
    result = np.eye(4)
    result[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(scales)
    result[:3, 3] = translation
    return result


def test_decompose_finds_the_scales_and_no_shear_of_a_rotated_scaling():
    parts = decompose(matrix((10, 20, 30), (1.2, 1.0, 0.8)))
    assert np.allclose(sorted(parts.scales), [0.8, 1.0, 1.2])
    assert parts.shear < 1e-12


def test_decompose_finds_a_known_shear():
    sheared = np.eye(4)
    sheared[0, 1] = 0.25
    assert decompose(sheared).shear == pytest.approx(0.25)


def test_mean_of_a_matrix_and_its_inverse_is_the_identity():
    one = matrix((5, -8, 12), (1.1, 0.9, 1.05), (3, -2, 7))
    assert np.allclose(mean_affine([one, np.linalg.inv(one)]), np.eye(4), atol=1e-10)


def test_mean_of_rotations_halves_the_angle():
    assert np.allclose(mean_affine([np.eye(4), matrix((0, 0, 40))]), matrix((0, 0, 20)), atol=1e-10)


def test_stretch_ignores_pose_keeps_the_centre_and_takes_powers():
    scales = np.array([1.3, 0.9, 1.0])
    posed = matrix((15, 25, -35), (1, 1, 1), (10, 20, 30)) @ matrix(scales=scales)
    centre = np.array([4.0, -6.0, 8.0])
    half = stretch_about(posed, centre, power=0.5)
    assert np.allclose(half[:3, :3], np.diag(np.sqrt(scales)), atol=1e-10)
    assert np.allclose(apply_affine(half, centre[None]), centre)


def test_read_affine_agrees_with_simpleitk_on_points(tmp_path):
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix((10, 5, -7), (1.1, 1, 0.9))[:3, :3].ravel().tolist())
    transform.SetTranslation((3.0, -4.0, 5.0))
    transform.SetCenter((12.0, 7.0, -9.0))
    path = tmp_path / "a.mat"
    ants.write_transform(
        ants.new_ants_transform(
            transform_type="AffineTransform",
            parameters=transform.GetParameters(),
            fixed_parameters=transform.GetFixedParameters(),
        ),
        str(path),
    )
    points = np.random.default_rng(0).normal(0, 50, (20, 3))
    expected = [transform.TransformPoint(point) for point in points]
    assert np.allclose(apply_affine(read_affine(path), points), expected, atol=1e-3)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "broken.mat"
    path.write_bytes(b"not a transform")
    with pytest.raises(InputError, match=r"broken\.mat"):
        read_affine(path)
