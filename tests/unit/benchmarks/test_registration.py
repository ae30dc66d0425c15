"""The registration benchmark: phantoms and real pairs, scores, peers, bars, and resuming."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from benchmarks.registration import __main__ as bench
from benchmarks.registration.cases import Case
from benchmarks.registration.cohort import choose_pairs, load_pair
from benchmarks.registration.peers import ENGINES
from benchmarks.registration.phantoms import Recipe, make_phantom
from benchmarks.registration.plot import pareto, plot
from benchmarks.registration.scores import inverse_error, regularity, score, scored_labels, warp_labels
from benchmarks.registration.summary import RULES, judge, summarise
from scipy.ndimage import affine_transform, gaussian_filter

from popatlas.errors import InputError
from popatlas.measures.overlap import overlap
from popatlas.transforms.fields import sample, warp

ROOT = Path(__file__).parents[3]
RECIPE = Recipe((40, 40, 40), 5.0, 1.5)
OPTIONAL = {"greedy": "picsl_greedy", "dipy-cc": "dipy", "convexadam": "convexAdam"}


@pytest.fixture(scope="module")
def phantom() -> Case:
    return make_phantom(RECIPE, 1)


def blocks(shift: int = 0) -> Case:
    """Two boxes; the moving ones lie `shift` voxels further along the second axis."""
    labels = np.zeros((24, 28, 20), np.int16)
    labels[4:12, 6:14, 5:15] = 1
    labels[12:20, 6:14, 5:15] = 2
    moving = np.roll(labels, shift, axis=1)
    truth = np.zeros((3, *labels.shape), np.float32)
    truth[1] = shift
    images = [(image > 0).astype(np.float32) for image in (labels, moving)]
    return Case(images[0], images[1], labels, moving, np.eye(4), 2.0, truth)


# phantoms


def test_the_true_field_maps_the_fixed_brain_onto_the_moving_one(phantom):
    brain = phantom.fixed_labels > 0
    assert np.linalg.norm(phantom.truth, axis=0)[brain].mean() == pytest.approx(RECIPE.mean_shift, rel=0.15)
    agreement = {}
    for name, field in (("before", np.zeros_like(phantom.truth)), ("after", phantom.truth)):
        warped = warp(torch.from_numpy(phantom.moving)[None, None], torch.from_numpy(field)[None])[0, 0].numpy()
        dice = overlap(phantom.fixed_labels, warp_labels(phantom, field))["dice"].mean()
        agreement[name] = np.corrcoef(warped[brain], phantom.fixed[brain])[0, 1], dice
    assert agreement["after"][0] > 0.88 > 0.75 > agreement["before"][0]
    assert agreement["after"][1] > 0.85 > 0.6 > agreement["before"][1]


def test_a_phantom_has_many_structures_no_folds_and_images_that_differ_in_gain(phantom):
    assert 20 <= len(scored_labels(phantom)) <= 30
    assert regularity(phantom.truth, phantom.fixed_labels > 0)["folded_voxels"] == 0
    at = torch.from_numpy(phantom.truth + np.indices(phantom.fixed.shape))[None].float()
    warped = sample(torch.from_numpy(phantom.moving)[None, None], at)[0, 0].numpy()
    ratio = gaussian_filter(warped, 3) / np.maximum(gaussian_filter(phantom.fixed, 3), 1e-3)
    inside = gaussian_filter((phantom.fixed_labels > 0).astype(float), 3) > 0.9
    assert abs(np.log(ratio[inside]).mean()) > 0.02  # gain
    assert np.log(ratio[inside]).std() > 0.02  # bias


def test_a_seed_gives_the_same_phantom_again_and_another_seed_another_one(phantom):
    again, other = make_phantom(RECIPE, 1), make_phantom(RECIPE, 2)
    assert np.array_equal(again.moving, phantom.moving) and np.array_equal(again.truth, phantom.truth)
    assert np.linalg.norm(other.truth - phantom.truth, axis=0).mean() > 1


def test_a_case_survives_its_file(phantom, tmp_path):
    phantom.save(tmp_path / "case.npz")
    back = Case.load(tmp_path / "case.npz")
    assert np.array_equal(back.moving_labels, phantom.moving_labels) and back.spacing == phantom.spacing


# scores


def test_the_true_shift_is_perfect_and_no_shift_is_as_wrong_as_its_length():
    case = blocks(shift=4)
    perfect = score(case, case.truth, -case.truth)
    assert perfect["dice"] == 1 and perfect["hd95"] == 0 and perfect["error"] == 0
    assert perfect["folded"] == 0 and perfect["sdlogj"] == pytest.approx(0, abs=1e-6) and perfect["inverse_error"] < 1e-5
    nothing = score(case, np.zeros_like(case.truth), None)
    assert nothing["dice"] == pytest.approx(0.5)  # half of each box of 8 voxels
    assert nothing["hd95"] == pytest.approx(8)  # four voxels of 2 mm
    assert nothing["error"] == nothing["error_p95"] == 4
    assert np.isnan(nothing["inverse_error"])


def test_labels_go_through_the_displacement_first_and_then_the_affine():
    case = blocks(shift=4)
    stretched = affine_transform(case.moving_labels, np.diag([1, 0.5, 1]), output_shape=(24, 56, 20), order=0)
    doubled = replace(case, moving_labels=stretched, to_moving=np.diag([1.0, 2.0, 1.0, 1.0]))
    assert np.array_equal(warp_labels(doubled, case.truth), case.fixed_labels)


def test_small_structures_and_those_of_one_image_are_not_scored():
    case = blocks()
    fixed, moving = case.fixed_labels.copy(), case.moving_labels.copy()
    fixed[0, 0, :10] = 3
    moving[0, 0, :10] = 3
    moving[20:, 20:] = 4
    assert scored_labels(replace(case, fixed_labels=fixed, moving_labels=moving)) == [1, 2]


def test_a_reflection_is_folded_everywhere_and_a_stretch_nowhere():
    at = np.indices((8, 9, 10)).astype(np.float32)
    brain = np.ones((8, 9, 10), bool)
    mirror = np.stack([-2 * at[0], 0 * at[1], 0 * at[2]])
    assert regularity(mirror, brain) == {
        "folded": 1.0,
        "folded_voxels": 720.0,
        "folds": 1.0,
        "sdlogj": pytest.approx(0, abs=1e-5),
    }
    half = np.stack([0.5 * np.maximum(at[0] - 3.5, 0), 0 * at[1], 0 * at[2]])  # slopes 1, 1.25 (centre), 1.5
    inner = brain & (at[0] > 4) | (at[0] < 3)
    count = np.array([np.log(1.5) if x > 4 else 0 for x in at[0][inner]])
    assert regularity(half, inner)["sdlogj"] == pytest.approx(count.std(), abs=1e-3)
    assert regularity(half, inner)["folded_voxels"] == 0


def test_the_inverse_error_is_how_far_the_way_back_misses():
    forward = np.zeros((3, 12, 12, 12), np.float32)
    forward[2] = 2
    backward = np.zeros_like(forward)
    backward[2] = -1.5
    brain = np.ones(forward.shape[1:], bool)
    assert inverse_error(forward, backward, brain) == pytest.approx(0.5)
    assert np.isnan(inverse_error(forward, None, brain))


# peers


@pytest.mark.filterwarnings("ignore:Default grid_sample")
@pytest.mark.parametrize("name", ["greedy", "dipy-cc", "demons", "demons-diffeo", "syn", "convexadam", "instance-fast"])
def test_every_peer_points_from_fixed_to_moving_and_its_inverse_back(name, phantom):
    """A wrong direction or axis would make the error larger, not smaller."""
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    engine = ENGINES[name]
    forward, inverse = engine.load(**engine.options)(phantom.fixed, phantom.moving)()
    found = score(phantom, forward, inverse)
    assert forward.shape == phantom.truth.shape and forward.dtype == np.float32
    before = score(phantom, np.zeros_like(forward), None)
    assert found["error"] < 0.7 * before["error"]
    assert found["dice"] > before["dice"] + 0.05
    if inverse is not None:
        assert found["inverse_error"] < 0.1


@pytest.mark.filterwarnings("ignore:Default grid_sample")
@pytest.mark.parametrize("name", ["greedy", "dipy-cc", "demons", "syn", "convexadam", "instance-fast"])
def test_every_peer_finds_a_shift_along_each_axis(name):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    shift = (1.5, -1.0, 2.0)
    image = gaussian_filter(np.random.default_rng(3).random((40, 44, 36)), 2).astype(np.float32)
    image = (image - image.min()) / np.ptp(image)
    moving = affine_transform(image, np.eye(3), offset=[-part for part in shift], order=3, mode="nearest").astype(np.float32)
    engine = ENGINES[name]
    forward, _ = engine.load(**engine.options)(image, moving)()
    inner = forward[:, 10:-10, 10:-10, 10:-10].reshape(3, -1)
    assert np.allclose(np.median(inner, axis=1), shift, atol=0.4)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel keeps no high-water mark of a program here")
def test_memory_is_that_of_the_program_and_not_of_its_parent():
    """[hazard] `ru_maxrss` of a new program starts from what its parent held."""
    measure = "from benchmarks.registration.worker import memory_mb; print(memory_mb(peak=True))"
    parent = (
        "import subprocess, sys; block = bytearray(400_000_000); block[::4096] = b'x' * len(block[::4096]);"
        f"print(subprocess.run([sys.executable, '-c', '{measure}'], capture_output=True, text=True).stdout)"
    )
    shown = subprocess.run([sys.executable, "-c", parent], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 5 < float(shown) < 200


# real pairs


def write_scan(folder: Path, subject: str, image: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> None:
    for path, data in (
        (f"{subject}/anat/{subject}_T1w.nii.gz", image),
        (f"derivatives/parts/{subject}/anat/{subject}_desc-parts_dseg.nii.gz", labels),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data, affine), folder / path)


def test_a_real_pair_is_aligned_by_its_affine_whatever_the_axes(phantom, tmp_path):
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = -80
    skull = np.where(phantom.fixed_labels > 0, phantom.fixed, 0.5)
    write_scan(tmp_path, "sub-01", skull, phantom.fixed_labels, affine)
    # the same head 12 mm to the side, stored with turned and reversed axes
    turned = nib.Nifti1Image(skull, affine).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    parts = nib.Nifti1Image(phantom.fixed_labels, affine).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    moved = turned.affine.copy()
    moved[0, 3] += 12
    write_scan(tmp_path, "sub-02", np.asarray(turned.dataobj), np.asarray(parts.dataobj), moved)
    assert len(choose_pairs(tmp_path, 5)) == 1
    case = load_pair(tmp_path, "sub-01/anat/sub-01", "sub-02/anat/sub-02")
    nothing = np.zeros((3, *case.fixed.shape), np.float32)
    found = score(case, nothing, None)
    assert found["dice"] > 0.95 and np.isnan(found["error"])
    assert case.fixed.shape < phantom.fixed.shape and case.fixed[case.fixed_labels == 0].max() == 0
    assert np.corrcoef(case.fixed.ravel(), case.moving.ravel())[0, 1] > 0.98


def test_a_dataset_without_labels_is_refused(tmp_path):
    with pytest.raises(InputError, match="labels"):
        choose_pairs(tmp_path, 3)


# tables, bars and picture


def runs(**changes: dict[str, float]) -> list[dict[str, object]]:
    """Two cases of three engines; `changes` are given as engine=dict, with dashes as underscores."""
    base = {"dice": 0.9, "error": 1.0, "cpu_s": 10.0, "folded_voxels": 0.0, "state": "ok"}
    engines = {"instance-default": {"cpu_s": 5.0, "dice": 0.91}, "greedy": {}, "syn-cc": {"cpu_s": 100.0}}
    for name, part in changes.items():
        engines[name.replace("_", "-")] |= part
    return [
        {"dataset": "p", "case": case, "engine": engine, **base, **part} for case in "ab" for engine, part in engines.items()
    ]


def held(rows: list[dict[str, object]]) -> dict[str, bool]:
    return {bar.name: bar.holds for bar in judge(summarise(rows), {str(row["engine"]) for row in rows})}


def test_bars_hold_exactly_when_the_numbers_do():
    good = held(runs())
    assert good["p: instance-default, dice against greedy"] and good["p: instance-default, error against greedy"]
    assert good["p: instance-default, cpu_s over that of greedy"]
    assert good["p: instance-default, cpu_s over that of syn-cc"]  # 5 s against 100 s, a twentieth
    assert not held(runs(syn_cc={"cpu_s": 70.0}))["p: instance-default, cpu_s over that of syn-cc"]  # 1/14
    worse = held(runs(greedy={"dice": 0.911, "error": 0.999, "cpu_s": 8.0}))
    names = ("dice against", "error against", "cpu_s over that of")
    assert not any(worse[f"p: instance-default, {name} greedy"] for name in names)
    assert not held(runs(instance_default={"folded_voxels": 1.0}))["p: instance-default, folded_voxels"]


def test_an_engine_that_did_not_run_holds_nothing_and_what_was_not_asked_for_is_not_judged():
    rows = runs()
    for row in rows:
        if row["engine"] == "instance-default":
            row.update({"state": "absent", "dice": None, "error": None, "cpu_s": None, "folded_voxels": None})
    assert not any(held(rows).values())
    assert not any("fast" in name for name in held(rows))


def test_an_unknown_field_makes_no_bar_about_its_error():
    rows = [row | {"error": None} for row in runs()]
    assert not any(", error" in name for name in held(rows))


def test_rules_name_engines_that_exist():
    assert {rule.engine for rule in RULES} | {rule.against for rule in RULES if rule.against} <= set(ENGINES)


def test_only_points_that_no_cheaper_one_equals_are_on_the_front():
    cost, gain = np.array([1.0, 2, 3, 4, 5]), np.array([0.5, 0.4, 0.7, 0.7, 0.9])
    assert pareto(cost, gain).tolist() == [0, 2, 4]


def test_the_picture_is_drawn_without_a_true_field(tmp_path):
    rows = [*runs(), *(row | {"dataset": "real", "error": None} for row in runs())]
    plot(summarise(rows), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


# the command


def test_an_interrupted_benchmark_goes_on_where_it_was(tmp_path, monkeypatch):
    calls = []

    def fake(name, path, repeats):
        calls.append(name)
        if name == "syn" and len(calls) == 2:
            raise KeyboardInterrupt
        return {"state": "failed" if name == "demons" else "ok", "cpu_s": 1.0}, None

    monkeypatch.setattr(bench, "run_engine", fake)
    monkeypatch.setattr(bench, "make_phantom", lambda recipe, seed: blocks(shift=2))
    line = ["--engines", "demons,syn,greedy", "--datasets", "p48", "--quick"]
    args = bench.options().parse_args(line)
    with pytest.raises(KeyboardInterrupt):
        bench.run_all(args, tmp_path)
    args = bench.options().parse_args([*line, "--resume"])
    rows = bench.run_all(args, tmp_path)
    assert calls == ["demons", "syn", "demons", "syn", "greedy"]  # what failed is tried again
    assert [row["engine"] for row in rows] == ["unregistered", "truth", "demons", "syn", "greedy"]
    calls.clear()
    rows = bench.run_all(bench.options().parse_args([*line, "--resume", "--redo", "greedy"]), tmp_path)
    assert calls == ["demons", "greedy"] and len(rows) == 5


def test_a_run_has_one_thread_a_clock_of_its_own_and_its_failure_is_a_row(phantom, tmp_path):
    phantom.save(tmp_path / "case.npz")
    row, fields = bench.run_engine("demons", tmp_path / "case.npz", 2)
    assert row["state"] == "ok" and row["repeats"] == 2 and fields[0].shape == phantom.truth.shape
    assert 0 < row["cpu_s"] <= 1.1 * row["wall_s"] + 0.1 and row["added_mb"] < row["peak_mb"]
    broken, nothing = bench.run_engine("demons", tmp_path / "missing.npz", 1)
    assert broken["state"] == "failed" and "missing.npz" in broken["message"] and nothing is None
