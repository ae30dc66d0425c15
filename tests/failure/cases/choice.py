"""Several images for one scan, images whose name or header misleads, and files that are not what they seem."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from popatlas.cli.check import describe_cohort
from popatlas.cohort.index import index_cohort
from popatlas.config.load import load_config

from ...cohorts import noise_image
from ..casebook import LEFT_OUT, SAID, SHAPE, STOPS, THREE, UNAVAILABLE, Case, checked, indexed, noise

TITLE = "Choice of images"
HEAD = ((40, 48, 44), 4.0)  # field of view of a head
Make = Callable[[Path], None]


def described(*makes: Make, **cohort: object) -> Callable[[Path], str]:
    """Add images to a dataset of two subjects and return what `popatlas check` says about sub-2."""

    def run(folder: Path) -> str:
        anat = folder / "bids" / "sub-2" / "anat"
        noise_image(folder / "bids/sub-1/anat/sub-1_T1w.nii.gz", 99)
        for make in makes:
            make(anat)
        config = load_config({"cohort": cohort}, bids_dir=str(folder / "bids"))
        index = index_cohort(config, folder / "out")
        lines = [line for line in describe_cohort(index) if "sub-2" in line]
        return lines[0].split(": ", 1)[1] if lines else ""

    return run


def image(name: str, shape: Sequence[int] = HEAD[0], spacing: float = HEAD[1]) -> Make:
    seed = sum(name.encode())
    return lambda anat: noise_image(anat / f"sub-2_{name}.nii.gz", seed, tuple(shape), spacing) and None


def truncated(name: str) -> Make:
    def make(anat: Path) -> None:
        path = noise_image(anat / f"sub-2_{name}.nii.gz", 5)
        path.write_bytes(path.read_bytes()[:2000])

    return make


def beside(anat: Path) -> None:
    nib.save(nib.Nifti1Image(noise(), np.diag([2.0, 2, 2, 1])), anat / "sub-2_T1w.nii")


def bomb(path: Path) -> None:
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content + bytes(8 << 20)))


def announcing(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = np.array([2000, 2000, 2000], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))


def annexed(path: Path) -> None:
    path.unlink()
    path.symlink_to("../../.git/annex/objects/0a/MD5E-s9--1.nii.gz")


def lower_case(path: Path) -> None:
    path.rename(path.with_name("sub-2_t1w.nii.gz"))


def elsewhere(path: Path) -> None:
    path.rename(path.parents[2] / "sub-3" / "anat" / path.name)


FIRST, SECOND = image("run-1_T1w"), image("run-2_T1w")
BROKEN, BROKEN_TOO, BROKEN_T2W = truncated("run-1_T1w"), truncated("run-2_T1w"), truncated("run-1_T2w")
CASES = [
    Case("index", "truncated run-1, good run-2", SAID, "run-2: run-1 cannot be used", described(BROKEN, SECOND), False),
    Case("index", "no run can be used", UNAVAILABLE, "none of 2 images", described(BROKEN, BROKEN_TOO)),
    Case(
        "index",
        "localizer before MPRAGE",
        SAID,
        "too few voxels",
        described(image("acq-localizer_T1w", (64, 64, 3)), image("acq-mprage_T1w")),
        False,
    ),
    Case(
        "index",
        "thick scout before MPRAGE",
        SAID,
        "is coarser",
        described(image("acq-a_T1w", (64, 64, 33), 5.0), image("acq-mprage_T1w")),
        False,
    ),
    Case(
        "index",
        "slab and whole head",
        SAID,
        "covers less",
        described(image("acq-slab_T1w", (64, 64, 36), 1.5), image("acq-whole_T1w")),
        False,
    ),
    Case(
        "index",
        "image with contrast agent",
        SAID,
        "derived or partial",
        described(image("ce-gd_T1w"), image("acq-mprage_T1w")),
        False,
    ),
    Case(
        "index", "only a localizer", SAID, "although its name says localizer", described(image("acq-localizer_T1w")), False
    ),
    Case("index", "only a phase image", UNAVAILABLE, "not a magnitude", described(image("part-phase_T1w"))),
    Case("index", "`.nii` beside `.nii.gz`", SAID, "OTHER voxels", described(image("T1w", SHAPE, 2.0), beside), False),
    Case(
        "index",
        "bad T2w beside a good one",
        SAID,
        "T2w: run-2: run-1 cannot be used",
        described(FIRST, BROKEN_T2W, image("run-2_T2w")),
        False,
    ),
    Case("index", "all T2w bad", LEFT_OUT, "T2w left out", described(FIRST, truncated("T2w"))),
    Case(
        "index",
        "filter that a scan does not pass",
        UNAVAILABLE,
        "no image passes cohort.filter",
        described(image("acq-x_T1w"), filter={"acquisition": None}),
    ),
    Case(
        "command",
        "filter that no scan passes",
        STOPS,
        "leaves no T1w image of any scan",
        checked({"cohort": {"filter": {"acquisition": "mprage"}}}, *THREE),
    ),
    Case(
        "command",
        "filter of an unknown entity",
        STOPS,
        "did you mean acquisition",
        checked({"cohort": {"filter": {"aquisition": "mprage"}}}, *THREE),
    ),
    Case(
        "command",
        "preference of an unknown entity",
        STOPS,
        "did you mean acq",
        checked({"cohort": {"prefer": ["aqc-mprage"]}}, *THREE),
    ),
    Case("index", "more in the file than its header says", UNAVAILABLE, "holds more than", indexed(bomb)),
    Case("index", "header that announces 32 GB", UNAVAILABLE, "expected at most", indexed(announcing)),
    Case("index", "content not fetched by git-annex", UNAVAILABLE, "git annex get", indexed(annexed)),
    Case("index", "suffix in lower case", UNAVAILABLE, "sub-2_t1w.nii.gz", indexed(lower_case)),
    Case("index", "image in the folder of another subject", UNAVAILABLE, "sub-3/anat/sub-2_T1w.nii.gz", indexed(elsewhere)),
]
