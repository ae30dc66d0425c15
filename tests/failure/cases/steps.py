"""Inputs that a step refuses, and members of the template that changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from popatlas.cohort.freeze import freeze_atlas_members
from popatlas.cohort.index import index_cohort
from popatlas.config.attempts import resolve_attempt
from popatlas.config.load import default_content, load_config
from popatlas.images.io import save_image
from popatlas.interfaces import load_interface

from ..casebook import AFFINE, FAILED, SHAPE, STOPS, Case, ball, dataset, noise, refusal, step

TITLE = "Steps"
GATE = default_content()["register"]["gate"]
ANTS = {"engine": "ants", "linear": "ants", "presets": {"ants": {"quick": {"iterations": [2]}}}}
QUICK = resolve_attempt(load_config({"register": ANTS}), "quick")


def conform(data: np.ndarray) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        save_image(data, AFFINE, folder / "raw.nii.gz")
        options = default_content()["preprocess"]["n4"]
        return step(
            "CorrectAndConform",
            in_file=str(folder / "raw.nii.gz"),
            resolution_mm=2.0,
            n4=options,
            out_file=str(folder / "out.nii.gz"),
        )

    return run


def normalise(mask: np.ndarray | None) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        save_image(noise(), AFFINE, folder / "head.nii.gz")
        if mask is not None:
            save_image(mask.astype(np.uint8), AFFINE, folder / "mask.nii.gz")
        outputs = {name: str(folder / f"{name}.nii.gz") for name in ("out_brain", "out_mask")}
        return step(
            "NormaliseBrain",
            in_file=str(folder / "head.nii.gz"),
            in_mask=str(folder / "mask.nii.gz"),
            volume_ml=[700.0, 2300.0],
            out_qc=str(folder / "qc.json"),
            **outputs,
        )

    return run


def not_stripped(folder: Path) -> str:
    """Method `none` on a whole head: the batch record says why, and the next step fails the scan with it."""
    save_image(noise() + 1, AFFINE, folder / "head.nii.gz")
    files = {"in_files": [str(folder / "head.nii.gz")], "out_masks": [str(folder / "mask.nii.gz")]}
    receipt = str(folder / "receipt.json")
    load_interface("ExtractBrain")(scans=["sub-2"], method="none", out_batch_record=receipt, **files).run()
    return step(
        "NormaliseBrain",
        in_file=str(folder / "head.nii.gz"),
        in_mask=str(folder / "mask.nii.gz"),
        in_batch_record=receipt,
        volume_ml=[700.0, 2300.0],
        out_brain=str(folder / "brain.nii.gz"),
        out_mask=str(folder / "m.nii.gz"),
        out_qc=str(folder / "qc.json"),
    )


def register(moving: np.ndarray, moving_mask: np.ndarray) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        texture = noise()
        save_image(texture * ball(14), AFFINE, folder / "fixed.nii.gz")
        save_image(ball(14), AFFINE, folder / "fixed_mask.nii.gz")
        save_image(moving, AFFINE, folder / "moving.nii.gz")
        save_image(moving_mask, AFFINE, folder / "moving_mask.nii.gz")
        inputs = {f"in_{name}": str(folder / f"{name}.nii.gz") for name in ("fixed", "fixed_mask", "moving", "moving_mask")}
        outputs = {f"out_{name}": str(folder / f"{name}.nii.gz") for name in ("warp", "warped")}
        return step(
            "RegisterImages",
            attempt=QUICK,
            gate=GATE,
            out_affine=str(folder / "affine.mat"),
            out_gate=str(folder / "gate.json"),
            **inputs,
            **outputs,
        )

    return run


def too_few_members(folder: Path) -> str:
    config = dataset(folder, "sub-1", "sub-2")
    index = index_cohort(config, folder / "out")
    return refusal(lambda: freeze_atlas_members(config, index, ["sub-1/anat/sub-1"], folder / "out"))


def frozen_member_changed(folder: Path) -> str:
    config = dataset(folder, "sub-1", "sub-2")
    scans = ["sub-1/anat/sub-1", "sub-2/anat/sub-2"]
    freeze_atlas_members(config, index_cohort(config, folder / "out"), scans, folder / "out")
    (folder / "out" / "tpl-popatlas").mkdir()
    (folder / "out" / "tpl-popatlas" / "template_description.json").write_text("{}")
    save_image(noise(), AFFINE, folder / "bids" / "sub-2" / "anat" / "sub-2_T1w.nii.gz")
    return refusal(lambda: freeze_atlas_members(config, index_cohort(config, folder / "out"), scans, folder / "out"))


def template_with_skull(folder: Path, **inputs: str) -> str:
    save_image(noise() + 1, AFFINE, folder / "template.nii.gz")
    outputs = ("template", "mask", "convergence", "description")
    suffixes = ("nii.gz", "nii.gz", "tsv", "json")
    return step(
        "DescribeTemplate",
        in_template=str(folder / "template.nii.gz"),
        label="x",
        version="0",
        **inputs,
        **{f"out_{name}": str(folder / f"o_{name}.{end}") for name, end in zip(outputs, suffixes, strict=True)},
    )


def head_with_mask(folder: Path) -> str:
    save_image(ball(14), AFFINE, folder / "template_mask.nii.gz")
    return template_with_skull(folder, in_mask=str(folder / "template_mask.nii.gz"))


def joint_fusion_without_images(folder: Path) -> str:
    save_image(np.ones((*SHAPE, 2), np.int32), AFFINE, folder / "labels.nii.gz")
    return step("FuseLabels", method="jlf", in_labels=str(folder / "labels.nii.gz"), out_file=str(folder / "fused.nii.gz"))


def unnamed_labels(folder: Path) -> str:
    save_image(np.ones(SHAPE, np.int32), AFFINE, folder / "labels.nii.gz")
    return step(
        "MeasureScan",
        scan="sub-2/anat/sub-2",
        in_labels=[str(folder / "labels.nii.gz")],
        methods=[],
        out_table=str(folder / "table.tsv"),
    )


CASES = [
    Case("preprocess", "constant image", FAILED, "constant", conform(np.full(SHAPE, 3.0, np.float32))),
    Case("preprocess", "4D image", FAILED, "4 dimensions", conform(noise((*SHAPE, 2)))),
    Case("preprocess", "brain mask far too small", FAILED, "outside 700 to 2300 ml", normalise(ball(5))),
    Case("preprocess", "network found nothing", FAILED, "no mask was written", normalise(None)),
    Case("preprocess", "method none on a whole head", FAILED, "not skull-stripped", not_stripped),
    Case("register", "empty brain", FAILED, "image is empty", register(np.zeros(SHAPE, np.float32), ball(14))),
    Case("register", "implausible result", FAILED, "gate failed", register(noise() * ball(5), ball(5))),
    Case("atlas", "one usable scan", STOPS, "at least 2 usable scans", too_few_members),
    Case("atlas", "image of a frozen member changed", STOPS, "sub-2/anat/sub-2", frozen_member_changed),
    Case("atlas", "existing template with skull", STOPS, "no empty background", template_with_skull),
    Case("atlas", "existing template, a head with a brain mask", STOPS, "lies outside its mask", head_with_mask),
    Case("fuse", "joint label fusion without images", FAILED, "needs the candidate images", joint_fusion_without_images),
    Case("measure", "labels without method", FAILED, "1 label images and 0 methods", unnamed_labels),
]
