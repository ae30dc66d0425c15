"""Conditional atlas of real heads: the volume of the ventricles along age, beside that of the single subjects.

Brains are brought rigidly to MNI152 (the rotation nearest to their affine, and the translation that joins the brains'
middles), at 2 mm, with their parcellations; sizes stay. Templates are made at five ages.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.common import Bar, at_least, at_most
from benchmarks.deep.cohort import prepare
from popatlas.groupwise.conditional import conditional_atlas, structure_volumes
from popatlas.groupwise.neighbours import ConditionalSettings
from popatlas.groupwise.template import reference_brain
from popatlas.images.grid import Grid
from popatlas.images.io import load_image, read_table
from popatlas.measures.scan import resample_labels
from popatlas.training.table import TrainingScan, read_training_table
from popatlas.transforms.affine import read_affine, rigid_part
from popatlas.transforms.chain import Affine, Chain

VENTRICLES = (49, 50, 51, 52)  # MUSE: lateral ventricles and their inferior horns
AGES = (30.0, 40.0, 50.0, 60.0, 70.0)
SPACING_MM = 2.0


def posed(scan: TrainingScan, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return brain and ventricles of a scan on the common grid, in its pose and of their own size."""
    assert scan.affine is not None and scan.labels is not None
    chain = Chain((Affine(torch.from_numpy(rigid_part(read_affine(scan.affine), grid.centre))),))
    image = load_image(scan.image)
    brain = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))[None, None]
    labels = np.isin(resample_labels(scan.labels, image), VENTRICLES).astype(np.float32)
    own = Grid.from_file(scan.image)
    ventricles = chain.apply(torch.from_numpy(labels)[None, None], own, grid)
    return chain.apply(brain, own, grid), ventricles


def age_tables(data: Path, cohort: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[Bar]]:
    """Return the ventricles' volume in the templates along age with their bands, the slopes, and what has to hold."""
    scans = read_training_table(prepare(data, cohort))
    people = read_table(data / "participants.tsv").set_index("participant_id")["age"].astype(float)
    ages = [float(people[f"sub-{scan.subject}"]) for scan in scans]
    image, affine = reference_brain(SPACING_MM)
    grid = Grid.from_affine(image.shape, affine)
    brains, ventricles = zip(*(posed(scan, grid) for scan in scans), strict=True)
    plan = ConditionalSettings()
    found = conditional_atlas(brains, ages, AGES, plan, names=[scan.name for scan in scans], progress=print)
    voxel_ml = SPACING_MM**3 / 1000
    single = voxel_ml * np.array([float(one.sum()) for one in ventricles])
    rows = []
    for one in found:
        (row,) = structure_volumes(one, ventricles, [1], plan, soft=True)
        near = [ages[i] for i in one.members]
        rows.append(
            {
                "age": one.value,
                "subjects": len(one.members),
                "effective": one.effective,
                "mean_age": float(np.dot(one.weights, near)),
                "atlas_ml": voxel_ml * row["volume"],
                "low_ml": voxel_ml * row["low"],
                "high_ml": voxel_ml * row["high"],
                "subjects_ml": float(np.dot(one.weights, single[one.members])),
            }
        )
    table = pd.DataFrame(rows)
    places = {
        "templates": (table["mean_age"], table["atlas_ml"]),
        "subjects, by the same kernel": (table["mean_age"], table["subjects_ml"]),
        "single subjects": (ages, single),
    }
    slopes = {name: float(np.polyfit(np.asarray(x), np.asarray(y), 1)[0]) for name, (x, y) in places.items()}
    ratio = slopes["templates"] / slopes["subjects, by the same kernel"]
    inside = float(((table["low_ml"] <= table["subjects_ml"]) & (table["subjects_ml"] <= table["high_ml"])).mean())
    return (
        table,
        pd.DataFrame({"ventricles of": slopes.keys(), "ml_per_year": slopes.values()}),
        [
            at_least("ages: slope of the templates over that of the subjects by the same kernel", ratio, 0.8),
            at_most("ages: the same, from above", ratio, 1.25),
            at_least("ages: share of the ages whose band holds the subjects' weighted mean", inside, 1.0),
        ],
    )
