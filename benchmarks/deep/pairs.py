"""Ordered pairs of held-out subjects, each with the next one and the one after, as cases in three contrasts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.deep.cohort import ATTEMPT, HELD_OUT
from benchmarks.deep.contrast import CONTRASTS, other_contrast
from benchmarks.registration.cases import Case
from benchmarks.registration.cohort import Brain, paired
from popatlas.errors import InputError
from popatlas.images.labels import read_mask
from popatlas.measures.scan import resample_labels
from popatlas.registration.linear import align
from popatlas.registration.pair import load_pair
from popatlas.training.table import TrainingScan, read_training_table
from popatlas.transforms.affine import read_affine


def held_out_pairs(scans: list[TrainingScan]) -> list[tuple[TrainingScan, TrainingScan]]:
    """Return fixed and moving scans: all with the next subject, then all with the one after, so that 8 pairs see everyone.

    Raises
    ------
    InputError
        When a subject that is held out is missing, or is not for testing in the table.
    """
    known = {scan.subject: scan for scan in scans}
    wrong = [name for name in HELD_OUT if name not in known or known[name].split != "test"]
    if wrong:
        message = f"subjects that are held out are missing, or not of the split test: {', '.join(wrong)}"
        raise InputError(message, remedy="make the table again by benchmarks.deep.cohort")
    count = len(HELD_OUT)
    places = [(i, (i + step) % count) for step in (1, 2) for i in range(count)]
    return [(known[HELD_OUT[a]], known[HELD_OUT[b]]) for a, b in places]


@dataclass(frozen=True)
class Prepared:
    """A pair as a file of `benchmarks.registration.cases`: its contrast, its name and where it is."""

    contrast: str
    name: str
    path: Path


def cases(folder: Path, out: Path, count: int, contrasts: tuple[str, ...]) -> Iterator[Prepared]:
    """Yield the first pairs in each contrast of the fixed image; what is there is kept.

    Parameters
    ----------
    folder : Path
        Of the cohort, with `training.tsv`.
    out : Path
        Folder of the cases.
    count : int
        Most pairs.
    contrasts : tuple of str
        Of `benchmarks.deep.contrast.CONTRASTS`.
    """
    for fixed, moving in held_out_pairs(read_training_table(folder / "training.tsv"))[:count]:
        name = f"{fixed.subject}+{moving.subject}"
        plain = out / f"{CONTRASTS[0]}-{name}.npz"
        if not plain.is_file():
            affine = common_affine(fixed, moving)
            paired(brain(fixed), brain(moving), affine, fixed.image).save(plain)
        for contrast in contrasts:
            path = out / f"{contrast}-{name}.npz"
            if not path.is_file():
                case = Case.load(plain)
                replace(case, fixed=other_contrast(case.fixed, contrast)).save(path)
            yield Prepared(contrast, name, path)


def common_affine(fixed: TrainingScan, moving: TrainingScan) -> np.ndarray:
    """Return the affine (4, 4) of our engine, fixed to moving points, LPS millimetres."""
    files = [str(file) for scan in (fixed, moving) for file in (scan.image, scan.mask)]
    pair = load_pair(files[0], files[1], files[2], files[3], fixed.subject)
    with tempfile.TemporaryDirectory(prefix="popatlas-affine-") as folder:
        return read_affine(align(pair, ATTEMPT, Path(folder)))


def brain(scan: TrainingScan) -> Brain:
    """Return a preprocessed brain, 0 outside, and its labels on its grid."""
    assert scan.mask is not None and scan.labels is not None
    image = nib.load(scan.image)
    values = np.asarray(image.dataobj, np.float32) * read_mask(scan.mask, scan.name).data
    labels = resample_labels(scan.labels, image)
    return nib.as_closest_canonical(nib.Nifti1Image(values, image.affine)), canonical(labels, image.affine)


def canonical(labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return labels in RAS order."""
    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image(labels, affine)).dataobj).astype(np.int16)
