"""Wide volumes and what is joined to the tables of the group: names of columns, participants, and their JSON files."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from popatlas.images.io import read_table, write_table
from popatlas.interfaces.measure import TabulateCohort
from popatlas.measures.dictionary import COLUMNS, VOLUME_NOTES, top_files, volume_columns
from popatlas.measures.names import column_names
from popatlas.measures.table import tabulate
from popatlas.measures.wide import volume_names, wide_volumes, with_missing, with_numbers, with_participants

LABELS = ["Left Lateral-Ventricle", "left lateral ventricle", "3rd  Ventricle", "Größe (β)", "17", "脳"]
NUMBERS = {"Left Lateral-Ventricle": 4, "left lateral ventricle": 43}


def rows(label, value=1.0, participant="sub-01", session="", method="jlf"):
    return (participant, session, "t@00000000", method, label, "volume", value, "ml")


def table(*lines):
    return pd.DataFrame(lines, columns=COLUMNS)


def test_labels_get_names_that_every_program_takes_and_no_two_the_same():
    names = column_names(LABELS, NUMBERS)
    assert names == {
        "Left Lateral-Ventricle": "left_lateral_ventricle_4", "left lateral ventricle": "left_lateral_ventricle_43",
        "3rd  Ventricle": "3rd_ventricle", "Größe (β)": "grosse", "17": "17", "脳": "label",
    }  # fmt: skip
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in names.values())


@pytest.mark.parametrize("labels", [["A", "a", "a-1", "a 1", "a_2"], ["脳", "腦", "label"], ["a", "A", "a_1", "A_1"]])
@pytest.mark.parametrize("numbers", [None, {"a": 1, "A": 2}, {"a": 1, "A": 1}])
def test_names_stay_apart_also_where_their_numbers_do_not_help(labels, numbers):
    names = column_names(labels, numbers)
    assert set(names) == set(labels) and len(set(names.values())) == len(labels)
    assert names == column_names(labels[::-1], numbers), "the order of the labels does not matter"


def test_a_volume_has_the_same_column_whichever_labels_a_scan_has():
    names = {4: "Left Lateral-Ventricle", 43: "left lateral ventricle"}
    scans = pd.DataFrame({"participant_id": ["sub-01"], "session_id": [""]})
    one, both = table(rows(names[4])), table(*map(rows, names.values()))
    assert list(wide_volumes(one, scans, names=names)) == ["participant_id", "session_id", "jlf_left_lateral_ventricle_4"]
    assert list(wide_volumes(both, scans, names=names))[2:] == [f"jlf_left_lateral_ventricle_{n}" for n in names]
    assert volume_names(both, names)["jlf_left_lateral_ventricle_43"] == ("jlf", "left lateral ventricle")


def test_participants_are_joined_by_session_and_shadow_no_column():
    scans = pd.DataFrame({"participant_id": ["sub-01", "sub-01", "sub-02"], "session_id": ["ses-1", "ses-2", "ses-1"]})
    people = pd.DataFrame(
        {"participant_id": ["01", "01", "sub-02"], "session_id": ["1", "ses-2", "1"], "age": ["30", "32", "40"],
         "value": ["a", "b", "c"], "jlf_x": ["7", "8", "9"], "atlases": ["1", "1", "1"]}
    )  # fmt: skip
    found = with_participants(scans.assign(value=1.0), people)
    assert found["age"].tolist() == ["30", "32", "40"] and found["participants_value"].tolist() == ["a", "b", "c"]
    assert "participants_atlases" in found and "session" not in found
    volumes = wide_volumes(table(rows("x", session="ses-1")), scans, people)
    assert volumes["participants_jlf_x"].tolist() == ["7", "8", "9"]
    assert volumes["jlf_x"].tolist()[0] == 1.0 and volumes["jlf_x"].isna().sum() == 2


def test_columns_are_numbers_in_parquet_where_all_cells_are_but_no_codes():
    people = pd.DataFrame({"age": ["30", "31.5", np.nan], "code": ["007", "12", "3"], "note": ["1", "x", ""]}, dtype=object)
    found = with_numbers(people, list(people))
    assert found["age"].dtype == float and found["age"].tolist()[:2] == [30.0, 31.5]
    assert found["code"].tolist() == ["007", "12", "3"] and found["note"].tolist() == ["1", "x", ""]
    assert with_missing(found)["note"].isna().tolist() == [False, False, True]


def cohort(folder, columns=COLUMNS):
    for number, size in ((1, 3.5), (2, 4.5)):
        scan = f"sub-0{number}/anat/sub-0{number}"
        lines = [rows(name, size, f"sub-0{number}", method=method) for name in LABELS[:2] for method in ("jlf", "staple")]
        write_table(table(*lines).set_axis(columns, axis=1), folder / f"{scan}_desc-metrics_table.tsv")
    names = [f"sub-0{number}" for number in (1, 2)]
    index = pd.DataFrame({"scan": [f"{name}/anat/{name}" for name in names], "subject": names, "session": ""})
    write_table(index, folder / "cohort/index.tsv")
    write_table(pd.DataFrame(columns=["subject", "session", "stage", "state", "reason"]), folder / "cohort/ledger.tsv")
    people = pd.DataFrame({"participant_id": names, "age": ["30", "40"], "sex": ["F", "n/a"]})
    write_table(people, folder / "cohort/participants.tsv")
    write_table(pd.DataFrame({"index": [4, 43], "name": LABELS[:2]}), folder / "cohort/label-names.tsv")
    atlases = pd.DataFrame({"atlas": [index["scan"][0], "atlases/sub-02/anat/sub-02"], "dseg": "x", "external": False})
    write_table(atlases, folder / "cohort/label-atlases.tsv")
    return index


def test_a_table_of_an_earlier_version_is_taken(tmp_path):
    index = cohort(tmp_path, ["subject", "session", *COLUMNS[2:]])
    ledger = read_table(tmp_path / "cohort/ledger.tsv")
    found = tabulate(tmp_path, index, ledger)
    assert list(found.metrics) == COLUMNS and found.metrics["participant_id"].tolist() == ["sub-01"] * 4 + ["sub-02"] * 4


def test_each_table_of_the_group_has_its_columns_in_the_json_beside_it(tmp_path):
    cohort(tmp_path)
    tables = ("metrics", "volumes", "summary")
    outputs = {"out_tsv": "metrics.tsv", "out_parquet": "metrics.parquet", "out_dictionary": "metrics.json",
               "out_volumes": "volumes.tsv", "out_volumes_dictionary": "volumes.json", "out_summary": "summary.tsv",
               "out_summary_dictionary": "summary.json", "out_members": "members.json"}  # fmt: skip
    inputs = {name: str(tmp_path / f"cohort/{name}.tsv") for name in ("index", "ledger", "participants")}
    inputs |= {"names": str(tmp_path / "cohort/label-names.tsv"), "atlases": str(tmp_path / "cohort/label-atlases.tsv")}
    TabulateCohort(
        derivatives=str(tmp_path),
        **{f"in_{name}": path for name, path in inputs.items()},
        **{name: str(tmp_path / "group" / file) for name, file in outputs.items()},
    ).run()
    found = {name: read_table(tmp_path / f"group/{name}.tsv") for name in tables}
    said = {name: json.loads((tmp_path / f"group/{name}.json").read_text()) for name in tables}
    for name in tables:
        assert list(said[name]) == list(found[name].columns)
        assert all(column["Description"][:1].isupper() for column in said[name].values())
        assert "" not in (tmp_path / f"group/{name}.tsv").read_text().replace("\n", "\t").split("\t")[:-1], "BIDS has n/a"
    assert (
        found["volumes"]["atlases"].tolist()
        == [1, 2]
        == found["metrics"].groupby("participant_id")["atlases"].first().tolist()
    )
    left = said["volumes"]["jlf_left_lateral_ventricle_4"]
    assert (left["Units"], left["Method"], left["Label"]) == ("ml", "jlf", "Left Lateral-Ventricle")
    assert VOLUME_NOTES["staple"] in said["volumes"]["staple_left_lateral_ventricle_4"]["Description"]
    long = pd.read_parquet(tmp_path / "group/metrics.parquet")
    assert long["age"].dtype == float and long["sex"].isna().sum() == 4


def test_what_is_said_of_columns_is_data_of_json():
    assert json.loads(json.dumps(top_files(), allow_nan=False)) == top_files()
    assert volume_columns(["participant_id", "age"], {})["age"]["Description"].startswith("From participants.tsv")
