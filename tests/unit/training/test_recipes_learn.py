"""Every recipe learns: tiny networks, phantoms, seconds; scored on subjects that the training has not seen.

The phantoms are unregistered as affinely aligned brains are: what is left between them is smooth and local. A recipe that
does not beat that has a wrong sign, scale or start somewhere, whatever its other tests say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from popatlas.images.io import save_image, write_table
from popatlas.networks.registration import load_registration_network
from popatlas.settings import merge
from popatlas.training.recipe import Recipe, load_recipe, parse_changes, recipe_names
from popatlas.training.sources import ScanSource
from popatlas.training.table import read_training_table
from popatlas.training.train import train
from popatlas.training.validation import validate
from tests.unit.phantom_scans import subject

SHORT = "schedule={warm_up: 10, decay: cosine, validation_pairs: 12, checkpoint_every: 1000, record_every: 1000}"
OTHER = (0.0, 0.4, 0.95, 0.75, 0.2)  # grey values of the labels in a second contrast, in another order than in the first


@dataclass(frozen=True)
class Case:
    """A recipe made small.

    Attributes
    ----------
    recipe : str
        Name.
    changes : tuple of str
        Network and losses of tiny images.
    gain : float
        Dice that held-out pairs gain at least, at most 0.6 of the least that was measured.
    steps, batch, rate : int, int, float
        Of the training.
    shape : tuple of int
        Of the grid.
    scans : str
        Which cohort, see `cohorts`.
    other : bool
        Moving images have another contrast than fixed ones.
    """

    recipe: str
    changes: tuple[str, ...]
    gain: float
    steps: int = 250
    batch: int = 4
    rate: float = 0.005
    shape: tuple[int, ...] = (32, 32)
    scans: str = "flat"
    other: bool = False

    def __str__(self) -> str:
        return f"{self.recipe}-{len(self.shape)}d-{self.scans}"

    def load(self) -> Recipe:
        """Return the recipe; a single validation, the last one, so that nothing is chosen by the held-out subjects."""
        plan = {"steps": self.steps, "validate_every": self.steps, "batch": self.batch, "rate": self.rate}
        own = {"grid": {"shape": list(self.shape), "spacing_mm": 2.0}, "schedule": plan}
        return load_recipe(self.recipe, merge(own, parse_changes([SHORT, *self.changes])))


UNET = "{encoder: [8, 16, 16], decoder: [16, 16, 16], final: [8]}"
HALF = "{encoder: [8, 16, 16], decoder: [16, 16, 16, 8], final: []}"
FAST = ("network.options={widths: [8, 16, 16], blocks: [0, 0, 0]}", "loss.labels={shrink: 1, count: 4}")
MASK = "network.options={encoder: [8, 16, 16], decoder: [16, 16, 16], final: [8], mask_decoder: [8, 8, 8], mask_final: [4]}"
LIGHT = (
    "network.options={widths: [16, 32, 32], blocks: [0, 0, 0], passes: 1}",
    "loss.labels={shrink: 1, count: 4}",
    "synthesis.options={same: 1.0, contrast: {blur: 0.5, bias: 0.1}}",
    "synthesis.options.motion={rotation: 0.0, scale: 0.04, shear: 0.0, shift: 2.0, bend: 2.0, bend_spacing: [10.0, 16.0]}",
)
BOXES = Case("bounding-boxes", ("network.options={maps: 4, widths: [8, 16, 16]}",), 0.1, steps=200, rate=0.003)
SLICES = (*FAST, "grid.slices_mm=[-8, 8]")
RIGID = (
    "network.options={widths: [8, 16, 16]}",
    "augment={common: {rotation: 0.0, shift: 0.0}, each: {motion: {rotation: 20.0, shift: 8.0}}}",
)
LABELREG = ("network.options={channels: 4, halvings: 3}", "loss.labels.count=3")
FLAT = [
    BOXES,
    Case("brain-contrast", LIGHT, 0.04, steps=400, rate=0.006, other=True),
    Case("brain-t1w", FAST, 0.1, steps=150),
    Case("brain-t1w-2d", SLICES, 0.04, steps=150, shape=(24, 24), scans="solid"),
    Case("dual-prnet", ("network.options.widths=[8, 16, 16]",), 0.045, steps=150),
    Case("dual-prnet-plus", ("network.options.widths=[8, 16, 16]",), 0.045, steps=150),
    Case("labelreg", LABELREG, 0.035, steps=200, rate=0.006, other=True),
    Case("masked-fcn", (MASK,), 0.08, steps=400),
    Case("pediatric", ("network.options.widths=[8, 16, 16]",), 0.07, steps=200),
    Case("rcn", ("network.options={cascades: 2, widths: [8, 16, 16]}",), 0.1, steps=200, rate=0.003),
    Case("rigid", RIGID, 0.1, steps=120, rate=0.004),
    Case("voxelmorph", (f"network.options={UNET}",), 0.07),
    Case("voxelmorph-diffeo", (f"network.options={HALF}",), 0.07),
]
CUBE = (24, 24, 24)
STIFF = ("loss.regulariser.reduction=sum",)  # with the published mean 1 % of the voxels of so small images fold
SOLID = [
    Case("brain-t1w", (FAST[0], "loss.labels.count=4"), 0.05, steps=80, batch=2, shape=CUBE, scans="solid"),
    Case("labelreg", LABELREG, 0.055, steps=80, rate=0.003, shape=CUBE, scans="solid", other=True),
    Case("voxelmorph", (f"network.options={UNET}", *STIFF), 0.05, steps=120, batch=2, rate=0.006, shape=CUBE, scans="solid"),
]


def second_contrast(labels: torch.Tensor, number: int) -> torch.Tensor:
    noise = 0.01 * torch.randn(labels.shape, generator=torch.Generator().manual_seed(1000 + number))
    return torch.where(labels > 0, (torch.tensor(OTHER)[labels.long()] + noise).clamp(0.05, 1), 0)


def write_cohort(folder: Path, size: int, ndim: int, train: int, held: int) -> None:
    """Write subjects of both contrasts; `same.tsv` pairs the first one, `other.tsv` first (fixed) with second (moving)."""
    folder.mkdir()
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    rows = []
    for number in range(train + held):
        image, labels = subject(number, size, ndim)
        for name, values, kind in (
            ("one", image, np.float32),
            ("two", second_contrast(labels, number), np.float32),
            ("dseg", labels, np.int16),
        ):
            save_image(values[0, 0].numpy(), affine, folder / f"{number}_{name}.nii.gz", kind)
        split = "train" if number < train else "validation"
        rows.append({"subject": f"{number}", "labels": f"{number}_dseg.nii.gz", "split": split})
    write_table(pd.DataFrame([row | {"image": f"{row['subject']}_one.nii.gz"} for row in rows]), folder / "same.tsv")
    pairs = []
    for fixed in rows:
        for moving in rows:
            if fixed is not moving and fixed["split"] == moving["split"]:
                group = f"{fixed['subject']}to{moving['subject']}"
                for row, name in ((fixed, "one"), (moving, "two")):
                    image = f"{row['subject']}_{name}.nii.gz"
                    pairs.append(row | {"image": image, "session": f"{group}{name}", "group": group})
    write_table(pd.DataFrame(pairs), folder / "other.tsv")


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `flat` (2D) and `solid` (3D); the last subjects are held out."""
    folder = tmp_path_factory.mktemp("cohorts")
    write_cohort(folder / "flat", 32, 2, train=20, held=4)
    write_cohort(folder / "solid", 24, 3, train=10, held=3)
    return folder


def test_every_recipe_is_tried() -> None:
    assert [case.recipe for case in FLAT] == recipe_names()


def trained(case: Case, cohorts: Path, folder: Path) -> dict[str, float]:
    """Train, and score the weights file on all pairs of the held-out subjects."""
    recipe, table = case.load(), cohorts / case.scans / ("other.tsv" if case.other else "same.tsv")
    assert train(recipe, table, folder, report=lambda line: None).finished
    net, _ = load_registration_network(folder / "weights.safetensors")
    return validate(net, ScanSource(recipe, read_training_table(table)).validation())


@pytest.mark.parametrize("case", [*FLAT, *SOLID], ids=str)
def test_a_recipe_beats_unregistered_pairs_of_unseen_subjects(case: Case, cohorts: Path, tmp_path: Path) -> None:
    scores = trained(case, cohorts, tmp_path)
    assert scores["dice"] > scores["dice_before"] + case.gain
    assert scores["folded"] < 0.005
    if not case.other:
        assert scores["ncc"] > scores["ncc_before"] + 0.05


def test_boxes_help(cohorts: Path, tmp_path: Path) -> None:
    """Without them the same training reaches less."""
    without = replace(BOXES, changes=(*BOXES.changes, "loss.boxes.weight=0"))
    dice = [trained(case, cohorts, tmp_path / name)["dice"] for case, name in ((BOXES, "with"), (without, "without"))]
    assert dice[0] > dice[1] + 0.02


def test_the_contrasts_have_nothing_in_common_but_shapes(cohorts: Path) -> None:
    """Else the recipes that are told to work with them would not be tried."""
    recipe = next(case for case in FLAT if case.recipe == "labelreg").load()
    pairs = ScanSource(recipe, read_training_table(cohorts / "flat" / "other.tsv")).validation()
    for pair in pairs:
        body = pair.fixed_labels == pair.moving_labels
        inside = (body & (pair.fixed_labels > 0)).flatten()
        both = torch.stack([pair.fixed.flatten()[inside], pair.moving.flatten()[inside]])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.9
