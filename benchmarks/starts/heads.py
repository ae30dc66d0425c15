"""Whole heads turned in their header before anything is done: through conforming, brain extraction and registration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to

from benchmarks.starts.brains import Brain, labelled_scans, simulated_head, turn_about
from benchmarks.starts.cases import AXES, SEED
from benchmarks.starts.methods import quiet
from popatlas.config.load import default_content
from popatlas.images.io import load_image, save_image
from popatlas.interfaces import load_interface

PREPROCESS = default_content()["preprocess"]
TURNS = tuple((name, degrees) for name in AXES for degrees in (90, 180))


@dataclass(frozen=True)
class Head:
    """A whole head with labels of its brain on a grid of their own, voxel to RAS mm."""

    name: str
    image: np.ndarray
    affine: np.ndarray
    labels: np.ndarray
    labels_affine: np.ndarray

    def turned(self, degrees: np.ndarray) -> Head:
        """Turn both headers about the middle of the image."""
        middle = self.affine[:3, :3] @ ((np.array(self.image.shape) - 1) / 2) + self.affine[:3, 3]
        matrix = turn_about(middle, degrees)
        return Head(self.name, self.image, matrix @ self.affine, self.labels, matrix @ self.labels_affine)


def drawn_head(number: int) -> Head:
    """Draw a head of `popatlas simulate` at 2 mm."""
    image, labels, affine = simulated_head(SEED, number, 2.0)
    return Head(f"simulated-{number}", image, affine, labels, affine)


def real_head(data: Path, scan: str) -> Head:
    """Read a head of a BIDS dataset with labels."""
    image, labels = (
        nib.load(next(data.glob(pattern)))
        for pattern in (f"{scan}/**/anat/{scan}*_T1w.nii.gz", f"derivatives/*/{scan}/**/{scan}*_dseg.nii.gz")
    )
    return Head(
        scan, np.asarray(image.dataobj, np.float32), image.affine, np.asarray(labels.dataobj).astype(np.int16), labels.affine
    )


def heads(data: Path | None, count: int) -> Iterator[tuple[str, Callable[[], Head]]]:
    """Yield where a head is from and a function that makes it; the first of each kind is the fixed one."""
    for number in range(1, count + 1):
        yield "simulated", partial(drawn_head, number)
    if data is None:
        return
    for scan in np.random.default_rng(SEED).permutation(labelled_scans(data))[:count]:
        yield "IXI", partial(real_head, data, scan)


def prepare(head: Head, folder: Path) -> Brain:
    """Run the steps of preprocessing and return the brain with its labels; a step may refuse it with an error."""
    folder.mkdir(parents=True, exist_ok=True)
    raw, conformed, found, record, brain, mask, quality = (
        str(folder / name)
        for name in ("raw.nii.gz", "head.nii.gz", "found.nii.gz", "found.json", "brain.nii.gz", "mask.nii.gz", "qc.json")
    )
    save_image(head.image, head.affine, Path(raw))
    options = {"resolution_mm": PREPROCESS["resolution_mm"], "n4": PREPROCESS["n4"]}
    files = {"in_files": [conformed], "scans": ["head"], "out_masks": [found], "out_batch_record": record}
    limits = {"volume_ml": PREPROCESS["brain"]["volume_ml"], "in_batch_record": record}
    outputs = {"out_brain": brain, "out_mask": mask, "out_qc": quality}
    with quiet():
        load_interface("CorrectAndConform")(subject="head", in_file=raw, out_file=conformed, **options).run()
        load_interface("ExtractBrain")(subject="head", **files).run()
        load_interface("NormaliseBrain")(subject="head", in_file=conformed, in_mask=found, **limits, **outputs).run()
    image, inside = load_image(brain), load_image(mask)
    return Brain(head.name, np.asarray(image.dataobj), np.asarray(inside.dataobj), labels_on(head, image), image.affine)


def labels_on(head: Head, image: nib.Nifti1Image) -> np.ndarray:
    """Return the labels of a head on the grid of its conformed image, by nearest neighbour."""
    return np.asarray(resample_from_to(nib.Nifti1Image(head.labels, head.labels_affine), image, order=0).dataobj)
