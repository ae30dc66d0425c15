"""What is known of each scan: whose row it is, of which visit, and what is said when that is not plain."""

import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popatlas.cli.check import describe_participants
from popatlas.cli.main import main
from popatlas.cohort.freeze import draw_evenly, freeze_atlas_members, with_age
from popatlas.cohort.index import index_cohort
from popatlas.cohort.participants import describe_scans, match_ids, read_listing, read_people
from popatlas.config.load import changed, load_config
from popatlas.errors import ConfigError, InputError
from popatlas.images.io import write_if_changed
from popatlas.images.tables import read_text_table
from popatlas.interfaces.measure import TabulateCohort
from popatlas.measures.dictionary import COLUMNS
from popatlas.measures.wide import wide_volumes
from popatlas.report.cohort import age_plot, read_volumes
from tests.cohorts import noise_cohort, noise_image


def scans(*names):
    """Scans of an index: `01`, or `01/1` with a session."""
    rows = []
    for name in names:
        subject, _, session = name.partition("/")
        visit = f"_ses-{session}" if session else ""
        rows.append((f"sub-{subject}/anat/sub-{subject}{visit}", f"sub-{subject}", visit.removeprefix("_")))
    return pd.DataFrame(rows, columns=["scan", "subject", "session"])


def told(folder, text, *names):
    """Join participants.tsv to scans; return the values by scan, and what was said."""
    table = scans(*names)
    (folder / "participants.tsv").write_text(text, "utf-8")
    people, notes = describe_scans(table, read_listing(folder, set(table["subject"])))
    assert list(people["scan"]) == list(table["scan"])
    assert list(people["participant_id"]) == list(table["subject"])
    return people, "\n".join(notes)


def test_a_quote_gives_nobody_the_age_of_another_subject(tmp_path):
    text = 'participant_id\tnote\tage\nsub-01\t"as he said\t20\nsub-02\tplain\t60\nsub-03\tso" she said\t70\n'
    people, said = told(tmp_path, text, "01", "02", "03")
    assert people["age"].tolist() == ["20", "60", "70"]
    assert people["note"].tolist() == ['"as he said', "plain", 'so" she said']
    assert said == ""


@pytest.mark.parametrize(
    ("ids", "subjects", "matched", "said"),
    [
        (["sub-01", "02", " sub-03 "], ["01", "02", "03"], ["01", "02", "03"], "1 id(s) are written without sub-"),
        (["1", "2.0", "003"], ["01", "02", "03"], ["01", "02", "03"], "3 id(s) are written otherwise"),
        (["SUB-A", "b"], ["a", "B"], ["a", "B"], "2 id(s) are written otherwise"),
        (["1.00E+05", "1e3"], ["100000", "1e3"], ["100000", "1e3"], "1 id(s) are written otherwise"),
        (["1"], ["01", "001"], [None], "'1' (sub-001 or sub-01)"),
        (["1", "01"], ["01"], [None, "01"], "1 id(s) fit more than one subject, or one that has a row"),
        (["1", "1.0"], ["01"], [None, None], "2 id(s) fit more than one"),
        (["sub-a", "sub-A"], ["a", "A"], ["a", "A"], ""),
        (["NA", "nan", "None", "True", "007", "1e5"], ["NA", "nan", "None", "True", "007", "1e5"],
         ["NA", "nan", "None", "True", "007", "1e5"], "6 id(s) are written without sub-"),
        (["NA", "n/a", "", "null"], ["01"], [None] * 4, "4 row(s) without participant_id"),
        (["99", "sub-98"], ["01"], ["99", "98"], "2 id(s) have no subject in the dataset: sub-99, sub-98"),
        (["sub-0 1", "01x"], ["01"], ["0 1", "01x"], "2 id(s) have no subject"),
        (["٠١"], ["01"], ["٠١"], "1 id(s) have no subject"),
    ],
)  # fmt: skip
def test_whose_row_it_is(tmp_path, ids, subjects, matched, said):
    found = match_ids([cell.strip() for cell in ids], {f"sub-{name}" for name in subjects})
    names = found.subjects | {name.removeprefix("sub-"): name for name in found.unknown} | {n: n for n in found.unknown}
    assert [names.get(cell.strip()) for cell in ids] == [name and f"sub-{name}" for name in matched]
    assert said in "\n".join(found.notes)
    assert bool(said) == bool(found.notes)


def test_rows_that_contradict_each_other_describe_nobody_and_equal_ones_count_once(tmp_path):
    text = "participant_id\tage\nsub-01\t30\nsub-01\t31\n02\t40\nsub-02\t40\nsub-03\t50\n"
    people, said = told(tmp_path, text, "01", "02", "03", "04")
    assert people["age"].tolist() == ["", "40", "50", ""]
    assert "1 scan(s) contradict each other and are not used: sub-01 (lines 2, 3). Remedy: " in said
    assert "1 subject(s) of the dataset have no row: sub-04" in said


@pytest.mark.parametrize("column", ["session_id", "session"])
@pytest.mark.parametrize("visits", [("ses-1", "ses-2"), ("1", "2"), ("01", "2.0")])
def test_each_scan_has_the_values_of_its_own_visit(tmp_path, column, visits):
    first, second = visits
    text = f"participant_id\t{column}\tage\n01\t{second}\t32\n01\t{first}\t30\n02\t{first}\t40\n03\tn/a\t50\n"
    people, said = told(tmp_path, text, "01/1", "01/2", "02/1", "02/2", "03/1", "03/2")
    assert people["age"].tolist() == ["30", "32", "40", "", "50", "50"]
    assert people["session"].tolist() == ["ses-1", "ses-2"] * 3
    assert "1 scan(s) have no row of their own session: sub-02_ses-2" in said


@pytest.mark.parametrize(
    ("rows", "names", "ages"),
    [
        ("sub-01\tbaseline\t30\n", ["01"], ["30"]),  # one row, one scan
        ("sub-01\tbaseline\t30\nsub-01\tlater\t33\n", ["01"], [""]),  # which one was scanned?
        ("sub-01\tn/a\t30\nsub-01\tses-2\t33\n", ["01", "01/2"], ["30", "33"]),
        ("sub-01\tn/a\t30\nsub-01\tses-2\t33\n", ["01/1", "01/2"], ["", "33"]),
        ("sub-01\tses-3\t30\n", ["01/1", "01/2"], ["", ""]),
        ("sub-01\tses-1\t30\nsub-01\tses-1\t30\nsub-01\tses-2\t31\nsub-01\tses-2\t39\n", ["01/1", "01/2"], ["30", ""]),
        ("sub-01\t1\t30\n", ["01/1", "01/01"], ["30", ""]),
        ("sub-01\t1.0\t30\n", ["01/1", "01/01"], ["", ""]),
    ],
)
def test_a_visit_is_never_another_ones(tmp_path, rows, names, ages):
    people, said = told(tmp_path, f"participant_id\tsession_id\tage\n{rows}", *names)
    assert people["age"].tolist() == ages
    assert bool(said) == ("" in ages)


LABELS = st.sampled_from(["1", "01", "001", "a", "A", "2"])
VISIT = st.sampled_from(["", "1", "01", "a", "b"])


@settings(max_examples=100, deadline=None)
@given(
    known=st.sets(st.tuples(LABELS, VISIT), min_size=1, max_size=6),
    rows=st.lists(st.tuples(st.sampled_from(["", "sub-"]), LABELS, VISIT, st.integers(1, 3)), max_size=6),
)
def test_a_value_comes_from_a_row_that_means_the_scan_and_from_no_other(known, rows):
    names = sorted(f"{label}/{visit}" if visit else label for label, visit in known)
    lines = [f"{prefix}{label}\t{visit}\t{value}\n" for prefix, label, visit, value in rows]
    with tempfile.TemporaryDirectory() as folder:
        people, _ = told(Path(folder), "participant_id\tsession_id\tage\n" + "".join(lines), *names)

    def alike(one, other):
        return one.lstrip("0").lower() == other.lstrip("0").lower()

    for row in people[people["age"] != ""].to_dict("records"):
        subject, session = row["subject"][4:], row["session"][4:]
        written = [part for part in rows if part[1] == subject]  # a row that names the subject as it is counts alone
        pool = written or [part for part in rows if alike(part[1], subject)]
        own = [value for _, _, visit, value in pool if not visit or not session or alike(visit, session)]
        exact = {value for _, _, visit, value in pool if visit == session}
        assert int(row["age"]) in (exact or own)


def test_sessions_tables_tell_about_their_visits(tmp_path):
    for name, rows in (("sub-01", "ses-1\t30\nses-2\t32\n"), ("sub-02", "ses-2\t41\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}_sessions.tsv").write_text(f"session_id\tage\n{rows}")
    text = "participant_id\tage\tsex\nsub-01\t30\tF\nsub-02\t40\tM\nsub-03\t50\tF\n"
    people, said = told(tmp_path, text, "01/1", "01/2", "02/1", "02/2", "03/1")
    assert people["age"].tolist() == ["30", "32", "", "41", "50"]
    assert people["sex"].tolist() == ["F", "F", "M", "M", "F"]
    assert "sessions tables: 1 scan(s) have no row of their own session: sub-02_ses-1" in said


def test_columns_of_a_table_do_not_shadow_those_of_the_scans(tmp_path):
    text = "participant_id\tscan\tsubject\tstate\tsession_id\tsession\n01\ta\tb\tc\tses-1\td\n"
    people, _ = told(tmp_path, text, "01/1")
    assert people.iloc[0].to_dict() == {
        "scan": "sub-01/anat/sub-01_ses-1", "subject": "sub-01", "session": "ses-1", "participant_id": "sub-01",
        "participants_scan": "a", "participants_subject": "b", "state": "c", "session_id": "ses-1",
        "participants_session": "d",
    }  # fmt: skip


def test_another_kind_of_table_is_named_and_none_is_no_error(tmp_path):
    assert read_listing(tmp_path, {"sub-01"}).notes == ()
    (tmp_path / "participants.csv").write_text("a,b\n")
    assert "participants.csv is not read. Remedy" in read_listing(tmp_path, {"sub-01"}).notes[0]
    (tmp_path / "participants.tsv").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="git annex get"):
        read_listing(tmp_path, {"sub-01"})


# The index, and what follows from it


def study(folder, people, names=("sub-01", "sub-02", "sub-03", "sub-04", "sub-05", "sub-06"), **settings):
    noise_cohort(folder / "bids", list(names), labels=False)
    (folder / "bids/participants.tsv").write_text(people, "utf-8")
    config = load_config(settings, bids_dir=str(folder / "bids"))
    return config, index_cohort(config, folder / "out")


SIX = "participant_id\tage\n" + "".join(f"sub-0{n}\t{age}\n" for n, age in enumerate((20, 70, 30, 60, 40, 50), start=1))


def test_what_is_not_plain_is_said_and_a_clean_table_says_nothing(tmp_path, capsys):
    study(tmp_path, SIX)
    assert capsys.readouterr().err == ""
    study(tmp_path, SIX.replace("sub-01", "1").replace("sub-02", "sub-77").replace("30", "3O"))
    said = capsys.readouterr().err
    for words in (
        "'1' is sub-01",
        "no subject in the dataset: sub-77",
        "have no row: sub-02",
        "age: 1 cell(s)",
        "sub-03 '3O'",
    ):
        assert words in said
    assert all(line.startswith("popatlas: ") for line in said.splitlines())


def test_ids_that_lost_their_zeros_make_no_further_subjects(tmp_path):
    _, index = study(tmp_path, SIX.replace("sub-0", ""))
    assert list(index["state"]) == ["ok"] * 6
    assert read_people(tmp_path / "out")["age"].tolist() == ["20", "70", "30", "60", "40", "50"]


def test_cells_come_out_of_the_cohort_and_the_volumes_as_they_went_in(tmp_path):
    cells = ['"so', "it's", "007", "1e5", "True", "größe"]
    text = "participant_id\tage\tnote\tjlf_x\n" + "".join(f"sub-0{n}\t{n}.50\t{c}\t7\n" for n, c in enumerate(cells, 1))
    _, index = study(tmp_path, text)
    out = tmp_path / "out"
    rows = []
    for row in index.to_dict("records"):
        values = {**dict.fromkeys(COLUMNS, ""), "participant_id": row["subject"], "session_id": "", "metric": "volume"}
        rows = pd.DataFrame([values | {"method": "jlf", "label": "x", "value": 3.5, "unit": "ml"}])[COLUMNS]
        write_if_changed(out / f"{row['scan']}_desc-metrics_table.tsv", rows.to_csv(sep="\t", index=False))
    write_if_changed(out / "cohort/ledger.tsv", "subject\tsession\tstage\tstate\treason\n")
    outputs = {
        name: str(out / f"group/{name}") for name in ("parquet", "tsv", "dictionary", "volumes", "summary", "members")
    }
    outputs = {f"out_{name}": f"{path}.{'parquet' if name == 'parquet' else 'tsv'}" for name, path in outputs.items()}
    cohort = {f"in_{name}": str(out / f"cohort/{name}.tsv") for name in ("index", "ledger", "participants")}
    TabulateCohort(derivatives=str(out), **cohort, **outputs).run()
    for path in (out / "cohort/participants.tsv", out / "group/volumes.tsv"):
        assert read_text_table(path)["note"].tolist() == cells
        assert read_text_table(path)["age"].tolist() == [f"{n}.50" for n in range(1, 7)]
    volumes = read_text_table(out / "group/volumes.tsv")
    assert (volumes["jlf_x"] == "3.5").all() and (volumes["participants_jlf_x"] == "7").all()


def two_visits(folder):
    for number, name in enumerate(("sub-01/ses-1", "sub-01/ses-2", "sub-02/ses-1", "sub-02/ses-2")):
        noise_image(folder / f"bids/{name}/anat/{name.replace('/', '_')}_T1w.nii.gz", seed=number)
    rows = "01\tses-1\t30\n01\tses-2\t60\n02\tses-1\t40\n02\tses-2\t70\n"
    (folder / "bids/participants.tsv").write_text(f"participant_id\tsession_id\tage\n{rows}")
    return load_config(bids_dir=str(folder / "bids"))


def test_visits_are_selected_drawn_and_tabulated_by_their_own_age(tmp_path):
    config = two_visits(tmp_path)
    index = index_cohort(config, tmp_path / "out")
    people = read_people(tmp_path / "out")
    assert people["session"].tolist() == ["ses-1", "ses-2"] * 2
    assert people["age"].tolist() == ["30", "60", "40", "70"]
    drawn = draw_evenly(*with_age(index, tmp_path / "out", 3))
    assert drawn["age"].tolist() == [30, 60, 70]
    scans = index[["subject", "session"]].set_axis(["participant_id", "session_id"], axis=1)
    volumes = wide_volumes(pd.DataFrame(columns=COLUMNS), scans, people)
    assert volumes[["participant_id", "session_id", "age"]].to_numpy().tolist() == [
        ["sub-01", "ses-1", "30"], ["sub-01", "ses-2", "60"], ["sub-02", "ses-1", "40"], ["sub-02", "ses-2", "70"]
    ]  # fmt: skip
    assert "session" not in volumes and "subject" not in volumes
    config = changed(config, {"cohort": {"query": "age >= 60"}})
    late = index_cohort(config, tmp_path / "late").set_index("scan")["state"]
    assert late.to_dict() == {
        "sub-01/ses-1/anat/sub-01_ses-1": "excluded", "sub-01/ses-2/anat/sub-01_ses-2": "ok",
        "sub-02/ses-1/anat/sub-02_ses-1": "excluded", "sub-02/ses-2/anat/sub-02_ses-2": "ok",
    }  # fmt: skip
    config = changed(config, {"cohort": {"query": "session == 'ses-1'", "exclude": ["02"]}})
    first = index_cohort(config, tmp_path / "first").set_index("scan")["state"]
    assert list(first) == ["ok", "excluded", "excluded", "excluded"]


def test_a_table_of_paths_keeps_what_each_row_tells(tmp_path):
    for number in range(3):
        noise_image(tmp_path / f"{number}.nii.gz", seed=number)
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\n1\t99\tF\n")
    table = tmp_path / "cohort.tsv"
    table.write_text(
        'subject\tsession\tt1w\tage\tnote\n01\t1\t0.nii.gz\t30\t"a\n01\t2\t1.nii.gz\tn/a\tb"\nNA\t\t2.nii.gz\t5\tc\n'
    )
    index = index_cohort(load_config(bids_dir=str(table)), tmp_path / "out")
    assert list(index["state"]) == ["ok"] * 3
    people = read_people(tmp_path / "out")
    assert people[["subject", "session", "age", "note", "sex"]].to_numpy().tolist() == [
        ["sub-01", "ses-1", "30", '"a', "F"], ["sub-01", "ses-2", "", 'b"', "F"], ["sub-NA", "", "5", "c", ""]
    ]  # fmt: skip


def test_who_lacks_what_a_query_asks_for_is_counted_and_not_selected(tmp_path, capsys):
    config, _ = study(tmp_path, SIX.replace("20", "n/a").replace("sub-02\t70\n", ""))
    capsys.readouterr()
    for query in ("age > 35", "not age <= 35", "age != 35"):
        config = changed(config, {"cohort": {"query": query}})
        index = index_cohort(config, tmp_path / "out").set_index("subject")
        assert (
            {"sub-04", "sub-05", "sub-06"} <= set(index.index[index["state"] == "ok"]) <= {f"sub-0{n}" for n in (3, 4, 5, 6)}
        )
        assert index.loc["sub-01", "reason"] == f"cohort.query cannot be judged without age: {query}"
        assert "2 scan(s) lack what it asks for and are not selected: sub-01 (age), sub-02 (age)" in capsys.readouterr().err


def test_a_query_that_selects_nobody_or_names_what_nobody_is_says_so(tmp_path, capsys):
    study(tmp_path, SIX, cohort={"query": "age > 99"})
    assert "cohort.query is true for no scan" in capsys.readouterr().err
    study(tmp_path, SIX.replace("age", "sex").replace("70", "F"), cohort={"query": "sex == 'f' or sex == 'F'"})
    assert "no cell of sex is 'f'; it holds" in capsys.readouterr().err


def test_a_bad_age_does_not_turn_the_draw_into_one_by_name(tmp_path, capsys):
    config, index = study(tmp_path, SIX.replace("\t40", "\t23,5"), atlas={"members": 3})
    capsys.readouterr()
    members = freeze_atlas_members(config, index, list(index["scan"]), tmp_path / "out")
    assert list(members["subject"]) == ["sub-01", "sub-02", "sub-05"]  # 20, the median (50), 70; by name 01, 03 and 06
    assert "a draw of 3 scans by age: 1 of 6 have none and count as 50, the median: sub-05" in capsys.readouterr().err


@pytest.mark.parametrize("age", ["-999", "999", ">89", "n/a", "", "23 y", "unknown"])
def test_what_is_no_age_is_unknown(tmp_path, age):
    _, index = study(tmp_path, SIX.replace("\t40", f"\t{age}"))
    table, _, by = with_age(index, tmp_path / "out", 3)
    assert by == "age"
    assert table["age"].tolist() == [20, 70, 30, 60, 50, 50]


def test_without_most_ages_the_draw_is_by_name_and_says_so(tmp_path, capsys):
    few = SIX.replace("\t20", "\tn/a").replace("\t70", "\t7,5").replace("\t30", "\tn/a").replace("\t40", "\tn/a")
    for text, words in ((few, "4 of 6 scans have no age"), (SIX.replace("age", "Age"), "6 of 6 scans have no age")):
        _, index = study(tmp_path, text)
        capsys.readouterr()
        assert with_age(index, tmp_path / "out", 3)[2] == "scan"
        said = capsys.readouterr().err
        assert "a draw of 3 scans is by name, not by age" in said and words in said
        with_age(index, tmp_path / "out", 6)
        assert capsys.readouterr().err == "" or text is few  # all are taken: nothing is drawn


def test_the_check_tells_what_each_column_holds(tmp_path, capsys):
    rows = ["20\tF\t1", "N/A\tF\t2", "\tM\t3", "23,5\tM\t4", "50\tn/a\t5", "60\tF\t6"]
    study(tmp_path, "participant_id\tage\tsex\tscore\n" + "".join(f"sub-0{n}\t{row}\n" for n, row in enumerate(rows, 1)))
    assert "2 cell(s) without a value are not written n/a" in (said := capsys.readouterr().err)
    assert "age of sub-02 'N/A', age of sub-03 ''" in said
    lines = describe_participants(read_people(tmp_path / "out"))
    assert [" ".join(line.split()) for line in lines] == [
        "participants columns participant_id, age, sex, score",
        "age text, 4 value(s), 2 missing: 3 number(s) from 20 to 60",
        "no number sub-04: '23,5'",
        "sex text, 5 value(s), 1 missing: 'F' (3), 'M' (2)",
        "score numbers, 6 value(s), 0 missing: 6 number(s) from 1 to 6",
    ]
    (tmp_path / "bids/participants.tsv").write_text("participant_id\tage\nsub-1\t3\n")
    assert main(["check", str(tmp_path / "bids"), "--set", "atlas.members=3"]) == 0
    said = capsys.readouterr()
    assert "age          numbers, 1 value(s), 5 missing: 1 number(s) from 3 to 3" in said.out
    assert "built from 3 of 6 scans (atlas.members)" in said.out
    assert "'sub-1' is sub-01" in said.err and "5 subject(s) of the dataset have no row" in said.err


def test_a_long_table_is_described_within_bounds():
    people = pd.DataFrame({f"column {n}": ["1,5" if m % 2 else "1" for m in range(100)] for n in range(100)})
    people = people.assign(scan=[f"sub-{n}/anat/sub-{n}" for n in range(100)])
    assert len(describe_participants(people)) < 400
    assert max(map(len, describe_participants(people)[1:])) < 200


def test_a_query_on_a_column_with_bad_cells_is_refused_with_them(tmp_path):
    with pytest.raises(ConfigError, match=r"1 of its 6 cells are none: '>89' \(sub-02\)\. Remedy"):
        study(tmp_path, SIX.replace("70", ">89"), cohort={"query": "age > 50"})


def test_a_cell_is_never_run(tmp_path, monkeypatch):
    """As it was: the query reached eval through pandas' @ and handed it a cell."""
    monkeypatch.chdir(tmp_path)
    text = "participant_id\tnote\nsub-01\t__import__('pathlib').Path('ran').touch()\n"
    for query in ('note.map(@__builtins__.get("eval"))', "note.to_csv('ran')", "note == note.to_csv('ran')"):
        with pytest.raises(ConfigError, match=r"cohort\.query"):
            study(tmp_path, text, names=["sub-01"], cohort={"query": query})
        assert not (tmp_path / "ran").exists()


def test_the_page_takes_no_column_of_the_participants_for_a_volume(tmp_path):
    rows = [f"sub-{n}\tn/a\t{30 + n}\t{n}\t{(7 * n) % 5}" for n in range(8)] + ["sub-9\tn/a\t-999\t3\t3"]
    write_if_changed(
        tmp_path / "group/volumes.tsv", "participant_id\tsession_id\tage\tmmse_score\tjlf_x\n" + "\n".join(rows) + "\n"
    )
    write_if_changed(tmp_path / "cohort/participants.tsv", "scan\tsubject\tsession\tparticipant_id\tage\tmmse_score\n")
    volumes = read_volumes(tmp_path)
    assert volumes["age"].isna().tolist() == [False] * 8 + [True]
    plot = age_plot(volumes, list(read_people(tmp_path)))
    assert "x (jlf)" in str(plot) and "8 scans" in str(plot)


@pytest.mark.parametrize(("query", "chosen"), [("medication == 'none'", "12"), ("medication != 'none'", "")])
def test_a_word_that_may_mean_missing_is_text_where_no_cell_is_a_number(tmp_path, query, chosen):
    root = noise_cohort(tmp_path / "bids", ["sub-1", "sub-2", "sub-3"], labels=False)
    (root / "participants.tsv").write_text("participant_id\tmedication\nsub-1\tnone\nsub-2\tnone\nsub-3\tn/a\n")
    index = index_cohort(load_config({"cohort": {"query": query}}, bids_dir=str(root)), tmp_path / "out")
    assert "".join(index.loc[index["state"] == "ok", "subject"].str[-1]) == chosen
    assert read_people(tmp_path / "out").set_index("subject")["medication"].to_dict() == dict.fromkeys(
        (f"sub-{name}" for name in chosen), "none"
    )
