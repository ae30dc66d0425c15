"""Where a study reads and writes: what is refused, and folders of a dataset that nobody may read."""

import argparse
import json
import os
import shutil
from pathlib import Path

import pytest

from popatlas.cli.arguments import count, duration, given_path, positive
from popatlas.cli.snake import check_folders
from popatlas.cohort.folders import hidden_folders, subject_folders
from popatlas.cohort.index import index_cohort
from popatlas.cohort.places import check_files, check_places
from popatlas.cohort.select import parse_labels
from popatlas.config.load import load_config, make_absolute
from popatlas.errors import ConfigError, InputError
from popatlas.paths import resolved, unworkable
from tests.cohorts import noise_cohort, noise_image
from tests.stranger import as_stranger, common_ground

SUBJECTS = ["sub-01", "sub-02", "sub-03"]


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "data" / "bids" / "sub-01" / "anat").mkdir(parents=True)
    (tmp_path / "data" / "bids" / "dataset_description.json").write_text('{"Name": "Heads"}')
    return tmp_path / "data" / "bids"


def check(bids_dir, out_dir, **settings):
    config = make_absolute(load_config(settings, bids_dir=str(bids_dir), out_dir=str(out_dir)))
    check_places(config, make=True)
    return Path(config.out_dir)


@pytest.mark.parametrize("place", ["../out", "derivatives/popatlas", "derivatives", "results", "../../elsewhere/deep/down"])
def test_output_folders_that_spoil_nothing_are_made(dataset, place):
    assert check(dataset, dataset / place).is_dir()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (".", "the output folder is the dataset itself"),
        ("..", "the dataset lies inside of the output folder"),
        ("../..", "the dataset lies inside of the output folder"),
        ("sub-01", "lies inside of sub-01"),
        ("sub-01/anat/out", "lies inside of sub-01"),
        ("derivatives/other/sub-02", "lies inside of sub-02"),
        ("sourcedata/out", "lies inside of sourcedata"),
        ("code", "lies inside of code"),
        ("../link/sub-01", "lies inside of sub-01"),
        ("../link", "is the dataset itself"),
        ("dataset_description.json", "is a file"),
        ("dataset_description.json/out", "is no folder"),
        ("../other", r"holds another dataset \(Legs\).*check the order, BIDS_DIR before OUT_DIR"),
        ("../broken", "holds another dataset"),
        ("../ring", "links in a ring"),
        ("../new\nline", "a line break"),
        (b"../\xff", "not in UTF-8"),
        ("/proc/out", "cannot be written"),
        ("/proc/sys", "cannot be written"),
        ("/dev/null", "is a file"),
    ],
)
def test_output_folders_that_spoil_something_are_refused_before_they_are_made(dataset, place, message):
    data = dataset.parent
    (data / "link").symlink_to("bids")
    (data / "ring").symlink_to("ring")
    for name, text in (("other", '{"Name": "Legs"}'), ("broken", "{")):
        (data / name).mkdir()
        (data / name / "dataset_description.json").write_text(text)
    before = sorted(data.rglob("*"))
    with pytest.raises(InputError, match=f"(?s){message}") as caught:
        check(dataset, dataset / os.fsdecode(place))
    assert caught.value.remedy
    assert sorted(data.rglob("*")) == before


def test_the_output_folder_of_a_study_is_no_dataset_but_may_be_used_again(dataset):
    (dataset.parent / "study" / "cohort").mkdir(parents=True)
    (dataset.parent / "study" / "cohort" / "index.parquet").write_bytes(b"")
    (dataset.parent / "study" / "dataset_description.json").write_text('{"Name": "Study", "DatasetType": "derivative"}')
    with pytest.raises(InputError, match="output folder of a study, not a dataset"):
        check(dataset.parent / "study", dataset.parent / "out")
    assert check(dataset, dataset.parent / "study").is_dir()


@pytest.mark.parametrize("name", ["{x}", "a {scan} b", "{{y}}", "<name>", "line\nbreak", b"\xff"])
def test_datasets_whose_path_the_workflow_would_change_are_refused_and_a_link_helps(tmp_path, name):
    there = tmp_path / os.fsdecode(name)
    (there / "sub-01").mkdir(parents=True)
    with pytest.raises(InputError, match=r"(?s)the dataset has .* in its path.*Remedy: rename the folder, or give a link"):
        check(there, tmp_path / "out")
    (tmp_path / "link").symlink_to(there)
    assert check(tmp_path / "link", tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["a b", "it's", 'q"', "100%", "#1", "$HOME", "a*b", "[1]", "größe", "-x", "a;b", "\\", "{}", "{"]
)
def test_other_characters_are_no_trouble(name, tmp_path):
    (tmp_path / name / "sub-01").mkdir(parents=True)
    assert check(tmp_path / name, tmp_path / f"out {name}").name == f"out {name}"


def test_braces_hurt_where_files_are_read_only(tmp_path):
    assert unworkable("/a/{x}/b") and not unworkable("/a/{x}/b", is_input=False)


def test_links_are_followed_unless_the_path_behind_them_cannot_be_taken(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "{x}").mkdir()
    for target in ("plain", "{x}"):
        (tmp_path / f"to {target.strip('{}')}").symlink_to(tmp_path / target)
    assert resolved(tmp_path / "to plain") == str(tmp_path / "plain")
    assert resolved(tmp_path / "to x") == str(tmp_path / "to x")


def test_an_empty_path_of_the_command_line_is_an_empty_variable():
    with pytest.raises(argparse.ArgumentTypeError, match="is a variable of the shell not set"):
        given_path(" ")


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [(positive, "3", ["0", "-1", "1.5", "x", ""]), (count, "0", ["-1", "x"]), (duration, "0.0", ["-1", "nan", "x"])],
)
def test_numbers_of_the_command_line(kind, good, bad):
    assert kind(good) == float(good)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is no"):
            kind(text)


@pytest.mark.parametrize(("section", "key"), [("atlas", "template"), ("fuse", "atlases")])
def test_files_of_the_configuration_are_named_with_the_path_that_was_looked_for(section, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.tsv").mkdir()
    for value, message in (("absent.tsv", "does not exist"), ("folder.tsv", "is a folder"), ("{a}.tsv", "has braces")):
        config = make_absolute(load_config({section: {key: value}}))
        with pytest.raises(InputError, match=f"{section}.{key} {message}") as caught:
            check_files(config)
        assert str(tmp_path / value) in str(caught.value)


def test_the_demo_is_drawn_only_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_absolute(load_config())
    with pytest.raises(InputError, match="the dataset does not exist"):
        check_folders(config, make=False)


def test_folders_that_may_not_be_read_cost_their_scans_only():
    with common_ground() as folder:
        bids = noise_cohort(folder / "bids", SUBJECTS, labels=False)
        for number, visit in enumerate(("ses-1", "ses-2")):
            noise_image(bids / "sub-04" / visit / "anat" / f"sub-04_{visit}_T1w.nii.gz", seed=70 + number)
        config = load_config(bids_dir=str(bids))
        assert set(index_cohort(config, folder / "first")["state"]) == {"ok"}
        for path in (bids / "sub-01", bids / "sub-02" / "anat", bids / "sub-04" / "ses-2"):
            path.chmod(0o700 if os.geteuid() == 0 else 0)
        (bids / "sub-03" / "anat" / "sub-03_T1w.nii.gz").chmod(0o600 if os.geteuid() == 0 else 0)

        def index():
            table = index_cohort(config, folder / "out")
            return table.set_index("scan")[["state", "reason"]].to_dict("index")

        (folder / "out").mkdir()
        (folder / "out").chmod(0o777)
        found = as_stranger(index)
        for path in (bids / "sub-01", bids / "sub-02" / "anat", bids / "sub-04" / "ses-2"):
            path.chmod(0o755)
    denied = {scan: row["reason"] for scan, row in found.items() if row["state"] == "unavailable"}
    assert [scan for scan, row in found.items() if row["state"] == "ok"] == ["sub-04/ses-1/anat/sub-04_ses-1"]
    places = ("sub-01", "sub-02/anat", "sub-03_T1w.nii.gz", "sub-04/ses-2")
    assert sorted(denied) == [*(f"{name}/anat/{name}" for name in SUBJECTS), "sub-04/ses-2/anat/sub-04_ses-2"]
    for reason, place in zip((denied[scan] for scan in sorted(denied)), places, strict=True):
        assert reason.startswith(f"permission denied ({place}); remedy: ask for the right to read it")


def test_a_dataset_that_may_not_be_read_is_not_called_empty():
    with common_ground() as folder:
        bids = noise_cohort(folder / "bids", SUBJECTS[:1], labels=False)
        bids.chmod(0o700 if os.geteuid() == 0 else 0)

        def refusal():
            with pytest.raises(InputError) as caught:
                subject_folders(bids)
            return str(caught.value)

        said = as_stranger(refusal)
        bids.chmod(0o755)
    assert "the dataset cannot be read: Permission denied" in said


@pytest.mark.parametrize(("target", "code"), [("/proc/nothing", "link"), ("sub-05", "link")])
def test_links_to_nothing_are_not_passed_over(target, code, tmp_path):
    bids = noise_cohort(tmp_path / "bids", SUBJECTS, labels=False)
    (bids / "sub-05").symlink_to(target)
    shutil.rmtree(bids / "sub-02" / "anat")
    (bids / "sub-02" / "anat").symlink_to("/proc/nothing")
    assert [(one.subject, one.code) for one in hidden_folders(bids, subject_folders(bids))] == [
        ("sub-02", code), ("sub-05", code),
    ]  # fmt: skip
    index = index_cohort(load_config(bids_dir=str(bids)), tmp_path / "out").set_index("subject")
    assert index["state"].to_dict() == {"sub-01": "ok", "sub-02": "unavailable", "sub-03": "ok", "sub-05": "unavailable"}
    assert "a link to nothing (sub-02/anat)" in index.loc["sub-02", "reason"]


def test_names_that_are_not_utf8_are_told(tmp_path):
    bids = noise_cohort(tmp_path / "bids", SUBJECTS, labels=False)
    odd = Path(os.fsdecode(os.fsencode(bids) + b"/sub-\xff"))
    odd.mkdir()
    index = index_cohort(load_config(bids_dir=str(bids)), tmp_path / "out").set_index("subject")
    assert "not a BIDS label" in index.loc["sub-\\xff", "reason"]
    odd.rmdir()
    image = os.fsencode(bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    shutil.copy(image, image.replace(b"_T1w", b"_acq-\xff_T1w"))
    with pytest.raises(InputError, match=r"not in UTF-8: sub-01/anat/sub-01_acq-\\xff_T1w.*Remedy: rename it"):
        index_cohort(load_config(bids_dir=str(bids)), tmp_path / "out")


def test_an_image_whose_path_the_workflow_would_change_is_unavailable(tmp_path):
    noise_image(tmp_path / "{x}" / "a.nii.gz", seed=1)
    noise_image(tmp_path / "b.nii.gz", seed=2)
    (tmp_path / "scans.tsv").write_text("subject\tt1w\n01\t{x}/a.nii.gz\n02\tb.nii.gz\n")
    index = index_cohort(load_config(bids_dir=str(tmp_path / "scans.tsv")), tmp_path / "out").set_index("subject")
    assert index["state"].to_dict() == {"sub-01": "unavailable", "sub-02": "ok"}
    assert "a path that the workflow cannot take (braces {})" in index.loc["sub-01", "reason"]


@pytest.mark.parametrize(
    ("given", "found"),
    [(["01"], ["sub-01"]), (["01,02", "sub-02"], ["sub-01", "sub-02"]), (["sub-1", " 2 "], ["sub-1", "sub-2"])],
)
def test_subjects_of_the_command_line(given, found):
    assert parse_labels(given) == found


@pytest.mark.parametrize("given", ["", ",", "sub-", "sub-sub-01", "bids/", "01/ses-1", "sub_01", "0 1"])
def test_what_is_no_label_is_refused(given):
    with pytest.raises(ConfigError, match=r"--participant-label: .* is not the label of a subject.*Remedy"):
        parse_labels([given])


def test_the_stranger_has_no_rights():
    with common_ground() as folder:
        (folder / "mine").mkdir(mode=0o700)
        if os.geteuid() == 0:
            assert as_stranger(lambda: os.access(folder / "mine", os.R_OK)) is False
            assert json.loads(json.dumps(as_stranger(os.getuid))) == 54321
