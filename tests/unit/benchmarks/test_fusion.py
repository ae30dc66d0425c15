"""The fusion benchmark measures what it says: candidates in turn, registrations of known quality, tables by hand."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from benchmarks.common import Bar
from benchmarks.fusion.__main__ import bars, by_label, summary, wins, with_earlier
from benchmarks.fusion.cases import QUALITIES, Labelled, candidates, load_hippocampus, registered
from benchmarks.fusion.methods import OURS, PAPER, PEER, STAPLE, mean_dice, ways
from benchmarks.fusion.mixed import ARMS, LARGE, SMALL, mixed_bars, said
from benchmarks.fusion.sizes import size_bars, size_summary
from benchmarks.fusion.slices import middle_slices, padded

from popatlas.images.grid import Grid


def blob(name: str, shift: float) -> Labelled:
    """A bright ellipsoid in noise, moved along the first axis."""
    place = np.stack(np.meshgrid(*(np.arange(n) for n in (40, 36, 32)), indexing="ij"), axis=-1)
    radius = np.linalg.norm((place - [19.5 + shift, 17.5, 15.5]) / [9, 7, 6], axis=-1)
    noise = np.random.default_rng(len(name)).normal(0, 0.02, radius.shape)
    image = (np.exp(-(radius**2)) + noise + 0.1).astype(np.float32)
    return Labelled(name, image, (radius < 1).astype(np.int32) * (1 + (place[..., 1] > 17)), Grid.isotropic(image.shape))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    heads = [blob("a", 0), blob("bb", 3), blob("ccc", -3)]
    return list(registered(heads[:1], heads, tmp_path_factory.mktemp("cases")))


def test_qualities_are_what_they_are_called(files: list[Path]) -> None:
    scores = {}
    for quality in QUALITIES:
        stack, truth = candidates(files[0], (quality,))
        assert stack.names == ("bb", "ccc")  # not the target itself
        scores[quality] = np.mean([mean_dice(one, truth) for one in stack.labels])
    assert scores["deformable"] > 0.93
    assert scores["affine"] > 0.85
    assert scores["displaced"] < scores["affine"] - 0.1


def test_qualities_take_turns_and_a_second_run_reads_the_file(files: list[Path]) -> None:
    mixed, _ = candidates(files[0], ("displaced", "deformable"))
    for number, quality in enumerate(("displaced", "deformable")):
        np.testing.assert_array_equal(mixed.labels[number], candidates(files[0], (quality,))[0].labels[number])
    before = files[0].stat().st_mtime_ns
    assert list(registered([blob("a", 0)], [], files[0].parent)) == files
    assert files[0].stat().st_mtime_ns == before


def test_crops_are_read_in_ras_order(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4) + 1
    nib.save(nib.Nifti1Image(data, np.diag([-1.0, 1, 1, 1])), tmp_path / "images" / "x.nii.gz")
    nib.save(nib.Nifti1Image((data > 12).astype(np.uint8), np.diag([-1.0, 1, 1, 1])), tmp_path / "labels" / "x.nii.gz")
    (crop,) = load_hippocampus(tmp_path)
    assert crop.labels[0].all()
    assert not crop.labels[1].any()
    assert crop.image.max() == pytest.approx(24 / np.percentile(data, 99))


def rows() -> pd.DataFrame:
    scores = {
        "clean": {"majority": 0.90, STAPLE: 0.88, "jlf": 0.920, PEER: 0.921, OURS: 0.918, PAPER: 0.89},
        "noisy": {"majority": 0.60, STAPLE: 0.70, "jlf": 0.750, OURS: 0.780, PAPER: 0.73},
    }
    found = []
    for setting, methods in scores.items():
        for method, dice in methods.items():
            for target in range(6):
                for label, more in ((1, 0.01), (2, -0.01)):
                    seconds = 10.0 if method == PEER else 1.0
                    value = dice + more + 0.001 * target
                    found.append((setting, method, f"t{target}", label, value, seconds))
    return pd.DataFrame(found, columns=["setting", "method", "target", "label", "dice", "seconds"])


def test_summary_by_hand() -> None:
    table = summary(rows()).set_index(["setting", "method"])
    assert table.loc[("clean", "jlf"), "Dice"] == pytest.approx(0.9225)
    assert table.loc[("noisy", OURS), "- STAPLE"] == pytest.approx(0.08)
    assert table.loc[("clean", "jlf"), "n"] == 6
    # all six differences have one sign: 2 / 2^6 each, times the number of tests for the smallest
    assert table.loc[("noisy", OURS), "p (Holm)"] == pytest.approx(4 * 2 / 64)
    assert np.isnan(table.loc[("clean", STAPLE), "p (Holm)"])


def test_bars_by_hand() -> None:
    found = {bar.name.split(":")[0] + ":" + bar.name.split(":")[1][:24]: bar for bar in bars({"heads": {"rows": rows()}})}
    values = {name: (bar.value, bar.holds) for name, bar in found.items()}
    assert len(values) == 5
    gains = sorted(value for name, (value, _) in values.items() if "noisy" in name)
    assert gains == pytest.approx([3.0, 8.0])
    assert next(bar for name, bar in found.items() if "clean" in name).value == pytest.approx(0.2)
    assert next(bar for name, bar in found.items() if "CPU" in name).value == pytest.approx(0.1)
    assert sum(bar.holds for bar in found.values()) == 4  # 3.0 is below 4


def test_wins_by_label() -> None:
    labels = by_label(rows())
    assert labels["best"].tolist() == ["jlf", "jlf"]
    assert labels["next"].tolist() == [OURS, OURS]
    assert labels["margin"].tolist() == pytest.approx([0.002, 0.002])
    assert labels["ahead in"].tolist() == labels["n"].tolist() == [6, 6]
    assert wins(labels).to_numpy().tolist() == [["jlf", 2, pytest.approx(0.002)]]


def test_ways_without_training_and_peer() -> None:
    names = {"majority", "global similarity", "local similarity", STAPLE, "staple", "jlf"}
    assert set(ways(1, 0.3, None, peer=False)) == names


def test_bars_of_mixed_labels_by_hand() -> None:
    """Every arm has its number as Dice in points; the bars find theirs."""
    rows = []
    for number, arm in enumerate(ARMS):
        switches = {"data parameters": arm.parameters, "class weights": arm.weights}
        switches["fixed weighting"] = arm.fixed and arm.parameters
        row = {name: said(on) for name, on in switches.items()}
        row |= {"good labels": f"{100 * arm.good:.0f} %", "others": arm.sums if arm.good < 1 else ""}
        rows.append(row | {"network": number / 100, "AUC": number / 10})
    numbers = {(arm.good, arm.sums, arm.parameters, arm.weights, arm.fixed): n for n, arm in enumerate(ARMS)}
    without, published = numbers[(0.5, LARGE, False, True, True)], numbers[(0.5, LARGE, True, False, True)]
    plain = numbers[(0.5, LARGE, False, False, True)]
    large, small = (numbers[(0.5, sums, True, True, True)] / 10 for sums in (LARGE, SMALL))
    found = [bar.value for bar in mixed_bars(rows)]
    assert found == pytest.approx([published - without, published - plain, large, small])


def test_sizes_by_hand() -> None:
    """Three targets of one label: 20 % too large each, and following the true volumes exactly."""
    rows = [
        {"method": "x", "target": str(true), "label": 1, "true": true, "volume": 1.2 * true, "Dice": 0.5, "CPU s": 2.0}
        for true in (100, 150, 200)
    ]
    (row,) = size_summary(pd.DataFrame(rows)).to_dict("records")
    assert row["volume error, %"] == row["its size, %"] == pytest.approx(20)
    assert row["its SD, %"] == pytest.approx(0, abs=1e-9)
    table = [{**row, "setting": "clean", "method": name, "Dice": dice} for name, dice in (("staple", 0.75), (STAPLE, 0.5))]
    assert [(bar.value, bar.holds) for bar in size_bars("x", table)] == [
        (pytest.approx(20), False),
        (pytest.approx(25), True),
    ]
    assert (row["n"], row["correlation"], row["Dice"], row["CPU s"]) == (3, pytest.approx(1), 0.5, 2)


def test_tables_and_bars_that_are_not_new_stay() -> None:
    old = {
        "date": "2001-01-01",
        "rows": {"Experiment I": [{"a": 1}], "Experiment II": [{"a": 2}]},
        "bars": [{"name": "x", "value": 1.0, "threshold": 0.0, "holds": True}],
    }
    tables, judged, dates = with_earlier({"Experiment II": pd.DataFrame([{"a": 3}])}, [Bar("y", 0.0, 1.0, False)], old)
    assert {title: table["a"].tolist() for title, table in tables.items()} == {"Experiment I": [1], "Experiment II": [3]}
    assert [bar.name for bar in judged] == ["x", "y"] and dates == {"Experiment I": "2001-01-01"}


def test_slices_of_a_crop() -> None:
    labels = np.zeros((20, 5, 5), dtype=int)
    labels[6:13, 2, 2] = 2
    assert middle_slices(labels) == [6, 9, 12]
    assert padded(np.ones((3, 4)), (6, 5)).shape == (6, 5)
