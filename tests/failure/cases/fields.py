"""Heads whose intensities or masks are not what they should be."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from popatlas.config.load import default_content
from popatlas.images.io import read_json, save_image
from popatlas.interfaces.preprocess import CorrectAndConform, ExtractBrain

from ..casebook import FAILED, SAID, Case, noise, step

TITLE = "Heads and fields of view"
SHAPE = (44, 48, 44)
AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])
NO_N4 = default_content()["preprocess"]["n4"] | {"enabled": False}


def ellipsoid(*radii_mm: float) -> np.ndarray:
    places = (np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2) * 5.0 / np.array(radii_mm).reshape(3, 1, 1, 1)
    return np.linalg.norm(places, axis=0) < 1


BRAIN, SKULL, SCALP = ellipsoid(65, 80, 62), ellipsoid(75, 90, 72), ellipsoid(82, 97, 80)
HEAD = np.where(BRAIN, 100.0, np.where(SKULL, 3.0, np.where(SCALP, 130.0, 0.0))) + noise(SHAPE)


def settled(head: np.ndarray) -> Callable[[Path], str]:
    """Conform a head that popatlas puts right, and return what it says about it."""

    def run(folder: Path) -> str:
        save_image(head, AFFINE, folder / "raw.nii.gz", np.float32)
        files = {"in_file": str(folder / "raw.nii.gz"), "out_file": str(folder / "out.nii.gz")}
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            CorrectAndConform(resolution_mm=5.0, n4=NO_N4, subject="sub-2", record=str(folder / "r.json"), **files).run()
        said = out.getvalue().strip()
        assert json.loads(said.split(": ", 2)[2]) == read_json(folder / "r.json")["notes"]["intensities"]
        return said

    return run


def refused(head: np.ndarray) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        save_image(head, AFFINE, folder / "raw.nii.gz", np.float32)
        files = {"in_file": str(folder / "raw.nii.gz"), "out_file": str(folder / "out.nii.gz")}
        return step("CorrectAndConform", resolution_mm=5.0, n4=NO_N4, **files)

    return run


def judged(mask: np.ndarray, head: np.ndarray = HEAD) -> Callable[[Path], str]:
    """Publish a brain mask that is not one."""

    def run(folder: Path) -> str:
        save_image(head, AFFINE, folder / "head.nii.gz", np.float32)
        save_image(mask, AFFINE, folder / "mask.nii.gz", np.uint8)
        files = {name: str(folder / f"{name}.nii.gz") for name in ("out_brain", "out_mask")}
        inputs = {"in_file": str(folder / "head.nii.gz"), "in_mask": str(folder / "mask.nii.gz")}
        return step("NormaliseBrain", volume_ml=[700.0, 2300.0], out_qc=str(folder / "qc.json"), **inputs, **files)

    return run


def not_found(folder: Path) -> str:
    """Look for a brain where there is none: the message stands in the batch record."""
    save_image(np.full(SHAPE, 7.0), AFFINE, folder / "head.nii.gz", np.float32)
    ExtractBrain(
        in_files=[str(folder / "head.nii.gz")],
        scans=["sub-2"],
        method="none",
        out_masks=[str(folder / "mask.nii.gz")],
        out_batch_record=str(folder / "receipt.json"),
    ).run()
    return str(read_json(folder / "receipt.json")["sub-2"]["message"])


def stray(value: float) -> np.ndarray:
    head = HEAD.copy()
    head[20, 20, 20] = value
    return head


LEFT_HALF = BRAIN & (np.arange(SHAPE[0]) < SHAPE[0] // 2)[:, None, None]
CUT = np.roll(BRAIN, 13, axis=2) & (np.arange(SHAPE[2]) >= 13)
RAGGED = BRAIN & (np.indices(SHAPE).sum(0) % 2 > 0)
CASES = [
    Case("preprocess", "z-scores", SAID, '"background": -', settled((HEAD - HEAD.mean()) / HEAD.std()), False),
    Case("preprocess", "background at -1000", SAID, '"background": -999', settled(HEAD - 1000), False),
    Case("preprocess", "offset under everything", SAID, '"background": 70', settled(HEAD + 70), False),
    Case("preprocess", "voxel of 1000 x the maximum", SAID, '"clipped_voxels": 1', settled(stray(1e5)), False),
    Case("preprocess", "voxel far below all others", SAID, '"clipped_voxels": 1', settled(stray(-1e6)), False),
    Case("preprocess", "inverted contrast", FAILED, "brighter than the head", refused(140 - HEAD.round())),
    Case("preprocess", "mask of the whole head", FAILED, "as dark as bone or air", judged(SKULL)),
    Case("preprocess", "mask of half a brain", FAILED, "as half a brain is", judged(LEFT_HALF)),
    Case("preprocess", "brain cut by the field of view", FAILED, "cut at the top of the image", judged(CUT)),
    Case("preprocess", "ragged mask", FAILED, "ragged", judged(RAGGED)),
    Case("preprocess", "mask of a limb", FAILED, "times as long as wide", judged(ellipsoid(45, 100, 45))),
    Case("preprocess", "image without a head", FAILED, "no empty background", not_found),
]
