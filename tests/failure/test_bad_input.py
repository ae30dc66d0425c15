"""Bad input of each stage: the state that follows and the message. The docs' table is made from these cases.

`POPATLAS_WRITE_DOCS=1 pytest tests/failure` writes docs/bad-input.md anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from popatlas.cohort.freeze import freeze_atlas_members
from popatlas.cohort.index import index_cohort
from popatlas.config import default_config, load_config, resolve_rung
from popatlas.errors import PopatlasError
from popatlas.images.io import save_image
from popatlas.interfaces import load_interface

from ..cohorts import noise_cohort, popatlas

TABLE = Path(__file__).parents[2] / "docs" / "bad-input.md"
HEAD = """# Bad input

What popatlas says and does when an input cannot be used. This table is written by `tests/failure`, from what the code
really answers; a test fails when it is out of date.

| stage | input | what follows | message |
|---|---|---|---|
"""
SHAPE = (36, 36, 36)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
GATE = default_config()["register"]["gate"]
ANTS = default_config()
ANTS["register"] |= {"engine": "ants", "linear": "ants"}
ANTS["register"]["presets"]["ants"]["quick"]["iterations"] = [2]
QUICK = resolve_rung(ANTS, "quick")


@dataclass(frozen=True)
class Case:
    stage: str
    name: str
    follows: str
    words: str
    make: Callable[[Path], str]


# Images that the index refuses


def indexed(damage: Callable[[Path], None]) -> Callable[[Path], str]:
    """Damage one of three images, index the dataset, and return what the index says about it."""

    def run(folder: Path) -> str:
        noise_cohort(folder / "bids", ["sub-1", "sub-2", "sub-3"])
        damage(folder / "bids" / "sub-2" / "anat" / "sub-2_T1w.nii.gz")
        config = load_config(bids_dir=str(folder / "bids"))
        row = index_cohort(config, folder / "out").set_index("subject").loc["sub-2"]
        others = index_cohort(config, folder / "out").set_index("subject").drop("sub-2")
        assert (others["state"] == "ok").all()
        assert row["state"] == "unavailable"
        return str(row["reason"])

    return run


def write(data: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[Path], None]:
    return lambda path: save_image(data, affine, path)


def noise(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(5).random(shape, dtype=np.float32)


def with_nan() -> np.ndarray:
    data = noise()
    data[3:5, 3, 3] = np.nan
    return data


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def no_orientation(path: Path) -> None:
    image = nib.Nifti1Image(noise(), None)
    image.header.set_zooms((2, 2, 2))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, path)


def contradiction(path: Path) -> None:
    image = nib.Nifti1Image(noise(), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(np.diag([-2.0, 2.0, 2.0, 1.0]), 1)
    nib.save(image, path)


def other_place(path: Path) -> None:
    image = nib.Nifti1Image(noise(), AFFINE)
    image.set_sform(AFFINE, 2)
    image.set_qform(AFFINE + np.eye(4, k=3) * 7, 1)
    nib.save(image, path)


def same_as_first(path: Path) -> None:
    path.write_bytes((path.parents[2] / "sub-1" / "anat" / "sub-1_T1w.nii.gz").read_bytes())


# Steps


def step(name: str, **inputs: object) -> str:
    """Run a step that must fail and return its message."""
    with pytest.raises(PopatlasError) as caught:
        load_interface(name)(subject="sub-2", **inputs).run()
    return str(caught.value)


def conform(data: np.ndarray) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        save_image(data, AFFINE, folder / "raw.nii.gz")
        options = default_config()["preprocess"]["n4"]
        return step(
            "CorrectAndConform",
            in_file=str(folder / "raw.nii.gz"),
            resolution_mm=2.0,
            n4=options,
            out_file=str(folder / "out.nii.gz"),
        )

    return run


def ball(radius: float) -> np.ndarray:
    index = np.indices(SHAPE) - 17.5
    return (np.linalg.norm(index, axis=0) < radius).astype(np.float32)


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
    """Method `none` on a whole head: the receipt says why, and the next step fails the scan with it."""
    save_image(noise() + 1, AFFINE, folder / "head.nii.gz")
    files = {"in_files": [str(folder / "head.nii.gz")], "out_masks": [str(folder / "mask.nii.gz")]}
    receipt = str(folder / "receipt.json")
    load_interface("ExtractBrain")(scans=["sub-2"], method="none", out_receipt=receipt, **files).run()
    return step(
        "NormaliseBrain",
        in_file=str(folder / "head.nii.gz"),
        in_mask=str(folder / "mask.nii.gz"),
        in_receipt=receipt,
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
            rung=QUICK,
            gate=GATE,
            out_affine=str(folder / "affine.mat"),
            out_gate=str(folder / "gate.json"),
            **inputs,
            **outputs,
        )

    return run


def too_few_members(folder: Path) -> str:
    noise_cohort(folder / "bids", ["sub-1", "sub-2"])
    config = load_config(bids_dir=str(folder / "bids"))
    index = index_cohort(config, folder / "out")
    with pytest.raises(PopatlasError) as caught:
        freeze_atlas_members(config, index, ["sub-1/anat/sub-1"], folder / "out")
    return str(caught.value)


def frozen_member_changed(folder: Path) -> str:
    noise_cohort(folder / "bids", ["sub-1", "sub-2"])
    config = load_config(bids_dir=str(folder / "bids"))
    scans = ["sub-1/anat/sub-1", "sub-2/anat/sub-2"]
    freeze_atlas_members(config, index_cohort(config, folder / "out"), scans, folder / "out")
    (folder / "out" / "tpl-popatlas").mkdir()
    (folder / "out" / "tpl-popatlas" / "template_description.json").write_text("{}")
    save_image(noise(), AFFINE, folder / "bids" / "sub-2" / "anat" / "sub-2_T1w.nii.gz")
    with pytest.raises(PopatlasError) as caught:
        freeze_atlas_members(config, index_cohort(config, folder / "out"), scans, folder / "out")
    return str(caught.value)


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


# The command line


def command(*extra: str, settings: dict[str, object] | None = None, dataset: bool = True) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        if dataset:
            noise_cohort(folder / "bids", ["sub-1", "sub-2", "sub-3"])
        (folder / "c.yaml").write_text(yaml.safe_dump(settings or {}))
        result = popatlas("check", folder / "bids", "--config", folder / "c.yaml", *extra, check=False)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        return result.stderr.removeprefix("popatlas check: ").strip()

    return run


UNAVAILABLE, FAILED, STOPS = "scan `unavailable`, the others go on", "scan `failed`, the others go on", "nothing is run"
CASES = [
    Case("index", "file of 0 bytes", UNAVAILABLE, "0 bytes", indexed(lambda path: path.write_bytes(b""))),
    Case("index", "truncated file", UNAVAILABLE, "cannot be read", indexed(truncated)),
    Case("index", "not an image", UNAVAILABLE, "cannot be read", indexed(lambda path: path.write_text("hello"))),
    Case("index", "no T1w in the folder", UNAVAILABLE, "no T1w image", indexed(lambda path: path.unlink())),
    Case("index", "4D image", UNAVAILABLE, "36x36x36x2", indexed(write(noise((*SHAPE, 2))))),
    Case("index", "complex voxels", UNAVAILABLE, "not real numbers", indexed(write(noise().astype(np.complex64)))),
    Case("index", "NaN", UNAVAILABLE, "2 voxels", indexed(write(with_nan()))),
    Case("index", "constant image", UNAVAILABLE, "same value", indexed(write(np.ones(SHAPE, np.float32)))),
    Case("index", "absurd spacing", UNAVAILABLE, "20x20x20", indexed(write(noise(), np.diag([20.0, 20, 20, 1])))),
    Case("index", "few voxels", UNAVAILABLE, "at least 32", indexed(write(noise((36, 36, 8))))),
    Case("index", "no sform, no qform", UNAVAILABLE, "neither sform nor qform", indexed(no_orientation)),
    Case("index", "sform contradicts qform", UNAVAILABLE, "sform says RAS, qform says LAS", indexed(contradiction)),
    Case("index", "sform and qform lie apart", UNAVAILABLE, "up to 7 mm apart", indexed(other_place)),
    Case("index", "copy of another scan", UNAVAILABLE, "under another scan", indexed(same_as_first)),
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
    Case("command", "dataset does not exist", STOPS, "does not exist", command(dataset=False)),
    Case("command", "misspelt key", STOPS, "did you mean 'cohort'", command(settings={"cohrt": {}})),
    Case("command", "bad query", STOPS, "use the columns", command(settings={"cohort": {"query": "aeg > 3"}})),
    Case("command", "unknown subject", STOPS, "did you mean sub-", command(settings={"cohort": {"include": ["sub-11"]}})),
]
ROWS: dict[int, str] = {}


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{case.stage}-{case.name}" for case in CASES])
def test_bad_input_is_explained(number: int, tmp_path: Path) -> None:
    case = CASES[number]
    message = case.make(tmp_path)
    assert case.words in message
    assert "remedy" in message.lower()
    shown = " ".join(message.replace(str(tmp_path), "").replace("|", "/").split())
    ROWS[number] = f"| {case.stage} | {case.name} | {case.follows} | {shown} |"


def test_the_docs_show_these_messages() -> None:
    if len(ROWS) < len(CASES):
        pytest.fail("run the whole module: the table is made from all cases")
    text = HEAD + "\n".join(ROWS[number] for number in range(len(CASES))) + "\n"
    if os.environ.get("POPATLAS_WRITE_DOCS") == "1":
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(text)
    assert TABLE.read_text() == text
