"""The 2D network on axial slices of held-out subjects: the same places of MNI152 in two brains, aligned by their affines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.deep.engines import REFINEMENTS, SLICES, load_network
from benchmarks.deep.pairs import held_out_pairs
from benchmarks.deep.rows import SliceRow, SliceScores
from benchmarks.registration.cases import Array
from benchmarks.registration.peers import Fields, Run, load_instance
from benchmarks.registration.scores import large_labels, regularity
from benchmarks.registration.worker import timed
from popatlas.images.intensity import rescaled
from popatlas.images.io import read_json, write_json
from popatlas.measures.overlap import overlap
from popatlas.registration.engines.ffd import core as ffd
from popatlas.registration.engines.ffd.settings import ENGINE as FFD
from popatlas.registration.engines.ffd.settings import FFDSettings
from popatlas.registration.engines.instance.settings import ENGINE as INSTANCE
from popatlas.settings import Content, as_content
from popatlas.training.conform import Volume, load_slices
from popatlas.training.recipe import Recipe, load_recipe
from popatlas.training.sources import training_grid
from popatlas.training.table import read_training_table
from popatlas.transforms.fields import invert, warp_labels

HEIGHTS = 5
SMALLEST = 20  # pixels that a structure needs in both slices


def load_ffd(preset: str) -> Run:
    """Return our control-point engine with one of its presets."""
    settings = FFD.presets[preset]
    assert isinstance(settings, FFDSettings)

    def run(fixed: Array, moving: Array) -> Callable[[], Fields]:
        images = [rescaled(torch.from_numpy(image)[None, None]) for image in (fixed, moving)]
        forward = ffd.register(images[0], images[1], settings).displacement.detach()
        inverse = invert(forward)
        return lambda: (forward[0].numpy(), inverse[0].numpy())

    return run


def presets() -> dict[str, Content]:
    """Return what the presets of our engines say."""
    return {engine.name: as_content(engine.presets["default"]) for engine in (INSTANCE, FFD)}


def load_nothing() -> Run:
    """Return what leaves the slices as they are."""
    return lambda fixed, moving: lambda: (np.zeros((fixed.ndim, *fixed.shape), np.float32), None)


def engines(digest: str) -> dict[str, Run]:
    """Return the engines; the network where it is there."""
    found = {"affine": load_nothing()}
    if digest:
        found |= {SLICES: load_network(SLICES), f"{SLICES}+10": load_network(SLICES, REFINEMENTS[10])}
    else:
        print(f"skipped {SLICES}: there are no weights {SLICES}", flush=True)
    return found | {"instance-default": load_instance("default"), "ffd-default": load_ffd("default")}


def heights(recipe: Recipe) -> list[float]:
    """Return `HEIGHTS` places evenly over those that the network was trained on, mm."""
    low, high = recipe.grid.slices_mm
    return [float(place) for place in np.linspace(low, high, HEIGHTS)]


def run_slices(table: Path, out: Path, count: int, digest: str) -> list[SliceRow]:
    """Return a row for each pair, height and engine; kept in `slices.json` while pairs, weights and presets are the same."""
    file, key = out / "slices.json", {"pairs": count, "weights": digest, "refine": REFINEMENTS[10], "presets": presets()}
    if file.is_file() and (kept := read_json(file))["of"] == key:
        return list(kept["rows"])
    torch.set_num_threads(1)
    scans, recipe = read_training_table(table), load_recipe(SLICES)
    grid, places = training_grid(recipe, scans), heights(recipe)
    volumes = {scan.name: load_slices(scan, grid, places) for scan in scans if scan.split == "test"}
    runs = engines(digest)
    rows: list[SliceRow] = []
    for fixed, moving in held_out_pairs(scans)[:count]:
        for number, place in enumerate(places):
            pair = volumes[fixed.name][number], volumes[moving.name][number]
            case = f"{fixed.subject}+{moving.subject}"
            rows += [
                {"case": case, "height_mm": place, "engine": name, **slice_scores(run, *pair)} for name, run in runs.items()
            ]
    write_json(file, {"of": key, "rows": rows})
    return rows


def slice_scores(run: Run, fixed: Volume, moving: Volume) -> SliceScores:
    """Return Dice over the labels, folded share and seconds of an engine on one pair of slices."""
    collect, cpu, wall = timed(lambda: run(fixed.image[0, 0].numpy(), moving.image[0, 0].numpy()))
    forward = collect()[0]
    assert fixed.labels is not None and moving.labels is not None
    warped = warp_labels(moving.labels, torch.from_numpy(forward)[None], padding="zeros")
    images = [labels[0, 0].numpy() for labels in (fixed.labels, moving.labels, warped)]
    brain = images[0] > 0
    shape = regularity(forward, brain)
    return {"dice": label_dice(*images), "folded": shape["folded"], "sdlogj": shape["sdlogj"], "cpu_s": cpu, "wall_s": wall}


def label_dice(fixed: np.ndarray, moving: np.ndarray, warped: np.ndarray) -> float:
    """Return the mean Dice of the warped labels over those with `SMALLEST` pixels in both slices before."""
    names = large_labels(fixed, moving, SMALLEST)
    return float(overlap(fixed, warped).set_index("label")["dice"].reindex(names).mean())


def slice_table(rows: list[SliceRow]) -> pd.DataFrame:
    """Return the means of each engine."""
    groups = pd.DataFrame(rows).groupby("engine", sort=False)
    means = groups[["dice", "folded", "sdlogj", "cpu_s", "wall_s"]].mean()
    return means.assign(slices=groups.size(), dice_sd=groups["dice"].std()).reset_index()
