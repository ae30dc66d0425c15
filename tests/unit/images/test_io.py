"""Images of others: written again with one geometry, and the mask beside them."""

import nibabel as nib
import numpy as np
import pytest

from popatlas.errors import InputError
from popatlas.images.io import load_image, mask_beside, save_plain

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def write(path, data, sform=AFFINE, qform=AFFINE):
    image = nib.Nifti1Image(data, sform)
    image.set_sform(sform, code=2)
    image.set_qform(qform, code=1)
    nib.save(image, path)
    return path


def test_itk_and_nibabel_place_the_copy_alike(tmp_path):
    import ants

    moved = AFFINE.copy()
    moved[:3, 3] = (7, 5, 3)
    source = write(tmp_path / "x.nii.gz", np.ones((8, 8, 8, 1), np.float32), sform=moved)
    assert ants.image_read(str(source)).origin[:3] == (0, 0, 0)  # the reason: ITK takes the qform, nibabel the sform
    save_plain(source, tmp_path / "plain.nii")
    assert ants.image_read(str(tmp_path / "plain.nii")).origin == (-7, -5, 3)
    assert nib.load(tmp_path / "plain.nii").shape == (8, 8, 8)


def test_labels_are_rounded(tmp_path):
    data = np.full((4, 4, 4), 2.9999, np.float32)
    data[0] = 1_000_001
    save_plain(write(tmp_path / "x.nii", data), tmp_path / "y.nii.gz", np.int32)
    assert set(np.unique(load_image(tmp_path / "y.nii.gz", np.int32).dataobj)) == {3, 1_000_001}


def test_what_cannot_be_placed_is_refused(tmp_path):
    shear = AFFINE.copy()
    shear[0, 1] = 0.5
    nan = np.full((4, 4, 4), np.nan, np.float32)
    for data, sform, words in (
        (np.ones((4, 4, 4), np.float32), shear, "not orthogonal"),
        (np.ones((4, 4, 4, 2), np.float32), AFFINE, "4 dimensions"),
        (nan, AFFINE, "not finite"),
    ):
        with pytest.raises(InputError, match=words):
            save_plain(write(tmp_path / "x.nii.gz", data, sform=sform), tmp_path / "y.nii.gz")


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("tpl-x_T1w.nii.gz", "tpl-x_desc-brain_mask.nii.gz"),
        ("tpl-x_res-01_T1w.nii.gz", "tpl-x_res-01_desc-brain_mask.nii"),
        ("tpl-x_desc-brain_T1w.nii.gz", "tpl-x_desc-brain_mask.nii.gz"),
        ("sub-1_T1w.nii", "sub-1_mask.nii.gz"),
        ("MNI152_T1_1mm_brain.nii.gz", "MNI152_T1_1mm_brain_mask.nii.gz"),
    ],
)
def test_the_mask_beside_an_image(tmp_path, image, mask):
    assert mask_beside(tmp_path / image) is None
    (tmp_path / "mask.nii.gz").touch()
    (tmp_path / "other_desc-brain_mask.nii.gz").touch()
    assert mask_beside(tmp_path / image) is None
    (tmp_path / mask).touch()
    assert mask_beside(tmp_path / image) == tmp_path / mask
