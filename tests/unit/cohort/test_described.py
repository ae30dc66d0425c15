"""What lies at the top of the output folder and describes the files below it."""

import json

import pytest

from popatlas.cohort.described import describe_outputs
from popatlas.cohort.outputs import FUSED, PUBLISHED, RULES, fill
from popatlas.images.io import read_table, write_text
from popatlas.measures.names import LABEL_NAMES, find_names, read_names

NAMES = {2: "Left Thalamus", 7: "pons"}


@pytest.fixture
def out(tmp_path):
    write_text(tmp_path / LABEL_NAMES, "index\tname\n" + "".join(f"{label}\t{name}\n" for label, name in NAMES.items()))
    describe_outputs(tmp_path)
    return tmp_path


def test_one_table_names_the_labels_of_all_label_images(out):
    table = read_table(out / "dseg.tsv")
    assert list(table) == ["index", "name", "color"] and dict(zip(table["index"], table["name"], strict=True)) == NAMES
    assert table["color"].str.fullmatch("#[0-9a-f]{6}").all() and table["color"].nunique() == 2
    image = out / fill(FUSED["dseg"], {"scan": "sub-1/anat/sub-1", "method": "jlf"})
    assert read_names(find_names(image)) == NAMES


@pytest.mark.parametrize("pattern", [RULES["measure_scan"].files["table"], FUSED["trust"], PUBLISHED["convergence"]])
def test_each_table_beside_images_inherits_a_description(out, pattern):
    name = fill(pattern, {"scan": "sub-1", "method": "jlf", "label": "study"}).rsplit("/", 1)[-1].removesuffix(".tsv")
    *entities, suffix = name.split("_")
    fits = [
        path
        for path in out.glob("*.json")
        if path.stem.split("_")[-1] == suffix and set(path.stem.split("_")[:-1]) <= set(entities)
    ]
    assert len(fits) == 1
    assert all(column["Description"] for column in json.loads(fits[0].read_text()).values())


def test_files_change_only_with_their_content_and_go_with_the_names(out):
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.is_file()}
    describe_outputs(out)
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.is_file()}
    write_text(out / LABEL_NAMES, "index\tname\n")
    describe_outputs(out)
    assert not (out / "dseg.tsv").exists()
