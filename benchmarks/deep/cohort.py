"""The cohort: IXI brains from our own pipeline, affine to MNI152, and the fixed list of who is held out.

    python -m benchmarks.deep.cohort --data IXI_BIDS --out FOLDER

writes FOLDER/training.tsv, the table that `popatlas train` reads. Data from the IXI dataset, brain-development.org,
CC BY-SA 3.0.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmarks.common import parser, popatlas
from benchmarks.dataset import parcellations
from popatlas.groupwise.template import reference_brain
from popatlas.images.io import read_table, save_image, write_table, write_text
from popatlas.registration.engines.instance.settings import InstanceSettings
from popatlas.registration.linear import align
from popatlas.registration.pair import load_pair
from popatlas.registration.types import Attempt

# never seen in training; fixed once and for all
HELD_OUT = ("IXI057", "IXI126", "IXI239", "IXI277", "IXI441", "IXI485", "IXI577", "IXI636")
CHOOSERS = ("IXI079", "IXI282", "IXI538")  # of the other 24: the best step of a training is chosen by them
ATTEMPT = Attempt("mass", "affine", "instance", InstanceSettings())  # whose affine stage aligns scans and pairs
CONFIG = "preprocess: {resolution_mm: 2.0}\nfuse: {atlases: 0, methods: []}\n"


def preprocess(data: Path, out: Path) -> list[str]:
    """Run the preprocessing of the pipeline and return its scans; finished work is kept."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "config.yaml", CONFIG)
    popatlas("run", data, out, "--config", out / "config.yaml", "--cores", 2, "--until", "preprocess")
    index = read_table(out / "cohort" / "index.parquet")
    return sorted(index.loc[index["state"] == "ok", "scan"])


def align_all(scans: list[str], out: Path) -> None:
    """Align every brain to MNI152 by our affine engine: `{scan}_from-T1w_to-MNI152_mode-image_xfm.mat`."""
    image, affine = reference_brain(2.0)
    template, mask = out / "mni152.nii.gz", out / "mni152_mask.nii.gz"
    save_image(image, affine, template)
    save_image((image > 0).astype("uint8"), affine, mask)
    for scan in scans:
        target = affine_file(out, scan)
        if target.is_file():
            continue
        brain = out / f"{scan}_desc-brain_T1w.nii.gz"
        pair = load_pair(str(template), str(mask), str(brain), str(out / f"{scan}_desc-brain_mask.nii.gz"), scan)
        folder = out / "work" / "mni"
        folder.mkdir(parents=True, exist_ok=True)
        align(pair, ATTEMPT, folder).replace(target)
        print(f"{scan} aligned", flush=True)


def affine_file(out: Path, scan: str) -> Path:
    """Return the affine of a scan, MNI152 to scan points."""
    return out / f"{scan}_from-T1w_to-MNI152_mode-image_xfm.mat"


def training_table(data: Path, out: Path, scans: list[str]) -> pd.DataFrame:
    """Return the table of a training: images, parcellations, masks, affines, and who is held out."""
    rows = []
    for scan in scans:
        subject = scan.split("/")[0].removeprefix("sub-")
        split = "test" if subject in HELD_OUT else "validation" if subject in CHOOSERS else "train"
        labels = parcellations(data, scan)[0].resolve()
        files = {"image": f"{scan}_desc-brain_T1w.nii.gz", "labels": labels, "mask": f"{scan}_desc-brain_mask.nii.gz"}
        rows.append({"subject": subject, **files, "affine": affine_file(Path(), scan), "split": split})
    return pd.DataFrame(rows).astype(str)


def prepare(data: Path, out: Path) -> Path:
    """Make the table in a folder and return it; finished work is kept."""
    table = out / "training.tsv"
    if not table.is_file():
        scans = preprocess(data, out)
        align_all(scans, out)
        write_table(training_table(data, out, scans), table)
    return table


def main() -> None:
    """Make the table; finished work in the folder is kept."""
    args = parser(__doc__).parse_args()
    prepare(args.data, args.out)


if __name__ == "__main__":
    main()
