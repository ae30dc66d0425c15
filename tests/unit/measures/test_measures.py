"""Facts about measures: overlap, volumes, similarity, landmarks, tables."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from jsonschema import Draft202012Validator

from popatlas.errors import InputError
from popatlas.images.io import read_table, save_image, write_json, write_table
from popatlas.interfaces.measure import MeasureScan, TabulateCohort
from popatlas.measures.dictionary import COLUMN_TEXT, COLUMNS
from popatlas.measures.landmarks import landmark_errors, read_landmarks, target_registration_error
from popatlas.measures.metrics import METRICS
from popatlas.measures.names import find_names, read_names
from popatlas.measures.overlap import dice, overlap
from popatlas.measures.pieces import read_scan_tables
from popatlas.measures.scan import ScanFiles, measure_scan, split_scan
from popatlas.measures.similarity import similarity
from popatlas.measures.summary import summarise
from popatlas.measures.table import age_effect, members, tabulate
from popatlas.measures.volumes import volumes
from popatlas.measures.wide import wide_volumes
from popatlas.resources import schema_path


def random_labels(seed: int, n_labels: int = 12, shape: tuple[int, int, int] = (20, 18, 16)) -> np.ndarray:
    """Blobs: the largest of smoothed noise channels, the first of which is background."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    noise = np.stack([gaussian_filter(rng.normal(size=shape), 2) for _ in range(n_labels)])
    return np.asarray(noise.argmax(axis=0) * 7)


def test_overlap_equals_simpleitk() -> None:
    import SimpleITK as sitk

    reference, prediction = random_labels(0), np.roll(random_labels(0), 2, axis=1)
    table = overlap(reference, prediction).set_index("label")
    engine = sitk.LabelOverlapMeasuresImageFilter()
    engine.Execute(*(sitk.GetImageFromArray(image.astype(np.uint16)) for image in (prediction, reference)))
    assert len(table) == 11
    for label in table.index:
        assert table.dice[label] == pytest.approx(engine.GetDiceCoefficient(int(label)))
        assert table.jaccard[label] == pytest.approx(engine.GetJaccardCoefficient(int(label)))
        assert table.volume_similarity[label] == pytest.approx(1 - abs(engine.GetVolumeSimilarity(int(label))) / 2)


def test_overlap_counts_labels_of_either_image() -> None:
    table = overlap(np.array([0, 1, 1, 900]), np.array([0, 1, 2, 2])).set_index("label")
    assert table.dice.to_dict() == pytest.approx({1: 2 / 3, 2: 0.0, 900: 0.0})
    assert overlap(np.zeros(4, int), np.zeros(4, int)).empty
    with pytest.raises(InputError, match="different grids"):
        overlap(np.zeros(4, int), np.zeros(5, int))
    assert dice(np.array([1, 1, 0]), np.array([0, 2, 2])) == 0.5
    assert np.isnan(dice(np.zeros(3), np.zeros(3)))


def test_volumes_use_the_determinant_of_the_affine() -> None:
    turn = np.array([[0.6, -0.8, 0, 0], [0.8, 0.6, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
    affine = turn @ np.diag([2, 2, 2.5, 1])
    labels = np.array([0, 3, 3, 500]).reshape(2, 2, 1)
    assert volumes(labels, affine).to_numpy().tolist() == [[3, pytest.approx(0.02)], [500, pytest.approx(0.01)]]


def test_similarity_of_known_relations() -> None:
    image = np.random.default_rng(0).random((16, 16, 16))
    mask = np.ones(image.shape)
    same = similarity(image, 3 - 2 * image, mask)
    assert same["correlation"] == pytest.approx(-1)
    assert same["local_correlation"] == pytest.approx(1, abs=1e-6)
    assert same["nmi"] == pytest.approx(2, abs=1e-6)
    other = similarity(image, np.random.default_rng(1).random(image.shape), mask)
    assert abs(other["correlation"]) < 0.05
    assert other["nmi"] < 1.1
    # a factor that changes over space defeats the global correlation, not the local one
    ramp = np.linspace(1, 4, 16)[:, None, None] ** 2
    bias = similarity(image, image * ramp, mask, radius=1)
    assert bias["local_correlation"] > 0.6 > bias["correlation"]
    assert all(np.isnan(value) for value in similarity(image, np.ones(image.shape), mask).values())


def landmark_rows(points: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        (subject, "", "t@1", "registration", "tip", f"landmark_{axis}", value, "mm")
        for subject, point in points.items()
        for axis, value in zip("xyz", point, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_landmark_error_is_the_distance_from_the_others() -> None:
    errors = landmark_errors(landmark_rows({"sub-a": [0, 0, 0], "sub-b": [3, 0, 0], "sub-c": [0, 0, 6]}))
    expected = {"sub-a": np.hypot(1.5, 3), "sub-b": np.hypot(3, 3), "sub-c": np.hypot(1.5, 6)}
    assert errors.set_index("participant_id")["value"].to_dict() == pytest.approx(expected)
    assert landmark_errors(landmark_rows({"sub-a": [0, 0, 0]})).empty
    assert target_registration_error(np.zeros((1, 3)), np.array([[3.0, 4, 0]])).tolist() == [5]


def test_bad_landmark_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "landmarks.tsv"
    for text, message in [
        ("name\tx\ty\n", "missing"),
        ("name\tx\ty\tz\na\t1\t2\t3\na\t1\t2\t3\n", "repeat"),
        ("name\tx\ty\tz\na\tone\t2\t3\n", "not numbers"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_landmarks(path)


@pytest.fixture
def scan_files(tmp_path: Path) -> ScanFiles:
    """A scan with labels by two methods, the second of which lacks a label; the reference has a finer grid."""
    truth = tmp_path / "derivatives" / "truth" / "sub-01" / "ses-2" / "anat"
    affine, fine = np.diag([2.0, 2, 2, 1]), np.diag([1.0, 1, 1, 1])
    labels = np.zeros((10, 10, 10), dtype=np.int32)
    labels[2:5, 2:8, 2:8], labels[5:8, 2:8, 2:8] = 4, 43
    reference = labels.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    fine[:3, 3] = -0.5
    save_image(reference, fine, truth / "truth_dseg.nii.gz")
    (truth.parents[2] / "dseg.tsv").write_text("index\tname\n4\tleft\n43\tright\n")
    save_image(labels, affine, tmp_path / "majority.nii.gz")
    save_image(np.where(labels == 4, 0, labels), affine, tmp_path / "jlf.nii.gz")
    save_image((labels > 0).astype(np.uint8), affine, tmp_path / "mask.nii.gz")
    return ScanFiles(
        scan="sub-01/ses-2/anat/sub-01_ses-2",
        template="popatlas@0123abcd",
        mask=tmp_path / "mask.nii.gz",
        labels={"majority": tmp_path / "majority.nii.gz", "jlf": tmp_path / "jlf.nii.gz"},
        reference=truth / "truth_dseg.nii.gz",
    )


def value(table: pd.DataFrame, method: str, label: str, metric: str) -> float:
    row = table[(table["method"] == method) & (table["label"] == label) & (table["metric"] == metric)]
    assert len(row) == 1
    return float(row["value"].iloc[0])


def assert_documented(table: pd.DataFrame) -> None:
    """Every row obeys the published schema and the dictionary's unit and range."""
    assert table.columns.tolist() == COLUMNS == list(COLUMN_TEXT)
    validator = Draft202012Validator(yaml.safe_load(schema_path("metrics").read_text()))
    for row in table.astype(object).where(table.notna(), None).to_dict(orient="records"):
        validator.validate(row)
        metric = METRICS[row["metric"]]
        assert row["unit"] == metric.unit
        if row["value"] is not None:
            assert metric.minimum is None or row["value"] >= metric.minimum - 1e-9
            assert metric.maximum is None or row["value"] <= metric.maximum + 1e-9


def test_schema_lists_the_metrics_of_the_dictionary() -> None:
    schema = yaml.safe_load(schema_path("metrics").read_text())
    assert schema["properties"]["metric"]["enum"] == list(METRICS)
    assert set(schema["properties"]["unit"]["enum"]) == {about.unit for about in METRICS.values()}
    assert schema["required"] == COLUMNS


def test_scan_is_measured_on_the_grid_of_the_fused_labels(scan_files: ScanFiles) -> None:
    table = measure_scan(scan_files)
    assert_documented(table)
    assert table[["participant_id", "session_id"]].drop_duplicates().to_numpy().tolist() == [["sub-01", "ses-2"]]
    assert value(table, "mask", "brain", "volume") == pytest.approx(216 * 0.008)
    assert value(table, "reference", "left", "volume") == pytest.approx(108 * 0.008)
    assert value(table, "majority", "left", "dice") == 1
    assert value(table, "majority", "right", "hd95") == 0
    assert value(table, "jlf", "left", "dice") == 0
    assert np.isnan(value(table, "jlf", "left", "assd"))
    assert value(table, "jlf", "right", "jaccard") == 1


def test_parts_that_are_missing_are_not_measured(scan_files: ScanFiles) -> None:
    from dataclasses import replace

    bare = ScanFiles("sub-9/anat/sub-9")
    assert measure_scan(bare).empty
    assert measure_scan(bare).columns.tolist() == COLUMNS
    unlabelled = measure_scan(replace(scan_files, reference=None))
    assert set(unlabelled["metric"]) == {"volume"}
    assert set(unlabelled["label"]) == {"brain", "4", "43"}
    assert not set(measure_scan(scan_files, surface=False)["metric"]) & {"hd95", "assd"}
    assert "dice" not in set(measure_scan(scan_files, min_voxels=109)["metric"])


def test_registration_is_measured_before_and_after(tmp_path: Path) -> None:
    from scipy.ndimage import gaussian_filter

    from tests.unit.fusion.test_fusion import write_affine

    affine = np.diag([2.0, 2, 2, 1])
    template = gaussian_filter(np.random.default_rng(0).random((24, 22, 20)), 2).astype(np.float32)
    save_image(template, affine, tmp_path / "template.nii.gz")
    save_image(np.roll(template, 2, axis=0), affine, tmp_path / "brain.nii.gz")
    save_image(np.pad(np.ones((16, 14, 12), np.uint8), 4), affine, tmp_path / "mask.nii.gz")
    # in LPS the subject's point lies 4 mm further on the negative side
    shift = write_affine(tmp_path / "affine.mat", np.eye(3), np.array([-4.0, 0, 0]))
    files = ScanFiles(
        "sub-1/anat/sub-1", "t@00000000", brain=tmp_path / "brain.nii.gz", template_brain=tmp_path / "template.nii.gz",
        template_mask=tmp_path / "mask.nii.gz", warped=tmp_path / "brain.nii.gz", affine=shift,
    )  # fmt: skip
    table = measure_scan(files)
    assert_documented(table)
    assert value(table, "affine", "brain", "correlation") == pytest.approx(1, abs=1e-5)
    assert value(table, "registration", "brain", "correlation") < 0.9


def test_every_attempt_at_the_registration_is_in_the_table(tmp_path: Path) -> None:
    numbers = {"scale_min": 0.9, "mask_dice": 0.7, "ncc": 0.8, "diverged": 0.0, "of_the_future": 1.0}
    tries = [
        {"engine": "instance", "linear": "affine", "start": "mass", "metrics": numbers, "reasons": ["mask Dice 0.7"]},
        {"engine": "ants", "linear": "ants", "start": "search", "metrics": numbers | {"mask_dice": 0.95}, "reasons": []},
    ]
    write_json(tmp_path / "gate.json", {"verdict": "pass", "attempts": tries})
    table = measure_scan(ScanFiles("sub-1/anat/sub-1", gate=tmp_path / "gate.json"))
    assert_documented(table)
    assert value(table, "attempt-1", "instance-affine-mass", "gate_passed") == 0
    assert value(table, "attempt-1", "instance-affine-mass", "gate_mask_dice") == 0.7
    assert value(table, "attempt-2", "ants-ants-search", "gate_passed") == 1
    assert value(table, "attempt-2", "ants-ants-search", "gate_mask_dice") == 0.95
    assert len(table) == 10  # a number that the dictionary does not know is no metric
    (tmp_path / "gate.json").write_text("{}")
    with pytest.raises(InputError, match="no attempts"):
        measure_scan(ScanFiles("sub-1/anat/sub-1", gate=tmp_path / "gate.json"))


def test_label_names_are_found_beside_the_labels(tmp_path: Path) -> None:
    folder = tmp_path / "labels" / "sub-1" / "anat"
    folder.mkdir(parents=True)
    image = folder / "sub-1_dseg.nii.gz"
    assert find_names(None) is None
    (tmp_path / "labels" / "dataset_description.json").write_text("{}")
    (tmp_path / "dseg.tsv").write_text("index\tname\n1\tanother dataset\n")
    assert find_names(image) is None
    (tmp_path / "labels" / "dseg.tsv").write_text("index\tname\n1\ta\n2\ta\n3\tc\n")
    assert find_names(image) == tmp_path / "labels" / "dseg.tsv"
    assert read_names(find_names(image)) == {1: "a-1", 2: "a-2", 3: "c"}
    image.with_name("sub-1_dseg.tsv").write_text("index\tname\n1\town\n")
    assert read_names(find_names(image)) == {1: "own"}


def test_scan_keys_are_split() -> None:
    assert split_scan("sub-01/anat/sub-01") == ("sub-01", "")
    assert split_scan("sub-01/ses-b/anat/sub-01_ses-b") == ("sub-01", "ses-b")


def test_members_come_from_the_ledger() -> None:
    names = [f"sub-{i}" for i in range(5)]
    index = pd.DataFrame({"scan": names, "subject": names, "session": "", "role": ["cohort"] * 4 + ["atlas"]})
    ledger = pd.DataFrame(
        [
            ("sub-0", None, "measure", "ok", ""),
            ("sub-1", None, "register", "failed", "gate"),
            ("sub-1", None, "measure", "pending", ""),
            ("sub-2", None, "measure", "pending", "not run"),
            ("sub-3", None, "channel", "failed", "the T2w is empty"),
            ("sub-3", None, "page", "failed", "no space left"),
        ],
        columns=["subject", "session", "stage", "state", "reason"],
    )
    inside, outside = members(index, ledger)
    assert inside["scan"].tolist() == ["sub-0", "sub-3"]
    assert outside[["scan", "stage", "reason"]].to_numpy().tolist() == [
        ["sub-1", "register", "gate"],
        ["sub-2", "measure", "not run"],
    ]


def write_cohort(folder: Path, scan_files: ScanFiles) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write tables of two scans with different label sets; a third failed, a fourth has no table."""
    first = measure_scan(scan_files)
    second = first[first["label"] != "left"].assign(participant_id="sub-02", session_id="")
    write_table(first, folder / "sub-01/ses-2/anat/sub-01_ses-2_desc-metrics_table.tsv")
    write_table(second, folder / "sub-02/anat/sub-02_desc-metrics_table.tsv")
    index = pd.DataFrame(
        {
            "scan": ["sub-01/ses-2/anat/sub-01_ses-2", *(f"sub-0{i}/anat/sub-0{i}" for i in (2, 3, 4))],
            "subject": [f"sub-0{i}" for i in (1, 2, 3, 4)],
            "session": ["ses-2", "", "", ""],
        }
    )
    columns = ["subject", "session", "stage", "state", "reason", "log"]
    return index, pd.DataFrame([("sub-03", "", "preprocess", "failed", "no brain", "x.log")], columns=columns)


def test_cohort_is_tabulated(tmp_path: Path, scan_files: ScanFiles) -> None:
    out = tmp_path / "out"
    index, ledger = write_cohort(out, scan_files)
    participants = pd.DataFrame({"participant_id": ["01", "sub-02", "sub-77"], "age": [30, 40, 50]})
    tables = tabulate(out, index, ledger, participants)
    assert tables.members["n_in"] == 2
    assert {row["scan"]: row["reason"] for row in tables.members["out"]} == {
        "sub-03/anat/sub-03": "no brain",
        "sub-04/anat/sub-04": "no metric table",
    }
    wide = tables.volumes.set_index("participant_id")
    assert wide["age"].tolist() == [30, 40]
    assert wide.loc["sub-01", "majority_left"] == pytest.approx(108 * 0.008)
    assert np.isnan(wide.loc["sub-02", "majority_left"])
    assert_documented(tables.metrics.drop(columns="age"))
    ages = tables.metrics.groupby("participant_id")["age"].agg(["min", "max"])
    assert ages.to_numpy().tolist() == [[30, 30], [40, 40]]
    summary = tables.summary.set_index(["method", "metric"])
    assert summary.loc[("jlf", "dice"), "mean"] == pytest.approx(0.75)  # mean of 0.5 (two labels) and 1 (one label)
    assert summary.loc[("jlf", "dice"), "scans"] == 2
    assert ("majority", "volume") not in summary.index


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "a_desc-metrics_table.tsv").write_text("subject\tvalue\nsub-1\t1\n")
    with pytest.raises(InputError, match=r"columns.*missing.*a_desc-metrics_table.tsv.*Remedy"):
        read_scan_tables([tmp_path / "a_desc-metrics_table.tsv"])


def test_empty_cohort_is_tabulated(tmp_path: Path) -> None:
    index = pd.DataFrame({"scan": ["a"], "subject": ["sub-1"], "session": [""]})
    ledger = pd.DataFrame(columns=["subject", "session", "stage", "state", "reason", "log"])
    tables = tabulate(tmp_path, index, ledger)
    assert tables.members["n_in"] == 0
    assert tables.metrics.columns.tolist() == COLUMNS
    assert len(tables.metrics) == len(tables.volumes) == len(tables.summary) == 0


def test_steps_write_tables(tmp_path: Path, scan_files: ScanFiles) -> None:
    out, group = tmp_path / "out", tmp_path / "group"
    index, ledger = write_cohort(out, scan_files)
    target = out / f"{scan_files.scan}_desc-metrics_table.tsv"
    MeasureScan(
        scan=scan_files.scan, template=scan_files.template, in_mask=str(scan_files.mask),
        in_labels=[str(path) for path in scan_files.labels.values()], methods=list(scan_files.labels),
        in_reference=str(scan_files.reference), out_table=str(target),
    ).run()  # fmt: skip
    assert len(read_table(target)) == len(measure_scan(scan_files))
    write_table(index, tmp_path / "index.tsv")
    write_table(ledger, tmp_path / "ledger.tsv")
    names = {
        "parquet": "metrics.parquet", "tsv": "metrics.tsv", "dictionary": "metrics.json", "volumes": "volumes.tsv",
        "summary": "summary.tsv", "members": "members.json",
    }  # fmt: skip
    TabulateCohort(
        in_index=str(tmp_path / "index.tsv"), in_ledger=str(tmp_path / "ledger.tsv"), derivatives=str(out),
        **{f"out_{key}": str(group / name) for key, name in names.items()},
    ).run()  # fmt: skip
    long = pd.read_parquet(group / "metrics.parquet")
    assert_documented(long)
    assert len(long) == len(read_table(group / "metrics.tsv"))
    columns = json.loads((group / "metrics.json").read_text())
    assert list(columns) == COLUMNS and set(columns["metric"]["Levels"]) == set(METRICS)
    assert json.loads((group / "members.json").read_text())["n_out"] == 2


def test_age_effect_recovers_a_line() -> None:
    age = np.array([20.0, 40, 60, 80])
    fit = age_effect(pd.DataFrame({"age": age, "jlf_ventricle": 5 + 0.3 * age}), "jlf_ventricle")
    assert fit["slope"] == pytest.approx(0.3)
    assert fit["r"] == pytest.approx(1)
    assert fit["p"] < 1e-6
    assert np.isnan(age_effect(pd.DataFrame({"age": ["n/a", 3], "v": [1, 2]}), "v")["slope"])


def test_thousand_scans_are_tabulated_by_vectors() -> None:
    import time

    scans = pd.DataFrame({"participant_id": [f"sub-{i}" for i in range(1000)], "session_id": ""})
    labels = [str(label) for label in range(100)]
    names = ["participant_id", "method", "label"]
    grid = pd.MultiIndex.from_product([scans["participant_id"], ["majority", "jlf"], labels], names=names)
    rows = grid.to_frame(index=False).assign(session_id="", template="t@00000000", value=1.0)
    metrics = pd.concat([rows.assign(metric="volume", unit="ml"), rows.assign(metric="dice", unit="1")])[COLUMNS]
    start = time.process_time()
    wide, summary = wide_volumes(metrics, scans), summarise(metrics)
    assert time.process_time() - start < 10
    assert wide.shape == (1000, 202)
    assert summary["scans"].tolist() == [1000, 1000]
    assert all(a <= b for a, b in pairwise(summary["method"]))
