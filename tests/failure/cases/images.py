"""Images of the dataset that cannot be used."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from ..casebook import AFFINE, SHAPE, UNAVAILABLE, Case, indexed, noise, write

TITLE = "Images"


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
]
