"""One table of names for the whole cohort: a structure has one name in the table of every scan."""

import numpy as np
import pytest

from popatlas.cohort.names import freeze_label_names
from popatlas.config import load_config
from popatlas.images.io import read_table, save_image, write_text
from popatlas.measures.names import LABEL_NAMES, find_names, read_names
from popatlas.measures.scan import ScanFiles, measure_scan
from popatlas.measures.table import wide_volumes

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
    scans = tables[0][["subject", "session"]].drop_duplicates()
    columns = [set(wide_volumes(table, table[["subject", "session"]].drop_duplicates())) for table in tables]
    assert len(scans) == 1
    assert columns[1] == {"subject", "session", "jlf_hippocampus", "jlf_amygdala"}
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
