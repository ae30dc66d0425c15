"""The registry of metrics: each is described and documented, and its function gives what it says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from popatlas.measures.dictionary import bench_dictionary, metrics_columns
from popatlas.measures.metrics import BENCH_METRICS, METRICS, OF_FIELDS, OF_IMAGES, OF_LABELS, measure
from popatlas.measures.overlap import LabelPair
from popatlas.measures.scores import label_scores
from popatlas.registry import load_code

DOCS = Path(__file__).parents[3] / "docs"
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def within(name, values, metrics):
    low, high = metrics[name].minimum, metrics[name].maximum
    values = np.asarray(values, dtype=float)
    return bool((values >= (-np.inf if low is None else low - 1e-9)).all() and (values <= (high or np.inf) + 1e-9).all())


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


@pytest.mark.parametrize("name", OF_LABELS)
def test_label_metrics_say_one_number_for_each_label(name):
    reference, fused = labels(1), labels(2)
    one = {name: OF_LABELS[name]}
    own, other = (label_scores(LabelPair(reference, image, AFFINE), one) for image in (reference, fused))
    for table in (own, other):
        assert list(table) == ["label", "metric", "value", "unit"] and table["label"].tolist() == [4, 900]
        assert set(table["metric"]) == {name} and set(table["unit"]) == {OF_LABELS[name].unit}
        assert table["value"].notna().all() and within(name, table["value"], OF_LABELS)
    if OF_LABELS[name].better == "neither":
        assert (own["value"] == 0).all()
    else:
        sign = 1 if OF_LABELS[name].better == "higher" else -1
        assert (sign * own["value"] > sign * other["value"]).any() and (sign * own["value"] >= sign * other["value"]).all()


@pytest.mark.parametrize("name", OF_LABELS)
def test_label_metrics_of_a_lost_label_are_the_worst_or_missing(name):
    reference = labels(1)
    fused = np.where(reference == 900, 0, reference)
    table = label_scores(LabelPair(reference, fused, AFFINE), {name: OF_LABELS[name]}).set_index("label")["value"]
    assert np.isnan(table[900]) or table[900] == OF_LABELS[name].minimum or table[900] < 0


def test_only_labels_that_are_wanted_and_large_enough_are_scored():
    pair = LabelPair(labels(1), labels(2), AFFINE, wanted=[4, 77], min_voxels=2)
    assert pair.labels == [4] and label_scores(pair, OF_LABELS)["label"].unique().tolist() == [4]
    assert LabelPair(labels(1), labels(2), AFFINE, min_voxels=10_000).labels == []


@pytest.mark.parametrize("name", OF_IMAGES)
def test_image_metrics_are_best_for_equal_images_and_missing_for_nothing(name):
    rng = np.random.default_rng(3)
    image, mask = rng.random((12, 11, 10)), np.ones((12, 11, 10))
    one = {name: OF_IMAGES[name]}
    own, other = (measure(one, image, moving, mask)[name] for moving in (image, image + rng.random(image.shape)))
    assert own > other and within(name, [own, other], OF_IMAGES)
    assert own == pytest.approx(OF_IMAGES[name].maximum, abs=1e-6)
    assert np.isnan(measure(one, image, image, 0 * mask)[name])


@pytest.mark.parametrize("name", OF_FIELDS)
def test_field_metrics_are_zero_where_nothing_moves_and_missing_for_nothing(name):
    still, mask = np.zeros((6, 5, 4)), np.ones((6, 5, 4))
    one = {name: OF_FIELDS[name]}
    assert measure(one, still, mask)[name] == 0
    folded = still.copy()
    folded[2] = np.log(0.001)
    assert measure(one, folded, mask)[name] != 0 and within(name, measure(one, folded, mask)[name], OF_FIELDS)
    assert np.isnan(measure(one, still, 0 * mask)[name])


def test_a_function_of_several_metrics_runs_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "popatlas.measures.metrics.load_code", lambda code: lambda: calls.append(code) or dict.fromkeys(METRICS, 1)
    )
    assert measure(OF_IMAGES) == dict.fromkeys(OF_IMAGES, 1) and len(calls) == 1
