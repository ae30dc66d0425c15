"""Preprocessing: bias field, brain, intensities, channels; truths are simulated from the MNI152 brain of nilearn."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_closing, binary_dilation, gaussian_filter
from scipy.spatial.transform import Rotation

from popatlas.config import default_config
from popatlas.errors import InputError
from popatlas.groupwise.template import reference_brain
from popatlas.images.io import read_json, save_image, write_json
from popatlas.interfaces.preprocess import (
    AlignChannel,
    CorrectAndConform,
    ExtractBrain,
    ExtractBrainTemplate,
    NormaliseBrain,
)
from popatlas.preprocess.bias import correct_bias
from popatlas.preprocess.brain import foreground, tidy_mask
from popatlas.preprocess.conform import load_single_volume
from popatlas.preprocess.intensity import normalise
from popatlas.preprocess.quality import mask_quality

LPS = np.diag([-1.0, -1.0, 1.0])
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def n4_options(**changes: object) -> dict[str, object]:
    return default_config()["preprocess"]["n4"] | changes


def ball(shape=(36, 36, 36), radius=12.0) -> np.ndarray:
    return np.linalg.norm(np.indices(shape) - (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2, axis=0) < radius


def dice(one: np.ndarray, two: np.ndarray) -> float:
    return 2 * float((one & two).sum()) / float(one.sum() + two.sum())


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MNI152 brain in a drawn head: dark skull, bright scalp, a neck below; with its brain mask and an oblique affine."""
    brain, affine = reference_brain(2.0)
    brain, affine = np.pad(brain, 12), affine @ np.array(nib.affines.from_matvec(np.eye(3), [-12, -12, -12]))
    mask = tidy_mask(binary_closing(brain > 0.05, iterations=2)) > 0
    skull = binary_dilation(mask, iterations=4)
    scalp = binary_dilation(skull, iterations=3)
    neck = np.zeros_like(mask)
    rows = np.indices(mask.shape) - np.array([mask.shape[0] / 2, mask.shape[1] / 2, 0]).reshape(3, 1, 1, 1)
    neck[(np.hypot(rows[0], rows[1]) < 28) & (rows[2] < 30)] = True
    data = np.where(mask, brain, np.where(skull, 0.08, np.where(scalp, 1.3, np.where(neck, 0.5, 0.0))))
    noisy = gaussian_filter(data, 0.4) * 400 + np.abs(np.random.default_rng(1).normal(0, 6, data.shape))
    pose = nib.affines.from_matvec(Rotation.from_euler("xyz", [9, -4, 6], degrees=True).as_matrix(), [8, -15, 22])
    return noisy.astype(np.float32), mask, pose @ affine


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
    corrected = np.asarray(correct_bias(image, n4_options(spline_mm=100)).dataobj)

    def spread(values: np.ndarray) -> float:
        inner = values[ball(shape, 10)]
        return float(inner.std() / inner.mean())

    assert spread(corrected) < 0.35 * spread(noisy)
    assert corrected[mask].mean() == pytest.approx(noisy[mask].mean(), rel=0.02)


def test_switched_off_n4_returns_the_image() -> None:
    image = nib.Nifti1Image(np.ones((5, 5, 5), np.float32), AFFINE)
    assert correct_bias(image, n4_options(enabled=False)) is image


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


def test_tidy_mask_keeps_the_largest_component_without_holes() -> None:
    mask = ball() & ~ball(radius=3)
    mask[0, 0, 0] = True
    np.testing.assert_array_equal(tidy_mask(mask), ball())
    assert tidy_mask(mask, 1).sum() > ball().sum() > tidy_mask(mask, -1).sum()
    assert not tidy_mask(np.zeros((4, 4, 4))).any()


def test_foreground_is_the_stripped_brain_and_refuses_a_whole_head() -> None:
    np.testing.assert_array_equal(foreground(nib.Nifti1Image(ball().astype(np.float32), AFFINE)), ball())
    with pytest.raises(InputError, match="not skull-stripped"):
        foreground(nib.Nifti1Image(np.ones((9, 9, 9), np.float32), AFFINE))


def test_one_bad_scan_does_not_stop_its_batch_and_fresh_masks_are_kept(tmp_path: Path) -> None:
    save_image(ball().astype(np.float32), AFFINE, tmp_path / "good.nii.gz")
    save_image(np.ones((9, 9, 9), np.float32), AFFINE, tmp_path / "head.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    names = ("good", "head", "broken")
    masks = [tmp_path / f"{name}_mask.nii.gz" for name in names]

    def run() -> dict[str, dict[str, str]]:
        ExtractBrain(
            in_files=[str(tmp_path / f"{name}.nii.gz") for name in names],
            scans=list(names),
            method="none",
            out_masks=[str(mask) for mask in masks],
            out_receipt=str(tmp_path / "receipt.json"),
        ).run()
        return dict(read_json(tmp_path / "receipt.json"))

    first = run()
    assert [first[name]["state"] for name in names] == ["ok", "failed", "failed"]
    assert "not skull-stripped" in first["head"]["message"]
    assert [mask.is_file() for mask in masks] == [True, False, False]
    assert run()["good"]["message"] == "kept"
    os.utime(masks[0], ns=(0, 0))
    assert run()["good"]["message"] == "found"


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """A network that takes the voxels above its threshold; the list tells how it was loaded."""
    loaded: list[dict[str, object]] = []

    def load(threshold: float, dilate: int, *, gpu: bool):
        loaded.append({"threshold": threshold, "dilate": dilate, "gpu": gpu})
        return lambda image: tidy_mask(np.asarray(image.dataobj) > threshold, dilate)

    monkeypatch.setattr("popatlas.preprocess.brain.deepbet_extractor", load)
    monkeypatch.setattr("popatlas.preprocess.brain.cuda_visible", lambda: True)
    return loaded


def extract(folder: Path, **settings: object) -> str:
    """Extract the brain of one head and return what the receipt of the batch says."""
    ExtractBrain(
        in_files=[str(folder / "head.nii.gz")],
        scans=["sub-01"],
        out_masks=[str(folder / "mask.nii.gz")],
        out_receipt=str(folder / "receipt.json"),
        **settings,
    ).run()
    return str(read_json(folder / "receipt.json")["sub-01"]["message"])


def test_a_mask_is_kept_only_when_it_was_made_with_the_same_settings(tmp_path: Path, network) -> None:
    save_image((ball() * 0.4 + ball(radius=8) * 0.4).astype(np.float32), AFFINE, tmp_path / "head.nii.gz")

    def voxels() -> int:
        return int(np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj).sum())

    assert extract(tmp_path, threshold=0.5) == "found"
    assert voxels() == ball(radius=8).sum()
    assert extract(tmp_path, threshold=0.5) == "kept"
    assert len(network) == 1, "nothing to find: the network is not loaded"
    assert extract(tmp_path, threshold=0.3) == "found"
    assert voxels() == ball().sum()
    assert extract(tmp_path, threshold=0.3, dilate=1) == "found"
    assert voxels() > ball().sum()
    assert extract(tmp_path, method="none") == "found"
    assert extract(tmp_path, threshold=0.3, dilate=1) == "found"
    # a mask that somebody else put there is not the one of the receipt
    save_image(np.ones((36, 36, 36), np.uint8), AFFINE, tmp_path / "mask.nii.gz")
    assert extract(tmp_path, threshold=0.3, dilate=1) == "found"
    (tmp_path / "mask.json").write_text("{")
    assert extract(tmp_path, threshold=0.3, dilate=1) == "found"


def test_what_was_unusual_stands_in_the_receipt_and_in_the_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Turned:
        note = "the head is turned by 180 degrees against its header"

        def __call__(self, image: nib.Nifti1Image) -> np.ndarray:
            return ball((80, 80, 80), 35).astype(np.uint8)

    monkeypatch.setattr("popatlas.preprocess.brain.deepbet_extractor", lambda threshold, dilate, *, gpu: Turned())
    noise = np.random.default_rng(0).random((80, 80, 80))
    save_image(ball((80, 80, 80), 35) * 2.0 + noise, AFFINE, tmp_path / "head.nii.gz", np.float32)
    assert extract(tmp_path) == f"found: {Turned.note}"
    assert extract(tmp_path) == "kept"
    NormaliseBrain(
        in_file=str(tmp_path / "head.nii.gz"),
        in_mask=str(tmp_path / "mask.nii.gz"),
        method="none",
        volume_ml=[700, 2300],
        out_brain=str(tmp_path / "brain.nii.gz"),
        out_mask=str(tmp_path / "m.nii.gz"),
        out_qc=str(tmp_path / "qc.json"),
    ).run()
    assert read_json(tmp_path / "qc.json")["note"] == Turned.note


def test_masks_of_another_version_are_found_again(tmp_path: Path, network, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(ball().astype(np.float32), AFFINE, tmp_path / "head.nii.gz")
    assert [extract(tmp_path), extract(tmp_path)] == ["found", "kept"]
    monkeypatch.setattr("popatlas.__version__", "99")
    assert extract(tmp_path) == "found"


@pytest.mark.parametrize(("gpus", "used"), [(0, False), (1, True)])
def test_a_visible_gpu_is_used_only_when_it_was_asked_for(tmp_path: Path, network, gpus: int, used: bool) -> None:
    save_image(ball().astype(np.float32), AFFINE, tmp_path / "head.nii.gz")
    extract(tmp_path, gpu=gpus)
    assert [load["gpu"] for load in network] == [used]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"state": "failed", "message": "no brain was found"}, "skull stripping failed: no brain was found"),
        ({"state": "ok", "message": "found"}, r"the brain mask was made and is gone.*delete .*receipt.json and run again"),
        ({"state": "ok", "message": "kept"}, "the brain mask was made and is gone"),
        ({}, "skull stripping failed: no mask was written"),
    ],
)
def test_a_missing_mask_is_explained_by_what_happened(tmp_path: Path, entry, words: str) -> None:
    save_image(ball().astype(np.float32), AFFINE, tmp_path / "head.nii.gz")
    write_json(tmp_path / "receipt.json", {"sub-01": entry})
    with pytest.raises(InputError, match=words):
        NormaliseBrain(
            in_file=str(tmp_path / "head.nii.gz"),
            in_mask=str(tmp_path / "mask.nii.gz"),
            in_receipt=str(tmp_path / "receipt.json"),
            volume_ml=[700, 2300],
            out_brain=str(tmp_path / "brain.nii.gz"),
            out_mask=str(tmp_path / "m.nii.gz"),
            out_qc=str(tmp_path / "qc.json"),
            subject="sub-01",
        ).run()


def test_deepbet_finds_the_brain_without_a_network_connection(tmp_path: Path, head, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("brain extraction opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    data, truth, affine = head
    save_image(data, affine, tmp_path / "head.nii.gz")
    ExtractBrain(
        in_files=[str(tmp_path / "head.nii.gz")],
        scans=["sub-01"],
        out_masks=[str(tmp_path / "mask.nii.gz")],
        out_receipt=str(tmp_path / "receipt.json"),
        record=str(tmp_path / "record.json"),
    ).run()
    assert read_json(tmp_path / "receipt.json")["sub-01"]["state"] == "ok"
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_allclose(mask.affine, affine, atol=1e-4)
    assert dice(np.asarray(mask.dataobj) > 0, truth) > 0.93
    notes = read_json(tmp_path / "record.json")["notes"]
    assert notes["device"] in ("cpu", "cuda")
    assert all(len(digest) == 64 for digest in notes["weights"].values()) and notes["weights"]


def test_the_template_finds_the_brain_of_a_tilted_head(tmp_path: Path, head) -> None:
    data, truth, affine = head
    save_image(data, affine, tmp_path / "head.nii.gz")
    ExtractBrainTemplate(in_file=str(tmp_path / "head.nii.gz"), out_mask=str(tmp_path / "mask.nii.gz")).run()
    assert dice(np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj) > 0, truth) > 0.93


# Mask quality and intensities


def test_mask_quality_of_a_ball() -> None:
    mask = ball((80, 80, 80), 35)
    quality = mask_quality(np.where(mask, 3.0, 1.5), mask, AFFINE, [700, 2300])
    assert quality["brain_ml"] == pytest.approx(4 / 3 * np.pi * 7.0**3, rel=0.01)
    assert quality["compactness"] == pytest.approx(1, abs=0.05)
    assert (quality["components"], quality["border_voxels"], quality["contrast"]) == (1, 0, 2.0)
    assert quality["verdict"] == "pass"


def test_a_cut_or_small_mask_fails_with_reasons() -> None:
    cut = mask_quality(np.ones((40, 40, 40)), np.ones((40, 40, 40)), np.diag([3.0, 3.0, 3.0, 1.0]), [700, 2300])
    assert cut["verdict"] == "fail"
    assert "cut by the edge" in cut["reasons"][0]
    empty = mask_quality(np.ones((9, 9, 9)), np.zeros((9, 9, 9)), AFFINE, [700, 2300])
    assert empty["verdict"] == "fail"
    assert "0 ml outside" in empty["reasons"][0]


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


@pytest.mark.parametrize("shift", [(3.0, -4.0, 5.0), (70.0, -90.0, 60.0)], ids=["same session", "lost header"])
def test_a_known_pose_of_another_contrast_is_recovered(tmp_path: Path, shift: tuple[float, float, float]) -> None:
    """A voxel's world position differs by a known rigid motion: the transform must take T1w points to channel points."""
    data, affine = reference_brain(3.0)
    mask = tidy_mask(binary_closing(data > 0.05, iterations=2))
    channel = np.where(mask, 1.4 - data, 0.0)[:, 1:, :-1] + np.random.default_rng(4).normal(0, 0.01, data[:, 1:, :-1].shape)
    pose = nib.affines.from_matvec(Rotation.from_euler("xyz", [5, -3, 4], degrees=True).as_matrix(), shift)
    cropped = affine @ nib.affines.from_matvec(np.eye(3), [0, 1, 0])
    save_image(data, affine, tmp_path / "t1w.nii.gz")
    save_image(mask, affine, tmp_path / "mask.nii.gz")
    save_image(channel.astype(np.float32), pose @ cropped, tmp_path / "t2w.nii.gz")
    AlignChannel(
        in_channel=str(tmp_path / "t2w.nii.gz"),
        in_reference=str(tmp_path / "t1w.nii.gz"),
        in_mask=str(tmp_path / "mask.nii.gz"),
        n4=n4_options(enabled=False),
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
