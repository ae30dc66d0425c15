"""Tables of users are read as BIDS says, and our own come back as they were written."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popatlas.errors import InputError
from popatlas.images.io import read_table, table_text, write_table
from popatlas.images.tables import STRAY, column_of, number_of, read_text_table, require_columns
from popatlas.measures.landmarks import read_landmarks
from popatlas.measures.names import read_names
from popatlas.training.table import read_training_table

TABLE = 'participant_id\tage\tnote\nsub-01\t30\t"it\'s\nsub-02\t40\tplain\nsub-03\t50\t"\n'
CELLS = [["sub-01", "30", "\"it's"], ["sub-02", "40", "plain"], ["sub-03", "50", '"']]

SAME = {
    "as it is": TABLE.encode(),
    "byte order mark": TABLE.encode("utf-8-sig"),
    "two byte order marks": b"\xef\xbb\xbf" + TABLE.encode("utf-8-sig"),
    "Windows line ends": TABLE.replace("\n", "\r\n").encode(),
    "line ends of an old Mac": TABLE.replace("\n", "\r").encode(),
    "doubled carriage returns": TABLE.replace("\n", "\r\r\n").encode(),
    "no last line end": TABLE.rstrip("\n").encode(),
    "empty lines": f"\n{TABLE.replace('sub-02', chr(10) + chr(9) + chr(10) + 'sub-02')}\n\n".encode(),
    "tabs after the last cell": TABLE.replace("\n", "\t\t\n").encode(),
    "tabs after some cells": TABLE.replace("plain", "plain\t\t").encode(),
    "spaces round cells": TABLE.replace("\t", " \t\u00a0").replace("participant_id", " participant_id").encode(),
    "zero width spaces": TABLE.replace("sub-", "\u200bsub-").encode(),
}


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_count_does_not_count(tmp_path, name):
    (tmp_path / "t.tsv").write_bytes(SAME[name])
    table = read_text_table(tmp_path / "t.tsv")
    assert list(table) == ["participant_id", "age", "note"]
    assert table.to_numpy().tolist() == CELLS


def test_a_cell_is_text_and_the_index_is_its_line(tmp_path):
    cells = ["007", "1e5", "True", "NA", "n/a", "", "1_000", "−3", "a\x85b", "a\u2028b", "#5", "'", "\\"]
    (tmp_path / "t.tsv").write_text("id\tx\n" + "".join(f"{n}\t{cell}\n" for n, cell in enumerate(cells)), "utf-8")
    table = read_text_table(tmp_path / "t.tsv")
    assert table["x"].tolist() == cells
    assert list(table.index) == list(range(2, len(cells) + 2))


REFUSED = {
    "Latin-1": ("a\tb\n1\t2\nMüller\t3\n".encode("latin-1"), "line 3 is not UTF-8 but it seems Latin-1", "UTF-8"),
    "another script": ("a\tb\n山田太郎\t3\n".encode("gbk"), "line 2 is not UTF-8 but in an encoding that", "UTF-8"),
    "UTF-16 with mark": ("a\tb\n1\t2\n".encode("utf-16"), "UTF-16", "save it as a TSV"),
    "UTF-16 without mark": ("a\tb\n1\t2\n".encode("utf-16-le"), "UTF-16", "save it as a TSV"),
    "UTF-32": ("a\tb\n1\t2\n".encode("utf-32"), "UTF-32", "save it as a TSV"),
    "NUL": (b"a\tb\n1\t2\n1\t\x002\n", "line 3 has a NUL", "space"),
    "line end in a cell": (b"a\tb\n1\t2\r3\n", "line 2 has a line end", "space"),
    "Excel": (b"PK\x03\x04rest", "an Excel or zip file", "TSV"),
    "old Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Excel file", "TSV"),
    "gzip": (b"\x1f\x8b\x08rest", "a gzip file", "TSV"),
    "Parquet": (b"PAR1rest", "a Parquet file", "TSV"),
    "git annex": (b"/annex/objects/SHA256E-s5--ab.tsv\n", "place holder of git", "annex get"),
    "nothing": (b"", "the table is empty", "header"),
    "blank lines only": (b"\n\t\n \n", "the table is empty", "header"),
    "commas": (b"a,b\n1,2\n", "has commas between the columns", "TSV"),
    "semicolons": (b"a;b\n1;2\n", "has semicolons between the columns", "TSV"),
    "spaces": (b"a   b\n1   2\n", "has spaces between the columns", "TSV"),
    "a web page": (b"<!DOCTYPE html>\n<p>not found</p>\n", "marks of HTML", "TSV"),
    "short line": (b"a\tb\tc\n1\t2\t3\n1\t2\n", "line 3 has 2 cells and the header has 3", "n/a where"),
    "long line": (b"a\tb\n1\t2\n1\t2\t3\n1\t2\t3\n", "line 3 has 3 cells and the header has 2, and 1 more", "n/a"),
    "names of rows": (b"a\tb\nx\t1\t2\ny\t1\t2\n", "line 2 has 3 cells", "names of rows"),
    "tabs in a table of commas": (b"a,b\n1\t2\n", "commas", "TSV"),
    "a column without name": (b"\ta\n0\t1\n", "column 1 has no name", "name it"),
    "a column twice": (b"a\tb\ta\n0\t1\t2\n", "columns 1 and 3 are both named 'a'", "rename"),
    "twice but for spaces": (b"a\tb\ta \n0\t1\t2\n", "columns 1 and 3 are both named 'a'", "rename"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_table_is_refused_with_its_place_and_a_remedy(tmp_path, name):
    content, message, remedy = REFUSED[name]
    (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_text_table(tmp_path / "t.tsv")
    assert message in caught.value.message
    assert remedy in caught.value.remedy
    assert caught.value.file == tmp_path / "t.tsv"


def test_files_that_cannot_be_opened(tmp_path):
    (tmp_path / "link.tsv").symlink_to(tmp_path / "objects" / "gone")
    for path, remedy in (
        (tmp_path, "check the path"),
        (tmp_path / "no.tsv", "check the path"),
        (tmp_path / "link.tsv", "annex"),
    ):
        with pytest.raises(InputError, match="cannot read table") as caught:
            read_text_table(path)
        assert remedy in caught.value.remedy


def test_missing_columns_are_named_with_what_comes_close(tmp_path):
    for header, hint in (("Participant ID\tage", "did you mean 'Participant ID'"), ('"participant_id"\tage', "quotes")):
        (tmp_path / "t.tsv").write_text(f"{header}\nsub-01\t3\n")
        with pytest.raises(InputError, match=hint):
            require_columns(read_text_table(tmp_path / "t.tsv"), ["participant_id"], tmp_path / "t.tsv")


NUMBERS = {"12": 12, "-3.5": -3.5, "+4": 4, "1e3": 1000, ".5": 0.5, "5.": 5, "007": 7, "9007199254740991": 2.0**53 - 1}
NO_NUMBERS = ["", "n/a", "23,5", "23 y", ">89", "inf", "-inf", "nan", "1_000", "0x1A", "1e400", "１２", "−3", "True", "1 2"]


@pytest.mark.parametrize("cell", NUMBERS)
def test_numbers(cell):
    assert number_of(cell) == NUMBERS[cell]


@pytest.mark.parametrize("cell", [*NO_NUMBERS, "9007199254740993", "9" * 5000])
def test_what_is_no_number(cell):
    assert number_of(cell) is None


@pytest.mark.parametrize(
    ("cells", "kind", "missing", "bad"),
    [
        (["1", "2.5", "n/a", "N/A", "", "NA", "nan", "None", ".", "#N/A"], "numbers", 8, []),
        (["1", "2", "23,5"], "text", 0, ["23,5"]),
        (["30", ">89", "23 y", "41", "NA"], "text", 0, [">89", "23 y"]),
        (["a", "b", "1"], "text", 0, []),
        (["NA", "EU", "NA"], "text", 0, []),
        (["True", "false", "n/a"], "truth", 1, []),
        (["", "n/a", "N/A"], "empty", 3, []),
        (["nan", "", "."], "empty", 3, []),
        (["none", "None", "n/a"], "text", 1, []),
        (["NA", "", "null"], "text", 1, []),
        (["none", "2", "NULL"], "numbers", 2, []),
        (["01", "007", "10"], "numbers", 0, []),
    ],
)
def test_what_a_column_holds(cells, kind, missing, bad):
    column = column_of(pd.Series(cells))
    assert column.kind == kind
    assert int(column.text.isna().sum()) == missing
    assert [cells[place] for place in column.bad] == bad
    assert column.is_code == ("01" in cells)


def test_text_in_our_own_tables_has_no_quotes_and_stays_on_its_line(tmp_path):
    cells = ['"quoted"', 'a "word"', "tab\there", "line\nend", "line\r\nend", "'", "", "007", "größe", "#x", " x "]
    table = pd.DataFrame({"scan": [f"s{n}" for n in range(len(cells))], "no\tte": cells})
    assert '"' not in table_text(table).replace(cells[0], "").replace(cells[1], "")
    write_table(table, tmp_path / "t.tsv")
    back = read_table(tmp_path / "t.tsv", dtype=str)
    assert list(back) == ["scan", "no te"]
    assert back["no te"].tolist() == [
        '"quoted"', 'a "word"', "tab here", "line end", "line end", "'", "", "007", "größe", "#x", " x "
    ]  # fmt: skip


def test_a_longer_line_in_our_own_table_is_no_column_of_names(tmp_path):
    for text in ("a\tb\n1\t2\t3\n", "a\tb\n1\t2\n1\t2\t3\n"):
        (tmp_path / "t.tsv").write_text(text)
        with pytest.raises(InputError, match="cannot read table"):
            read_table(tmp_path / "t.tsv")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: text != "n/a")
FLOATS = st.floats(allow_infinity=False)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, FLOATS, st.integers(-(2**53), 2**53)), min_size=1, max_size=5))
def test_our_own_tables_come_back_exactly(rows):
    table = pd.DataFrame(rows, columns=["name", "value", "count"])
    with tempfile.TemporaryDirectory() as folder:
        write_table(table, Path(folder) / "t.tsv")
        back = read_table(Path(folder) / "t.tsv", dtype={"name": str})
    names = [name.replace("\r\n", " ") for name in table["name"]]
    assert back["name"].tolist() == ["".join(" " if c in "\t\n\r\x00" else c for c in name) for name in names]
    np.testing.assert_array_equal(back["value"].to_numpy(float), table["value"].to_numpy(float))
    assert back["count"].tolist() == table["count"].tolist()


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r\x00"), max_size=8)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6), ends=st.sampled_from(["\n", "\r\n"]))
def test_cells_of_users_are_what_lies_between_the_tabs(rows, ends):
    lines = ["id\ta\tb", *("x\t" + "\t".join(row) for row in rows)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.tsv"
        path.write_bytes(ends.join(line.replace("x\t", "x", 1) for line in lines).encode())
        table = read_text_table(path)
    cells = [[f"x{row[0]}".strip(STRAY), row[1].strip(STRAY), row[2].strip(STRAY)] for row in rows]
    assert table.to_numpy().tolist() == cells


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index\tname\n1\ta\n1.5\tb\n", "line 3: the index '1.5' is no label"),
        ("index\tname\n1\ta\nx\tb\n", "line 3: the index 'x' is no label"),
        ("index\tname\n1\ta\n2\tb\n1\tc\n", "line 4: label 1 is named 'a' and 'c'"),
        ("index,name\n1,a\n", "commas"),
        ("index\tname\n1\ta\tb\n", "line 2 has 3 cells"),
    ],
)
def test_tables_of_label_names_that_are_refused(tmp_path, text, message):
    (tmp_path / "dseg.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_names(tmp_path / "dseg.tsv")


def test_names_of_labels_are_text(tmp_path):
    (tmp_path / "dseg.tsv").write_text(
        'index\tname\tcolor\n1\t"left\tred\n2\tNA\tred\n3.0\t007\t\nn/a\tx\t\n2147483647\ty\t\n'
    )
    assert read_names(tmp_path / "dseg.tsv") == {1: '"left', 2: "NA", 3: "007-3", 2147483647: "y"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "a", "b"], ["a-1", "a-2", "b"]),
        (["a", "a", "a-1"], ["a-1-1", "a-2", "a-1-3"]),
        (["7", "2", "2"], ["7-1", "2-2", "2-3"]),  # label 7 has no name here and is called 7
    ],
)
def test_no_two_labels_share_a_name(tmp_path, names, expected):
    rows = "".join(f"{label}\t{name}\n" for label, name in enumerate(names, start=1))
    (tmp_path / "dseg.tsv").write_text(f"index\tname\n{rows}")
    assert list(read_names(tmp_path / "dseg.tsv").values()) == expected


def test_landmarks(tmp_path):
    path = tmp_path / "l.tsv"
    path.write_text('name\tx\ty\tz\n"tip\t1\t2.5\t-3\n007\t4\t5\t6\nlost\tn/a\tn/a\tn/a\n')
    found = read_landmarks(path)
    assert found["name"].tolist() == ['"tip', "007"]
    assert found[["x", "y", "z"]].to_numpy().tolist() == [[1, 2.5, -3], [4, 5, 6]]
    for row, message in (
        ("a\t1,5\t2\t3", "line 2"),
        ("a\t1\tn/a\t3", "line 2"),
        ("n/a\t1\t2\t3", "no name"),
        ("a\t1\t2\tinf", "line 2"),
    ):
        path.write_text(f"name\tx\ty\tz\n{row}\n")
        with pytest.raises(InputError, match=message):
            read_landmarks(path)


def test_a_training_table_with_quotes_and_n_a(tmp_path):
    for name in ('"a.nii', "b.nii"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "t.tsv").write_text(
        'subject\timage\tlabels\tsplit\tgroup\n01\t"a.nii\tn/a\ttrain\tN/A\n1e2\tb.nii\t\ttrain\t\n'
    )
    scans = read_training_table(tmp_path / "t.tsv")
    assert [(scan.subject, scan.image.name, scan.labels, scan.group) for scan in scans] == [
        ("01", '"a.nii', None, ""), ("1e2", "b.nii", None, "")
    ]  # fmt: skip
