"""A large cohort of tiny images: all that is asked of them is that they can be opened and differ."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np

from popatlas.images.io import save_image, write_json

SHAPE = (36, 36, 36)
SPACING_MM = 2.0
AFFINE = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
LABELLED = 10  # subjects that have labels


def subject_names(count: int, first: int = 1) -> list[str]:
    """Return the names of subjects."""
    return [f"sub-{number:05d}" for number in range(first, first + count)]


def make_cohort(root: Path, subjects: int) -> Path:
    """Write a BIDS dataset with one tiny T1w for each subject, ages, and labels of the first `LABELLED`."""
    names = subject_names(subjects)
    write_json(root / "dataset_description.json", {"Name": "scale", "BIDSVersion": "1.9.0"})
    add_subjects(root, names)
    blocks = np.kron(np.arange(1, 9, dtype=np.int16).reshape(2, 2, 2), np.ones((12, 12, 12), np.int16))
    labels = np.pad(blocks, 6)
    for name in names[:LABELLED]:
        save_image(labels, AFFINE, root / f"derivatives/truth/{name}/anat/{name}_desc-truth_dseg.nii.gz")
    rows = [f"{name}\t{20 + number % 60}\t{'FM'[number % 2]}" for number, name in enumerate(names)]
    (root / "participants.tsv").write_text("\n".join(["participant_id\tage\tsex", *rows]) + "\n", encoding="utf-8")
    return root


def add_subjects(root: Path, names: Iterable[str]) -> None:
    """Write one T1w for each name: an image whose first voxels spell the number of the subject."""
    voxels = np.indices(SHAPE).sum(axis=0).astype(np.uint8)
    image = nib.Nifti1Image(voxels, AFFINE)
    image.set_qform(AFFINE, code=1)
    image.set_sform(AFFINE, code=1)
    content = image.to_bytes()
    start = len(content) - voxels.size
    for name in names:
        folder = root / name / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        number = int(name.removeprefix("sub-")).to_bytes(8, "little")
        (folder / f"{name}_T1w.nii.gz").write_bytes(gzip.compress(content[:start] + number + content[start + 8 :], 1))


def bytes_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(os.stat(path).st_size for path in folder.rglob("*") if path.is_file())  # noqa: PTH116
