"""Group tables in pieces are those of the whole, whatever the pieces, and types do not follow from the first of them."""

import pandas as pd
import pytest

from popatlas.images.io import read_table, write_table
from popatlas.measures import pieces
from popatlas.measures.dictionary import COLUMNS
from popatlas.measures.table import gather, tabulate

SCANS = [("sub-01", "ses-1"), ("sub-01", "ses-2"), ("sub-02", ""), ("sub-03", ""), ("sub-04", ""), ("sub-05", "")]
AFFINE = [("middle", 0.0), ("x", 1.0), ("y", 1.0), ("z", 1.0)]


def rows(subject, session, number):
    key = (subject, session or "n/a")
    for label in ("left", "right") if number % 2 else ("right",):
        yield (*key, "n/a", "jlf", label, "volume", 10.0 + number, "ml")
        yield (*key, "n/a", "jlf", label, "dice", 0.5 + 0.05 * number, "1")
    yield (*key, "t@1", "registration", "n/a", "correlation", 0.9 + 0.01 * number, "1")
    yield (*key, "n/a", "mask", "brain", "volume", 1000.0 + number, "ml")
    for axis, value in zip("xyz", (number, 2.0, 3.0), strict=True):
        yield (*key, "t@1", "landmarks", "ac", f"landmark_{axis}", value, "mm")
    for point, value in AFFINE:
        for axis in "xyz":
            yield (*key, "t@1", "affine", point, f"affine_{axis}", value * (point == axis) + number, "mm")


@pytest.fixture
def cohort(tmp_path):
    """Six scans with tables, what is known of their participants, and a table of the truth."""
    scans = []
    for number, (subject, session) in enumerate(SCANS):
        name = f"{subject}_{session}" if session else subject
        scans.append(f"{subject}/{session}/anat/{name}".replace("//", "/"))
        table = pd.DataFrame(rows(subject, session, number), columns=COLUMNS)
        write_table(table, tmp_path / f"{scans[-1]}_desc-metrics_table.tsv")
    truth = [(subject, session or "n/a", "t@1", "truth", "n/a", "mask_dice", 0.9, "1") for subject, session in SCANS]
    write_table(pd.DataFrame(truth, columns=COLUMNS), tmp_path / "truth.tsv")
    index = pd.DataFrame({"scan": scans, "subject": [one for one, _ in SCANS], "session": [other for _, other in SCANS]})
    ledger = pd.DataFrame(columns=["subject", "session", "stage", "state", "reason", "log"])
    people = pd.DataFrame({"participant_id": [f"sub-0{number}" for number in range(1, 6)],
                           "age": [None, None, "40", "51", "0"], "site": ["a", None, "b", "b", "a"],
                           "code": ["1", "0", "007", "1", "1"]})  # fmt: skip
    return tmp_path, index, ledger, people, dict.fromkeys(scans, 3)


def written(cohort, size, monkeypatch):
    folder, index, ledger, people, atlases = cohort
    monkeypatch.setattr(pieces, "SCANS", size)
    group = gather(folder, index, ledger, people, [folder / "truth.tsv"], atlases)
    out = folder / str(size)
    columns = pieces.write_pieces(group.pieces, out / "m.parquet", out / "m.tsv")
    spread, found = group.pieces.spread.table(), group.pieces.volumes
    return columns, read_table(out / "m.parquet"), (out / "m.tsv").read_bytes(), found.table(group.pieces.scans), spread


@pytest.mark.parametrize("size", [1, 2, 4])
def test_pieces_make_the_tables_of_the_whole(cohort, size, monkeypatch):
    columns, parquet, tsv, volumes, spread = written(cohort, size, monkeypatch)
    whole = written(cohort, 500, monkeypatch)
    assert columns == whole[0]
    assert tsv == whole[2]
    for one, other in ((parquet, whole[1]), (volumes, whole[3]), (spread, whole[4])):
        pd.testing.assert_frame_equal(one, other)


def test_the_whole_is_what_the_tables_of_the_scans_say(cohort, monkeypatch):
    folder, index, ledger, people, atlases = cohort
    columns, parquet, _, volumes, spread = written(cohort, 1, monkeypatch)
    tables = tabulate(folder, index, ledger, people, [folder / "truth.tsv"], None, atlases)
    assert columns == list(tables.metrics) == list(parquet)
    assert len(parquet) == len(tables.metrics)
    assert {str(parquet[name].dtype) for name in ("value", "age")} == {"float64"}
    assert str(parquet["atlases"].dtype) == "Int64"
    assert set(parquet["code"].dropna()) == {"1", "0", "007"}, "a code is no number, whatever the first piece holds"
    assert parquet.loc[parquet["participant_id"] == "sub-05", "age"].unique().tolist() == [0.0]
    assert volumes["jlf_right"].tolist() == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]
    assert volumes["jlf_left"].dropna().tolist() == [11.0, 13.0, 15.0]
    dice = spread.set_index("metric").loc["dice"]
    assert (dice["scans"], dice["mean"]) == (6, pytest.approx(0.625))
    counts = parquet["metric"].value_counts()
    assert (counts["landmark_error"], counts["session_distance"]) == (6, 1), "they compare scans of different pieces"


def test_a_group_of_nobody_has_empty_tables(tmp_path, monkeypatch):
    index = pd.DataFrame({"scan": ["a"], "subject": ["sub-1"], "session": [""]})
    ledger = pd.DataFrame(columns=["subject", "session", "stage", "state", "reason", "log"])
    group = gather(tmp_path, index, ledger)
    assert pieces.write_pieces(group.pieces, tmp_path / "m.parquet", tmp_path / "m.tsv") == COLUMNS
    assert read_table(tmp_path / "m.parquet").columns.tolist() == COLUMNS
    assert (tmp_path / "m.tsv").read_text() == "\t".join(COLUMNS) + "\n"
