"""Rigid networks taught by the distance of grids (TGD) or by Euler angles, on brains whose motion is known.

    python -m benchmarks.rigid --data COHORT --out FOLDER [--steps N] [--quick]

COHORT is a preprocessed cohort with `training.tsv`, as `benchmarks.deep` makes it. The recipe `rigid` is trained twice, once
with each of its losses, all else alike: a brain of the training split and its copy after a random rotation of up to 30
degrees about each axis and a shift of up to 20 mm, both in changed looks. The test is on subjects that no training saw, with
motions that are the same for all: the target error is the mean distance of the brain's voxels from where they belong. Beside
the networks stand our rigid stage from the centres of mass and our search (CSNGF) on the same images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.common import at_most, parser, report
from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.io import read_table, write_table
from popatlas.images.scan import Scan
from popatlas.networks.registration import Prediction, load_registration_network
from popatlas.registration.engines.affine import register
from popatlas.registration.global_search.csngf import search
from popatlas.registration.initialisation import centre_of_mass
from popatlas.training.conform import load_scan
from popatlas.training.objective import Batch
from popatlas.training.pose import grid_distance
from popatlas.training.randomness import step_generator
from popatlas.training.recipe import Recipe, load_recipe
from popatlas.training.sources import moved_pair, training_grid
from popatlas.training.table import read_training_table
from popatlas.training.train import train
from popatlas.transforms.fields import coordinates

KINDS = {"grid": "network, distance of grids", "euler": "network, Euler angles"}
STEPS, QUICK_STEPS = 300, 100
SIDE, SPACING = 32, 5.0  # voxels and mm: coarser than the recipe's, since the budget is CPU seconds
MOTIONS = 4  # of each test subject
SLOW = ("rigid stage", "CSNGF")  # they are asked about the first motion of each subject
NEAR = 5.0  # mm
Find = Callable[[Batch], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A test pair and its subject."""

    subject: str
    pair: Batch


def recipe_of(kind: str, steps: int) -> Recipe:
    """Return the recipe with a loss, for a short training."""
    schedule = {"steps": steps, "validate_every": min(100, steps), "record_every": 50, "warm_up": steps // 20}
    changes = {
        "grid": {"shape": [SIDE] * 3, "spacing_mm": SPACING},
        "network": {"options": {"widths": [16, 32, 64], "cells": 4}},
        "loss": {"pose": {"kind": kind, "weight": 1.0}},
        "schedule": schedule,
    }
    return load_recipe("rigid", changes)


def without_labels(table: Path, out: Path) -> Path:
    """Write the table without labels, which would be moved with each brain for nothing; return its path."""
    rows = read_table(table, dtype=str).drop(columns="labels")
    for column in ("image", "mask", "affine"):
        rows[column] = [str((table.parent / name).resolve()) for name in rows[column]]
    out.mkdir(parents=True, exist_ok=True)
    write_table(rows, out / "scans.tsv")
    return out / "scans.tsv"


def cases(recipe: Recipe, table: Path) -> Iterator[Case]:
    """Yield the test pairs, always the same."""
    scans = read_training_table(table)
    grid = training_grid(recipe, scans)
    for number, scan in enumerate(scan for scan in scans if scan.split == "test"):
        volume = load_scan(scan, grid, recipe.data.intensity, stripped=recipe.grid.stripped)
        for motion in range(MOTIONS):
            yield Case(scan.name, moved_pair(volume, recipe.augment, step_generator(number, motion, purpose="test")))


def by_network(weights: Path) -> Find:
    """Return the prediction of a trained network."""
    net, _ = load_registration_network(weights)
    net.eval()

    @torch.no_grad()
    def find(pair: Batch) -> torch.Tensor:
        found: Prediction = net(pair.fixed, pair.moving)
        return found.matrices[-1]

    return find


def by_engine(start: Callable[[Scan, Scan], np.ndarray], spacing: float, refine: bool) -> Find:
    """Return one of our starts and, where it is refined, the rigid stage from it."""

    def find(pair: Batch) -> torch.Tensor:
        shape = tuple(pair.fixed.shape[2:])
        centre = [-spacing * (n - 1) / 2 for n in shape]
        grid = Grid(shape, np.block([[spacing * np.eye(3), np.array(centre)[:, None]], [np.eye(4)[-1:]]]))
        fixed, moving = Scan(pair.fixed, grid), Scan(pair.moving, grid)
        matrix = start(fixed, moving)
        if refine:
            matrix = register(fixed, moving, kinds=("rigid",), initial=matrix).matrix
        found = torch.from_numpy(matrix[None, :3]).float()
        found[:, :, 3] /= spacing
        return found

    return find


def scores(case: Case, found: torch.Tensor, spacing: float) -> dict[str, float]:
    """Return the target error in the brain and the distance of the grids, both in mm, and the error of the rotation."""
    shape, truth = case.pair.fixed.shape[2:], case.pair.truth
    assert truth is not None
    change = (found - truth)[0]
    points = coordinates(shape)[0].flatten(1) - (torch.tensor(shape)[:, None] - 1) / 2
    inside = case.pair.fixed.flatten() > 0
    apart = spacing * (change[:, :3] @ points + change[:, 3:]).norm(dim=0)[inside]
    cosine = ((found[0, :, :3].T @ truth[0, :, :3]).trace() - 1) / 2
    return {
        "target_error": float(apart.mean()),
        "grid_distance": float(grid_distance(found, truth, shape, spacing)),
        "degrees": float(torch.rad2deg(cosine.clamp(-1, 1).acos())),
    }


def table_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the means of each method, the median and the share within `NEAR` of the target errors."""
    groups = rows.assign(near=rows["target_error"] < NEAR).groupby("method", sort=False)
    return groups.agg(
        cases=("target_error", "size"),
        target_error=("target_error", "mean"),
        target_error_median=("target_error", "median"),
        target_error_p95=("target_error", lambda values: values.quantile(0.95)),
        within_5_mm=("near", "mean"),
        grid_distance=("grid_distance", "mean"),
        degrees=("degrees", "mean"),
        seconds=("seconds", "mean"),
    ).reset_index()


def main() -> None:
    """Train what is not trained yet, test, print and write."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, help=f"of each training ({STEPS}; quick: {QUICK_STEPS})")
    options.add_argument("--networks", action="store_true", help="only the networks, which take hundredths of a second")
    args = options.parse_args()
    if args.data is None or args.out is None:
        options.error("give --data and --out")
    table, steps = args.data / "training.tsv", args.steps or (QUICK_STEPS if args.quick else STEPS)
    if not table.is_file():
        raise InputError("the cohort has no training.tsv", file=table, remedy="make it by benchmarks.deep")
    torch.set_num_threads(1)
    table = without_labels(table, args.out)
    methods: dict[str, Find] = {"not registered": lambda pair: torch.eye(3, 4)[None]}
    recipe = recipe_of("grid", steps)
    for kind, title in KINDS.items():
        folder = args.out / f"{kind}-{steps}"
        if not (folder / "weights.safetensors").is_file():
            train(recipe_of(kind, steps), table, folder)
        methods[title] = by_network(folder / "weights.safetensors")
    spacing = recipe.grid.spacing_mm
    if not args.networks:
        methods["rigid stage"] = by_engine(centre_of_mass, spacing, refine=True)
        methods["CSNGF"] = by_engine(lambda fixed, moving: search(fixed, moving).matrix, spacing, refine=False)
    rows = []
    for number, case in enumerate(cases(recipe, table)):
        for name, find in methods.items():
            if name in SLOW and number % MOTIONS:
                continue
            started = time.process_time()
            found = find(case.pair)
            rows.append({"method": name, "seconds": time.process_time() - started, **scores(case, found, spacing)})
    summary = table_of(pd.DataFrame(rows))
    errors = summary.set_index("method")["target_error"]
    bars = [
        at_most("target error by the distance of grids against Euler angles", errors[KINDS["grid"]], errors[KINDS["euler"]])
    ]
    title = f"Brains after known motions, trainings of {steps} steps of {recipe.schedule.batch} pairs: errors in mm"
    data = "IXI Hammersmith at 5 mm, 8 subjects held out of all trainings (brain-development.org, CC BY-SA 3.0)"
    report("rigid", {title: summary}, bars, args, data)


if __name__ == "__main__":
    main()
