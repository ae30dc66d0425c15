"""A cohort with label files, good and spoilt, for the tests of what is made of them."""

import nibabel as nib
import numpy as np

from popatlas.cohort.freeze import freeze_label_atlases
from popatlas.cohort.index import index_cohort
from popatlas.cohort.labelfiles import inspect_label_files
from popatlas.config.load import load_config
from popatlas.images.io import load_image, save_image
from popatlas.study.study import Study
from tests.cohorts import noise_cohort

NAMES = [f"sub-{number:02d}" for number in range(1, 7)]
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (36, 36, 36)


def scan(name):
    return f"{name}/anat/{name}"


class Setup:
    """A cohort of noise whose labels can be spoilt."""

    def __init__(self, folder):
        self.folder, self.bids, self.out = folder, noise_cohort(folder / "bids", NAMES), folder / "out"
        self.config = load_config({}, bids_dir=str(self.bids))
        self.index = index_cohort(self.config, self.out)
        self.scans = list(self.index["scan"])

    def label(self, name):
        return self.bids / f"derivatives/truth/{scan(name)}_desc-truth_dseg.nii.gz"

    def atlases(self):
        return list(freeze_label_atlases(self.config, self.index, self.scans, self.out)["atlas"])

    def inspect(self):
        return inspect_label_files(self.config, self.index, self.scans, self.out)

    def spoil(self, name, kind="fraction"):
        SPOIL[kind](self.label(name))

    def mask(self, name, inside):
        save_image(inside.astype(np.uint8), AFFINE, self.out / f"{scan(name)}_desc-brain_mask.nii.gz")

    def study(self):
        return Study.read(self.config, self.out)


def rewritten(change):
    def spoil(path):
        data, affine = change(np.asarray(load_image(path, np.float64).dataobj).copy(), AFFINE.copy())
        save_image(data, affine, path)

    return spoil


def no_forms(path):
    image = nib.load(path)
    image = nib.Nifti1Image(np.asarray(image.dataobj), AFFINE)
    image.set_sform(AFFINE, 0)
    image.set_qform(AFFINE, 0)
    nib.save(image, path)


SPOIL = {
    "NaN": rewritten(lambda data, affine: (np.where(data < 500, np.nan, data), affine)),
    "fraction": rewritten(lambda data, affine: (data / 2, affine)),
    "negative": rewritten(lambda data, affine: (-data, affine)),
    "4D": rewritten(lambda data, affine: (np.stack([data] * 2, -1), affine)),
    "empty": rewritten(lambda data, affine: (0 * data, affine)),
    "mirrored": rewritten(lambda data, affine: (data, affine @ np.diag([-1.0, 1, 1, 1]))),
    "moved": rewritten(lambda data, affine: (data, affine + 4 * np.eye(4, k=3))),
    "cropped": rewritten(lambda data, affine: (data[:-1], affine + 40 * np.eye(4, k=3))),
    "spacing": rewritten(lambda data, affine: (data[:-1], np.diag([0.1, 0.1, 0.1, 1]))),
    "no forms": no_forms,
    "bytes": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "link": lambda path: (path.unlink(), path.symlink_to("annexed")),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}
