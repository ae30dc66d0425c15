"""The benchmark of deep registration: nobody of the training is scored, contrasts and tissues are what they say, bars."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from benchmarks.common import RESULTS, with_kept
from benchmarks.deep import runs
from benchmarks.deep.bars import contrast_bars, contrast_table, network_rows, pair_bars, pairs_table
from benchmarks.deep.cohort import CHOOSERS, HELD_OUT
from benchmarks.deep.contrast import CONTRASTS, CSF, GM, TISSUES, WM, other_contrast, tissues
from benchmarks.deep.engines import ENGINES, IMPORTED, REFINEMENTS, T1W
from benchmarks.deep.fine import doubled
from benchmarks.deep.front import front_bars, front_table
from benchmarks.deep.pairs import Prepared, brain, held_out_pairs
from benchmarks.deep.pediatric import pediatric_table, pediatric_tests
from benchmarks.deep.pipeline import pipeline_row
from benchmarks.deep.plot import draw
from benchmarks.deep.scores import CONTRAST_TITLE, PAIRS_TITLE, SLICES_TITLE, scores_of
from benchmarks.deep.slices import label_dice
from benchmarks.registration.cases import Case
from benchmarks.registration.scores import score, volume_error

from popatlas.errors import InputError
from popatlas.images.io import read_json
from popatlas.networks.registration import build_registration_network, save_registration_network
from popatlas.training.table import TrainingScan
from popatlas.zoo.metadata import CONTRACT, TRAINING, InputContract, TrainingFacts
from popatlas.zoo.store import Description, add_weights

# the values that DLMUSE gives in IXI, but for 0
CORTEX = [*range(100, 110), *range(112, 126), 128, 129, *range(132, 158), *range(160, 188), *range(190, 208)]
DEEP = [1, 4, 11, 23, *range(30, 33), *range(35, 42), *range(46, 53), *range(55, 63), 69, *range(71, 74), 75, 76]
MUSE = [*DEEP, *range(81, 96), *CORTEX]


def scans(**splits: str) -> list[TrainingScan]:
    """A cohort: those who are held out for testing, some others for training and validation."""
    names = dict.fromkeys(HELD_OUT, "test") | dict.fromkeys(CHOOSERS, "validation") | {"IXI012": "train"} | splits
    return [TrainingScan(name, Path(f"{name}.nii.gz"), split=split) for name, split in names.items()]  # type: ignore[arg-type]


def row(engine: str, dice: float, case: str = "a+b", dataset: str = "t1w", **more: float) -> dict[str, object]:
    return {"dataset": dataset, "case": case, "engine": engine, "state": "ok", "dice": dice, "folded": 0.0} | more


# pairs


def test_each_held_out_subject_is_fixed_twice_and_moving_twice_and_nobody_else_is():
    pairs = held_out_pairs(scans())
    assert len(pairs) == len(set(pairs)) == 16
    for side in (0, 1):
        names = [pair[side].subject for pair in pairs]
        assert sorted(names) == sorted(2 * HELD_OUT)
    assert all(fixed.subject != moving.subject for fixed, moving in pairs)
    assert {fixed.subject for fixed, _ in pairs[:8]} == set(HELD_OUT)  # what imported networks run on


def test_a_pair_of_twice_the_resolution_is_the_same_pair():
    rng = np.random.default_rng(0)
    labels = np.zeros((20, 18, 16), np.int16)
    labels[4:15, 5:13, 3:12] = rng.integers(1, 4, (11, 8, 9))
    ramp = np.where(labels > 0, np.indices(labels.shape)[0] + 1.0, 0).astype(np.float32)
    shifted = np.array([[1.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    case = Case(ramp, ramp, labels, labels, shifted, 2.0, np.zeros(0, np.float32))
    fine = doubled(case)
    assert fine.spacing == 1 and fine.fixed.shape == (40, 36, 32)
    assert all((fine.fixed_labels == label).sum() == 8 * (labels == label).sum() for label in (1, 2, 3))
    assert np.array_equal(fine.fixed > 0, fine.fixed_labels > 0)
    inner = fine.fixed[12:26, 14:22, 10:20]  # a ramp stays one, half as steep
    np.testing.assert_allclose(np.diff(inner, axis=0), 0.5, atol=1e-5)
    zero = [np.zeros((3, *image.shape), np.float32) for image in (case.fixed, fine.fixed)]
    dice = [score(one, field, None)["dice"] for one, field in zip((case, fine), zero, strict=True)]
    assert dice[0] < 1 and dice[0] == pytest.approx(dice[1])


def test_a_held_out_subject_that_was_trained_on_is_refused():
    with pytest.raises(InputError, match="IXI239"):
        held_out_pairs(scans(IXI239="train"))
    with pytest.raises(InputError, match="IXI636"):
        held_out_pairs([scan for scan in scans() if scan.subject != "IXI636"])
    assert not set(HELD_OUT) & set(CHOOSERS)


def test_a_brain_and_its_labels_lie_on_one_grid_in_ras_order(tmp_path):
    truth = np.zeros((12, 10, 8), np.int16)
    truth[2:6, 3:8, 2:7] = 5
    image = truth * 0.1 + 0.3
    turned = np.diag([-2.0, 2.0, 2.0, 1.0])
    turned[0, 3] = 22
    files = {"image": image[::-1], "mask": truth[::-1] > 0}
    for name, data in files.items():
        nib.save(nib.Nifti1Image(data.astype(np.float32), turned), tmp_path / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(truth, np.diag([2.0, 2, 2, 1])), tmp_path / "labels.nii.gz")
    paths = {name: tmp_path / f"{name}.nii.gz" for name in (*files, "labels")}
    found, labels = brain(TrainingScan("x", **paths))
    assert nib.aff2axcodes(found.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(labels, truth)
    np.testing.assert_allclose(found.get_fdata(), np.where(truth > 0, image, 0), atol=1e-6)


# contrasts and tissues


def test_contrasts_have_the_order_of_tissues_that_they_say():
    generator = np.random.default_rng(0)
    middles = {"CSF": 0.2, "GM": 0.65, "WM": 0.88}
    image = np.concatenate([np.zeros(500), *(generator.normal(m, 0.04, 500) for m in middles.values())]).astype(np.float32)
    inside = image > 0

    def means(name: str) -> list[float]:
        changed = other_contrast(image, name)
        assert (changed[~inside] == 0).all() and (changed[inside] > 0).all()
        return [float(part.mean()) for part in np.split(changed, 4)[1:]]

    assert other_contrast(image, "t1w") is image
    for name in ("inverted", "t2"):
        fluid, grey, white = means(name)
        assert fluid > grey + 0.15 > white + 0.3
    assert np.corrcoef(image[inside], other_contrast(image, "inverted")[inside])[0, 1] == pytest.approx(-1, abs=1e-3)
    steps = np.diff(other_contrast(np.linspace(0.01, 1.1, 100, dtype=np.float32), "t2"))
    assert (steps > 0).any() and (steps < 0).any()  # no monotone map undoes it
    with pytest.raises(ValueError, match="flair"):
        other_contrast(image, "flair")


def test_every_structure_of_muse_has_one_tissue_and_other_values_are_refused():
    assert len(MUSE) == len(set(MUSE)) == 148
    assert not (CSF & GM or CSF & WM or GM & WM) and set(MUSE) == CSF | GM | WM
    found = dict(zip([0, *MUSE], tissues(np.array([0, *MUSE])), strict=True))
    assert found[0] == 0 and all(found[value] in TISSUES for value in MUSE)
    names = {value: TISSUES[found[value]] for value in (4, 51, 47, 58, 100, 35, 82, 95)}
    assert names == {4: "CSF", 51: "CSF", 47: "GM", 58: "GM", 100: "GM", 35: "WM", 82: "WM", 95: "WM"}
    for value in (2, 110, 250, -1):
        with pytest.raises(InputError, match=f"labels {value} are none"):
            tissues(np.array([[0, 4], [value, 95]]))


# bars


def table() -> list[dict[str, object]]:
    plain = [
        row("affine", 0.5),
        row("instance-default", 0.7, wall_s=1.5),
        row(T1W, 0.68, wall_s=0.3),
        row(f"{T1W}+2", 0.71, wall_s=0.45),
        row(f"{T1W}+10", 0.72, wall_s=0.9),
        row("brain-contrast", 0.64, wall_s=0.3),
        row("symnet", 0.66, wall_s=30.0),
        row("lapirn-lite", 0.67, wall_s=30.0, folded=2e-5),
    ]
    return [*plain, row(T1W, 0.1, case="c+d", wall_s=0.3), row("instance-default", 0.1, case="c+d", wall_s=1.5)]


def values(rows: list[dict[str, object]]) -> list[tuple[float, float, bool]]:
    return [(round(bar.value, 6), round(bar.threshold, 6), bar.holds) for bar in pair_bars(rows)]


def test_speed_is_that_of_the_quickest_refinement_that_is_as_good_as_the_default():
    rows = [found for found in table() if found["case"] == "a+b"]
    (speed, dice, folded, ours, contrast) = values(rows)
    assert speed == (0.3, 0.333333, True)  # not the network alone, nor the ten steps
    assert dice == (0.01, 0.0, True) and folded == (-2e-5, 0.0, True)
    assert ours == contrast == (0.0, 1e-4, True)
    slower = [found | ({"wall_s": 0.6} if found["engine"] == f"{T1W}+2" else {}) for found in rows]
    assert values(slower)[0] == (0.4, 0.333333, False)
    worse = [found for found in rows if "+2" not in str(found["engine"]) and "+10" not in str(found["engine"])]
    assert np.isnan(values(worse)[0][0]) and not values(worse)[0][2]


def test_imported_networks_are_compared_on_their_own_pairs_only():
    rows = table()
    assert {found["case"] for found in network_rows(rows)} == {"a+b"}
    assert values(rows)[1] == (0.01, 0.0, True)
    assert pairs_table(rows).set_index("engine")["dice"][T1W] == pytest.approx(0.39)
    without = [found for found in rows if found["engine"] not in IMPORTED]
    assert len(values(without)) == 3  # no checkpoints, no bar


def test_a_network_that_folds_or_did_not_run_holds_no_bar():
    rows = [found | ({"folded": 3e-4} if found["engine"] == T1W else {}) for found in table()]
    found = {bar.name: bar.holds for bar in pair_bars(rows)}
    assert not found[f"{T1W}, folded"] and not found[f"{T1W} - lapirn-lite, folded"]
    absent = [bar for bar in pair_bars([found for found in table() if found["engine"] != "brain-contrast"])]
    assert not absent[-1].holds and np.isnan(absent[-1].value)


def test_another_contrast_may_cost_three_points_on_the_pairs_that_are_there_in_all():
    rows = [row("brain-contrast", dice, dataset=name) for name, dice in zip(CONTRASTS, (0.65, 0.63, 0.61), strict=True)]
    rows.append(row("brain-contrast", 0.95, case="c+d"))  # nothing to compare it with
    inverted, t2 = contrast_bars(rows)
    assert inverted.holds and inverted.threshold == pytest.approx(0.62)
    assert not t2.holds and t2.value == pytest.approx(0.61)
    assert not any(bar.holds for bar in contrast_bars([row("instance-mind", 0.6)]))
    shown = contrast_table([*rows, row("instance-mind", 0.6, dataset="t2")]).set_index("engine")
    assert shown.loc["instance-mind", "Dice, t2"] == 0.6 and np.isnan(shown.loc["instance-mind", "Dice, inverted"])


def test_the_picture_is_drawn_of_what_there_is(tmp_path):
    draw(None, None, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    contrast = contrast_table([row("brain-contrast", 0.6, dataset=name, wall_s=0.3) for name in CONTRASTS])
    for name, tables in {"pairs": (pairs_table(table()), None), "both": (pairs_table(table()), contrast)}.items():
        draw(*tables, tmp_path / f"{name}.png")
    sizes = [(tmp_path / f"{name}.png").stat().st_size for name in ("pairs", "both")]
    assert 10_000 < sizes[0] < sizes[1]


# runs


def box_case(folder: Path) -> Prepared:
    """Two boxes, the moving ones shifted, in enough background for a brain."""
    labels = np.zeros((32, 32, 32), np.int16)
    labels[8:16, 8:24, 8:24], labels[16:24, 8:24, 8:24] = 81, 100
    moving = np.roll(labels, 1, axis=1)
    noise = np.random.default_rng(0).uniform(0.9, 1.1, labels.shape)
    images = [np.where(x > 0, (0.5 + x / 200) * noise, 0).astype(np.float32) for x in (labels, moving)]
    Case(images[0], images[1], labels, moving, np.eye(4), 2.0, np.zeros(0, np.float32)).save(folder / "case.npz")
    return Prepared("t1w", "a+b", folder / "case.npz")


def untrained(folder: Path, seed: int) -> None:
    """Put random weights called as the shipped T1w network into the user's folder."""
    import torch

    torch.manual_seed(seed)
    net = build_registration_network("fast", 3, widths=[4, 8], blocks=[0, 1])
    texts = {CONTRACT: InputContract((2.0,) * 3, net.stride, "RAS").to_json(), TRAINING: TrainingFacts("none").to_json()}
    save_registration_network(net, folder / "net.safetensors", texts)
    add_weights(folder / "net.safetensors", Description("popatlas-test", "CC-BY-4.0"))


def test_networks_run_in_processes_of_their_own_and_rows_of_the_same_weights_are_kept(tmp_path, monkeypatch):
    prepared, own = box_case(tmp_path), tmp_path / "weights"
    monkeypatch.setenv("POPATLAS_WEIGHTS", str(own))
    untrained(tmp_path, 0)
    # the table of engines is read anew in the worker: a name of its own shows that it gets there
    monkeypatch.setattr(runs, "TABLE", "tests_deep_engines")
    code = (
        "from benchmarks.deep.engines import network\n"
        "ENGINES = {'plain': network('popatlas-test'), 'refined': network('popatlas-test', 10)}\n"
    )
    (tmp_path / "tests_deep_engines.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    namespace: dict[str, dict[str, object]] = {}
    exec(code, namespace)
    monkeypatch.setattr(runs, "ENGINES", namespace["ENGINES"])
    with runs.weights_of(None) as digests:
        assert runs.user_folder() != own and "popatlas-test" in digests
        rows = runs.run_rows(tmp_path, [prepared], runs.available(["plain", "refined"], digests), digests)
        again = runs.run_rows(tmp_path, [prepared], ["plain", "refined"], digests)
    assert runs.user_folder() == own
    assert [found["state"] for found in rows] == ["ok"] * 3
    by_name = {found["engine"]: found for found in rows}
    assert by_name["refined"]["dice"] > by_name["affine"]["dice"]
    assert by_name["plain"]["wall_s"] > 0 and by_name["plain"]["inverse_error"] < 0.1
    assert again == rows == read_json(tmp_path / "runs.json")
    monkeypatch.setattr(runs, "run_one", lambda path, name: {"state": "ok", "dice": 0.0})
    other = runs.run_rows(tmp_path, [prepared], ["plain"], {"popatlas-test": "other"})
    assert [found["dice"] for found in other] == [by_name["affine"]["dice"], 0.0]  # new weights, new row
    assert len(read_json(tmp_path / "runs.json")) == 3


def test_networks_that_are_not_there_are_named_and_left_out(capsys, tmp_path):
    names = [T1W, f"{T1W}+10", "symnet", "syn", "instance-quick"]
    assert runs.available(names, {"symnet": "0" * 12}) == ["symnet", "syn", "instance-quick"]
    assert f"skipped {T1W}+10: there are no weights {T1W}" in capsys.readouterr().out
    for name in ("voxelmorph_cvpr2018_vm2_cc.h5", "SYMNet_x.pth", "notes.txt"):
        (tmp_path / name).write_text("")
    found = runs.published(tmp_path)
    assert found == {"voxelmorph-cvpr2018": tmp_path / "voxelmorph_cvpr2018_vm2_cc.h5", "symnet": tmp_path / "SYMNet_x.pth"}
    assert set(found) < set(IMPORTED) and runs.published(None) == {}
    with pytest.raises(InputError, match="checkpoints"):
        runs.published(tmp_path / "missing")


def test_refinements_have_as_many_steps_as_their_names():
    assert {n: sum(settings["iterations"]) for n, settings in REFINEMENTS.items()} == {n: n for n in REFINEMENTS}
    assert {10, 30, 50} <= set(REFINEMENTS) and {f"{T1W}+{steps}" for steps in REFINEMENTS} <= set(ENGINES)


# slices, pediatric, pipeline


def test_the_dice_of_slices_is_that_of_labels_that_are_large_in_both():
    fixed = np.zeros((20, 20), int)
    fixed[:10, :10], fixed[10:, :10], fixed[0, 15] = 1, 2, 3
    moving = np.roll(fixed, 5, axis=0)
    assert label_dice(fixed, moving, fixed) == 1
    assert label_dice(fixed, moving, np.where(fixed == 2, 0, fixed)) == pytest.approx(0.5)
    small = np.where(fixed == 2, 0, fixed)
    small[19, 19] = 2
    assert label_dice(fixed, small, np.where(fixed == 2, 0, fixed)) == 1  # label 2 is no more than a pixel there


def test_pediatric_tables_and_tests_follow_the_rows():
    generator = np.random.default_rng(0)
    rows = []
    for place, start in enumerate(("none", "rigid", "affine")):
        for spacing in (2, 3):
            for number in range(8):
                after = {name: 0.6 + 0.1 * place + 0.01 * generator.random() for name in TISSUES.values()}
                before = dict.fromkeys(TISSUES.values(), 0.5)
                base = {"start": start, "mm": spacing, "steps": 4, "learnt": True, "case": str(number), "seconds": 2.0}
                rows.append(base | {"before": before, "after": after, "folded_percent": float(number)})
    shown = pediatric_table(rows).set_index(["start", "mm"])
    assert shown.loc[("affine", 2), "WM after"] == pytest.approx(0.805, abs=0.005)
    assert shown.loc[("none", 3), "% folded, median"] == 3.5 and (shown["GM before"] == 0.5).all()
    tests = pediatric_tests(rows).set_index(["better?", "than", "tissue"])
    assert tests.loc[("affine at 2 mm", "rigid at 2 mm", "WM"), "p"] == pytest.approx(1 / 2**8)  # all eight gain
    assert (tests["n"] == 8).all() and len(tests) == (2 * 2 + 3) * 3


def test_a_row_of_the_pipeline_is_taken_from_the_tables_of_its_benchmark():
    committed = read_json(RESULTS / "cohort_ixi.json")["rows"]
    found = pipeline_row("instance", committed)
    costs_title = "Cost per step (records of the jobs; start-up of Python not counted)"
    costs = pd.DataFrame(committed[costs_title])
    assert found["register, cpu s per scan"] == pytest.approx(costs.loc[costs["stage"] == "register", "cpu_s"].sum() / 32)
    assert 0 < found["register, cpu s per scan"] < found["cpu s per scan"]
    assert found["nonpositive_jacobian"] == 0 and found["Dice, jlf"] > 0.75
    batch = {"stage": "batches", "step": "PredictDeformations", "jobs": 4, "wall_s": 40.0, "cpu_s": 64.0, "peak_mb": 900}
    batched = committed | {costs_title: [*committed[costs_title], batch]}
    more = pipeline_row("network", batched)
    assert more["register, cpu s per scan"] == pytest.approx(found["register, cpu s per scan"] + 2)
    assert more["atlas, cpu s"] == found["atlas, cpu s"]


def test_scores_of_the_lock_file_are_those_of_the_tables():
    pairs = [{"engine": T1W, "cases": 16, "dice": 0.7, "hd95": 3.1, "folded": 0.0, "sdlogj": None, "wall_s": 0.4}]
    contrast = [{"engine": "brain-contrast", "pairs": 16, "Dice, t1w": 0.6, "Dice, inverted": 0.59, "Dice, t2": 0.58}]
    slices = [{"engine": "brain-t1w-2d", "slices": 80, "dice": 0.5, "folded": 0.0, "sdlogj": 0.3, "wall_s": 0.1}]
    tables = {PAIRS_TITLE: pairs, CONTRAST_TITLE: contrast, SLICES_TITLE: slices}
    found = {(score.data.split(", ")[1], score.metric): (score.value, score.n) for score in scores_of(T1W, tables)}
    assert found == {
        ("T1w pairs", "dice"): (0.7, 16),
        ("T1w pairs", "hd95"): (3.1, 16),
        ("T1w pairs", "folded"): (0.0, 16),
        ("T1w pairs", "wall_s"): (0.4, 16),
    }
    other = [(score.data, score.value) for score in scores_of("brain-contrast", tables)]
    assert [(data.split(", ")[1], value) for data, value in other] == [("T1w to inverted", 0.59), ("T1w to t2", 0.58)]
    assert {score.n for score in scores_of("brain-t1w-2d", tables)} == {80}
    assert not list(scores_of("symnet", tables))


# front


def smooth(engine: str, dice: float, sdlogj: float, cpu_s: float = 1.0) -> dict[str, object]:
    return row(engine, dice, sdlogj=sdlogj, cpu_s=cpu_s)


def test_overlap_is_compared_at_the_smoothness_of_the_peer_and_nowhere_else():
    """Between the points of our engine that are smoother and rougher than the peer; beyond them there is no answer."""
    ours = [smooth("instance-default", 0.70, 0.30), smooth("instance, elastic 1.1", 0.66, 0.20)]
    others = [smooth(T1W, 0.71, 0.55), smooth(f"{T1W}+10", 0.71, 0.41)]
    bars = front_bars(front_table([*ours, smooth("greedy", 0.655, 0.25, cpu_s=2.0), *others]))
    assert [(round(bar.value, 6), bar.holds) for bar in bars] == [(0.025, True), (0.5, True), (0.41, False), (0.0, True)]
    bars = front_bars(front_table([*ours, smooth("greedy", 0.66, 0.15), *others]))
    assert np.isnan(bars[0].value) and not bars[0].holds


def test_the_volume_error_is_that_of_the_jacobian():
    """A structure twice as large in the moving image, seen by a field that doubles it and by one that does nothing."""
    at = np.indices((12, 12, 12)).astype(np.float32)
    fixed, moving = np.zeros((12, 12, 12), np.int16), np.zeros((12, 12, 12), np.int16)
    fixed[4:8, 4:8, 4:8] = 1
    moving[2:10, 4:8, 4:8] = 1
    empty = np.zeros((12, 12, 12), np.float32)
    case = Case(empty, empty, fixed, moving, np.eye(4, dtype=np.float32), 2.0, np.zeros(0, np.float32))
    wide = np.stack([at[0] - 5.5, 0 * at[1], 0 * at[2]])
    assert volume_error(case, wide, [1]) == pytest.approx(0, abs=1e-5)
    assert volume_error(case, 0 * wide, [1]) == pytest.approx(np.log(2), abs=1e-5)


# results of several runs


def test_tables_that_a_run_did_not_make_are_kept_with_their_date_and_their_bars():
    def result(date, rows, bars, **more):
        return {"date": date, "rows": rows, "bars": [{"name": name, "value": value} for name, value in bars.items()], **more}

    earlier = result("2026-01-01", {"A": [1], "B": [2], "old": [3]}, {"a": 1, "b": 2})
    merged = with_kept(result("2026-02-02", {"B": [5]}, {"b": 3}), earlier, ("A", "B", "C"))
    assert merged["rows"] == {"A": [1], "B": [5]} and merged["dates"] == {"A": "2026-01-01"}
    assert {bar["name"]: bar["value"] for bar in merged["bars"]} == {"a": 1, "b": 3}
    third = with_kept(result("2026-03-03", {"C": [7]}, {}), merged, ("A", "B", "C"))
    assert third["dates"] == {"A": "2026-01-01", "B": "2026-02-02"} and list(third["rows"]) == ["A", "B", "C"]
