"""The benchmark of LabelReg: nobody of a training is scored, voxels have their true size, scores in closed form."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from benchmarks.labelreg.cases import FOLDS, SPACING, fold_splits, fold_table, prepare, read_pairs
from benchmarks.labelreg.methods import Loaded, nothing, shifted
from benchmarks.labelreg.scores import score

from popatlas.training.labelfiles import check_structures
from popatlas.training.table import read_training_table

NAMES = [f"case{number:02d}" for number in range(27)]
SIZES = {"fixed": (45, 59, 41), "moving": (48, 64, 48)}


def blob(shape: tuple[int, ...], start: tuple[int, ...], side: int) -> np.ndarray:
    labels = np.zeros(shape)
    labels[tuple(slice(low, low + side) for low in start)] = 1
    return labels


def write(folder: Path, count: int) -> None:
    """Pairs whose middles meet at voxel 22, 29, 20 and 24, 32, 24; the gland is 2 voxels apart, the landmark 5."""
    for number in range(count):
        for side, shape, gland, mark in (
            ("fixed", SIZES["fixed"], (15, 20, 10), (18, 25, 15)),
            ("moving", SIZES["moving"], (18, 22, 13), (21, 32, 21)),
        ):
            labels = np.stack([blob(shape, gland, 12), blob(shape, mark, 4)], -1)
            for what, data in (("images", np.random.default_rng(number).random(shape)), ("labels", labels)):
                file = folder / "train" / f"{side}_{what}" / f"{NAMES[number]}.nii.gz"
                file.parent.mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image((255 * data if what == "images" else data).astype(np.float64), np.eye(4)), file)


def test_each_pair_is_scored_once_by_a_network_that_has_not_seen_it() -> None:
    splits = [fold_splits(NAMES, fold) for fold in range(FOLDS)]
    held = [[name for name, split in one.items() if split == "test"] for one in splits]
    assert sorted(chain.from_iterable(held)) == NAMES
    for one in splits:
        counts = [list(one.values()).count(split) for split in ("train", "validation", "test")]
        assert counts == [22, 2, 3]


def test_the_table_pairs_ultrasound_with_mr_and_scores_are_exact(tmp_path: Path) -> None:
    write(tmp_path / "data", 4)
    (tmp_path / "out").mkdir()
    table = prepare(tmp_path / "data", tmp_path / "out")
    scans = read_training_table(fold_table(table, 0))
    assert [scan.name for scan in scans[:2]] == ["case00_us", "case00_mr"] and check_structures(scans) == 2
    pair = read_pairs(table)[1]
    assert nib.load(pair.fixed.image).shape == (46, 60, 42)
    assert nib.load(pair.fixed.image).header.get_zooms() == pytest.approx((SPACING,) * 3)
    loaded = Loaded.of(pair)
    before = score(loaded.fixed, loaded.moving, nothing(loaded))
    # the middles of 46 x 60 x 42 and 48 x 64 x 48 voxels are 1, 2 and 3 voxels apart
    assert before["gland_mm"] == pytest.approx(SPACING * 2, rel=1e-5)
    assert before["gland_dice"] == pytest.approx(10 / 12, rel=1e-5)
    assert before["tre_mm"] == pytest.approx(SPACING * np.hypot(np.hypot(2, 5), 3), rel=1e-5)
    assert before["landmarks"] == 1 and before["landmark_dice"] == 0
    after = score(loaded.fixed, loaded.moving, shifted(loaded))
    assert after["gland_dice"] == pytest.approx(1) and after["gland_mm"] == pytest.approx(0, abs=1e-4)
    assert after["folded"] == 0 and not torch.isnan(shifted(loaded)).any()
