"""What the report draws and computes: slices, outliers, axes, the methods text."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from popatlas.config.load import default_config, default_content, load_config, parse_config
from popatlas.images.colours import label_hex
from popatlas.report.figures import Cut, View, draw_sheet, planes, symmetric_limit, under
from popatlas.report.methods import Counts, read_references, write_methods
from popatlas.report.outliers import Measure, key_measures, outlier_scores, robust_z
from popatlas.report.plots import Axis, strip
from popatlas.settings import merge
from tests.unit.report_fixture import METHODS


def test_slices_are_shown_with_the_subjects_left_on_the_left_and_anterior_or_superior_up():
    data = np.zeros((10, 12, 14))
    data[8, 10, 12] = 1
    view = View.around(np.ones(data.shape), np.eye(4))
    for axis, across, up in ((2, 8, 10), (1, 8, 12), (0, 10, 12)):
        index = (8, 10, 12)[axis]
        plane = view.take(Cut(axis, index))(data)
        height = plane.shape[0]
        assert np.argwhere(plane).tolist() == [[height - 1 - up, across]]


def test_a_view_is_the_box_of_the_mask_with_a_margin_in_millimetres():
    mask = np.zeros((40, 40, 40))
    mask[20, 15:25, 18:22] = 1
    view = View.around(mask, np.diag([2.0, 2, 2, 1]), margin_mm=8)
    assert view.box == (slice(16, 25), slice(11, 29), slice(14, 26))
    assert view.size_mm(Cut(2, 20)) == (18.0, 36.0)
    assert view.position(Cut(2, 20)) == "z +40"
    assert all(14 <= cut.index < 26 for cut in view.cuts(2, 7))


def test_a_sheet_has_the_size_that_it_tells_and_is_drawn_the_same_twice(tmp_path):
    data = np.random.default_rng(0).random((20, 24, 18)).astype(np.float32)
    rows = planes(View.around(data > 0, np.eye(4)), [under(data)], count=3)
    sizes = [
        draw_sheet(rows, tmp_path / name, titles=("a", "b", "c"), width_px=600) for name in ("1.webp", "2.webp", "3.png")
    ]
    for name, size in zip(("1.webp", "3.png"), (sizes[0], sizes[2]), strict=True):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == size
    assert (tmp_path / "1.webp").read_bytes() == (tmp_path / "2.webp").read_bytes()


def test_the_first_hundred_labels_have_colours_of_their_own():
    assert len({label_hex(label) for label in range(1, 101)}) == 100


def test_the_limit_of_a_signed_map_is_its_99th_percentile_up_to_a_quarter():
    values = np.linspace(-1, 1, 10001).reshape(73, 137)
    mask = np.ones_like(values)
    assert symmetric_limit(values * 1.1, mask) == 1.25  # 1.1 * 0.99 = 1.089
    assert symmetric_limit(values * 0.01, mask) == 0.5
    assert symmetric_limit(values, 0 * mask) == 0.5


def test_robust_z_is_the_distance_from_the_median_over_the_scaled_mad():
    from scipy.stats import median_abs_deviation

    values = pd.Series(np.random.default_rng(1).normal(5, 1, 40))
    expected = (values - values.median()).abs() / median_abs_deviation(values, scale=1 / 1.4826)
    np.testing.assert_allclose(robust_z(values), expected)


def test_only_the_bad_side_of_a_measure_counts():
    values = pd.Series([0.7, 0.88, 0.9, 0.9, 0.92, 1.1])
    high, low = robust_z(values, "higher"), robust_z(values, "lower")
    assert high[0] > 3.5 and high[5] == 0
    assert low[5] > 3.5 and low[0] == 0
    np.testing.assert_allclose(np.maximum(high, low), robust_z(values))


@pytest.mark.parametrize("values", [[1.0, 2.0, 9.0], [0.9, 0.9, 0.9, 0.9], [0.0, 0.0, 0.0, 0.0]])
def test_few_or_equal_values_give_no_outlier(values):
    assert (robust_z(pd.Series(values)) == 0).all()


def test_the_score_is_the_largest_z_and_names_its_measure():
    table = pd.DataFrame(
        {"dice": [0.9, 0.91, 0.92, 0.93, 0.4], "volume": [1.0, 1.1, 1.2, np.nan, 1.15]}, index=list("abcde")
    )
    measures = [Measure("dice", "Dice", "", "higher", 3, ""), Measure("volume", "Volume", "ml", "neither", 0, "")]
    scores = outlier_scores(table, measures)
    assert scores["score"].idxmax() == "e"
    assert scores.loc["e", "measure"] == "Dice"
    assert outlier_scores(table.iloc[:0], []).empty


def test_key_measures_average_labels_and_take_the_brain_volume_once():
    rows = [
        ("mask", "brain", "volume", 1400.0),
        ("jlf", "a", "dice", 0.8),
        ("jlf", "b", "dice", 0.9),
        ("jlf", "a", "volume", 3.0),
    ]
    metrics = pd.DataFrame(rows, columns=["method", "label", "metric", "value"]).assign(
        participant_id="sub-1", session_id="ses-1"
    )
    table, measures = key_measures(metrics, {}, {"sub-1_ses-1": {"brain_ml": 1400.0, "contrast": 2.0}}, ["jlf"])
    assert table.loc["sub-1_ses-1", "jlf_dice"] == pytest.approx(0.85)
    assert [measure.title for measure in measures] == ["Brain volume", "Dice jlf", "Brain contrast"]


def test_ticks_are_round_numbers_inside_the_axis():
    axis = Axis.over(np.array([0.712, 0.934]), 10, 300)
    ticks = axis.ticks()
    assert len(ticks) >= 2
    for tick in ticks:
        assert 10 <= tick.place <= 300
        assert axis.at(float(tick.text)) == pytest.approx(tick.place)


def test_a_strip_names_the_farthest_outliers_and_shows_every_scan():
    values = {f"s{number}": 1 + 0.01 * number for number in range(10)} | {"far": 9.0}
    plot = strip("Dice", "", "", values, {"far": 12.0}, 3)
    assert {dot.scan for dot in plot.dots} == set(values)
    assert [name.text for name in plot.names] == ["far"]
    assert all(0 <= dot.x <= 320 and 0 <= dot.y <= 120 for dot in plot.dots)


@pytest.mark.parametrize(
    ("change", "wanted", "unwanted"),
    [
        ({}, ["[@", "deepbet"], ["existing template"]),
        ({"atlas": {"template": "t.nii.gz"}}, ["existing template"], ["unbiased template"]),
        ({"preprocess": {"brain": {"method": "none"}}}, ["skull-stripped before"], ["deepbet network"]),
        ({"preprocess": {"denoise": True}}, ["non-local means"], []),
    ],
)
def test_the_methods_text_follows_the_configuration_and_cites_what_it_uses(change, wanted, unwanted):
    config = parse_config(merge(default_content(), change))
    counts = Counts(scans=12, included=10, out={"failed": 1, "excluded": 1}, members=10, atlases=3)
    text = write_methods(config, counts, METHODS, {"popatlas": "0.1.0"})
    joined = " ".join(body for _, body in text.sections)
    assert "12 T1-weighted scans" in joined and "10 entered" in joined and "1 failed and 1 excluded" in joined
    assert all(words in joined for words in wanted if words != "[@") and "[@" not in joined
    assert not any(words in joined for words in unwanted)
    cited = {int(number) for group in re.findall(r"\[(\d+(?:, \d+)*)\]", joined) for number in group.split(", ")}
    assert cited == {reference.number for reference in text.references}
    assert re.findall(r"(?m)^@article\{(\w+),", text.bibtex) == [reference.key for reference in text.references]


def test_without_labelled_atlases_the_methods_text_has_no_fusion():
    text = write_methods(default_config(), Counts(1, 1, {}, 1), [], {})
    assert "Label fusion" not in [heading for heading, _ in text.sections]


def test_every_reference_has_what_a_journal_asks_for_and_no_latex_is_shown():
    for key, entry in read_references().items():
        for field in ("author", "title", "journal", "year", "volume", "pages", "(?:doi|url)"):
            assert re.search(rf"(?m)^  {field} = \{{.+\}},?$", entry), (key, field)
    config = load_config({"preprocess": {"denoise": True}})
    text = write_methods(config, Counts(2, 2, {}, 2, 2), METHODS, {})
    assert not any(set(reference.text) & set("{}\\") for reference in text.references)
