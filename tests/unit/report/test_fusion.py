"""The table of atlas weights, the bench as a step, its page, and what the cohort page tells of both."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from jsonschema import Draft202012Validator
from PIL import Image

from popatlas.cli.step import parse_traits
from popatlas.config.load import default_config, load_config
from popatlas.errors import InputError
from popatlas.fusion.dataparams.table import by_atlas, informative, relative_weight, scan_of, tabulate_atlas_weights
from popatlas.images.io import read_table, write_json, write_table
from popatlas.interfaces.bench import BenchFusion, TabulateAtlasWeights
from popatlas.measures.dictionary import ATLAS_WEIGHTS_COLUMN_TEXT
from popatlas.report.atlas_weights import draw_atlas_weights, shown_methods
from popatlas.report.figures import Disagreement
from popatlas.report.fusion import agreement_sheet
from popatlas.report.methods import Counts, write_methods
from popatlas.report.panels import ScanImages
from popatlas.report.plots import lanes
from popatlas.resources import schema_path
from tests.unit.report.test_pages import Reader, report
from tests.unit.report_fixture import BENCH, TEMPLATE, build, run_fusion


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = build(tmp_path_factory.mktemp("fusion"), spacing=4.0, subjects=5)
    run_fusion(folder)
    report(folder)
    return folder


def atlas_weights_rows(targets=4, atlases=3, poor=0.1, method="dataparams"):
    """Return a table where atlas 0 has little weight for every target."""
    rows = []
    for target in range(targets):
        weights = np.array([poor, *np.linspace(1, 1.2, atlases - 1)])
        for atlas, share in enumerate(weights / weights.sum()):
            rows.append((f"sub-t{target}/anat/sub-t{target}", method, f"sub-a{atlas}/anat/sub-a{atlas}", share))
    table = pd.DataFrame(rows, columns=["scan", "method", "atlas", "trust"])
    ranks = table.groupby("scan")["trust"].rank(ascending=False).astype(int)
    return table.assign(rank=ranks, parameter=0.5, overlap=0.8)


def write_rows(folder, rows):
    files = []
    for (scan, method), table in rows.groupby(["scan", "method"]):
        files.append(folder / f"{scan}_desc-{method}_trust.tsv")
        write_table(table, files[-1])
    return files


# Atlas weights


def test_the_table_of_atlas_weights_has_the_gates_of_target_and_atlas(tmp_path):
    rows = atlas_weights_rows()
    for scan, ncc in (("sub-t0/anat/sub-t0", 0.9), ("sub-a1/anat/sub-a1", 0.7)):
        write_json(tmp_path / f"{scan}_space-study_desc-gate_registration.json", {"ncc": ncc, "verdict": "pass"})
    gates = sorted(tmp_path.glob("**/*_registration.json"))
    found = tabulate_atlas_weights(write_rows(tmp_path, rows), gates, tmp_path)
    assert list(found.columns) == list(ATLAS_WEIGHTS_COLUMN_TEXT) and len(found) == 12
    of_target, of_atlas = found["scan"] == "sub-t0/anat/sub-t0", found["atlas"] == "sub-a1/anat/sub-a1"
    assert (found.loc[of_target, "target_ncc"] == 0.9).all() and found.loc[~of_target, "target_ncc"].isna().all()
    assert (found.loc[of_atlas, "atlas_ncc"] == 0.7).all() and found.loc[~of_atlas, "atlas_ncc"].isna().all()
    assert found["participant_id"].iloc[0] == "sub-t0" and (found["session_id"] == "").all()
    assert found.groupby("scan")["rank"].apply(list).tolist() == [[1, 2, 3]] * 4, "the largest weight first"


def test_rows_of_atlas_weights_follow_the_schema(out):
    schema = yaml.safe_load(schema_path("trust").read_text())
    rows = read_table(out / "group" / "trust.parquet")
    plain = rows.astype(object).where(rows.notna(), None).to_dict("records")
    assert len(plain) == 5 * 3 * 4
    assert not [error for row in plain for error in Draft202012Validator(schema).iter_errors(row)]
    assert list(schema["properties"]) == list(ATLAS_WEIGHTS_COLUMN_TEXT) == schema["required"]
    text = json.loads((out / "group" / "trust.json").read_text())
    assert list(text) == list(rows.columns) and all(column["Description"] for column in text.values())
    assert rows["atlas_mask_dice"].notna().all(), "the gates were found"
    assert set(rows.loc[rows["participant_id"] == "sub-02", "session_id"]) == {"ses-1"}


def test_relative_atlas_weights_is_one_for_an_equal_share_whatever_the_number_of_atlases():
    few, many = atlas_weights_rows(atlases=3, poor=1.0), atlas_weights_rows(atlases=8, poor=1.0).assign(scan="other")
    many = many.head(8)
    table = pd.concat([few, many], ignore_index=True)
    assert relative_weight(table).groupby(table["scan"]).sum().tolist() == pytest.approx([8.0, 3.0, 3.0, 3.0, 3.0])
    equal = pd.DataFrame({"scan": ["s"] * 4, "method": "m", "atlas": list("abcd"), "trust": 0.25})
    assert relative_weight(equal).tolist() == [1.0] * 4


def test_the_atlas_of_least_weight_comes_first_and_is_last_everywhere(tmp_path):
    found = by_atlas(tabulate_atlas_weights(write_rows(tmp_path, atlas_weights_rows()), [], tmp_path), "dataparams")
    assert found["atlas"].iloc[0] == "sub-a0/anat/sub-a0"
    assert found.loc[0, ["targets", "last", "rank"]].tolist() == [4, 1.0, 3.0]
    assert found.loc[0, "relative"] == pytest.approx(0.3 / 2.3) and found.loc[1:, "last"].tolist() == [0.0, 0.0]


def test_methods_that_atlas_weights_all_atlases_alike_tell_nothing(tmp_path):
    rows = pd.concat(
        [atlas_weights_rows(), atlas_weights_rows(poor=0.9, method="jlf"), atlas_weights_rows(poor=1.1, method="majority")]
    )
    rows.loc[rows["method"] == "majority", "trust"] = 1 / 3
    table = tabulate_atlas_weights(write_rows(tmp_path, rows), [], tmp_path)
    assert informative(table) == ["dataparams", "jlf"]
    assert shown_methods(table[table["method"] == "majority"]) == ["majority"], "one is shown all the same"
    assert by_atlas(table.assign(rank=1), "majority")["last"].tolist() == [0.0] * 3, "nobody is last when all are alike"


def test_a_gate_that_is_not_one_or_lies_elsewhere_is_refused(tmp_path):
    name = "sub-1/ses-2/anat/sub-1_ses-2"
    assert scan_of(tmp_path / f"{name}_space-x_desc-gate_registration.json", tmp_path) == name
    with pytest.raises(InputError, match="not inside"):
        scan_of(tmp_path / "a_space-x_desc-gate_registration.json", tmp_path / "out")
    with pytest.raises(InputError, match="not the gate of a scan"):
        scan_of(tmp_path / "a_desc-metrics_table.tsv", tmp_path)


def test_a_atlas_weights_table_without_its_columns_is_refused(tmp_path):
    write_table(pd.DataFrame({"scan": ["s"], "method": ["m"]}), tmp_path / "t.tsv")
    with pytest.raises(InputError, match=r"columns \['atlas'"):
        tabulate_atlas_weights([tmp_path / "t.tsv"], [], tmp_path)


@pytest.mark.parametrize("atlases", [0, 3, 8, 50])
def test_the_figure_of_atlas_weights_gives_every_atlas_room(tmp_path, atlases):
    rows = atlas_weights_rows(targets=6, atlases=atlases) if atlases else atlas_weights_rows().head(0)
    draw_atlas_weights(tabulate_atlas_weights(write_rows(tmp_path, rows), [], tmp_path), tmp_path / "trust.png")
    with Image.open(tmp_path / "trust.png") as picture:
        assert picture.height >= 24 * atlases and picture.width >= 500
    first = (tmp_path / "trust.png").read_bytes()
    draw_atlas_weights(tabulate_atlas_weights(write_rows(tmp_path, rows), [], tmp_path), tmp_path / "trust.png")
    assert (tmp_path / "trust.png").read_bytes() == first


# Pictures


def test_disagreement_is_drawn_only_where_atlases_disagree():
    from matplotlib.figure import Figure

    data = np.ones((5, 6, 4))
    data[2, 3, 1], data[1, 1, 1] = 0.5, 0.1
    axes = Figure().add_axes((0, 0, 1, 1))
    Disagreement(data).draw(axes, lambda volume: volume[:, :, 1], (0, 1, 1, 0))
    alpha = axes.images[0].get_array()[..., 3]
    assert np.argwhere(alpha > 0).tolist() == [[1, 1], [2, 3]]
    assert alpha[1, 1] == pytest.approx(1.0) and 0.2 < alpha[2, 3] < 1


def test_lanes_share_one_axis_and_join_the_values_of_a_scan():
    plot = lanes("Dice", "", {"a": {"s": 0.5, "t": 0.7}, "b": {"s": 0.6, "t": 0.6}}, 2)
    assert plot.lanes[0].dots[0].x < plot.lanes[1].dots[0].x == plot.lanes[1].dots[1].x < plot.lanes[0].dots[1].x
    assert [lane.note for lane in plot.lanes] == ["mean 0.60", "mean 0.60"]
    dots = [[lane.dots[number] for lane in plot.lanes] for number in (0, 1)]
    assert plot.lines == [" ".join(f"{dot.x},{dot.y}" for dot in row) for row in dots]
    assert all(lane.y < plot.bottom for lane in plot.lanes)
    assert lanes("Dice", "", {"a": {"s": 0.5}}, 2).lines == []


def test_a_sheet_shows_what_there_is(out):
    scan = "sub-01/anat/sub-01"
    truth = out.parent / "bids" / "derivatives" / "labels" / f"{scan}_dseg.nii.gz"
    everything = agreement_sheet(ScanImages(out, scan, "", ("jlf",), reference=truth), "jlf")
    assert everything[0].titles == ("reference", "jlf", "agreement", "wrong") and everything[0].bar
    assert agreement_sheet(ScanImages(out, scan, "", ("jlf",)), "jlf")[0].titles == ("jlf", "agreement")
    assert agreement_sheet(ScanImages(out, scan, "", ("absent",)), "absent") == []


# Pages


def test_the_bench_is_a_step_that_writes_tables_summary_and_page(out):
    table, summary = read_table(out / BENCH["parquet"]), json.loads((out / BENCH["json"]).read_text())
    assert len(read_table(out / BENCH["tsv"])) == len(table)
    assert set(table["label"]) == {
        "grey-matter-left",
        "grey-matter-right",
        "white-matter-left",
        "white-matter-right",
        "ventricles",
    }
    assert summary["recommended"] == "jlf", "the fixture's methods are better and better"
    assert summary["n_targets"] == 5 and not summary["testable"]


def test_the_page_of_the_bench_tells_the_recommendation_first(out):
    page = out / "report" / "fusion.html"
    reader = Reader(page)
    summary = json.loads((out / BENCH["json"]).read_text())
    assert summary["sentence"] in reader.text and "5 targets are too few for a test" in reader.text
    assert "p, Holm" not in reader.text
    assert "index.html" in reader.links and all(path.exists() for path in reader.local(page))
    assert len(reader.ids) == len(set(reader.ids)) and not reader.open
    assert re.findall(r'<th scope="row"><span title="[^"]*">(\w+)</span>', reader.text) == ["jlf", "staple", "majority"]
    assert reader.text.count('<polyline class="pair"') == 5
    assert set(reader.scripts) == {None}
    assert "Ageing &amp; &lt;growth&gt; study" in reader.text


def test_the_page_of_the_bench_shows_worst_median_and_best_target(out):
    reader = Reader(out / "report" / "fusion.html")
    dice = read_table(out / BENCH["parquet"]).query("metric == 'dice' and method == 'jlf'").groupby("scan")["value"].mean()
    ordered = [Path(scan).name for scan in dice.sort_values().index]
    assert [Path(image["src"]).stem for image in reader.images] == [f"{ordered[place]}_fusion-jlf" for place in (0, 2, 4)]
    assert all(image["alt"] and image["width"] for image in reader.images)
    for which in ("worst", "median", "best"):
        assert f"the {which} of 5 targets" in reader.text


def test_pictures_of_an_earlier_bench_go_and_others_stay(out):
    figures = out / "report" / "figures"
    old, other = figures / "sub-77_fusion-majority.webp", figures / "sub-77_labels.webp"
    for path in (old, other):
        path.write_bytes(b"x")
    run_fusion(out)
    assert not old.exists() and other.exists()
    assert len(list(figures.glob("*_fusion-jlf.webp"))) == 3
    other.unlink()


def test_p_values_are_told_with_enough_targets(out, tmp_path):
    from popatlas.fusion.bench import Bench
    from popatlas.fusion.crossval import compare
    from popatlas.measures.metrics import BENCH_METRICS
    from popatlas.report.fusion import write_fusion_page

    random = np.random.default_rng(0)
    better = {"jlf": 0.85, "majority": 0.8}
    rows = [
        (f"sub-{scan}/anat/sub-{scan}", method, "<b>label</b>", metric, better[method] + 0.01 * random.random(), "1")
        for scan in range(8) for method in better for metric in BENCH_METRICS
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["scan", "method", "label", "metric", "value", "unit"])
    costs = pd.DataFrame(
        {"cpu_seconds": np.nan, "seconds": np.nan, "peak_mb": np.nan, "records": 0}, index=["jlf", "majority"]
    )
    comparisons = {metric: compare(table, metric) for metric in BENCH_METRICS}
    write_fusion_page(Bench(table, comparisons, costs), tmp_path, {}, tmp_path / "fusion.html")
    reader = Reader(tmp_path / "fusion.html")
    assert "jlf is better than majority" in reader.text and ">0.0078</td>" in reader.text
    assert "<b>label" not in reader.text and not reader.images


def test_the_cohort_page_shows_bench_and_atlas_weights(out):
    page = out / "report" / "index.html"
    reader = Reader(page)
    summary = json.loads((out / BENCH["json"]).read_text())
    assert summary["sentence"] in reader.text and "fusion.html" in reader.links
    picture = next(image for image in reader.images if image["src"] == "figures/trust.png")
    with Image.open(out / "report" / "figures" / "trust.png") as figure:
        assert (int(picture["width"]), int(picture["height"])) == figure.size
    atlas_weights = reader.text[reader.text.index('<table id="trust"') :]
    assert re.search(r'<th scope="row">([\w-]+)', atlas_weights)[1] == "sub-02_ses-1", "the poor atlas comes first"
    assert "Wilcoxon signed-rank tests" in reader.text and "5 held-out atlases" in reader.text
    assert all(path.exists() for path in reader.local(page))
    assert len(reader.ids) == len(set(reader.ids)) and not reader.open


def test_without_bench_and_atlas_weights_the_cohort_page_has_no_section_of_fusion(tmp_path):
    out = build(tmp_path, subjects=2, images=False)
    text = report(out).read_text()
    assert 'id="fusion"' not in text and "#fusion" not in text and "held-out" not in text


def test_steps_can_be_called_from_the_command_line():
    options = [
        "--in_references",
        "a",
        "b",
        "--scans",
        "s",
        "t",
        "--methods",
        "jlf",
        "--derivatives",
        ".",
        "--min_voxels",
        "3",
    ]
    options += ["--out_table", "t", "--out_tsv", "v", "--out_summary", "j", "--out_page", "p"]
    options[1:3] = [__file__, __file__]
    assert parse_traits(BenchFusion, options)["scans"] == ["s", "t"]
    options = ["--in_tables", __file__, "--derivatives", ".", "--out_parquet", "p", "--out_tsv", "t"]
    assert parse_traits(TabulateAtlasWeights, [*options, "--out_dictionary", "d", "--out_figure", "f"])["in_tables"] == [
        __file__
    ]


# Methods text


@pytest.mark.parametrize(
    ("method", "words", "keys"),
    [
        ("majority", "majority voting", ["heckemann2006"]),
        ("global", "weighted by the global correlation of the images to the power 8", ["artaechevarria2009"]),
        ("local", "local correlation of the images to the power 8 in windows of radius 2", ["artaechevarria2009"]),
        ("staple", "multi-label STAPLE", ["warfield2004", "rohlfing2004"]),
        ("jlf", "joint label fusion [", ["wang2013"]),
        ("jlfants", "as in ANTs", ["wang2013"]),
        ("dataparams", "one trainable weight for each propagated label image", ["weihsbach2022", "saxena2019", "wang2013"]),
    ],
)
def test_the_methods_text_names_and_cites_each_fusion_method(method, words, keys):
    config = load_config({"fuse": {"select": 4}})
    text = write_methods(config, Counts(9, 9, {}, 9, 5, 5), [method], {})
    body = dict(text.sections)["Label fusion"]
    assert words in body and "the 4 whose images were most similar" in body and "5 held-out atlases" in body
    assert {*keys, "wilcoxon1945", "holm1979"} <= {reference.key for reference in text.references}
    assert TEMPLATE not in body


def test_a_reference_without_doi_has_an_address():
    text = write_methods(default_config(), Counts(9, 9, {}, 9, 5, 5), ["dataparams"], {})
    addresses = {reference.key: reference.address for reference in text.references}
    assert addresses["saxena2019"].startswith("https://papers.nips.cc/")
    assert addresses["weihsbach2022"] == "https://doi.org/10.1007/978-3-031-11203-4_5"
