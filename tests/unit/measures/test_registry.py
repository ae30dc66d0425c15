"""The registry of metrics: each is described and documented, and its function gives what it says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from popatlas.measures.dictionary import bench_dictionary, metrics_columns
from popatlas.measures.metrics import BENCH_METRICS, METRICS, OF_FIELDS, OF_IMAGES, OF_LABELS, Metric, measure
from popatlas.measures.overlap import LabelPair
from popatlas.measures.scores import label_scores
from popatlas.registry import load_code

DOCS = Path(__file__).parents[3] / "docs"
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
SIGN = {"higher": 1, "lower": -1}


def counts(pair):
    """Metrics of each kind that the package has none of; `forgets_lost` takes a lost label for a good one."""
    table = pair.overlaps
    shared = table["dice"] * (table["n_reference"] + table["n_prediction"]) / 2
    lost = 1 - shared / table["n_reference"]
    return {"missed": lost, "size_ratio": table["n_prediction"] / table["n_reference"], "forgets_lost": lost * (shared > 0)}


def differences(fixed, moving, mask):
    inside = mask > 0
    squares = (fixed - moving)[inside] ** 2
    return {
        "mse": squares.mean() if inside.any() else np.nan,
        "shift": (moving - fixed)[inside].mean() if inside.any() else np.nan,
    }


def sizes(log_jacobian, mask):
    inside = np.exp(log_jacobian)[mask > 0]
    return {"smallest": inside.min() if inside.size else np.nan, "kept": (inside > 0.5).mean() if inside.size else np.nan}


def metric(function, better, minimum=None, maximum=None):
    return Metric("", "1", better, minimum, maximum, code=f"{__name__}:{function}")


LABELS = OF_LABELS | {"missed": metric("counts", "lower", 0, 1), "size_ratio": metric("counts", "neither", 0)}
IMAGES = OF_IMAGES | {"mse": metric("differences", "lower", 0), "shift": metric("differences", "neither")}
FIELDS = OF_FIELDS | {"smallest": metric("sizes", "neither", 0), "kept": metric("sizes", "higher", 0, 1)}


def within(name, values, metrics):
    low, high = metrics[name].minimum, metrics[name].maximum
    low, high = -np.inf if low is None else low, np.inf if high is None else high
    values = np.asarray(values, dtype=float)
    return bool((values >= low - 1e-9).all() and (values <= high + 1e-9).all())


def best(metric):
    """Return the end of the range that is best, None where there is none."""
    return {"higher": metric.maximum, "lower": metric.minimum, "neither": None}[metric.better]


def labels(seed):
    rng = np.random.default_rng(seed)
    found = np.zeros((10, 9, 8), dtype=np.int32)
    found[2:6, 2:7, 1:6], found[6:9, 2:7, 1:6] = 4, 900
    return np.where(rng.random(found.shape) < 0.1, 0, found)


def test_naming_metrics_loads_nothing_heavy():
    code = (
        "import sys, popatlas.measures.metrics;"
        "print([name for name in ('torch', 'numpy', 'pandas', 'monai', 'scipy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", [*METRICS, *BENCH_METRICS])
def test_each_is_described_in_the_dictionary_and_the_docs(name):
    metric = METRICS.get(name) or BENCH_METRICS[name]
    assert metric.description and metric.unit and metric.better in ("higher", "lower", "neither")
    if name in METRICS:
        column = metrics_columns()["metric"]
        assert column["Properties"][name]["Units"] == metric.unit and column["Levels"][name]
        assert f"| `{name}` | {metric.unit} | {metric.better} |" in (DOCS / "outputs.md").read_text()
    if name in BENCH_METRICS:
        assert bench_dictionary()["metric"]["Properties"][name]["Units"] == metric.unit
    if metric.code:
        assert load_code(metric.code).__doc__


def test_metrics_of_comparisons_have_functions_and_stand_in_a_table():
    for metrics in (OF_LABELS, OF_IMAGES, OF_FIELDS):
        assert all(metric.code and (metric.scan or metric.bench) for metric in metrics.values())
    assert {"dice", "hd95", "assd", "volume_error", "volume_error_ml"} <= set(BENCH_METRICS) <= set(OF_LABELS)


@pytest.mark.parametrize("name", LABELS)
def test_label_metrics_say_one_number_for_each_label(name):
    reference, fused = labels(1), labels(2)
    one = {name: LABELS[name]}
    own, other = (label_scores(LabelPair(reference, image, AFFINE), one) for image in (reference, fused))
    for table in (own, other):
        assert list(table) == ["label", "metric", "value", "unit"] and table["label"].tolist() == [4, 900]
        assert set(table["metric"]) == {name} and set(table["unit"]) == {LABELS[name].unit}
        assert table["value"].notna().all() and within(name, table["value"], LABELS)
    if sign := SIGN.get(LABELS[name].better):
        assert (sign * own["value"] > sign * other["value"]).any() and (sign * own["value"] >= sign * other["value"]).all()


@pytest.mark.parametrize("name", [name for name in OF_LABELS if name.startswith("volume_error")])
def test_errors_of_volumes_are_zero_for_equal_labels(name):
    assert (label_scores(LabelPair(labels(1), labels(1), AFFINE), {name: OF_LABELS[name]})["value"] == 0).all()


def refuse_good_scores_of_a_lost_label(name, metric):
    """Fail unless a label that the fused image lacks has no score, or is worse than one that is fused well."""
    reference = labels(1)
    images = (reference, labels(2), np.where(reference == 900, 0, reference))
    own, good, lost = (
        label_scores(LabelPair(reference, image, AFFINE), {name: metric}).set_index("label")["value"][900]
        for image in images
    )
    if sign := SIGN.get(metric.better):
        assert np.isnan(lost) or sign * lost < min(sign * good, sign * own)
    else:
        assert np.isnan(lost) or lost != own


@pytest.mark.parametrize("name", LABELS)
def test_a_lost_label_never_scores_as_well_as_one_that_is_fused_well(name):
    refuse_good_scores_of_a_lost_label(name, LABELS[name])


@pytest.mark.parametrize("name", ["dice", "jaccard", "volume_similarity", "hd95", "assd", "volume_error", "volume_error_ml"])
def test_a_lost_label_has_the_least_value_or_none(name):
    reference = labels(1)
    pair = LabelPair(reference, np.where(reference == 900, 0, reference), AFFINE)
    lost = label_scores(pair, {name: OF_LABELS[name]}).set_index("label")["value"][900]
    assert np.isnan(lost) or lost == OF_LABELS[name].minimum or lost < 0


def test_a_metric_that_takes_a_lost_label_for_a_good_one_is_found_out():
    with pytest.raises(AssertionError):
        refuse_good_scores_of_a_lost_label("forgets_lost", metric("counts", "lower", 0, 1))
    with pytest.raises(AssertionError):
        refuse_good_scores_of_a_lost_label("missed", metric("counts", "higher", 0, 1))


def test_only_labels_that_are_wanted_and_large_enough_are_scored():
    pair = LabelPair(labels(1), labels(2), AFFINE, wanted=[4, 77], min_voxels=2)
    assert pair.labels == [4] and label_scores(pair, OF_LABELS)["label"].unique().tolist() == [4]
    assert LabelPair(labels(1), labels(2), AFFINE, min_voxels=10_000).labels == []


@pytest.mark.parametrize("name", IMAGES)
def test_image_metrics_are_best_for_equal_images_and_missing_for_nothing(name):
    rng = np.random.default_rng(3)
    image, mask = rng.random((12, 11, 10)), np.ones((12, 11, 10))
    one = {name: IMAGES[name]}
    own, other = (measure(one, image, moving, mask)[name] for moving in (image, image + rng.random(image.shape)))
    assert own != other and within(name, [own, other], IMAGES)
    if sign := SIGN.get(IMAGES[name].better):
        assert sign * own > sign * other
    if best(IMAGES[name]) is not None:
        assert own == pytest.approx(best(IMAGES[name]), abs=1e-6)
    assert np.isnan(measure(one, image, image, 0 * mask)[name])


@pytest.mark.parametrize("name", FIELDS)
def test_field_metrics_are_best_where_nothing_moves_and_missing_for_nothing(name):
    still, mask = np.zeros((6, 5, 4)), np.ones((6, 5, 4))
    one = {name: FIELDS[name]}
    folded = still.copy()
    folded[2] = np.log(0.001)
    own, other = (measure(one, field, mask)[name] for field in (still, folded))
    assert own != other and within(name, [own, other], FIELDS)
    if sign := SIGN.get(FIELDS[name].better):
        assert sign * own > sign * other
    if best(FIELDS[name]) is not None:
        assert own == best(FIELDS[name])
    assert np.isnan(measure(one, still, 0 * mask)[name])


@pytest.mark.parametrize("name", ["log_jacobian_mean", "log_jacobian_sd", "nonpositive_jacobian"])
def test_jacobians_are_zero_where_nothing_moves(name):
    assert measure({name: OF_FIELDS[name]}, np.zeros((6, 5, 4)), np.ones((6, 5, 4)))[name] == 0


def test_a_function_of_several_metrics_runs_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "popatlas.measures.metrics.load_code", lambda code: lambda: calls.append(code) or dict.fromkeys(METRICS, 1)
    )
    assert measure(OF_IMAGES) == dict.fromkeys(OF_IMAGES, 1) and len(calls) == 1
