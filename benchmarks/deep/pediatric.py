"""The ablation of the Pediatric DeepReg study on IXI: what to align before a network is trained, and at which resolution.

Pediatric DeepReg (WBIR 2022) trains DeepReg's U-Net on pairs of scans of one child with no, rigid, or rigid and affine
alignment, at two resolutions. Here the pairs are of different adults. `none` is a shift between the centres of mass (after
the headers), `rigid` and `affine` are ours, towards MNI152. All six networks are trained with the same number of steps.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import wilcoxon

from benchmarks.common import Record
from benchmarks.deep.cohort import ATTEMPT
from benchmarks.deep.contrast import TISSUES, tissues
from benchmarks.deep.pairs import held_out_pairs
from benchmarks.deep.rows import TissueScores, TrainingRow
from benchmarks.registration.scores import regularity
from popatlas.errors import InputError
from popatlas.images.io import read_json, write_json, write_table
from popatlas.measures.overlap import overlap
from popatlas.networks.registration import RegistrationNetwork, load_registration_network
from popatlas.registration.linear import align, find_start
from popatlas.registration.pair import load_pair
from popatlas.training.conform import Volume, load_scan
from popatlas.training.recipe import Recipe, load_recipe
from popatlas.training.sources import training_grid
from popatlas.training.table import TrainingScan, read_training_table
from popatlas.training.train import WEIGHTS, Options, train
from popatlas.transforms.fields import warp_labels
from popatlas.transforms.itk import write_affine

STARTS = ("none", "rigid", "affine")
SHAPES = {2: [80, 96, 80], 3: [56, 64, 56]}  # millimetres -> voxels
RATE = 5e-4  # five times that of the study, whose trainings are far longer
USELESS = "no better than without registration"  # what training says then


def run_pediatric(table: Path, out: Path, count: int, steps: int) -> list[TrainingRow]:
    """Train where there is no network yet, and return a row for each start, resolution and pair.

    Parameters
    ----------
    table : Path
        `training.tsv` of the cohort, with its affines.
    out : Path
        Folder; trainings in it go on, finished ones and their scores are kept.
    count : int
        Most pairs.
    steps : int
        Of each training.
    """
    rows: list[TrainingRow] = []
    for start in STARTS:
        scans = read_training_table(aligned_table(table, out / f"start-{start}", start))
        for spacing in SHAPES:
            folder = out / f"{start}-{spacing}mm-{steps}-{RATE:g}"
            file = folder / f"scores-{count}.json"
            if not file.is_file():
                recipe = recipe_of(spacing, steps)
                net = learn(recipe, out / f"start-{start}" / "training.tsv", folder)
                scores = evaluate(net, recipe, scans, count)
                base = {"start": start, "mm": spacing, "steps": steps, "learnt": net is not None}
                write_json(file, [{**base, **row} for row in scores])
            rows += read_json(file)
    return rows


def learn(recipe: Recipe, table: Path, folder: Path) -> RegistrationNetwork | None:
    """Train, or go on; None when training says that the network never became better than no registration."""
    try:
        train(recipe, table, folder, Options("cuda" if torch.cuda.is_available() else "cpu"))
    except InputError as error:
        if USELESS not in error.message:
            raise
        print(error.message, flush=True)
        return None
    return load_registration_network(folder / WEIGHTS)[0].eval()


def recipe_of(spacing: int, steps: int) -> Recipe:
    """Return the recipe at a resolution, with a rate, validations and checkpoints that fit a short training."""
    every = max(1, steps // 8)
    often = {"validate_every": every, "checkpoint_every": every, "record_every": max(1, steps // 40)}
    plan = {"steps": steps, "rate": RATE, "precision": "bfloat16", **often}
    return load_recipe("pediatric", {"grid": {"shape": SHAPES[spacing], "spacing_mm": float(spacing)}, "schedule": plan})


def aligned_table(table: Path, folder: Path, start: str) -> Path:
    """Write the table of the cohort with the affines of a start, which are made where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for scan in read_training_table(table):
        assert scan.mask is not None and scan.labels is not None and scan.affine is not None
        affine = scan.affine if start == "affine" else folder / f"{scan.name}.mat"
        if not affine.is_file():
            align_to_template(table.parent, scan, start, folder).replace(affine)
        files = {"image": scan.image, "labels": scan.labels, "mask": scan.mask, "affine": affine}
        paths = {name: str(path.resolve()) for name, path in files.items()}
        rows.append({"subject": scan.subject, **paths, "split": scan.split})
    write_table(pd.DataFrame(rows), folder / "training.tsv")
    return folder / "training.tsv"


def align_to_template(cohort: Path, scan: TrainingScan, start: str, folder: Path) -> Path:
    """Return the file of a shift ("none") or a rigid transform, MNI152 to scan points."""
    files = [str(file) for file in (cohort / "mni152.nii.gz", cohort / "mni152_mask.nii.gz", scan.image, scan.mask)]
    pair = load_pair(files[0], files[1], files[2], files[3], scan.subject)
    if start == "rigid":
        return align(pair, ATTEMPT, folder, kinds=("rigid",))
    write_affine(folder / "shift.mat", find_start(pair, ATTEMPT.start, folder))
    return folder / "shift.mat"


@torch.no_grad()
def evaluate(net: RegistrationNetwork | None, recipe: Recipe, scans: list[TrainingScan], count: int) -> list[TissueScores]:
    """Return Dice of each tissue before and after, folded share and seconds of each pair; without a network, of no field."""
    grid = training_grid(recipe, scans)
    volumes = {scan.name: load_scan(scan, grid) for scan in scans if scan.split == "test"}
    torch.set_num_threads(1)
    rows: list[TissueScores] = []
    for fixed, moving in held_out_pairs(scans)[:count]:
        one, other = volumes[fixed.name], volumes[moving.name]
        started = time.monotonic()
        nothing = torch.zeros(1, 3, *one.image.shape[2:])
        displacement = nothing if net is None else net(one.image, other.image).displacement
        seconds = None if net is None else time.monotonic() - started
        inside = tissue_map(one)[0, 0].numpy() > 0
        rows.append(
            {
                "case": f"{fixed.subject}+{moving.subject}",
                "seconds": seconds,
                "before": tissue_dice(one, other, nothing),
                "after": tissue_dice(one, other, displacement),
                "folded_percent": 100 * regularity(displacement[0].numpy(), inside)["folded"],
            }
        )
    return rows


def tissue_map(volume: Volume) -> torch.Tensor:
    """Return the tissues (1, 1, *shape) of a scan."""
    assert volume.labels is not None
    return torch.from_numpy(tissues(volume.labels.numpy()).astype(np.int32))


def tissue_dice(fixed: Volume, moving: Volume, displacement: torch.Tensor) -> dict[str, float]:
    """Return the Dice of each tissue."""
    warped = warp_labels(tissue_map(moving), displacement, padding="zeros")
    found = overlap(tissue_map(fixed)[0, 0].numpy(), warped[0, 0].numpy()).set_index("label")["dice"]
    return {name: float(found[tissue]) for tissue, name in TISSUES.items()}


def pediatric_table(rows: list[TrainingRow]) -> pd.DataFrame:
    """Return mean and SD of the Dice of each tissue, median share of folded voxels and seconds, as the study prints them."""
    found = []
    for _, group in pd.DataFrame(rows).groupby(["start", "mm"], sort=False):
        row: Record = {
            "start": group["start"].iloc[0],
            "mm": group["mm"].iloc[0],
            "pairs": len(group),
            "steps": group["steps"].iloc[0],
            "learnt": bool(group["learnt"].iloc[0]),
        }
        for when in ("before", "after"):
            dice = pd.DataFrame(list(group[when]))
            row |= {f"{name} {when}": dice[name].mean() for name in dice}
            if when == "after":
                row |= {f"{name} SD": dice[name].std() for name in dice}
                row["mean of tissues"] = dice.mean(axis=1).mean()
        row["% folded, median"] = group["folded_percent"].median()
        found.append(row | {"s per pair": group["seconds"].astype(float).mean()})
    return pd.DataFrame(found)


def pediatric_tests(rows: list[TrainingRow]) -> pd.DataFrame:
    """Return the one-sided Wilcoxon signed-rank tests of the study: more alignment, finer voxels, each tissue by itself."""
    table = pd.DataFrame(rows)
    dice = {key: pd.DataFrame(list(group["after"])) for key, group in table.groupby(["start", "mm"])}
    plan = [((more, mm), (less, mm)) for mm in SHAPES for more, less in (("rigid", "none"), ("affine", "rigid"))]
    plan += [((start, 2), (start, 3)) for start in STARTS]
    found = []
    for better, worse in plan:
        for tissue in TISSUES.values():
            gain = (dice[better][tissue] - dice[worse][tissue]).to_numpy()
            p = float(wilcoxon(gain, alternative="greater").pvalue) if gain.any() else 1.0
            names = [f"{start} at {mm} mm" for start, mm in (better, worse)]
            found.append(
                {"better?": names[0], "than": names[1], "tissue": tissue, "n": len(gain), "gain": gain.mean(), "p": p}
            )
    return pd.DataFrame(found)
