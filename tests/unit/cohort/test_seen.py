"""Images that one command has opened are not opened by the next one, unless they are others now."""

import os

import pytest

from popatlas.cohort import index as indexing
from popatlas.cohort import seen
from popatlas.cohort.inspect import inspect_image
from popatlas.config.load import load_config
from popatlas.images.io import read_table, write_table

from ...cohorts import noise_cohort, noise_image


@pytest.fixture
def look(tmp_path, monkeypatch):
    """Index a dataset in a folder of its own, as `check` and `plan` do; return what was opened, and the index."""
    bids, opened = noise_cohort(tmp_path / "bids", ["sub-01", "sub-02", "sub-03"], labels=False), []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(seen, "FEWEST", 1)
    monkeypatch.setattr(indexing, "inspect_image", lambda path, limits: opened.append(path) or inspect_image(path, limits))

    def once(name, **cohort):
        opened.clear()
        config = load_config({"cohort": cohort}, bids_dir=str(bids), out_dir=str(tmp_path / name))
        table = indexing.index_cohort(config, tmp_path / name)
        return sorted(path.rsplit("/", 1)[-1] for path in opened), table

    return once


def image(tmp_path, name):
    return tmp_path / "bids" / name / "anat" / f"{name}_T1w.nii.gz"


def test_each_image_is_opened_once_by_all_commands(look, tmp_path):
    first, table = look("one")
    assert len(first) == 3
    second, again = look("two")
    assert second == []
    assert again.equals(table)
    os.utime(image(tmp_path, "sub-02"), (1, 1))
    noise_image(tmp_path / "bids/sub-04/anat/sub-04_T1w.nii.gz", seed=9)
    assert look("three")[0] == ["sub-02_T1w.nii.gz", "sub-04_T1w.nii.gz"]
    assert look("four")[0] == []


def test_bad_images_and_other_limits_are_looked_at_again(look, tmp_path):
    image(tmp_path, "sub-03").write_bytes(b"broken")
    assert list(look("one")[1]["state"]) == ["ok", "ok", "unavailable"]
    assert look("two")[0] == ["sub-03_T1w.nii.gz"]
    opened, table = look("three", min_shape=40)
    assert len(opened) == 3
    assert set(table["state"]) == {"unavailable"}


def test_what_is_kept_names_nobody_and_can_be_forgotten(look, tmp_path):
    look("one")
    (file,) = (tmp_path / "cache" / "popatlas" / "images").iterdir()
    assert b"sub-0" not in file.read_bytes() and "bids" not in file.name
    seen.forget()
    assert not file.exists()
    assert len(look("two")[0]) == 3


def test_a_broken_file_or_a_folder_that_cannot_be_made_costs_time_only(look, tmp_path, monkeypatch):
    look("one")
    (file,) = (tmp_path / "cache" / "popatlas" / "images").iterdir()
    file.write_bytes(b"garbage")
    assert len(look("two")[0]) == 3
    table = read_table(file)
    write_table(table.assign(sha256=table["sha256"].where(table.index > 0, "another")), file)
    opened, index = look("four")
    assert len(opened) == 1 and "another" not in set(index["sha256"])
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    assert len(look("three")[0]) == 3
