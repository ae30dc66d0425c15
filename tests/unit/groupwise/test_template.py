import numpy as np
import pytest
import SimpleITK as sitk

from popatlas.errors import InputError
from popatlas.groupwise.template import mean_shape_transform, reference_brain, update_template
from popatlas.images.io import load_image, save_image
from popatlas.interfaces.groupwise import DescribeTemplate
from popatlas.transforms.affine import stretch_about
from popatlas.transforms.displacement import field_array, read_field
from tests.unit.transforms.test_displacement import SPACING, write_field

SHAPE = (24, 28, 20)
CENTRE_RAS = np.array([4.0, 2.0, 5.0])
CENTRE_LPS = CENTRE_RAS * [-1, -1, 1]


def sphere(radius_mm, path, offset=(0, 0, 0)):
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = (-20, -30, -15)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    distance = np.linalg.norm(index @ affine[:3, :3] + affine[:3, 3] - CENTRE_RAS - offset, axis=-1)
    save_image(np.clip((radius_mm - distance) / 2 + 0.5, 0, 1).astype(np.float32), affine, path)
    return path


def radius_of(image):
    """Radius of the ball with the volume of a soft sphere."""
    volume = float(np.clip(sitk.GetArrayFromImage(image), 0, 1).sum()) * SPACING**3
    return (3 * volume / (4 * np.pi)) ** (1 / 3)


def test_template_moves_to_the_mean_size_of_its_members(tmp_path):
    """Template of radius 10, members of radius 10 and 12, exact fields: the mean shape has radius 11."""
    template = sphere(10, tmp_path / "t.nii.gz")
    warps = [
        write_field(template, lambda p: 0.0 * p, tmp_path / "w0.nii.gz"),
        write_field(template, lambda p: 0.2 * (p - CENTRE_LPS), tmp_path / "w1.nii.gz"),
    ]
    affine = tmp_path / "identity.mat"
    import ants

    ants.write_transform(ants.new_ants_transform(transform_type="AffineTransform"), str(affine))
    new, mask, row = update_template(
        1,
        (template, template),
        [template, template],
        [template, template],
        [(affine, warp) for warp in warps],
        shape_step=1.0,
        sharpen_weight=0.0,
    )
    assert radius_of(new) == pytest.approx(11.0, abs=0.15)
    assert radius_of(sitk.Cast(mask, sitk.sitkFloat32)) == pytest.approx(11.0, abs=0.4)
    assert row.members == 2
    # mean |0.1 (x - c)| over the soft ball, which reaches to radius 11, is 0.1 * 0.75 * 11
    assert row.mean_update_mm == pytest.approx(0.825, abs=0.03)


def test_balanced_members_leave_the_template_where_it_is(tmp_path):
    template = sphere(10, tmp_path / "t.nii.gz")
    warps = [
        write_field(template, lambda p: np.sin(p / 12), tmp_path / "a.nii.gz"),
        write_field(template, lambda p: -np.sin(p / 12), tmp_path / "b.nii.gz"),
    ]
    stretch = stretch_about(np.diag([1.1, 0.95, 1.0, 1.0]), CENTRE_LPS)
    transform, update = mean_shape_transform(warps, [stretch, np.linalg.inv(stretch)], CENTRE_LPS, 1.0)
    assert update.max() < 1e-6
    assert np.allclose(transform.TransformPoint((3.0, -5.0, 7.0)), (3.0, -5.0, 7.0), atol=1e-5)


def test_mean_shape_transform_inverts_warp_and_stretch_together(tmp_path):
    template = sphere(10, tmp_path / "t.nii.gz")
    warp = write_field(template, lambda p: 0.8 * np.sin(p / 12), tmp_path / "w.nii.gz")
    stretch = stretch_about(np.diag([1.08, 0.95, 1.02, 1.0]), CENTRE_LPS)
    back, _ = mean_shape_transform([warp], [stretch], CENTRE_LPS, 1.0)
    point = np.array([-1.0, 4.0, 6.0])
    forward = stretch[:3, :3] @ (point + 0.8 * np.sin(point / 12)) + stretch[:3, 3]
    assert np.allclose(back.TransformPoint(forward.tolist()), point, atol=0.03)


def test_reference_brain_has_room_and_unit_range():
    data, affine = reference_brain(4.0)
    inside = np.argwhere(data > 0.05)
    assert (inside.min(0) * 4 >= 12).all()
    assert ((np.array(data.shape) - 1 - inside.max(0)) * 4 >= 8).all()
    assert 0.9 < np.percentile(data[data > 0.05], 99) <= 1.2
    assert np.allclose(np.diag(affine)[:3], 4.0)
    # the MNI152 brain mask holds about 1.9 litres (without the smallest values)
    assert 1.5e6 < (data > 0.05).sum() * 64 < 2.2e6


def test_fields_round_trip_through_files(tmp_path):
    template = sphere(10, tmp_path / "t.nii.gz")
    path = write_field(template, lambda p: np.cos(p / 9), tmp_path / "u.nii.gz")
    assert field_array(read_field(path)).shape == (*SHAPE[::-1], 3)


def describe(folder, template, **inputs):
    """Publish an existing template and return template and mask as they are read by everyone."""
    files = {"template": "nii.gz", "mask": "nii.gz", "convergence": "tsv", "description": "json"}
    outputs = {f"out_{name}": str(folder / f"out_{name}.{end}") for name, end in files.items()}
    DescribeTemplate(in_template=str(template), label="x", version="0", **inputs, **outputs).run()
    return [np.asarray(load_image(folder / f"out_{name}.nii.gz").dataobj) for name in ("template", "mask")]


def test_an_existing_template_may_be_uncompressed_and_bring_its_mask(tmp_path):
    template = sphere(10, tmp_path / "x.nii")
    image, derived = describe(tmp_path, template)
    np.testing.assert_array_equal(image, load_image(template).dataobj)
    np.testing.assert_array_equal(derived, image > 0)
    mask = load_image(template).get_fdata() > 0.5
    save_image(np.uint8(255 * mask), load_image(template).affine, tmp_path / "x_mask.nii")
    _, given = describe(tmp_path, template, in_mask=str(tmp_path / "x_mask.nii"))
    np.testing.assert_array_equal(given, mask)
    assert given.sum() < derived.sum()


def test_the_mask_of_an_existing_template_must_fit(tmp_path):
    template, affine = sphere(10, tmp_path / "x.nii.gz"), load_image(tmp_path / "x.nii.gz").affine
    save_image(np.ones(SHAPE, np.uint8), affine + np.diag([0, 0, 0.5, 0]), tmp_path / "grid.nii.gz")
    with pytest.raises(InputError, match="grids of template and its mask differ"):
        describe(tmp_path, template, in_mask=str(tmp_path / "grid.nii.gz"))
    sphere(8, tmp_path / "small.nii.gz")  # about half of the volume
    with pytest.raises(InputError, match=r"5\d% of the template's intensity lies outside.*skull-stripped"):
        describe(tmp_path, template, in_mask=str(tmp_path / "small.nii.gz"))
