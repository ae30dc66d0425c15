"""Label files and masks that cannot be used: atlases, references, edited masks, templates."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from popatlas.cli.main import main
from popatlas.cohort.freeze import freeze_label_atlases
from popatlas.cohort.index import index_cohort
from popatlas.config.load import load_config
from popatlas.images.io import save_image

from ...cohorts import noise_cohort
from ..casebook import AFFINE, FAILED, LEFT_OUT, SAID, SHAPE, STOPS, Case, ball, noise, step, write

TITLE = "Labels and masks"
LABEL = "derivatives/truth/sub-2/anat/sub-2_desc-truth_dseg.nii.gz"
Damage = Callable[[Path], object]


def blocks() -> np.ndarray:
    """Two structures in a ball."""
    return (ball(10) * np.where(np.arange(36)[:, None, None] < 18, 3, 8)).astype(np.int16)


def atlas(damage: Damage, mask: np.ndarray | None = None, everyone: bool = False) -> Callable[[Path], str]:
    """Damage the labels of one of three scans, draw the atlases, and return what is said; the others must serve."""

    def run(folder: Path) -> str:
        names = ["sub-1", "sub-2", "sub-3"]
        config = load_config({"fuse": {"atlases": 2}}, bids_dir=str(noise_cohort(folder / "bids", names)))
        save_image(blocks(), AFFINE, folder / "bids" / LABEL)
        for name in names if everyone else names[1:2]:
            damage(folder / "bids" / LABEL.replace("sub-2", name))
        if mask is not None:
            save_image(mask.astype(np.uint8), AFFINE, folder / "out/sub-2/anat/sub-2_desc-brain_mask.nii.gz")
        index = index_cohort(config, folder / "out")
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            found = freeze_label_atlases(config, index, list(index["scan"]), folder / "out")
        assert list(found["atlas"]) == ([] if everyone else ["sub-1/anat/sub-1", "sub-3/anat/sub-3"])
        return err.getvalue().strip().split("popatlas: ")[-1]

    return run


def without_forms(path: Path) -> None:
    image = nib.Nifti1Image(blocks(), AFFINE)
    image.set_sform(AFFINE, 0)
    image.set_qform(AFFINE, 0)
    nib.save(image, path)


def checksum(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-8] ^= 0xFF
    path.write_bytes(bytes(whole))


def swapped(path: Path) -> None:
    """Give the image 32 voxels along its first axis, and the labels along their second one."""
    image = path.parents[4] / "sub-2" / "anat" / "sub-2_T1w.nii.gz"
    save_image(1 + noise()[2:34], AFFINE, image)
    save_image(blocks()[:, 2:34], AFFINE, path)


def with_nan(data: np.ndarray) -> np.ndarray:
    return np.where(data == 0, np.nan, data)


def checked(wrong: str, change: Damage = lambda root: None) -> Callable[[Path], str]:
    """Check a dataset whose labels are asked for by another name, and return what is said about it."""

    def run(folder: Path) -> str:
        change(noise_cohort(folder / "bids", ["sub-1", "sub-2"]))
        (folder / "c.yaml").write_text(f"fuse: {{labels: '{wrong}'}}\nmeasure: {{reference: '{wrong}'}}\n")
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            main(["check", str(folder / "bids"), "--config", str(folder / "c.yaml")])
        return next(line for line in out.getvalue().splitlines() if "derivatives" in line).strip()

    return run


def measured(reference: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        save_image(reference, affine, folder / "reference.nii.gz")
        save_image(ball(12), AFFINE, folder / "mask.nii.gz")
        files = {f"in_{name}": str(folder / f"{name}.nii.gz") for name in ("reference", "mask")}
        return step("MeasureScan", scan="sub-2/anat/sub-2", out_table=str(folder / "t.tsv"), **files)

    return run


def normalised(mask: np.ndarray) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        save_image(noise(), AFFINE, folder / "head.nii.gz")
        save_image(mask, AFFINE, folder / "mask.nii.gz")
        outputs = {f"out_{name}": str(folder / f"{name}_out.nii.gz") for name in ("brain", "mask")}
        files = {"in_file": str(folder / "head.nii.gz"), "in_mask": str(folder / "mask.nii.gz")}
        return step("NormaliseBrain", volume_ml=[1.0, 2300.0], out_qc=str(folder / "qc.json"), **files, **outputs)

    return run


def template(folder: Path) -> str:
    without_forms(folder / "template.nii.gz")
    ends = {"template": "nii.gz", "mask": "nii.gz", "convergence": "tsv", "description": "json"}
    outputs = {f"out_{name}": str(folder / f"o_{name}.{end}") for name, end in ends.items()}
    return step("DescribeTemplate", in_template=str(folder / "template.nii.gz"), label="x", version="0", **outputs)


def candidates(folder: Path) -> str:
    halves = np.where(blocks() > 0, blocks() - 0.5, 0)
    save_image(np.stack([blocks(), halves], -1), AFFINE, folder / "labels.nii.gz")
    return step("FuseLabels", method="majority", in_labels=str(folder / "labels.nii.gz"), out_file=str(folder / "f.nii.gz"))


def shared(root: Path) -> None:
    shutil.copy(root / LABEL, root / LABEL.replace("sub-2", "sub-1"))


MIRRORED = AFFINE @ np.array([[-1, 0, 0, 35], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
MOVED = AFFINE + 6 * np.eye(4, k=3)
FAR = AFFINE + 60 * np.eye(4, k=3)
MANY = np.arange(36**3, dtype=np.int32).reshape(SHAPE)

MEASURED = "the scan is measured without reference"
TRUTH = "derivatives/truth/{scan}_desc-truth_dseg.nii.gz"
MISSPELT, TWICE = checked(TRUTH.replace("truth/", "thruth/")), checked(TRUTH, shared)
REFERENCE = checked(TRUTH, lambda root: without_forms(root / LABEL))
VOLUMES = np.stack([blocks()] * 2, -1)
HALVES = np.broadcast_to((np.arange(36) > 18).astype(np.int16)[:, None, None], SHAPE)
SWAPPED = atlas(swapped)

CASES = [
    Case("labels", "NaN background", LEFT_OUT, "voxel(s) are NaN or infinite", atlas(write(with_nan(blocks())))),
    Case("labels", "fractions, a probability map", LEFT_OUT, "lie between, such as 1.5", atlas(write(blocks() / 2))),
    Case("labels", "an intensity image", LEFT_OUT, "46655 different labels", atlas(write(MANY))),
    Case("labels", "the image of the scan", LEFT_OUT, "seems to hold intensities", atlas(write((200 * noise()).round()))),
    Case("labels", "background is 255", LEFT_OUT, "is it the background?", atlas(write(np.where(blocks(), blocks(), 255)))),
    Case("labels", "no background", LEFT_OUT, "no voxel of the label image is 0", atlas(write(1 + HALVES))),
    Case("labels", "array transposed, header kept", LEFT_OUT, "axes of the labels are swapped", SWAPPED),
    Case("labels", "negative label", LEFT_OUT, "negative, such as -8", atlas(write(-blocks()))),
    Case("labels", "label above 2147483647", LEFT_OUT, "label 8000000000", atlas(write(blocks() * 1e9))),
    Case("labels", "large labels as float32", LEFT_OUT, "cannot tell", atlas(write((blocks() * 1e7).astype(np.float32)))),
    Case("labels", "no label at all", LEFT_OUT, "all voxels are background", atlas(write(0 * blocks()))),
    Case("labels", "one label everywhere", LEFT_OUT, "have the label 1", atlas(write(np.ones(SHAPE, np.uint8)))),
    Case("labels", "4D, one structure per volume", LEFT_OUT, "merge its volumes", atlas(write(VOLUMES))),
    Case("labels", "complex numbers", LEFT_OUT, "not real numbers", atlas(write(blocks().astype(np.complex64)))),
    Case("labels", "no sform, no qform", LEFT_OUT, "neither sform nor qform", atlas(without_forms)),
    Case("labels", "wrong checksum at the end", LEFT_OUT, "CRC check failed", atlas(checksum)),
    Case("labels", "file of 0 bytes", LEFT_OUT, "0 bytes", atlas(lambda path: path.write_bytes(b""))),
    Case("labels", "mirrored against the image", LEFT_OUT, "mirrored, up to 70 mm", atlas(write(blocks(), MIRRORED))),
    Case("labels", "moved against the image", LEFT_OUT, "moved, up to 6 mm", atlas(write(blocks(), MOVED))),
    Case("labels", "outside of the field of view", LEFT_OUT, "field of view", atlas(write(blocks()[1:], FAR))),
    Case("labels", "off the brain", LEFT_OUT, "100% of the labelled voxels", atlas(str, mask=ball(17) - ball(15))),
    Case("labels", "all atlases are bad", SAID, "nothing is fused", atlas(without_forms, everyone=True), remedy=False),
    Case("check", "misspelt pattern", SAID, "did you mean derivatives/truth", MISSPELT, remedy=False),
    Case("check", "two subjects share a label image", SAID, "share one label image", TWICE, remedy=False),
    Case("check", "bad reference", MEASURED, "measured without reference", REFERENCE),
    Case("measure", "reference off the brain", FAILED, "do not lie on the brain", measured(blocks()[1:], FAR)),
    Case("fuse", "candidates between whole numbers", FAILED, "lie between, such as 2.5", candidates),
    Case("preprocess", "edited mask with NaN", FAILED, "not finite", normalised(with_nan(ball(9)))),
    Case("preprocess", "edited mask, fractions beyond 1", FAILED, "neither whole numbers", normalised(ball(9) * 1.5)),
    Case("atlas", "existing template without sform and qform", STOPS, "neither sform nor qform", template),
]
