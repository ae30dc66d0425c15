"""Leave one atlas out: scores, tests, correction, and the choice of a method, against closed forms and SciPy."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml
from jsonschema import Draft202012Validator

from popatlas.errors import InputError
from popatlas.fusion.bench import read_costs, run_bench, summarise
from popatlas.fusion.crossval import compare, holm, median_interval, recommend, score, signed_rank, smallest_p
from popatlas.images.io import save_image, write_json
from popatlas.measures.dictionary import BENCH_COLUMN_TEXT, bench_dictionary
from popatlas.measures.metrics import BENCH_METRICS
from popatlas.resources import schema_path

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
SCANS = ["sub-1/anat/sub-1", "sub-2/anat/sub-2"]


def boxes(**places):
    """Return labels 1, 2, ... as boxes of 4 x 4 x 4 voxels at the given first voxel along the second axis."""
    image = np.zeros((12, 20, 8), dtype=np.int32)
    for label, start in places.items():
        image[2:6, start : start + 4, 2:6] = int(label[1:])
    return image


def values(rows, metric):
    return rows[rows["metric"] == metric].set_index("label")["value"].to_dict()


def scores(**methods):
    """Return a table of Dice: for each method one list of targets, of lists of labels."""
    rows = [
        (f"sub-{number}", method, f"l{label}", "dice", value)
        for method, targets in methods.items()
        for number, labels in enumerate(targets)
        for label, value in enumerate(labels)
    ]
    return pd.DataFrame(rows, columns=["scan", "method", "label", "metric", "value"])


def by_target(**methods):
    return scores(**{method: [[value] for value in targets] for method, targets in methods.items()})


# Scores


def test_scores_of_a_box_that_is_moved_by_one_voxel():
    rows = score(boxes(l1=3), boxes(l1=2), AFFINE)
    assert values(rows, "dice") == {1: 2 * 3 / 8}
    assert values(rows, "hd95") == {1: 2.0}  # one voxel along the axis with voxels of 2 mm
    assert values(rows, "volume_error") == {1: 0.0}
    assert set(rows["metric"]) == set(BENCH_METRICS)


def test_volume_errors_are_signed_in_percent_and_millilitres():
    fused, reference = boxes(l1=2), boxes(l1=2)
    fused[2:6, 6:8, 2:6] = 1
    assert values(score(fused, reference, AFFINE), "volume_error") == {1: 50.0}
    assert values(score(fused, reference, AFFINE), "volume_error_ml") == {1: pytest.approx(32 * 6 / 1000)}
    assert values(score(reference, fused, AFFINE), "volume_error") == {1: pytest.approx(-100 / 3)}


def test_a_label_that_the_fused_image_lacks_scores_nothing_and_has_no_distance():
    rows = score(boxes(l1=2), boxes(l1=2, l2=10), AFFINE)
    assert values(rows, "dice") == {1: 1.0, 2: 0.0}
    assert values(rows, "volume_error")[2] == -100.0
    assert math.isnan(values(rows, "hd95")[2]) and math.isnan(values(rows, "assd")[2])


def test_labels_that_the_reference_lacks_or_that_are_too_small_or_not_asked_for_are_not_scored():
    fused, reference = boxes(l1=2, l2=10, l3=15), boxes(l1=2, l2=10)
    reference[0, 0, 0] = 4
    assert sorted(values(score(fused, reference, AFFINE), "dice")) == [1, 2, 4]
    assert sorted(values(score(fused, reference, AFFINE, min_voxels=2), "dice")) == [1, 2]
    assert sorted(values(score(fused, reference, AFFINE, labels=[2, 3]), "dice")) == [2]


def test_other_grids_are_refused():
    with pytest.raises(InputError, match="different grids"):
        score(boxes(l1=2), boxes(l1=2)[:-1], AFFINE)


# Tests


@pytest.mark.parametrize(
    ("differences", "statistic", "p"),
    [
        ([1, 2, 3], 0, 2 / 8),  # all signs alike: 2 of 2^n patterns
        ([1, 2, 3, 4, 5, 6], 0, 2 / 64),
        ([1, 2, 3, -4], 4, 14 / 16),  # 7 of 16 patterns have a positive rank sum of 4 or less
        ([-1, -1, -1], 0, 2 / 8),  # ties in size
        ([0, 1, 0, 2, 3], 0, 2 / 8),  # zeros do not count
        ([5], 0, 1),
    ],
)
def test_the_signed_rank_test_is_exact_for_few_targets(differences, statistic, p):
    found = signed_rank(np.array(differences, dtype=float))
    assert found == (statistic, pytest.approx(p), "exact")


def test_equal_methods_have_nothing_to_test():
    assert signed_rank(np.zeros(5)) == (0.0, 1.0, "none")
    noise = np.array([1e-17, -1e-17, 0.0])
    assert signed_rank(noise) == (0.0, 1.0, "none"), "rounding is no difference"


@pytest.mark.parametrize("n", [6, 8, 14, 50])
def test_the_signed_rank_test_agrees_with_scipy(n):
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    expected = scipy.stats.wilcoxon(differences, method="exact")
    assert signed_rank(differences)[:2] == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)


def test_many_targets_are_tested_by_the_normal_approximation():
    differences = np.random.default_rng(1).normal(0.3, 1, 80)
    expected = scipy.stats.wilcoxon(differences, method="approx", correction=True)
    assert signed_rank(differences) == (expected.statistic, pytest.approx(expected.pvalue), "approximate")
    tied = np.repeat([0.1, -0.2, 0.3, 0.4, 0.5], 4)
    assert signed_rank(tied)[2] == "approximate"


def test_smallest_p_is_reached_when_every_target_agrees():
    for n in (1, 3, 6, 9):
        assert signed_rank(np.arange(1.0, n + 1))[1] == pytest.approx(smallest_p(n))


def test_holms_correction_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; a later one is never below an earlier one
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1.0, 1.0])
    assert holm(np.array([])).shape == (0,)


def test_the_bootstrap_interval_of_a_median():
    differences = np.random.default_rng(2).normal(1.0, 0.5, 30)
    low, high = median_interval(differences, 0)
    assert low < np.median(differences) < high
    assert median_interval(differences, 0) == (low, high), "the seed decides"
    assert median_interval(np.full(4, 0.25), 3) == (0.25, 0.25)
    assert all(math.isnan(end) for end in median_interval(np.array([1.0]), 0))


# Comparison


def test_every_target_counts_once_however_many_labels_it_has():
    table = scores(a=[[0.9, 0.9, 0.9], [0.5]], b=[[0.8, 0.8, 0.8], [0.7]])
    found = compare(table)
    assert found.names == ["b", "a"]
    assert found.methods["mean"].to_dict() == pytest.approx({"a": 0.7, "b": 0.75})
    assert found.methods.loc["a", "sd"] == pytest.approx(np.std([0.9, 0.5], ddof=1))
    assert found.n_targets == 2


def test_differences_are_first_minus_second_with_the_better_method_first():
    found = compare(by_target(a=[0.5, 0.6, 0.7], b=[0.6, 0.8, 0.75]))
    pair = found.pairs.iloc[0]
    assert (pair["first"], pair["second"], pair["n"]) == ("b", "a", 3)
    assert pair["difference"] == pytest.approx(0.1) and pair["ahead"] == 3
    assert pair["p"] == pytest.approx(0.25) and pair["holm"] == pytest.approx(0.25)


def test_three_methods_are_compared_pair_by_pair_and_corrected():
    random = np.random.default_rng(0)
    base = random.normal(0.8, 0.02, 9)
    found = compare(by_target(a=base, b=base + 0.01 + 0.001 * random.random(9), c=base + random.normal(0, 0.01, 9)))
    assert len(found.pairs) == 3
    np.testing.assert_allclose(found.pairs["holm"], holm(found.pairs["p"].to_numpy()))
    assert found.holm("a", "b") == found.holm("b", "a")
    assert found.pairs[["first", "second"]].isin(["a", "b"]).all(axis=1).sum() == 1


def test_who_wins_at_a_label_by_how_much_and_in_how_many_targets():
    found = compare(scores(a=[[0.9, 0.5], [0.7, 0.5]], b=[[0.8, 0.5], [0.75, 0.5]], c=[[0.1, 0.1], [0.1, 0.1]]))
    first, second = found.labels.to_dict("records")
    assert (first["label"], first["winner"], first["runner_up"], first["n"]) == ("l0", "a", "b", 2)
    assert first["margin"] == pytest.approx(0.8 - 0.775) and first["wins"] == 1
    assert first["value"] == first["a"] == pytest.approx(0.8)
    assert (second["winner"], second["runner_up"], second["margin"], second["wins"]) == ("a, b", "", 0.0, 0)


def test_smaller_distances_win_and_what_one_method_lacks_counts_for_none():
    table = scores(a=[[2.0, 9.0], [3.0, 9.0]], b=[[1.0, math.nan], [1.0, 5.0]]).assign(metric="hd95")
    found = compare(table, "hd95")
    assert found.names == ["b", "a"]
    assert found.targets.loc["sub-0"].to_dict() == {"b": 1.0, "a": 2.0}
    assert found.targets.loc["sub-1"].to_dict() == {"b": 3.0, "a": 6.0}
    assert found.left_out == 1 and found.pairs.loc[0, "ahead"] == 2
    row = found.labels.set_index("label").loc["l0"]
    assert (row["winner"], row["margin"], row["wins"]) == ("b", 1.5, 2)


def test_signed_errors_are_compared_by_their_size():
    found = compare(by_target(a=[-10.0, 10.0], b=[3.0, 3.0]).assign(metric="volume_error"), "volume_error")
    assert found.names == ["b", "a"] and found.methods.loc["a", "mean"] == 10.0


def test_one_target_has_neither_spread_nor_interval():
    found = compare(by_target(a=[0.9], b=[0.8]))
    assert math.isnan(found.methods.loc["a", "sd"])
    assert found.pairs.loc[0, "p"] == 1.0 and math.isnan(found.pairs.loc[0, "low"])


def test_a_metric_that_no_method_has_leaves_no_target():
    found = compare(by_target(a=[math.nan], b=[1.0]).assign(metric="hd95"), "hd95")
    assert found.n_targets == 0 and found.left_out == 1 and len(found.labels) == 0


# Recommendation

BASE = np.array([0.81, 0.83, 0.85, 0.80, 0.84, 0.82, 0.86, 0.87])
WOBBLE = np.array([1, -2, 3, -4, 5, -6, 7, -8]) / 1e4


def test_the_best_method_is_recommended_when_it_is_ahead():
    found = recommend(compare(by_target(slow=BASE + 0.02, fast=BASE)), {"slow": 100.0, "fast": 1.0})
    assert (found.method, found.best, found.close) == ("slow", "slow", ("slow",))
    assert found.sentence.startswith("Use slow on this cohort: it has the highest mean Dice over 8 held-out atlases (0.855)")
    assert "a significant difference (signed-rank test, p = 0.0078 after Holm's correction)" in found.sentence


def test_a_cheaper_method_is_recommended_when_nothing_speaks_against_it():
    found = recommend(compare(by_target(slow=BASE + WOBBLE + 0.0005, fast=BASE)), {"slow": 100.0, "fast": 1.0})
    assert (found.method, found.best, found.close) == ("fast", "slow", ("slow", "fast"))
    assert "not significantly worse" in found.sentence and "1 CPU seconds a target instead of 100" in found.sentence


def test_a_cheaper_method_is_not_recommended_when_it_is_significantly_worse():
    found = recommend(compare(by_target(slow=BASE + 0.002 + WOBBLE / 100, fast=BASE)), {"slow": 100.0, "fast": 1.0})
    assert found.method == "slow", "within 0.005, but worse on every target"


def test_a_cheaper_method_is_not_recommended_when_it_is_far_behind_though_not_significantly():
    shift = np.array([0.05, -0.01, 0.06, -0.02, 0.05, -0.03, 0.04, 0.03])
    comparison = compare(by_target(slow=BASE + shift, fast=BASE))
    assert comparison.holm("slow", "fast") > 0.05
    found = recommend(comparison, {"slow": 100.0, "fast": 1.0})
    assert found.method == "slow" and "a not significant difference" in found.sentence


def test_the_cheapest_of_several_is_chosen_and_unknown_costs_are_not_cheap():
    table = by_target(a=BASE + WOBBLE + 0.0005, b=BASE, c=BASE - WOBBLE)
    comparison = compare(table)
    assert recommend(comparison, {"a": 9.0, "b": 5.0, "c": 2.0}).method == "c"
    assert recommend(comparison, {"a": 9.0, "b": 5.0, "c": math.nan}).method == "b"
    assert recommend(comparison, {"b": 5.0}).method == "a", "nothing is cheaper than what is not known"


@pytest.mark.parametrize(("n", "p"), [(1, "2/2^1 = 1)"), (3, "2/2^3 = 0.25"), (5, "2/2^5 = 0.0625")])
def test_few_targets_are_called_few_instead_of_quoting_a_p(n, p):
    sentence = recommend(compare(by_target(a=BASE[:n] + 0.02, b=BASE[:n])), {}).sentence
    assert "numbers too few for a test" in sentence and p in sentence and "signed-rank test" not in sentence


def test_targets_can_be_too_few_for_the_number_of_comparisons():
    comparison = compare(by_target(a=BASE[:6] + 0.03, b=BASE[:6] + 0.02, c=BASE[:6]))
    assert comparison.smallest_holm == pytest.approx(3 * 2 / 64)
    assert (
        "too few for 3 tests (the smallest possible p after Holm's correction is 0.094)"
        in recommend(comparison, {}).sentence
    )


def test_a_single_method_has_nothing_to_be_compared_with():
    found = recommend(compare(by_target(a=[0.8, 0.9])), {"a": 1.0})
    assert found.method == "a" and "nothing to compare" in found.sentence


# Files


@pytest.fixture
def derivatives(tmp_path):
    """Two targets; the good method is right, the other one moved; the costs of the good one are known for one target."""
    for number, scan in enumerate(SCANS, start=1):
        truth = boxes(l1=2, l2=10)
        save_image(truth, AFFINE, tmp_path / "truth" / f"{number}.nii.gz")
        save_image(truth, AFFINE, tmp_path / f"{scan}_desc-good_dseg.nii.gz")
        save_image(boxes(l1=3, l2=11 + number % 2), AFFINE, tmp_path / f"{scan}_desc-dataparams_dseg.nii.gz")
        record = {"state": "ok", "cpu_seconds": 2.0 * number, "seconds": 3.0, "peak_mb": 100 * number}
        write_json(tmp_path / "logs" / "fuse" / f"{scan}_dataparams.log.json", record)
    write_json(tmp_path / "logs/fuse" / f"{SCANS[0]}_good.log.json", record | {"cpu_seconds": 8.0})
    write_json(tmp_path / "logs/fuse" / f"{SCANS[1]}_good.log.json", {"state": "running"})
    return tmp_path


def bench(folder, **options):
    references = [folder / "truth" / "1.nii.gz", folder / "truth" / "2.nii.gz"]
    return run_bench(folder, SCANS, references, ["dataparams", "good"], {1: "left", 2: "right"}, **options)


def test_a_bench_reads_the_fused_labels_and_names_the_structures(derivatives):
    found = bench(derivatives)
    assert list(found.table.columns) == list(BENCH_COLUMN_TEXT)
    assert set(found.table["label"]) == {"left", "right"} and set(found.table["scan"]) == set(SCANS)
    assert found.dice.names == ["good", "dataparams"] and found.recommendation.method == "good"
    assert found.dice.methods.loc["good", "mean"] == 1.0


def test_costs_are_the_mean_of_finished_jobs(derivatives):
    costs, notes = read_costs(derivatives, SCANS, ["good", "dataparams", "unknown"])
    assert costs.loc["good", ["cpu_seconds", "records"]].tolist() == [8.0, 1]
    assert costs.loc["dataparams", ["cpu_seconds", "seconds", "peak_mb", "records"]].tolist() == [3.0, 3.0, 200.0, 2]
    assert costs.loc["unknown"].isna().sum() == 3 and costs.loc["unknown", "records"] == 0
    assert len(notes) == 1


def test_the_training_is_shared_by_the_targets_that_it_was_done_on_and_that_is_said(derivatives):
    record = {"state": "ok", "cpu_seconds": 400.0, "seconds": 500.0, "peak_mb": 3000, "inputs": {"scans": ["a"] * 10}}
    write_json(derivatives / "logs" / "train" / "train_trust.log.json", record)
    costs, notes = read_costs(derivatives, SCANS, ["good", "dataparams"])
    assert costs.loc["dataparams", ["cpu_seconds", "seconds", "peak_mb"]].tolist() == [43.0, 53.0, 3000.0]
    assert costs.loc["good", "cpu_seconds"] == 8.0
    assert any("400 CPU seconds shared by the 10 targets" in note for note in notes)


def test_the_summary_is_strict_json_with_everything_in_it(derivatives):
    found = json.loads(json.dumps(summarise(bench(derivatives)), allow_nan=False, default=float))
    assert found["recommended"] == "good" and found["n_targets"] == 2 and not found["testable"]
    assert found["methods"]["good"]["dice"]["mean"] == 1.0 and set(found["methods"]["good"]) == set(BENCH_METRICS)
    assert found["pairs"][0]["first"] == "good" and found["costs"]["good"]["cpu_seconds"] == 8.0
    assert [row["label"] for row in found["labels"]] == ["left", "right"]
    assert {name: found[name] for name in BENCH_COLUMN_TEXT} == bench_dictionary()


def test_rows_of_the_bench_follow_the_schema(derivatives):
    schema = yaml.safe_load(schema_path("fusion-bench").read_text())
    rows = bench(derivatives).table
    plain = rows.astype(object).where(rows.notna(), None).to_dict("records")
    assert len(plain) and not [error for row in plain for error in Draft202012Validator(schema).iter_errors(row)]
    assert schema["properties"]["metric"]["enum"] == list(BENCH_METRICS)
    assert {metric.unit for metric in BENCH_METRICS.values()} == set(schema["properties"]["unit"]["enum"])


def test_a_bench_without_atlases_or_without_labels_is_refused(derivatives):
    with pytest.raises(InputError, match="0 scans"):
        run_bench(derivatives, [], [], ["good"])
    with pytest.raises(InputError, match="no label of the reference"):
        bench(derivatives, min_voxels=10_000)
    with pytest.raises(InputError, match="cannot read image"):
        run_bench(derivatives, SCANS[:1], [derivatives / "truth" / "1.nii.gz"], ["absent"])
