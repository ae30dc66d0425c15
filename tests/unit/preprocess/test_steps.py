"""Preprocessing but for the brain: bias field, grid, intensities, channels; truths are simulated from the MNI152 brain."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_closing, gaussian_filter
from scipy.spatial.transform import Rotation

from popatlas.errors import InputError
from popatlas.groupwise.template import reference_brain
from popatlas.images.io import save_image
from popatlas.interfaces.preprocess import AlignChannel, CorrectAndConform, NormaliseBrain
from popatlas.preprocess.bias import correct_bias
from popatlas.preprocess.brain import tidy_mask
from popatlas.preprocess.conform import load_single_volume
from popatlas.preprocess.intensity import normalise
from popatlas.preprocess.settings import N4Settings
from tests.unit.preprocess.shapes import AFFINE, LPS, ball, n4_options

# Reading


@pytest.mark.parametrize(
    ("data", "affine", "words"),
    [
        (np.zeros((9, 9, 9), np.float32), AFFINE, "constant"),
        (np.random.default_rng(0).random((9, 9, 9, 2), np.float32), AFFINE, "4 dimensions"),
        (np.ones((9, 9, 9), np.complex64), AFFINE, "complex64"),
        (np.random.default_rng(0).random((9, 9, 9), np.float32), np.diag([2.0, 0.0, 2.0, 1.0]), "singular"),
    ],
)
def test_an_unusable_image_names_file_subject_and_remedy(tmp_path: Path, data, affine, words: str) -> None:
    path = tmp_path / "raw.nii.gz"
    image = nib.Nifti1Image(data, None)
    image.header.set_sform(affine, 1)
    nib.save(image, path)
    with pytest.raises(InputError, match=words) as caught:
        load_single_volume(path, "sub-07")
    assert caught.value.file == path
    assert caught.value.subject == "sub-07"
    assert caught.value.remedy


def test_trailing_axis_and_not_a_number_are_dropped(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((9, 8, 7, 1), np.float32)
    data[0, 0, 0], data[1, 1, 1] = np.nan, np.inf
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "raw.nii.gz")
    loaded = np.asarray(load_single_volume(tmp_path / "raw.nii.gz").dataobj)
    assert loaded.shape == (9, 8, 7)
    assert loaded[0, 0, 0] == loaded[1, 1, 1] == 0


def test_a_header_that_announces_too_much_is_not_followed(tmp_path: Path) -> None:
    save_image(np.random.default_rng(0).random((9, 9, 9), np.float32), AFFINE, tmp_path / "raw.nii")
    content = bytearray((tmp_path / "raw.nii").read_bytes())
    content[42:48] = np.array([2000, 2000, 2000], "<i2").tobytes()
    (tmp_path / "raw.nii").write_bytes(content)
    with pytest.raises(InputError, match="expected at most 4,096 MB"):
        load_single_volume(tmp_path / "raw.nii")


# Bias


def test_n4_removes_a_known_field_and_keeps_the_mean() -> None:
    shape = (48, 48, 48)
    mask = ball(shape, 18)
    tissue = np.where(mask, np.where(ball(shape, 11), 200.0, 120.0), 0.0)
    ramp = np.linspace(-1, 1, 48)
    field = np.exp(0.3 * ramp[:, None, None] - 0.25 * ramp[None, :, None] ** 2 * 2)
    noisy = tissue * field + mask * np.random.default_rng(2).normal(0, 1, shape)
    image = nib.Nifti1Image(noisy.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))
    corrected = np.asarray(correct_bias(image, N4Settings(spline_mm=100)).dataobj)

    def spread(values: np.ndarray) -> float:
        inner = values[ball(shape, 10)]
        return float(inner.std() / inner.mean())

    assert spread(corrected) < 0.35 * spread(noisy)
    assert corrected[mask].mean() == pytest.approx(noisy[mask].mean(), rel=0.02)


def test_switched_off_n4_returns_the_image() -> None:
    image = nib.Nifti1Image(np.ones((5, 5, 5), np.float32), AFFINE)
    assert correct_bias(image, N4Settings(enabled=False)) is image


def test_correct_and_conform_writes_ras_and_isotropic(tmp_path: Path) -> None:
    affine = nib.affines.from_matvec(np.array([[0, 0, -1.5], [-1, 0, 0], [0, -1.2, 0.0]]), [20, 30, 40])
    data = (100 * gaussian_filter(ball((40, 36, 32), 10).astype(np.float32), 1)).astype(np.uint8)
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "raw.nii.gz")
    out = tmp_path / "deep" / "out.nii.gz"
    result = CorrectAndConform(
        in_file=str(tmp_path / "raw.nii.gz"), resolution_mm=2.0, n4=n4_options(), out_file=str(out), subject="sub-01"
    ).run()
    assert result.outputs.out_file == str(out)
    image = nib.load(out)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(image.header.get_zooms(), 2.0, rtol=1e-5)
    assert image.get_data_dtype() == np.float32


# Brain


# Mask quality and intensities


def test_normalised_intensities() -> None:
    mask, data = ball(), np.random.default_rng(3).gamma(4, 50, (36, 36, 36))
    robust = normalise(data, mask, "robust")
    np.testing.assert_allclose(np.percentile(robust[mask], [1, 99]), [0, 1], atol=1e-3)
    np.testing.assert_allclose(normalise(3 * data + 7, mask, "robust"), robust, atol=1e-5)
    zscore = normalise(np.clip(data, 150, 250), mask, "zscore")[mask].astype(np.float64)
    assert zscore.mean() == pytest.approx(0.5, abs=1e-5)
    assert zscore.std() == pytest.approx(0.25, abs=1e-5)
    np.testing.assert_allclose(normalise(data, mask, "none")[mask], data[mask], rtol=1e-6)
    for method in ("robust", "zscore", "none"):
        assert (normalise(data, mask, method)[~mask] == 0).all()


@pytest.mark.parametrize("data", [np.ones((36, 36, 36)), (np.arange(36**3).reshape((36,) * 3) == 23346) * 1.0])
def test_a_constant_brain_is_refused(data: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"one value|constant"):
        normalise(data, ball(), "robust")


def test_a_mask_of_another_grid_is_refused(tmp_path: Path) -> None:
    save_image(ball().astype(np.float32), AFFINE, tmp_path / "head.nii.gz")
    save_image(ball().astype(np.uint8), AFFINE @ nib.affines.from_matvec(np.eye(3), [5, 0, 0]), tmp_path / "mask.nii.gz")
    outputs = {name: str(tmp_path / f"{name}.nii.gz") for name in ("out_brain", "out_mask")}
    with pytest.raises(InputError, match=r"not on the grid.*sub-01.*Remedy"):
        NormaliseBrain(
            in_file=str(tmp_path / "head.nii.gz"),
            in_mask=str(tmp_path / "mask.nii.gz"),
            volume_ml=[700, 2300],
            out_qc=str(tmp_path / "qc.json"),
            subject="sub-01",
            **outputs,
        ).run()
    assert not list(tmp_path.glob("out_*"))


# Channels


@pytest.mark.parametrize(
    ("shift", "group"),
    [((3.0, -4.0, 5.0), False), ((70.0, -90.0, 60.0), False), ((70.0, -90.0, 60.0), True)],
    ids=["same session", "lost header", "lost header, in a group"],
)
def test_a_known_pose_of_another_contrast_is_recovered(
    tmp_path: Path, shift: tuple[float, float, float], group: bool
) -> None:
    """A voxel's world position differs by a known rigid motion: the transform must take T1w points to channel points."""
    data, affine = reference_brain(3.0)
    mask = tidy_mask(binary_closing(data > 0.05, iterations=2))
    channel = np.where(mask, 1.4 - data, 0.0)[:, 1:, :-1] + np.random.default_rng(4).normal(0, 0.01, data[:, 1:, :-1].shape)
    pose = nib.affines.from_matvec(Rotation.from_euler("xyz", [5, -3, 4], degrees=True).as_matrix(), shift)
    cropped = affine @ nib.affines.from_matvec(np.eye(3), [0, 1, 0])
    save_image(data, affine, tmp_path / "t1w.nii.gz")
    save_image(mask, affine, tmp_path / "mask.nii.gz")
    save_image(channel.astype(np.float32), pose @ cropped, tmp_path / "t2w.nii.gz")
    save_image((data**2 * (1.2 - data)).astype(np.float32), affine, tmp_path / "flair.nii.gz")
    AlignChannel(
        in_channel=str(tmp_path / "t2w.nii.gz"),
        in_reference=str(tmp_path / "t1w.nii.gz"),
        in_mask=str(tmp_path / "mask.nii.gz"),
        n4=n4_options(enabled=False),
        group=group,
        in_others=[str(tmp_path / "flair.nii.gz")] * group,
        out_file=str(tmp_path / "aligned.nii.gz"),
        out_transform=str(tmp_path / "rigid.mat"),
    ).run()
    import ants

    transform = ants.read_transform(str(tmp_path / "rigid.mat"))
    points = nib.affines.apply_affine(affine, np.argwhere(mask)[::500])
    found = np.array([LPS @ transform.apply_to_point((LPS @ point).tolist()) for point in points])
    error = np.linalg.norm(found - nib.affines.apply_affine(pose, points), axis=1)
    assert error.max() < 0.5
    aligned = nib.load(tmp_path / "aligned.nii.gz")
    np.testing.assert_allclose(aligned.affine, affine, atol=1e-4)
    inner = tidy_mask(mask, -2) > 0
    assert np.corrcoef(np.asarray(aligned.dataobj)[inner], data[inner])[0, 1] < -0.98
    assert aligned.get_fdata().min() >= channel.min() - 1e-6
