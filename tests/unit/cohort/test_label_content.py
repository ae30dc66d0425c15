"""Images that hold whole numbers and are no labels of their scan: a background with a number, intensities, swapped axes."""

import nibabel as nib
import numpy as np
import pytest

from popatlas.cohort.labelfiles import inspect_labels
from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.io import save_image
from popatlas.images.labels import read_labels
from popatlas.images.phantom import head_model
from popatlas.images.place import check_place
from tests.cohorts import noise_image, noise_labels

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
RNG = np.random.default_rng(3)


def blocks(shape=(20, 24, 28)):
    labels = np.zeros(shape, np.int16)
    labels[4:10, 4:-4, 4:-4], labels[10:16, 4:-4, 4:-4] = 3, 8
    return labels


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dseg.nii.gz"


def refused(path, data, affine=AFFINE):
    save_image(data, affine, path)
    with pytest.raises(InputError) as caught:
        read_labels(path, "sub-2")
    assert str(path) in str(caught.value) and "sub-2" in str(caught.value) and caught.value.remedy
    return caught.value.message


def accepted(path, data, **options):
    save_image(data, AFFINE, path)
    np.testing.assert_array_equal(read_labels(path, **options).data, data)


def test_a_background_that_is_255_is_no_label(path):
    message = refused(path, np.where(blocks() == 0, 255, blocks()).astype(np.uint8))
    assert message == "label 255 fills 100% of the outer faces of the label image: is it the background?"


def test_an_intercept_of_the_header_makes_no_label_of_the_background(path):
    image = nib.Nifti1Image(blocks(), AFFINE)
    image.header.set_slope_inter(1, 1)
    nib.save(image, path)
    with pytest.raises(InputError, match="label 1 fills 100% of the outer faces") as caught:
        read_labels(path)
    assert "scl_inter" in caught.value.remedy


def test_a_background_with_a_number_and_a_structure_that_is_0(path):
    labels = np.where(blocks() == 0, 255, blocks()).astype(np.uint8)
    assert "is it the background?" in refused(path, np.where(labels == 3, 0, labels).astype(np.uint8))


def test_labels_that_leave_no_voxel_0(path):
    halves = np.broadcast_to(np.where(np.arange(20) < 10, 4, 9)[:, None, None], (20, 24, 28)).astype(np.int16)
    assert refused(path, halves).startswith("no voxel of the label image is 0")


@pytest.mark.parametrize(
    "crop",
    [
        np.s_[4:16, 4:-4, 3:-3],  # labels at most faces
        np.s_[10:16, 4:-4, 3:-4],  # one structure, the background at one face
        np.s_[8:12, 3:6, 3:6],
        np.s_[:, :, 14:15],  # a section that is a volume of one slice
        np.s_[9:11, 3:-3, 14:15],
    ],
)
def test_crops_with_some_background_pass(path, crop):
    accepted(path, blocks()[crop])


def test_a_section_passes_and_training_crops_need_no_background(path):
    accepted(path, blocks()[:, :, 14], axes=(2, 3))
    accepted(path, blocks()[5:15, 5:10, 5:10], axes=(2, 3), empty=True)


def test_intensities_are_no_labels(path):
    head = 1000 * np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0) / 35 + 40 * RNG.standard_normal((40, 40, 40))
    message = refused(path, np.maximum(head, 0).astype(np.int16))
    assert "seems to hold intensities" in message and "of neighbouring voxels differ" in message
    save_image((np.maximum(head, 0) / 5).astype(np.uint8), AFFINE, path)
    with pytest.raises(InputError, match="seems to hold intensities"):  # also where the labels may be none
        read_labels(path, axes=(2, 3), empty=True)


def test_an_image_of_a_scan_is_no_label_image_of_it(tmp_path):
    image = noise_image(tmp_path / "t1w.nii.gz", 1)
    found = inspect_labels(image, image, None)
    assert found.state == "unusable" and "intensities" in found.reason and "remedy" in found.reason


def test_many_small_structures_are_labels(path):
    cubes = np.kron(np.arange(1, 1001).reshape(10, 10, 10), np.ones((2, 2, 2), int))  # half of all neighbours differ
    accepted(path, np.pad(cubes, 2).astype(np.int16))
    points = np.zeros((30, 30, 30), np.int16)
    points[::3, ::3, ::3] = np.arange(1, 1001).reshape(10, 10, 10)  # no neighbours at all
    accepted(path, points)


def test_the_labels_of_the_phantom_pass(path):
    accepted(path, head_model().labels[::4, ::4, ::4])


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_an_array_whose_axes_were_swapped_without_its_header(path, order):
    save_image(blocks().transpose(order), AFFINE, path)
    save_image(blocks(), AFFINE, path.with_name("image.nii.gz"))
    grid = Grid.from_file(path.with_name("image.nii.gz"))
    with pytest.raises(InputError, match="the axes of the labels are swapped") as caught:
        check_place(read_labels(path), "sub-2", image=grid)
    assert "sub-2" in str(caught.value) and caught.value.remedy


def test_axes_that_are_swapped_with_the_header_are_the_same_labels(path):
    save_image(blocks(), AFFINE, path.with_name("image.nii.gz"))
    save_image(blocks().transpose(1, 0, 2), AFFINE[:, [1, 0, 2, 3]], path)
    check_place(read_labels(path), image=Grid.from_file(path.with_name("image.nii.gz")))


def test_the_labels_of_the_test_cohort_pass(tmp_path):
    assert len(read_labels(noise_labels(tmp_path / "dseg.nii.gz", 1)).values) > 100
