"""Labels on the grid of the raw image: closed forms, an independent implementation, headers, the step."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_from_to

from popatlas.fusion.native import labels_on_grid
from popatlas.images.io import read_json, save_image
from popatlas.interfaces import load_interface
from popatlas.preprocess.conform import isotropic_grid

# oblique, flipped, anisotropic, of odd sizes, sheared a little
TURN = nib.eulerangles.euler2mat(0.3, -0.2, 0.4)


def oblique(shape, spacing=(1.3, 0.9, 1.1), centre=(3.0, -5.0, 8.0)):
    affine = np.eye(4)
    affine[:3, :3] = TURN @ np.diag(spacing) @ np.diag([-1, 1, 1])
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def balls(shape, affine):
    """Return label 3 in a ball, 70000 in the half of it to the right, 2147483647 in a shell round it."""
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    distance = np.linalg.norm(points - [3, -5, 8], axis=-1)
    ball = np.where(points[..., 0] > 4, 70_000, 3)
    return np.select([distance < 14, distance < 20], [ball, 2_147_483_647], 0).astype(np.int32)


def dice(one, two, label):
    return 2 * np.sum((one == label) & (two == label)) / (np.sum(one == label) + np.sum(two == label))


def test_the_truth_is_found_on_an_oblique_grid_of_odd_size():
    shape = (43, 61, 53)
    affine = oblique(shape)
    coarse, grid = isotropic_grid((48, 50, 46), np.diag([2.0, 2.0, 2.0, 1.0]), 2.0)
    grid = grid.copy()
    grid[:3, 3] = [-45, -53, -38]
    found = labels_on_grid(balls(coarse, grid), grid, shape, affine)
    truth = balls(shape, affine)
    step = resample_from_to(nib.Nifti1Image(balls(coarse, grid), grid), (shape, affine), order=0)
    voxel = abs(np.linalg.det(affine[:3, :3]))
    assert found.shape == shape and set(np.unique(found)) == {0, 3, 70_000, 2_147_483_647}
    for label in (3, 70_000, 2_147_483_647):
        assert dice(found, truth, label) > 0.93  # the shell is three voxels thick
        assert dice(found, truth, label) > dice(np.asarray(step.dataobj), truth, label) + 0.01, "better than the nearest"
        assert np.sum(found == label) * voxel == pytest.approx(np.sum(balls(coarse, grid) == label) * 8, rel=0.02)


def test_it_is_the_largest_of_the_linear_weights():
    rng = np.random.default_rng(3)
    labels = np.pad(rng.integers(0, 5, (6, 7, 5)), 2).astype(np.int32)
    grid, shape = np.diag([2.0, 2.0, 2.0, 1.0]), (13, 9, 11)
    grid[:3, 3] = [-6, -15, 0]
    affine = oblique(shape)
    affine[0, 1] += 0.1  # a shear, which ITK would refuse
    found = labels_on_grid(labels, grid, shape, affine)
    moved = [
        resample_from_to(
            nib.Nifti1Image((labels == label).astype(np.float32), grid), (shape, affine), order=1, cval=float(label == 0)
        )
        for label in range(5)
    ]
    weights = np.stack([np.asarray(image.dataobj) for image in moved])
    ordered = np.sort(weights, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    assert clear.mean() > 0.9 and len(np.unique(found)) == 5
    assert (found == weights.argmax(axis=0))[clear].all()


def test_the_same_grid_changes_nothing_and_equal_weights_go_to_the_nearest():
    labels = np.random.default_rng(0).choice([0, 1, 9, 2_147_483_647], (5, 6, 7)).astype(np.int32)
    grid = np.diag([1.5, 2.0, 1.0, 1.0])
    assert (labels_on_grid(labels, grid, labels.shape, grid) == labels).all()
    half = grid.copy()
    half[0, 3] = 0.75  # in the middle between two voxels
    row = np.zeros((6, 3, 3), np.int32)
    row[1:3], row[3:5] = 1, 2
    assert labels_on_grid(row, grid, row.shape, half)[:, 1, 1].tolist() in ([0, 1, 1, 2, 2, 0], [1, 1, 2, 2, 0, 0])


def test_labels_go_on_to_the_end_of_the_raw_field_of_view():
    """The outermost raw voxels lie beyond the centres of the outermost larger ones."""
    raw_shape, raw = (40, 40, 40), np.diag([1.0, 1.0, 1.0, 1.0])
    shape, grid = isotropic_grid(raw_shape, raw, 4.0)
    labels = np.zeros(shape, np.int32)
    labels[:, :, :5] = 7
    found = labels_on_grid(labels, grid, raw_shape, raw)
    assert (found[:, :, :20] == 7).all() and not found[:, :, 20:].any()


def test_nothing_labelled_and_nothing_seen_give_background():
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    assert not labels_on_grid(np.zeros((4, 4, 4), np.int32), grid, (3, 3, 3), grid).any()
    far = grid.copy()
    far[:3, 3] = 500
    assert not labels_on_grid(np.ones((4, 4, 4), np.int32), grid, (3, 3, 3), far).any()


def run(folder, raw):
    step = load_interface("LabelsToNative")(
        in_labels=str(folder / "dseg.nii.gz"), in_raw=str(raw), out_file=str(folder / "native.nii.gz"),
        out_description=str(folder / "native.json"),
    )  # fmt: skip
    step.run()
    return nib.load(folder / "native.nii.gz"), read_json(folder / "native.json")


@pytest.mark.parametrize("codes", [(1, 1), (4, 1), (0, 1), (2, 0)], ids=str)
def test_the_step_keeps_both_forms_of_the_raw_header_and_tells_volumes(tmp_path, codes):
    """Viewers follow one form or the other, and lay the labels on the image by both; an axis of one voxel is dropped."""
    shape = (43, 61, 53)
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    grid[:3, 3] = [-45, -53, -38]
    save_image(balls((48, 50, 46), grid), grid, tmp_path / "dseg.nii.gz", np.int32)
    raw = nib.Nifti1Image(np.ones((*shape, 1), np.int16), oblique(shape))
    raw.set_sform(oblique(shape) if codes[0] else None, code=codes[0])
    raw.set_qform(oblique(shape) if codes[1] else None, code=codes[1])
    nib.save(raw, tmp_path / "raw.nii.gz")
    found, told = run(tmp_path, tmp_path / "raw.nii.gz")
    given = nib.load(tmp_path / "raw.nii.gz")
    assert found.shape == shape and np.array_equal(found.affine, given.affine) and found.get_data_dtype() == np.int32
    for form in ("sform", "qform"):
        (one, code), (two, other) = (getattr(image, f"get_{form}")(coded=True) for image in (found, given))
        assert code == other and (one is two is None or np.allclose(one, two, atol=1e-5))
    data, ml = np.asarray(found.dataobj), abs(np.linalg.det(given.affine)) / 1000
    assert dice(data, balls(shape, given.affine), 70_000) > 0.96
    counts = dict(zip(*np.unique(data[data > 0], return_counts=True), strict=True))
    assert told["Volumes"] == {str(label): pytest.approx(count * ml, abs=1e-6) for label, count in counts.items()}
    assert (told["SpatialReference"], told["VolumesUnits"]) == ("orig", "ml")
    assert told["Sources"] == ["dseg.nii.gz", "raw.nii.gz"] and "1.3 x 0.9 x 1.1 mm" in told["Resolution"]
