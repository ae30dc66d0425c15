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


def test_decompose_in_2d_leaves_the_translation_out():
    shifted = np.array([[1.0, 0, 30], [0, 1, -12], [0, 0, 1]])
    parts = decompose(shifted)
    assert parts.scales == (1.0, 1.0)
    assert (parts.shear, parts.reflected) == (0.0, False)
    angle = np.deg2rad(25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shifted[:2, :2] = turn @ np.diag([1.3, 0.7])
    assert decompose(shifted).scales == pytest.approx((1.3, 0.7))
    assert decompose(shifted).shear < 1e-12


@pytest.mark.parametrize("ndim", [2, 3])
def test_decompose_finds_a_mirror_whose_scales_are_those_of_the_identity(ndim):
    mirror = np.diag([-1.0, *[1.0] * ndim])
    assert decompose(mirror).reflected
    assert decompose(mirror).scales == pytest.approx((1.0,) * ndim)
    assert not decompose(np.diag([-1.0, -1.0, *[1.0] * (ndim - 1)])).reflected  # half a turn


def test_decompose_of_a_matrix_that_is_not_finite_is_not_finite():
    parts = decompose(matrix(translation=(np.nan, 0, 0)))
    assert np.isnan([*parts.scales, parts.shear]).all()


def test_points_and_stretches_in_2d():
    affine = np.array([[2.0, 0, 5], [0, 0.5, -7], [0, 0, 1]])
    points = np.array([[1.0, 2], [3, -4]])
    assert np.allclose(apply_affine(affine, points), [[7, -6], [11, -9]])
    stretch = stretch_about(affine, points[0])
    assert np.allclose(stretch[:2, :2], affine[:2, :2])
    assert np.allclose(apply_affine(stretch, points[:1]), points[:1])


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


def linear_transforms():
    """One of each linear transform of ITK, with a centre where it has one."""
    plane, space = (12.0, -7.0), (12.0, 7.0, -9.0)
    versor, angle = (0.0, 0.6, 0.8), 0.4
    stretch = matrix((10, 5, -7), (1.1, 1, 0.9))[:3, :3].ravel().tolist()
    return [
        sitk.TranslationTransform(2, (3.0, -4.0)),
        sitk.TranslationTransform(3, (3.0, -4.0, 5.0)),
        sitk.Euler2DTransform(plane, 0.3, (3.0, -4.0)),
        sitk.Euler3DTransform(space, 0.3, -0.2, 0.5, (3.0, -4.0, 5.0)),
        sitk.VersorTransform(versor, angle, space),
        sitk.VersorRigid3DTransform(versor, angle, (3.0, -4.0, 5.0), space),
        sitk.Similarity2DTransform(1.2, 0.3, (3.0, -4.0), plane),
        sitk.Similarity3DTransform(1.2, versor, angle, (3.0, -4.0, 5.0), space),
        sitk.ScaleTransform(2, (1.2, 0.8)),
        sitk.AffineTransform((1.1, 0.2, -0.1, 0.9), (3.0, -4.0), plane),
        sitk.AffineTransform(stretch, (3.0, -4.0, 5.0), space),
    ]


@pytest.mark.parametrize("suffix", [".mat", ".txt", ".tfm"])
@pytest.mark.parametrize("transform", linear_transforms(), ids=lambda t: f"{t.GetName()}{t.GetDimension()}")
def test_every_linear_transform_of_itk_is_read(transform, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    sitk.WriteTransform(transform, str(path))
    points = np.random.default_rng(0).normal(0, 50, (20, transform.GetDimension()))
    expected = [transform.TransformPoint(point) for point in points]
    assert np.allclose(apply_affine(read_affine(path), points), expected, atol=1e-9)


def test_the_base_type_that_ants_initialises_with_is_read(tmp_path):
    """SimpleITK does not know it."""
    path = tmp_path / "a.txt"
    head = "#Insight Transform File V1.0\n#Transform 0\nTransform: MatrixOffsetTransformBase_double_3_3\n"
    path.write_text(head + "Parameters: 1.1 0.1 0 0 0.9 0 0 0.2 1 3 -4 5\nFixedParameters: 12 7 -9\n")
    same = sitk.AffineTransform((1.1, 0.1, 0, 0, 0.9, 0, 0, 0.2, 1), (3, -4, 5), (12, 7, -9))
    points = np.random.default_rng(0).normal(0, 50, (20, 3))
    expected = [same.TransformPoint(point) for point in points]
    assert np.allclose(apply_affine(read_affine(path), points), expected, atol=1e-4)


def test_several_transforms_and_fields_are_no_affine(tmp_path):
    two = sitk.CompositeTransform([sitk.TranslationTransform(3, (1.0, 2.0, 3.0)), sitk.Euler3DTransform()])
    field = sitk.DisplacementFieldTransform(sitk.Image([4, 4, 4], sitk.sitkVectorFloat64))
    sitk.WriteTransform(two, str(tmp_path / "two.tfm"))
    sitk.WriteTransform(field, str(tmp_path / "field.tfm"))
    sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkVectorFloat64), str(tmp_path / "warp.nii.gz"))
    for name in ("two.tfm", "field.tfm", "warp.nii.gz", "missing.mat"):
        with pytest.raises(InputError, match=rf"(?s)cannot read affine transform.*{name}"):
            read_affine(tmp_path / name)
