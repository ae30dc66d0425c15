"""Label images and masks of others: read exactly or refused, whatever type, axes and header they come with."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.labels import (
    LARGEST_LABEL,
    MOST_LABELS,
    LabelImage,
    UnreadableError,
    distinct,
    label_numbers,
    read_labels,
    read_mask,
    seem_labels,
)
from popatlas.images.place import check_place, read_mask_on

SHAPE = (6, 7, 8)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
NOT_WHOLE = "not whole numbers from 0 to 2147483647"


def write(path, data, affine=AFFINE, sform=1, qform=1, scale=None):
    image = nib.Nifti1Image(data, affine, dtype=data.dtype)
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    if scale is not None:
        image.header.set_slope_inter(*scale)
    nib.save(image, path)
    return path


def blocks(dtype=np.int16, ids=(1, 5, 9)):
    labels = np.zeros(SHAPE, dtype)
    for place, value in enumerate(ids):
        labels[1:5, 1:6, 1 + place] = value
    return labels


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dseg.nii.gz"


@pytest.mark.parametrize(
    "dtype",
    [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64, ">i4"],
)
def test_every_type_of_number_gives_the_same_labels(path, dtype):
    found = read_labels(write(path, blocks().astype(dtype)))
    assert found.data.dtype == np.int32 and found.data.dtype.isnative
    np.testing.assert_array_equal(found.data, blocks())
    assert found.values.tolist() == [1, 5, 9]
    assert len(found.sha256) == 64
    np.testing.assert_array_equal(found.affine, AFFINE)


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 1, 1)])
def test_axes_of_length_one_are_dropped(path, shape):
    np.testing.assert_array_equal(read_labels(write(path, blocks().reshape(shape))).data, blocks())


def test_a_volume_of_one_slice_stays_a_volume(path):
    assert read_labels(write(path, blocks()[..., 1:2])).data.shape == (6, 7, 1)
    assert read_labels(write(path, blocks()[:, :, 1]), axes=(2,)).data.shape == (6, 7)


@pytest.mark.parametrize("factor", [0.9999999, 1.0000001])
def test_labels_that_lost_a_little_on_the_way_are_rounded_not_cut(path, factor):
    """The defect that was there: 0.9999999 n was read as n - 1."""
    np.testing.assert_array_equal(read_labels(write(path, blocks(np.float64) * factor)).data, blocks())
    np.testing.assert_array_equal(read_labels(write(path, blocks(np.float32) * np.float32(factor))).data, blocks())


def test_negative_zero_is_background(path):
    labels = blocks(np.float64)
    labels[labels == 0] = -0.0
    assert (read_labels(write(path, labels)).data == blocks()).all()


def test_scaled_integers(path):
    stored = blocks(np.uint8, ids=(2, 10, 18))
    np.testing.assert_array_equal(read_labels(write(path, stored, scale=(0.5, 0))).data, blocks())
    with pytest.raises(InputError, match=f"{NOT_WHOLE}.*0.5"):
        read_labels(write(path, blocks(np.uint8), scale=(0.5, 0)))
    with pytest.raises(InputError, match="negative, such as -1"):
        read_labels(write(path, blocks(np.uint8), scale=(1, -1)))


def spoilt(value, dtype=np.float64):
    labels = blocks(dtype)
    labels[2, 2, 2] = value
    return labels


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (spoilt(np.nan), f"{NOT_WHOLE}: 1 voxel.* NaN"),
        (np.where(blocks() == 0, np.nan, blocks()), f"{NOT_WHOLE}: 276 voxel.* NaN"),
        (spoilt(np.inf), "NaN or infinite"),
        (spoilt(1.5), f"{NOT_WHOLE}: 1 voxel.* lie between, such as 1.5"),
        (spoilt(0.002), "such as 0.002"),
        (spoilt(-3.0), "negative, such as -3"),
        (spoilt(-3, np.int16), "negative, such as -3"),
        (spoilt(3e9), "label 3000000000"),
        (spoilt(2**31, np.int64), "label 2147483648"),
        (spoilt(2**63, np.uint64), "label 9223372036854775808"),
        (spoilt(1e300), r"label 1e\+300"),
        (spoilt(2**24, np.float32), "as float32, which cannot tell neighbours apart"),
        (np.zeros(SHAPE, np.uint8), "no label: all voxels are background"),
        (np.full(SHAPE, 7, np.uint8), "all voxels of the label image have the label 7"),
        (np.stack([blocks()] * 3, axis=-1), r"4 axes \(6x7x8x3\).*merge its volumes into one"),
        (blocks()[0], "2 axes"),
        (blocks().astype(np.complex64), "not real numbers"),
        (blocks().astype([("R", "u1"), ("G", "u1"), ("B", "u1")]), "not real numbers"),
    ],
    ids=str,
)
def test_what_is_no_label_image_is_refused_with_file_subject_and_remedy(path, data, words):
    with pytest.raises(InputError, match=words) as caught:
        read_labels(write(path, data), "sub-1")
    assert not isinstance(caught.value, UnreadableError)
    assert (caught.value.file, caught.value.subject) == (path, "sub-1")
    assert caught.value.remedy


def test_an_intensity_image_is_no_label_image(path):
    data = np.arange(MOST_LABELS + 2, dtype=np.int32).reshape(2, 41, -1)
    with pytest.raises(InputError, match=f"{MOST_LABELS + 1} different labels") as caught:
        read_labels(write(path, data))
    assert "not an image" in caught.value.remedy
    points = np.zeros((10, 83, 82), np.int32)
    points[::2, ::2, ::2].flat[:MOST_LABELS] = np.arange(1, MOST_LABELS + 1)  # points have no neighbours
    assert len(read_labels(write(path, points)).values) == MOST_LABELS


def damage(path, kind):
    whole = bytearray(write(path, blocks()).read_bytes())
    if kind == "checksum":
        whole[-8] ^= 0xFF
    elif kind == "truncated":
        del whole[len(whole) // 2 :]
    elif kind == "empty":
        whole = bytearray()
    elif kind == "text":
        whole = bytearray(gzip.compress(b"no image" * 200))
    path.write_bytes(bytes(whole))


@pytest.mark.parametrize("kind", ["checksum", "truncated", "empty", "text"])
def test_damaged_files_do_not_open(path, kind):
    damage(path, kind)
    for read in (read_labels, read_mask):
        with pytest.raises(UnreadableError, match="cannot read image") as caught:
            read(path, "sub-1")
        assert (caught.value.file, caught.value.subject) == (path, "sub-1")
        assert caught.value.remedy


def test_missing_files_folders_links_to_nothing_and_other_formats(tmp_path):
    folder, link, other = tmp_path / "x.nii.gz", tmp_path / "y.nii.gz", tmp_path / "z.mgz"
    folder.mkdir()
    link.symlink_to(tmp_path / "annexed")
    nib.save(nib.MGHImage(blocks(np.float32), AFFINE), other)
    for path, words in ((tmp_path / "a.nii", "does not exist"), (folder, "folder"), (link, "not exist"), (other, "NIfTI")):
        with pytest.raises(UnreadableError, match=words):
            read_labels(path)


def test_headers_are_judged_as_those_of_scans(path):
    """Without sform and qform nibabel and ITK place an image mirrored to each other."""
    turned = AFFINE @ np.diag([-1.0, 1.0, 1.0, 1.0])
    for forms, words in (({"sform": 0, "qform": 0}, "neither sform nor qform"), ({"affine": shear()}, "not orthogonal")):
        with pytest.raises(InputError, match=words) as caught:
            read_labels(write(path, blocks(), **forms))
        assert caught.value.remedy
        with pytest.raises(InputError, match=words):
            read_mask(path)
    image = nib.load(write(path, blocks()))
    image.set_qform(turned, code=1)
    nib.save(image, path)
    with pytest.raises(InputError, match="sform says RAS, qform says LAS"):
        read_labels(path)
    image.set_qform(AFFINE + np.eye(4, k=3) * 6, code=1)
    nib.save(image, path)
    with pytest.raises(InputError, match="up to 6 mm apart"):
        read_labels(path)
    assert read_labels(path, forms=False).affine[0, 3] == 0, "the sform counts"
    with pytest.raises(InputError, match=r"2x2x2 mm outside 0\.3 to 1"):
        read_labels(write(path, blocks()), spacing_mm=(0.3, 1.0))


def shear():
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5
    return sheared


def test_files_of_popatlas_may_be_empty_or_hold_candidates(path):
    assert not read_labels(write(path, np.zeros(SHAPE, np.int32)), empty=True).data.any()
    stack = np.stack([blocks()] * 3, axis=-1)
    assert read_labels(write(path, stack), axes=(3, 4)).data.shape == (*SHAPE, 3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, LARGEST_LABEL), min_size=2, max_size=12, unique=True),
    st.sampled_from([np.int32, np.uint32, np.int64, np.uint64, np.float64]),
)
def test_ids_are_kept_exactly(tmp_path_factory, ids, dtype):
    path = tmp_path_factory.mktemp("ids") / "x.nii"
    labels = np.resize([0, *ids], (3, 4, 5)).astype(dtype)
    found = read_labels(write(path, labels))
    np.testing.assert_array_equal(found.data, labels.astype(np.int64))
    assert found.values.tolist() == sorted(set(ids) - {0})


@given(st.lists(st.integers(0, 300), min_size=1), st.integers(0, LARGEST_LABEL - 300))
def test_distinct_equals_unique(values, shift):
    labels = np.array(values, np.int32)
    for some in (labels, labels + np.int32(shift), np.where(labels > 9, labels + np.int32(shift), 0).astype(np.int32)):
        np.testing.assert_array_equal(distinct(some), np.unique(some))


def test_booleans_are_labels():
    np.testing.assert_array_equal(label_numbers(np.array([True, False])), [1, 0])


# Masks


@pytest.mark.parametrize(
    "data", [blocks() > 0, (blocks() > 0) * 255.0, blocks(), (blocks() > 0) * 0.9999999, (blocks() > 0) * 0.6]
)
def test_masks_are_what_is_not_zero_or_above_one_half(path, data):
    found = read_mask(write(path, data.astype(np.float64 if data.dtype.kind == "f" else np.uint8)))
    np.testing.assert_array_equal(found.data, blocks() > 0)
    assert read_mask(write(path, blocks().reshape(*SHAPE, 1))).data.shape == SHAPE


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (spoilt(np.nan), "not finite: 1 voxel"),
        (blocks() * 0, "the mask is empty"),
        (blocks(np.float64) * 0.3, "neither whole numbers nor shares"),
        (spoilt(-1.0), "values from -1 to 9"),
        (np.stack([blocks()] * 2, axis=-1), "4 axes"),
    ],
    ids=str,
)
def test_masks_that_are_none(path, data, words):
    with pytest.raises(InputError, match=words) as caught:
        read_mask(write(path, data), "sub-1")
    assert (caught.value.file, caught.value.subject) == (path, "sub-1") and caught.value.remedy


def test_a_mask_lies_on_the_grid_of_its_image(tmp_path):
    image, mask = write(tmp_path / "i.nii", blocks()), tmp_path / "m.nii"
    rounded, moved = AFFINE.copy(), AFFINE.copy()
    rounded[0, 3], moved[0, 3] = 0.1, 0.3
    assert read_mask_on(write(mask, blocks(), rounded), image).data.any()
    with pytest.raises(InputError, match="grids of head and brain differ: origin"):
        read_mask_on(write(mask, blocks(), moved), image, names=("head", "brain"))


# Where labels lie


def ball(radius, centre=(10, 10, 10), shape=(20, 20, 20)):
    at = np.moveaxis(np.indices(shape), 0, -1) - np.array(centre)
    return ((at**2).sum(-1) < radius**2).astype(np.int32)


def labelled(data, affine=AFFINE):
    return LabelImage("dseg.nii.gz", data, np.asarray(affine, dtype=np.float64))


HEAD = Grid.from_affine((20, 20, 20), AFFINE)
BRAIN = labelled(ball(6))


def moved(*shift):
    affine = AFFINE.copy()
    affine[:3, 3] = shift
    return affine


def test_labels_on_the_grid_of_their_image_lie_on_it():
    check_place(labelled(ball(5)), image=HEAD, mask=BRAIN)
    check_place(labelled(ball(5), moved(0.15, 0, 0)), image=HEAD, mask=BRAIN)


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (moved(0, 6, 0), "moved, up to 6 mm away"),
        (moved(0, 0.3, 0), "moved, up to 0.3 mm"),
        (np.diag([-2.0, 2, 2, 1]), "mirrored"),
        (AFFINE @ np.array([[-1, 0, 0, 19], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "mirrored"),
        (np.diag([-2.0, -2, 2, 1]), "turned"),
        (np.diag([1.0, 1, 1, 1]), "with another voxel size"),
    ],
)
def test_labels_of_the_image_shape_with_another_affine_are_refused(affine, words):
    with pytest.raises(InputError, match=f"shape of the image and do not lie on it: {words}") as caught:
        check_place(labelled(ball(5), affine), "sub-1", image=HEAD)
    assert (caught.value.subject, caught.value.file) == ("sub-1", "dseg.nii.gz") and caught.value.remedy


def test_other_grids_of_the_same_world_are_accepted():
    fine = ball(10, (20, 20, 20), (40, 40, 40))
    half = np.diag([1.0, 1, 1, 1])
    half[:3, 3] = -0.5
    check_place(labelled(fine, half), image=HEAD, mask=BRAIN)
    cropped = moved(6, 8, 10)
    check_place(labelled(ball(5)[3:17, 4:17, 5:17], cropped), image=HEAD, mask=BRAIN)
    reordered = np.array([[0, 0, 2.0, 0], [0, -2, 0, 36], [2, 0, 0, 0], [0, 0, 0, 1]])
    check_place(labelled(ball(5)[:, :19].transpose(2, 1, 0)[:, ::-1].copy(), reordered), image=HEAD, mask=BRAIN)
    wide = labelled(np.pad(ball(5), 10), moved(-20, -20, -20))  # a larger field of view without labels in it
    check_place(wide, image=HEAD, mask=BRAIN)


def test_labels_outside_of_the_field_of_view_are_refused():
    with pytest.raises(InputError, match=r"\d+ of \d+ labelled voxels lie outside of the field of view"):
        check_place(labelled(ball(5)[:19], moved(20, 0, 0)), image=HEAD)
    edge = np.ones((21, 20, 20), np.int32)  # one voxel more than the image: its rim
    check_place(labelled(edge, AFFINE), image=HEAD)
    oblique = np.array([[1.2, -1.6, 0, 20], [1.6, 1.2, 0, -8], [0, 0, 2, 0], [0, 0, 0, 1]])
    corner = np.zeros((21, 20, 20), np.int32)
    corner[8:12, 8:12, 8:12] = 1
    check_place(labelled(corner, oblique), image=HEAD)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (ball(3, (3, 3, 3)), "100% of the labelled voxels are outside of its mask"),
        (ball(5, (16, 10, 10)), "63% of the labelled voxels are"),
    ],
)
def test_labels_off_the_brain_are_refused(data, words):
    with pytest.raises(InputError, match=f"do not lie on the brain: ({words})") as caught:
        check_place(labelled(data), mask=BRAIN)
    assert caught.value.remedy


def test_the_centre_of_labels_must_lie_in_the_brain():
    ring = ball(6) - ball(4.5)
    shell = labelled(ring)
    half = labelled(np.where(np.arange(20)[:, None, None] < 10, 0, ring))
    check_place(half, mask=BRAIN)
    with pytest.raises(InputError, match="the centre of the labels is outside"):
        check_place(half, mask=shell)


def test_labels_of_the_whole_head_may_reach_beyond_the_brain():
    check_place(labelled(ball(9)), image=HEAD, mask=BRAIN)
    check_place(labelled(np.ones((20, 20, 20), np.int32)), image=HEAD, mask=BRAIN)


def test_thin_labels_count_by_the_voxel_that_they_lie_in():
    coarse = LabelImage("mask.nii.gz", ball(3, (5, 5, 5), (10, 10, 10)), np.diag([4.0, 4, 4, 1]))
    check_place(labelled(ball(4)), mask=coarse)


def test_voxels_of_a_microscope_have_a_place(path):
    labels = read_labels(write(path, blocks(), np.diag([4e-4, 4e-4, 1e-3, 1])))
    assert labels.grid.spacing == pytest.approx((4e-4, 4e-4, 1e-3))


def test_what_seems_to_be_labels():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (30, 30, 30))
    image[:12] = 0
    labels = np.repeat(np.repeat(image[::6, ::6, ::6], 6, 0), 6, 1).repeat(6, 2)
    mask = (labels > 0).astype(float)
    assert all(seem_labels(one) for one in (labels, labels.astype(float), mask))
    bright = np.full((30, 30), 255)  # a drawing on white paper
    bright[5:9, 5:9] = 0
    assert not any(seem_labels(one) for one in (image, labels + 0.5, labels - 9, bright, np.zeros((9, 9))))


def test_intensities_in_volumes_are_no_labels(path):
    image = np.random.default_rng(0).integers(1, 256, (20, 20, 20, 2)).astype(np.int16)
    image[:3] = 0
    with pytest.raises(InputError, match="seems to hold intensities"):
        read_labels(write(path, image), axes=(3, 4))
