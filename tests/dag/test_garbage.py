"""Garbage in the place of tables, receipts and results, in a run and in a look ahead."""

import sys

import pytest

from popatlas.cli.main import main
from popatlas.cohort.view import view_of
from popatlas.config.load import load_config
from popatlas.errors import InputError
from popatlas.images.io import write_text
from popatlas.receipts import FOLDER
from popatlas.study.opening import begin, clear

from .test_inventory import SCAN, SETTINGS, cohort, left, stock

__all__ = ["cohort"]  # a fixture

TABLES = ["index.parquet", "index.tsv", "batches.tsv", "label-atlases.tsv", "label-atlases.json", "atlas-popatlas.json"]


def ahead(folder):
    """Return what a plan prints, in this process."""
    return main(["plan", str(folder / "bids"), str(folder / "out"), "--config", str(folder / "config.yaml")])


@pytest.mark.parametrize("name", TABLES)
def test_a_plan_tells_of_garbage_and_leaves_it(cohort, name, capsys):
    path = cohort / "out/cohort" / name
    path.write_bytes(b"\xff\x00garbage")
    assert ahead(cohort) == 0
    told = capsys.readouterr()
    assert f"cohort/{name} cannot be read: a run sets it aside and makes it again" in told.out
    assert "popatlas-view" not in told.out + told.err
    assert path.read_bytes() == b"\xff\x00garbage" and not (cohort / "out/broken").exists()


@pytest.mark.parametrize("name", ["batches.tsv", "label-atlases.tsv"])
def test_a_table_that_is_cut_in_a_line_is_made_again(cohort, name, capsys):
    path = cohort / "out/cohort" / name
    text = path.read_text()
    path.write_text(text[: text.rindex("\t")])
    if name == "label-atlases.tsv":
        path.write_text(text[: text.index("\t", text.rindex("sub-03/anat"))])
    assert ahead(cohort) == 0 and f"cohort/{name} cannot be read" in capsys.readouterr().out
    config = load_config(SETTINGS, bids_dir=str(cohort / "bids"), out_dir=str(cohort / "out"))
    assert begin(config, ["all"], main=True).jobs.to_make["all"] == []
    assert path.read_text() == text


def test_a_look_ahead_names_the_output_folder_in_what_it_refuses_and_says(cohort, capsys):
    (cohort / "out/cohort/atlas-popatlas.tsv").unlink()
    config = load_config(SETTINGS, bids_dir=str(cohort / "bids"), out_dir=str(cohort / "out"))
    with pytest.raises(InputError, match=r"members of the template are lost \[file: ") as caught:
        begin(config, ["all", "-n"], main=True)
    assert str(cohort / "out/cohort/atlas-popatlas.tsv") in str(caught.value) and "popatlas-view" not in str(caught.value)
    assert "popatlas-view" not in str(caught.value.file)
    with view_of(cohort / "out") as view:
        print(f"see {view}/cohort", file=sys.stderr)
    assert capsys.readouterr().err.endswith(f"see {cohort / 'out'}/cohort\n")


def test_a_folder_in_the_place_of_a_receipt_or_result_is_set_aside(cohort, capsys):
    receipt = f"{FOLDER}/measure/{SCAN}_measure.json"
    (cohort / "out" / receipt).unlink()
    (cohort / "out" / receipt).mkdir()
    page = "report/thumbnails/sub-02/anat/sub-02.png"
    (cohort / "out" / page).unlink()
    write_text(cohort / "out" / page / "mine.txt", "mine")
    inventory = stock(cohort)
    assert {"measure_scan", "draw_subject"} <= {rule for rule, _ in left(inventory)}
    clear(inventory, "all")
    said = capsys.readouterr().err
    assert f"{receipt} is a folder where a file should be" in said
    assert not (cohort / "out" / receipt).exists() and not (cohort / "out" / page).exists()
    assert [path.read_text() for path in (cohort / "out/broken").rglob("mine.txt")] == ["mine"]
