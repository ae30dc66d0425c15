"""One table of names for the whole cohort: a structure has one name in the table of every scan."""

import numpy as np
import pytest

from popatlas.cli.main import main
from popatlas.cli.notes import missing_labels
from popatlas.cohort.freeze import freeze_label_atlases
from popatlas.cohort.index import index_cohort
from popatlas.cohort.names import freeze_label_names
from popatlas.config.load import load_config
from popatlas.images.io import read_table, save_image, write_text
from popatlas.measures.names import LABEL_NAMES, LOST, find_names, read_names
from popatlas.measures.scan import ScanFiles, measure_scan
from popatlas.measures.wide import wide_volumes
from tests.cohorts import noise_cohort

SCANS = ["sub-1/anat/sub-1", "sub-2/anat/sub-2"]
ATLASES = "set/a_dseg.nii.gz"


def labels(path):
    save_image(np.arange(64, dtype=np.int32).reshape(4, 4, 4) % 3, np.eye(4), path)
    return path


@pytest.fixture
def config(tmp_path):
    """Reference labels of the first scan only, and an external atlas; neither has names yet."""
    labels(tmp_path / "bids" / "refs" / f"{SCANS[0]}_dseg.nii.gz")
    write_text(tmp_path / "bids" / "refs" / "dataset_description.json", "{}")
    labels(tmp_path / ATLASES)
    write_text(tmp_path / "set" / "dataset_description.json", "{}")
    return load_config({"measure": {"reference": "refs/{scan}_dseg.nii.gz"}}, bids_dir=str(tmp_path / "bids"))


def freeze(config, folder):
    return freeze_label_names(config, [str(folder / ATLASES)], SCANS, folder / "out")


def name_set(path, *names):
    write_text(path, "index\tname\n" + "".join(f"{index}\t{name}\n" for index, name in names))


@pytest.mark.parametrize("place", ["set/dseg.tsv", "bids/refs/dseg.tsv"])
def test_scans_with_and_without_reference_share_their_columns(config, tmp_path, place):
    name_set(tmp_path / place, (1, "hippocampus"), (2, "amygdala"))
    freeze(config, tmp_path)
    tables = []
    for scan in SCANS:
        reference = tmp_path / "bids" / "refs" / f"{scan}_dseg.nii.gz"
        found = {"reference": reference if reference.is_file() else None, "names": tmp_path / "out" / LABEL_NAMES}
        tables.append(measure_scan(ScanFiles(scan, labels={"jlf": labels(tmp_path / "jlf.nii.gz")}, **found)))
    scans = tables[0][["participant_id", "session_id"]].drop_duplicates()
    columns = [set(wide_volumes(table, table[["participant_id", "session_id"]].drop_duplicates())) for table in tables]
    assert len(scans) == 1
    assert columns[1] == {"participant_id", "session_id", "jlf_hippocampus", "jlf_amygdala"}
    assert columns[0] - columns[1] == {"reference_hippocampus", "reference_amygdala"}


def test_the_atlases_names_come_before_those_of_the_references(config, tmp_path, capsys):
    name_set(tmp_path / "set/dseg.tsv", (1, "hippocampus"), (2, "amygdala"))
    name_set(tmp_path / "bids/refs/dseg.tsv", (1, "hippo"), (2, "amygdala"), (9, "pons"))
    assert freeze(config, tmp_path) == {1: "hippocampus", 2: "amygdala", 9: "pons"}
    said = capsys.readouterr().err
    assert "1 name(s) of labels contradict" in said
    assert "label 1 is 'hippocampus' and, in" in said


def test_without_names_there_is_a_table_without_rows_and_it_changes_only_with_its_content(config, tmp_path):
    assert freeze(config, tmp_path) == {}
    path = tmp_path / "out" / LABEL_NAMES
    assert (len(read_table(path)), read_names(path)) == (0, {})
    stamp = path.stat().st_mtime_ns
    freeze(config, tmp_path)
    assert path.stat().st_mtime_ns == stamp
    name_set(tmp_path / "set/dseg.tsv", (1, "a"), (2, "a"))
    freeze(config, tmp_path)
    assert read_names(path) == {1: "a-1", 2: "a-2"}


def test_rows_without_number_or_name_are_left_out(tmp_path):
    write_text(tmp_path / "x.tsv", "index\tname\tcolour\n1\tn/a\tred\nn/a\tb\tred\n3\tc\tred\n")
    assert read_names(find_names(tmp_path / "x.nii.gz")) == {3: "c"}


BAD = {
    "UTF-16": ("index\tname\n1\tpons\n".encode("utf-16"), "UTF-16 text"),
    "a label twice": (b"index\tname\n1\tpons\n1\tvermis\n", "label 1 is named 'pons' and 'vermis'"),
    "ragged": (b"index\tname\n1\tpons\tred\n", "line 2 has 3 cells"),
    "no number": (b"index\tname\nx\tpons\n", "the index 'x' is no label"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_table_is_named_and_left_out_and_the_others_give_their_names(config, tmp_path, capsys, kind):
    own = tmp_path / "bids" / "refs" / f"{SCANS[0]}_dseg.tsv"
    own.write_bytes(BAD[kind][0])
    name_set(tmp_path / "set/dseg.tsv", (2, "amygdala"))
    assert freeze(config, tmp_path) == {2: "amygdala"}
    said = capsys.readouterr().err
    assert said.count("a table of label names is left out") == 1
    assert str(own) in said and BAD[kind][1] in said and "Remedy" in said
    table = measure_scan(ScanFiles(SCANS[0], reference=own.with_suffix(".nii.gz"), names=tmp_path / "out" / LABEL_NAMES))
    assert set(table["label"]) >= {"1", "amygdala"}


def test_check_and_the_end_of_a_run_tell_of_a_bad_table_of_names(tmp_path, capsys):
    root = noise_cohort(tmp_path / "bids", ["sub-1", "sub-2"])
    own = root / "derivatives/truth/sub-2/anat/sub-2_desc-truth_dseg.tsv"
    own.write_bytes(BAD["UTF-16"][0])
    assert main(["check", str(root)]) == 0
    assert f"no names    {LOST}: this is UTF-16 text" in (said := capsys.readouterr().out) and str(own) in said
    config = load_config(bids_dir=str(root))
    index = index_cohort(config, tmp_path / "out")
    freeze_label_atlases(config, index, list(index["scan"]), tmp_path / "out")
    count, lines = missing_labels(config, index, tmp_path / "out")
    assert count == 0 and [line for line in lines if "UTF-16" in line and str(own) in line] == lines
