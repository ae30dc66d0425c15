"""Paths that a study keeps: relative where they lie beside OUT_DIR, so that both may be moved, and absolute elsewhere."""

import pytest
import yaml

from popatlas.config.beside import NOTE, beside, located, saved_text
from popatlas.config.load import load_config, make_absolute
from popatlas.images.io import write_text

OUT = "/data/project/out"


@pytest.mark.parametrize(("bids", "kept"), [
    ("/data/project/bids", "../bids"),
    ("/data/project/raw/bids", "../raw/bids"),
    ("/data/project", ".."),
    ("/data/project/out/bids", "bids"),
    ("/elsewhere/bids", "/elsewhere/bids"),
    ("/data/other/bids", "/data/other/bids"),
])  # fmt: skip
def test_a_dataset_is_relative_where_it_lies_beside_the_results(bids, kept):
    content = {"bids_dir": bids, "out_dir": OUT}
    found = beside(content)
    assert found == {"bids_dir": kept, "out_dir": "."}
    assert located(found, []) == found, "what no study has kept stays as it is"


def test_results_in_the_dataset_and_folders_at_the_root():
    inside = {"bids_dir": "/data/bids", "out_dir": "/data/bids/derivatives/popatlas"}
    assert beside(inside)["bids_dir"] == "../.."
    assert beside({"bids_dir": "/bids", "out_dir": "/out"})["bids_dir"] == "../bids"
    assert beside({"bids_dir": "/mnt/share/bids", "out_dir": "/out"})["bids_dir"] == "/mnt/share/bids"


def test_all_paths_come_back_and_names_stay(tmp_path):
    for folder in ("bids", "out", "moved"):
        (tmp_path / folder).mkdir()
    given = {
        "bids_dir": str(tmp_path / "bids"),
        "out_dir": str(tmp_path / "out"),
        "atlas": {"template": str(tmp_path / "bids" / "template.nii.gz")},
        "fuse": {"atlases": "/far/atlases.tsv"},
        "register": {"weights": str(tmp_path / "own.safetensors")},
        "train": {"recipe": "voxelmorph"},
    }
    config = make_absolute(load_config(given))
    write_text(tmp_path / "out" / "config.yaml", saved_text(config.content))
    kept = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert (kept["bids_dir"], kept["out_dir"], kept["atlas"]["template"]) == ("../bids", ".", "../bids/template.nii.gz")
    assert (kept["fuse"]["atlases"], kept["train"]["recipe"]) == ("/far/atlases.tsv", "voxelmorph")
    assert kept["register"]["weights"] == "../own.safetensors"
    assert kept["register"]["unigradicon"] == config.content["register"]["unigradicon"]
    assert make_absolute(load_config(tmp_path / "out" / "config.yaml")).content == config.content
    (tmp_path / "out").rename(tmp_path / "moved" / "out")
    (tmp_path / "bids").rename(tmp_path / "moved" / "bids")
    moved = load_config(tmp_path / "moved" / "out" / "config.yaml")
    assert (moved.bids_dir, moved.out_dir) == (str(tmp_path / "moved/bids"), str(tmp_path / "moved/out"))


def test_paths_of_a_user_start_where_they_always_did(tmp_path):
    write_text(tmp_path / "config.yaml", "bids_dir: bids\nout_dir: out\n")
    assert load_config(tmp_path / "config.yaml").bids_dir == "bids"
    write_text(tmp_path / "config.yaml", f"{NOTE}bids_dir: bids\nout_dir: .\n")
    assert load_config(tmp_path / "config.yaml").bids_dir == str(tmp_path / "bids")
