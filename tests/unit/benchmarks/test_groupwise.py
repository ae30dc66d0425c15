"""The groupwise benchmark: label maps as anatomies, Dice over pairs, classes as tissues, and rows that are kept."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from benchmarks.common import Result, to_markdown
from benchmarks.groupwise import __main__ as bench
from benchmarks.groupwise.atlas import class_rows, pairwise_dice
from benchmarks.groupwise.cases import make_case
from benchmarks.groupwise.labelmaps import label_maps, merged

from popatlas.images.io import write_json


@pytest.fixture
def label_map(tmp_path):
    """Return the folder of a head of 30 mm: white in grey matter, fluid round it and far below, thalami, skull."""
    labels = np.full((40, 40, 60), 511, np.int16)  # extra-cerebral
    labels[5:35, 5:35, 5:55] = 24
    labels[10:30, 10:30, 30:50] = 3
    labels[15:25, 15:25, 35:45] = 2
    labels[18:22, 18:22, 40] = 10
    nib.save(nib.Nifti1Image(labels[::-1], np.diag([-1.0, 1, 1, 1])), tmp_path / "training_seg_01.nii.gz")
    return tmp_path


def test_label_maps_become_shares_of_tissues(label_map):
    (file,) = label_maps(label_map)
    tissues = merged(file, 3, 2, 4)
    assert float((tissues.sum(1) - 1).abs().max()) < 1e-6
    millilitres = tissues.sum((0, 2, 3, 4)) * 8
    assert float(millilitres[3]) == pytest.approx(10**3 - 16)
    assert float(millilitres[2]) == pytest.approx(20**3 - 10**3 + 16)
    assert 0 < float(millilitres[1]) < 30 * 30 * 30 - 20**3  # fluid far below the brain is background
    plane = merged(file, 2, 1, 4)
    assert plane.ndim == 4
    assert float(plane[0, 3].sum()) == 100 - 16  # the slice of the thalami
    assert label_maps(None) == []


def test_a_group_has_the_tissues_of_the_label_map(label_map):
    case = make_case(3, 2, 2.0, tissues=merged(label_maps(label_map)[0], 2, 1, 8))
    assert len(case.images) == 3
    assert 0.3 < case.index() < 2.0  # the longest vector has 2 mm
    assert 0.5 < case.dice() < 1


def test_dice_over_pairs_is_that_of_each_pair_and_label():
    one, other = np.array([0, 1, 1, 2, 2, 2]), np.array([1, 1, 0, 2, 2, 0])
    assert pairwise_dice([one, one]) == 1
    assert pairwise_dice([one, other]) == pytest.approx((2 * 1 / 4 + 2 * 2 / 5) / 2)
    assert pairwise_dice([one, one, other]) == pytest.approx((1 + 2 * 0.65) / 3)


def test_classes_count_for_the_tissue_that_they_share_most_with():
    truth = np.array([0, 0, 1, 1, 2, 2, 2, 3, 3, 3])
    classes = np.array([0, 0, 1, 1, 2, 4, 4, 3, 3, 2])  # two classes of grey matter
    rows = {row["tissue"]: row for row in class_rows(classes, [truth, truth, truth[::-1]], "x")}
    assert rows["csf"]["dice"] == 1
    assert rows["gm"]["dice"] == pytest.approx(2 * 3 / 7)
    assert rows["gm"]["classes"] == 2
    assert rows["wm"]["dice"] == pytest.approx(2 * 2 / 5)


def test_methods_that_were_not_run_keep_their_rows(tmp_path, monkeypatch):
    def row(method, index, level=5.0):
        return {"level_mm": level, "method": method, "gwi_mm": index}

    earlier = [row("unregistered", 2.0), row("xcoreg-ffd", 1.0), row("ants", 1.5), row("xcoreg-ffd", 3.0, 10.0)]
    write_json(tmp_path / "groupwise.json", {"rows": {"T": earlier}})
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    table = bench.with_others("T", pd.DataFrame([row("unregistered", 2.0), row("xcoreg-ffd", 0.5)]), bench.methods(3))
    assert table["method"].tolist() == ["xcoreg-ffd", "unregistered", "xcoreg-ffd", "ants"]
    assert table["gwi_mm"].tolist() == [3.0, 2.0, 0.5, 1.5]
    assert table.columns.tolist() == ["level_mm", "method", "gwi_mm"]


def test_remarks_stand_below_the_title_of_their_table():
    machine = dict.fromkeys(("processor", "antspyx", "deepbet", "SimpleITK", "monai", "numpy", "snakemake", "torch"), "1")
    rows = {"A": [{"x": 1.0}], "B": [{"x": 2.0}]}
    result: Result = {"benchmark": "b", "date": "d", "data": "", "machine": machine, "rows": rows, "bars": []}
    text = to_markdown({**result, "remarks": {"B": "Said."}})
    assert "## B\n\nSaid.\n\n| x |" in text
    assert text.count("Said.") == 1
