import shutil

import pandas as pd
import pytest

from popatlas.cohort.batches import batches, read_batch_members, read_batches
from popatlas.cohort.freeze import (
    atlases_for,
    draw_evenly,
    freeze_atlas_members,
    freeze_label_atlases,
    read_label_atlases,
    read_members,
    resolve_pattern,
    template_version,
)
from popatlas.cohort.index import index_cohort
from popatlas.config.load import changed, load_config
from popatlas.errors import ConfigError, InputError
from popatlas.images.io import sha256, write_json
from popatlas.receipts import FOLDER, Receipt
from tests.cohorts import noise_cohort, noise_image, noise_labels

NAMES = [f"sub-{number:02d}" for number in range(1, 7)]


@pytest.fixture
def study(tmp_path):
    config = load_config(bids_dir=str(noise_cohort(tmp_path / "bids", NAMES)))
    out_dir = tmp_path / "out"
    index = index_cohort(config, out_dir)
    return config, index, list(index["scan"]), out_dir


def built(out_dir):
    path = out_dir / "tpl-popatlas" / "template_description.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")


def test_members_follow_the_usable_scans_until_a_template_is_built(study):
    config, index, scans, out_dir = study
    assert list(freeze_atlas_members(config, index, scans, out_dir)["scan"]) == scans
    assert list(freeze_atlas_members(config, index, scans[:4], out_dir)["scan"]) == scans[:4]
    built(out_dir)
    frozen = freeze_atlas_members(config, index, scans, out_dir)
    assert list(frozen["scan"]) == scans[:4]
    assert list(read_members(config, out_dir)["scan"]) == scans[:4]


def build(config, members, out_dir):
    """Leave what the publication of a template leaves: description and receipt."""
    listed = "cohort/atlas-popatlas.tsv"
    rows = members.to_dict("records")
    write_json(out_dir / "tpl-popatlas/template_description.json", {"Name": "popatlas", "Members": rows})
    Receipt("x", {listed: sha256(out_dir / listed)}).write(out_dir / FOLDER / "atlas/popatlas/publish_template.json")


LIST, NOTE = "cohort/atlas-popatlas.tsv", "cohort/atlas-popatlas.json"
DESCRIPTION = "tpl-popatlas/template_description.json"
PUBLISHED = f"{FOLDER}/atlas/popatlas/publish_template.json"


def cut(path):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def garble(path):
    path.write_bytes(b"\xff\x00garbage")


LOST = [
    [DESCRIPTION],
    [DESCRIPTION, PUBLISHED],
    [DESCRIPTION, NOTE],
    [NOTE, PUBLISHED],
    [LIST],
    [LIST, NOTE],
    [LIST, PUBLISHED],
]


@pytest.mark.parametrize("away", [cut, garble, lambda path: path.unlink()], ids=["cut", "garbage", "lost"])
@pytest.mark.parametrize("paths", LOST, ids=lambda paths: "-".join(path.rsplit("/", 1)[-1] for path in paths))
def test_frozen_members_stay_whatever_is_lost_of_the_template(study, paths, away):
    config, index, scans, out_dir = study
    members = freeze_atlas_members(config, index, scans, out_dir)
    build(config, members, out_dir)
    freeze_atlas_members(config, index, scans, out_dir)
    text = (out_dir / LIST).read_text()
    for path in paths:
        away(out_dir / path)
    for _ in range(2):
        assert list(freeze_atlas_members(config, index, scans[:3], out_dir)["scan"]) == scans
    assert (out_dir / LIST).read_text() == text


@pytest.mark.parametrize("away", [cut, garble, lambda path: path.unlink()], ids=["cut", "garbage", "lost"])
def test_a_list_of_frozen_members_that_cannot_be_restored_is_refused(study, away):
    config, index, scans, out_dir = study
    build(config, freeze_atlas_members(config, index, scans, out_dir), out_dir)
    away(out_dir / LIST)
    (out_dir / DESCRIPTION).write_text('{"Members": [{"scan": "a", "subject": "a", "session": "", "sha256": ""}]}')
    with pytest.raises(InputError, match=r"frozen members.*atlas-popatlas\.tsv.*put the file back.*atlas\.label to"):
        freeze_atlas_members(config, index, scans[:3], out_dir)
    assert len(freeze_atlas_members(load_config({"atlas": {"label": "new"}}), index, scans[:3], out_dir)) == 3


def test_a_changed_image_of_a_frozen_member_stops_the_study(study, tmp_path):
    config, index, scans, out_dir = study
    members = freeze_atlas_members(config, index, scans[:4], out_dir)
    built(out_dir)
    for name in ("sub-02", "sub-06"):  # a member, and one that is none
        noise_image(tmp_path / f"bids/{name}/anat/{name}_T1w.nii.gz", seed=999)
    index = index_cohort(config, out_dir)
    with pytest.raises(ConfigError, match=r"1 member\(s\).*: sub-02/anat/sub-02\. Remedy: put .* atlas\.label") as caught:
        freeze_atlas_members(config, index, scans, out_dir)
    assert "sub-06" not in str(caught.value)
    # a new label makes a new template; a member that is not used any more is no contradiction
    other = load_config({"atlas": {"label": "second"}})
    assert len(freeze_atlas_members(other, index, scans, out_dir)) == 6
    config = changed(config, {"cohort": {"exclude": ["sub-02"]}})
    pd.testing.assert_frame_equal(
        freeze_atlas_members(config, index_cohort(config, out_dir), scans, out_dir), members.reset_index(drop=True)
    )


def test_another_request_for_members_after_the_build_is_named(study, capsys):
    config, index, scans, out_dir = study
    members = freeze_atlas_members(config, index, scans, out_dir)
    built(out_dir)
    freeze_atlas_members(config, index, scans, out_dir)
    assert capsys.readouterr().err == ""
    config = changed(config, {"atlas": {"members": 3}})
    assert list(freeze_atlas_members(config, index, scans, out_dir)["scan"]) == list(members["scan"])
    said = capsys.readouterr().err
    assert "atlas.members was changed" in said
    assert "set atlas.label to a new name" in said


def test_a_number_of_members_covers_the_ages(study):
    config, index, scans, out_dir = study
    config = changed(config, {"atlas": {"members": 3}})
    members = freeze_atlas_members(config, index, scans, out_dir)
    assert members["subject"].iloc[[0, -1]].tolist() == ["sub-01", "sub-06"]
    assert len(members) == 3


def test_a_listed_member_that_is_broken_is_left_out_and_an_unknown_one_refused(study, capsys):
    config, index, scans, out_dir = study
    config = changed(config, {"atlas": {"members": ["01", "sub-02", "03"]}})
    members = freeze_atlas_members(config, index, [scan for scan in scans if "sub-02" not in scan], out_dir)
    assert list(members["subject"]) == ["sub-01", "sub-03"]
    assert "sub-02 cannot be used" in capsys.readouterr().err
    config = changed(config, {"atlas": {"members": ["01", "sub-2"]}})
    with pytest.raises(ConfigError, match=r"sub-2 is not in the dataset.*did you mean sub-0"):
        freeze_atlas_members(config, index, scans, out_dir)


def test_a_template_needs_two_scans(study):
    config, index, scans, out_dir = study
    with pytest.raises(ConfigError, match="at least 2"):
        freeze_atlas_members(config, index, scans[:1], out_dir)


def test_the_version_hashes_members_and_science_but_not_execution(study):
    config, index, scans, out_dir = study
    members = freeze_atlas_members(config, index, scans, out_dir)
    version = template_version(members, config)
    assert len(version) == 8
    assert int(version, 16) >= 0
    assert template_version(members.iloc[::-1], config) == version
    for key, value in (("batch", 9), ("gpu", 1), ("volume_ml", [500, 2500])):
        other = load_config({"preprocess": {"brain": {key: value}}})
        assert template_version(members, other) == version
    assert template_version(members, load_config({"report": {"per_page": 3}})) == version
    assert template_version(members, load_config({"preprocess": {"resolution_mm": 1.0}})) != version
    assert template_version(members, load_config({"atlas": {"iterations": 4}})) != version
    assert template_version(members.iloc[1:], config) != version
    assert template_version(members.assign(sha256="0"), config) != version


def test_an_existing_template_is_hashed_by_content(study, tmp_path):
    config, *_ = study
    path = noise_image(tmp_path / "mni.nii.gz", seed=1)
    config = changed(config, {"atlas": {"template": str(path)}})
    version = template_version(pd.DataFrame(), config)
    noise_image(path, seed=2)
    other = template_version(pd.DataFrame(), config)
    assert other != version
    masks = [
        template_version(pd.DataFrame(), config) for seed in (3, 4) if noise_image(tmp_path / "mni_mask.nii.gz", seed=seed)
    ]
    assert len({other, *masks}) == 3
    assert read_members(config, tmp_path).empty


def test_label_atlases_stay_when_scans_are_added_and_change_when_the_request_does(study):
    config, index, scans, out_dir = study
    first = freeze_label_atlases(config, index, scans[:4], out_dir)
    assert len(first) == 3
    pd.testing.assert_frame_equal(freeze_label_atlases(config, index, scans, out_dir), first, check_dtype=False)
    config = changed(config, {"fuse": {"atlases": ["06"]}})
    assert list(freeze_label_atlases(config, index, scans, out_dir)["atlas"]) == ["sub-06/anat/sub-06"]
    assert list(read_label_atlases(out_dir)["atlas"]) == ["sub-06/anat/sub-06"]


def test_a_label_image_that_does_not_open_is_no_atlas(study, tmp_path):
    config, index, scans, out_dir = study
    label = tmp_path / "bids/derivatives/truth/sub-01/anat/sub-01_desc-truth_dseg.nii.gz"
    label.write_bytes(b"")
    config = changed(config, {"fuse": {"atlases": 6}})
    assert len(freeze_label_atlases(config, index, scans, out_dir)) == 5


@pytest.mark.parametrize(
    ("scan", "served_by"),
    [
        ("sub-01/anat/sub-01", ["sub-02/ses-1", "atlases/sub-01", "atlases/sub-A"]),
        ("sub-02/ses-2/anat/sub-02_ses-2", ["sub-01", "atlases/sub-01", "atlases/sub-A"]),
        ("atlases/sub-A/anat/sub-A", ["sub-01", "sub-02/ses-1", "atlases/sub-01"]),
    ],
)
def test_no_atlas_serves_its_own_subject(scan, served_by):
    """An external atlas is another person than the participant with the same name, and than other external atlases."""
    folders = ("sub-01", "sub-02/ses-1", "atlases/sub-01", "atlases/sub-A")
    keys = {folder: f"{folder}/anat/x" for folder in folders}
    assert atlases_for(scan, list(keys.values())) == [keys[folder] for folder in served_by]


def test_no_labels_no_atlases(study, tmp_path):
    config, index, scans, out_dir = study
    shutil.rmtree(tmp_path / "bids/derivatives")
    assert freeze_label_atlases(config, index, scans, out_dir).empty
    assert read_label_atlases(out_dir).empty


def test_external_atlases_without_labels_are_left_out(study, tmp_path, capsys):
    config, index, scans, out_dir = study
    noise_labels(tmp_path / "a.nii.gz", seed=50)
    table = tmp_path / "atlases.tsv"
    table.write_text("atlas\tt1w\tdseg\nA\ta.nii.gz\ta.nii.gz\nB\ta.nii.gz\tmissing.nii.gz\n")
    config = changed(config, {"fuse": {"atlases": str(table)}})
    found = freeze_label_atlases(config, index, scans, out_dir)
    assert list(found["atlas"]) == ["atlases/sub-A/anat/sub-A"]
    assert "missing.nii.gz does not open" in capsys.readouterr().err


def test_an_edited_table_of_external_atlases_is_read_again(study, tmp_path):
    config, index, scans, out_dir = study
    for name in "ab":
        noise_labels(tmp_path / f"{name}.nii.gz", seed=50)
    table = tmp_path / "atlases.tsv"
    table.write_text("atlas\tt1w\tdseg\nA\ta.nii.gz\ta.nii.gz\n")
    config = changed(config, {"fuse": {"atlases": str(table)}})
    usable = [*scans, "atlases/sub-A/anat/sub-A", "atlases/sub-B/anat/sub-B"]
    assert len(freeze_label_atlases(config, index, usable, out_dir)) == 1
    table.write_text("atlas\tt1w\tdseg\nA\ta.nii.gz\tb.nii.gz\nB\ta.nii.gz\ta.nii.gz\n")
    found = freeze_label_atlases(config, index, usable, out_dir)
    assert [path.rsplit("/", 1)[-1] for path in found["dseg"]] == ["b.nii.gz", "a.nii.gz"]
    (tmp_path / "b.nii.gz").write_bytes(b"")  # the table is the same, its label image is not
    assert list(freeze_label_atlases(config, index, usable, out_dir)["atlas"]) == ["atlases/sub-B/anat/sub-B"]


def test_patterns(tmp_path):
    scan = "sub-01/ses-2/anat/sub-01_ses-2"
    assert resolve_pattern("d/{scan}_x", scan, tmp_path) == tmp_path / f"d/{scan}_x"
    assert resolve_pattern("{subject}/{session}", scan, tmp_path) == tmp_path / "sub-01/ses-2"
    assert str(resolve_pattern("/labels/{subject}.nii.gz", scan, tmp_path)) == "/labels/sub-01.nii.gz"
    assert resolve_pattern("{subject}", "atlases/sub-A/anat/sub-A", tmp_path) == tmp_path / "sub-A"
    for pattern in ("{sub}", "{0}", "{scan", "{scan.__class__}", "{scan:>20}", "{scan!r}", "{}"):
        with pytest.raises(ConfigError, match="pattern"):
            resolve_pattern(pattern, scan, tmp_path)


def test_new_scans_form_new_batches(tmp_path):
    assert batches(["b", "a", "c"], 2, tmp_path) == {"a": 1, "b": 1, "c": 2}
    assert batches(["b", "a", "c", "d", "e", "f"], 2, tmp_path) == {"a": 1, "b": 1, "c": 2, "d": 3, "e": 3, "f": 4}
    assert batches(["a"], 2, tmp_path)["f"] == 4
    assert read_batches(tmp_path)["c"] == 2


def test_a_scan_that_failed_in_its_batch_is_tried_again_in_a_new_one(tmp_path):
    assert batches(["a", "b", "c"], 2, tmp_path, "work") == {"a": 1, "b": 1, "c": 2}
    write_json(tmp_path / "work/batch-1.json", {"a": {"state": "ok"}, "b": {"state": "failed"}})
    assert batches(["a", "c"], 2, tmp_path, "work")["b"] == 1, "it is out: nothing is changed"
    assert batches(["a", "b", "c"], 2, tmp_path, "work") == {"a": 1, "b": 3, "c": 2}
    assert batches(["a", "b", "c"], 2, tmp_path, "work")["b"] == 3
    # what the batch ran with stays, so that its inputs are the same as before
    assert read_batch_members(tmp_path) == {1: ("a", "b"), 2: ("c",), 3: ("b",)}


def test_a_batch_that_ran_without_a_scan_does_not_take_it_back(tmp_path):
    batches(["a", "b"], 2, tmp_path, "work")
    write_json(tmp_path / "work/batch-1.json", {"a": {"state": "ok"}})
    assert batches(["a", "b"], 2, tmp_path, "work") == {"a": 1, "b": 2}
    assert read_batch_members(tmp_path) == {1: ("a",), 2: ("b",)}


def test_drawing_without_ages_is_by_name():
    table = pd.DataFrame({"scan": list("edcba")})
    assert list(draw_evenly(table, 3, "scan")["scan"]) == ["a", "c", "e"]


def test_a_list_of_members_that_stays_is_no_change(study, capsys):
    config, index, scans, out_dir = study
    config = changed(config, {"atlas": {"members": ["01", "03"]}})
    freeze_atlas_members(config, index, scans, out_dir)
    built(out_dir)
    freeze_atlas_members(config, index, scans, out_dir)
    assert "atlas.members was changed" not in capsys.readouterr().err
