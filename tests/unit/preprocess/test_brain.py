"""Finding the brain: masks, batches, receipts, deepbet and the template."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from popatlas.errors import ConfigError, InputError
from popatlas.images.io import read_json, save_image, write_json
from popatlas.interfaces.preprocess import ExtractBrain, ExtractBrainTemplate, NormaliseBrain
from popatlas.preprocess.brain import foreground, tidy_mask
from popatlas.preprocess.quality import mask_quality
from tests.unit.preprocess.shapes import AFFINE, ball, dice


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
            out_batch_record=str(tmp_path / "receipt.json"),
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
    """Extract the brain of one head and return what the batch record says."""
    ExtractBrain(
        in_files=[str(folder / "head.nii.gz")],
        scans=["sub-01"],
        out_masks=[str(folder / "mask.nii.gz")],
        out_batch_record=str(folder / "receipt.json"),
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


def normalise(folder: Path) -> None:
    """Run the step that reads what the extraction of a batch has left in a folder."""
    files = {"in_file": "head.nii.gz", "in_mask": "mask.nii.gz", "in_batch_record": "receipt.json", "record": "record.json"}
    files |= {"out_brain": "brain.nii.gz", "out_mask": "m.nii.gz", "out_qc": "qc.json"}
    inputs = {name: str(folder / file) for name, file in files.items()}
    NormaliseBrain(volume_ml=[700, 2300], subject="sub-01", **inputs).run()


@pytest.mark.parametrize(
    ("error", "code", "remedy"),
    [
        (MemoryError("no more"), "oom", "give it more memory"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "disk", "free space"),
        (ConfigError("no such weights"), "setup", "follow the remedy"),
        (InputError("no brain was found"), "input", "repair the image"),
        (ValueError("shapes differ"), "bug", "repair the image"),
    ],
)
def test_a_scan_that_failed_in_a_batch_fails_for_the_reason_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, remedy: str
) -> None:
    def extractor(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("popatlas.preprocess.brain.deepbet_extractor", extractor)
    save_image(ball().astype(np.float32), AFFINE, tmp_path / "head.nii.gz")
    extract(tmp_path)
    assert read_json(tmp_path / "receipt.json")["sub-01"]["code"] == code
    with pytest.raises(InputError) as caught:
        normalise(tmp_path)
    assert (read_json(tmp_path / "record.json")["code"], remedy in str(caught.value)) == (code, True)


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
        normalise(tmp_path)


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
        out_batch_record=str(tmp_path / "receipt.json"),
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
