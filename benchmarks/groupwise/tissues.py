"""Tissue volumes of real heads: mixtures with an atlas prior beside Atropos, and against a parcellation.

The prior is MNI152's tissue maps (nilearn wheel), brought to each brain by our engine (preset quick). The parcellation of
the dataset (MUSE, automatic) is merged to tissues by its published numbers; brainstem, ventral diencephalon and the basal
forebrain, which are mixed, count for none. It is a silver standard, so correlation tells more than bias.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.common import Bar, Record, at_least
from benchmarks.deep.cohort import prepare
from popatlas.groupwise.mixture import segment
from popatlas.groupwise.template import reference_brain
from popatlas.images.arrays import BoolArray, FloatArray
from popatlas.images.io import load_image, save_image
from popatlas.images.phantom import head_model
from popatlas.measures.scan import resample_labels
from popatlas.registration.attempt import register
from popatlas.registration.engines.registry import shipped_attempt
from popatlas.registration.pair import load_pair
from popatlas.training.table import TrainingScan, read_training_table
from popatlas.transforms.resample import Step, resample

TISSUES = ("csf", "gm", "wm")
# numbers of the MUSE parcellation
CSF = (1, 4, 11, 46, 49, 50, 51, 52)  # 1: the rest within the skull
WHITE = (40, 41, *range(81, 96))
GREY = (23, 30, 31, 32, 36, 37, 38, 39, 47, 48, 55, 56, 57, 58, 59, 60, 71, 72, 73, *range(100, 210))
METHODS = ("atlas prior alone", "mixtures (MvMM)", "Atropos")


def maps_of(folder: Path) -> tuple[Path, Path, list[Path]]:
    """Write the MNI brain, its mask and its tissue maps on one grid of 2 mm, and return their files."""
    image, affine = reference_brain(2.0)
    files = folder / "mni.nii.gz", folder / "mni_mask.nii.gz"
    save_image(image, affine, files[0])
    save_image((image > 0).astype(np.uint8), affine, files[1])
    head = head_model()
    maps = []
    for name in TISSUES:
        save_image(head.brain[name].astype(np.float32) / 255, head.affine, folder / f"fine_{name}.nii.gz")
        maps.append(folder / f"{name}.nii.gz")
        save_image(resample(files[0], folder / f"fine_{name}.nii.gz", [], "linear"), affine, maps[-1], np.float32)
    return *files, maps


def reference_of(labels: FloatArray) -> list[float]:
    """Return the voxels of each tissue in a parcellation."""
    return [float(np.isin(labels, numbers).sum()) for numbers in (CSF, GREY, WHITE)]


def atropos(image: Path, mask: BoolArray, prior: FloatArray) -> FloatArray:
    """Return the tissue probabilities (K, *shape) of Atropos with the same prior."""
    import ants

    brain = ants.image_read(str(image))
    inside = brain.new_image_like(mask.astype(np.float32))
    maps = [brain.new_image_like(np.ascontiguousarray(one)) for one in prior]
    found = ants.atropos(a=brain, x=inside, i=maps, m="[0.1,1x1x1]", c="[5,0]", priorweight=0.25)
    return np.stack([one.numpy() for one in found["probabilityimages"]])


def scan_rows(scan: TrainingScan, mni: tuple[Path, Path, list[Path]], folder: Path) -> Iterator[Record]:
    """Yield the tissue volumes (ml) of one scan by each method."""
    assert scan.mask is not None
    pair = load_pair(scan.image, scan.mask, mni[0], mni[1], scan.subject)
    found = register(pair, shipped_attempt("instance", "quick"), folder)
    chain = [Step(found.warp), Step(found.affine)]
    prior = np.stack([resample(scan.image, one, chain, "linear") for one in mni[2]]).astype(np.float32).clip(0, 1)
    image = np.asarray(load_image(scan.image).dataobj, dtype=np.float32)
    mask = np.asarray(load_image(scan.mask).dataobj) > 0
    assert scan.labels is not None
    truth = reference_of(np.asarray(resample_labels(scan.labels, load_image(scan.image))))
    voxel_ml = float(np.abs(np.linalg.det(load_image(scan.image).affine[:3, :3]))) / 1000
    for method in METHODS:
        started = time.process_time()
        if method == METHODS[0]:
            maps = prior * mask
        elif method == METHODS[1]:
            tensors = torch.from_numpy(image[None]), torch.from_numpy(prior), torch.from_numpy(mask)
            maps = segment(*tensors).posterior.numpy()
        else:
            maps = atropos(scan.image, mask, prior)
        row: Record = {"subject": scan.subject, "method": method, "cpu_s": time.process_time() - started}
        for tissue, one, known in zip(TISSUES, maps, truth, strict=True):
            row[tissue], row[f"true_{tissue}"] = voxel_ml * float(one.sum(dtype=np.float64)), voxel_ml * known
        yield row


def tissue_table(data: Path, cohort: Path, count: int | None) -> pd.DataFrame:
    """Return, for each method and tissue, correlation and bias against the parcellation over the scans."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        mni = maps_of(Path(name))
        for scan in read_training_table(prepare(data, cohort))[:count]:
            folder = Path(name) / scan.subject
            folder.mkdir()
            rows += list(scan_rows(scan, mni, folder))
            print(rows[-2], flush=True)
    table, found = pd.DataFrame(rows), []
    for method in METHODS:
        mine = table[table["method"] == method]
        for tissue in TISSUES:
            ours, known = mine[tissue].to_numpy(float), mine[f"true_{tissue}"].to_numpy(float)
            found.append(
                {
                    "method": method,
                    "tissue": tissue,
                    "correlation": float(np.corrcoef(ours, known)[0, 1]),
                    "mean_ml": float(ours.mean()),
                    "parcellation_ml": float(known.mean()),
                    "bias_ml": float((ours - known).mean()),
                    "cpu_s": float(mine["cpu_s"].mean()),
                    "scans": len(mine),
                }
            )
    return pd.DataFrame(found)


def tissue_bars(table: pd.DataFrame) -> list[Bar]:
    """Return what has to hold."""
    mine = table[table["method"] == METHODS[1]].set_index("tissue")["correlation"].to_dict()
    return [
        at_least(f"tissues: correlation of {name} volumes with the parcellation", mine[name], 0.9) for name in ("gm", "wm")
    ]
