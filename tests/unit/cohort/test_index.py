import json
import os
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from jsonschema import Draft202012Validator

from popatlas.cohort.index import index_cohort
from popatlas.config.load import changed
from popatlas.errors import ConfigError, InputError
from popatlas.images.io import read_table, write_table
from popatlas.resources import schema_path
from tests.cohorts import noise_image
from tests.unit.cohort.indexed import configure, run


def test_rows_follow_the_schema_and_survive_the_files(bids, tmp_path):
    index = index_cohort(configure(bids), tmp_path / "out")
    assert list(index["scan"]) == [f"sub-0{n}/anat/sub-0{n}" for n in (1, 2, 3)]
    assert set(index["state"]) == {"ok"}
    validator = Draft202012Validator(yaml.safe_load(schema_path("index").read_text()))
    for row in index.to_dict("records"):
        validator.validate(row)
    pd.testing.assert_frame_equal(read_table(tmp_path / "out/cohort/index.parquet"), index)
    people = read_table(tmp_path / "out/cohort/participants.tsv")
    assert list(people["participant_id"]) == ["sub-01", "sub-02", "sub-03"]
    assert list(people["age"]) == [20.0, 25.0, 30.0]


@pytest.mark.parametrize("name", ["study.v1.0", ".hidden", "a [1] *?", "space 'quote' $HOME", "größe"])
def test_any_path_of_the_dataset(bids, tmp_path, name):
    moved = tmp_path / name
    shutil.move(bids, moved)
    index = run(moved, tmp_path / "out")
    assert list(index["state"]) == ["ok"] * 3
    assert index.loc["sub-01", "t1w"] == str(moved / "sub-01/anat/sub-01_T1w.nii.gz")


def test_participants_without_image_are_unavailable_and_unlisted_folders_are_kept(bids, tmp_path):
    people = pd.DataFrame({"participant_id": ["sub-01", "sub-02", "sub-99"], "age": [1, 2, 3]})
    write_table(people, bids / "participants.tsv")
    (bids / "sub-05" / "func").mkdir(parents=True)
    index = run(bids, tmp_path / "out")
    assert index["state"].to_dict() == {
        "sub-01": "ok", "sub-02": "ok", "sub-03": "ok", "sub-05": "unavailable", "sub-99": "unavailable",
    }  # fmt: skip
    assert "no T1w image" in index.loc["sub-99", "reason"]


def test_names_with_leading_zeros_and_without_prefix(bids, tmp_path):
    (bids / "participants.tsv").write_text(
        "participant_id\tage\tstate\tsubject\n01\t30\tx\ty\n02\t40\tx\ty\n03\tn/a\tx\ty\n"
    )
    index = run(bids, tmp_path / "out", query="age > 35")
    assert index["state"].to_dict() == {"sub-01": "excluded", "sub-02": "ok", "sub-03": "excluded"}


def test_repeated_participants_do_not_repeat_scans(bids, tmp_path):
    (bids / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\nsub-01\t31\nn/a\t1\n")
    index = run(bids, tmp_path / "out")
    assert len(index) == 3
    assert len(read_table(tmp_path / "out/cohort/participants.tsv")) == 3


def test_a_table_with_commas_is_refused(bids, tmp_path):
    (bids / "participants.tsv").write_text("participant_id,age\nsub-01,30\n")
    with pytest.raises(InputError, match=r"participant_id,age.*tabs"):
        run(bids, tmp_path / "out")


def test_a_folder_that_is_no_label_is_said(bids, tmp_path):
    shutil.copytree(bids / "sub-01", bids / "sub-01 (copy)")
    index = run(bids, tmp_path / "out")
    assert index.loc["sub-01 (copy)", "state"] == "unavailable"
    assert "not a BIDS label" in index.loc["sub-01 (copy)", "reason"]


def test_an_image_in_the_folder_of_another_subject_is_nobodys(bids, tmp_path):
    shutil.move(bids / "sub-02/anat/sub-02_T1w.nii.gz", bids / "sub-01/anat/sub-02_T1w.nii.gz")
    index = run(bids, tmp_path / "out")
    assert index["state"].to_dict() == {"sub-01": "ok", "sub-02": "unavailable", "sub-03": "ok"}
    assert index.loc["sub-01", "t1w"].endswith("sub-01_T1w.nii.gz")


def test_names_that_are_nearly_right_and_images_of_others_are_named(bids, tmp_path, capsys):
    shutil.move(bids / "sub-01/anat/sub-01_T1w.nii.gz", bids / "sub-01/anat/sub-01_t1w.nii.gz")
    shutil.move(bids / "sub-02/anat/sub-02_T1w.nii.gz", bids / "sub-03/anat/sub-02_T1w.nii.gz")
    noise_image(bids / "sub-04/anat/sub-04_UNIT1.nii.gz", 4)
    index = run(bids, tmp_path / "out")
    assert "only sub-01/anat/sub-01_t1w.nii.gz" in index.loc["sub-01", "reason"]
    assert "only sub-03/anat/sub-02_T1w.nii.gz" in index.loc["sub-02", "reason"]
    assert "only sub-04/anat/sub-04_UNIT1.nii.gz" in index.loc["sub-04", "reason"]
    assert "1 image(s) lie in the folder of another subject or session" in capsys.readouterr().err


def test_images_before_and_in_a_first_session_are_both_scans(bids, tmp_path):
    noise_image(bids / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", 4)
    index = index_cohort(configure(bids), tmp_path / "out").set_index("scan")
    assert set(index.index) >= {"sub-01/anat/sub-01", "sub-01/ses-1/anat/sub-01_ses-1"}
    assert set(index["state"]) == {"ok"}


def test_lists_accept_names_with_and_without_prefix(bids, tmp_path):
    index = run(bids, tmp_path / "out", include=["01", "sub-02"], exclude=["sub-02"])
    assert index["state"].to_dict() == {"sub-01": "ok", "sub-02": "excluded", "sub-03": "excluded"}


def test_unknown_names_and_bad_queries_say_what_exists(bids, tmp_path):
    with pytest.raises(ConfigError, match=r"sub-1 is not in the dataset.*did you mean sub-0"):
        run(bids, tmp_path / "out", include=["1"])
    with pytest.raises(ConfigError, match="participant_id, age, sex"):
        run(bids, tmp_path / "out", query="agee > 3")


def test_excluded_scans_are_not_opened(bids, tmp_path):
    (bids / "sub-03/anat/sub-03_T1w.nii.gz").write_bytes(b"")
    assert run(bids, tmp_path / "out", exclude=["03"]).loc["sub-03", "state"] == "excluded"


def test_the_later_of_two_copies_is_unavailable(bids, tmp_path):
    shutil.copy(bids / "sub-01/anat/sub-01_T1w.nii.gz", bids / "sub-03/anat/sub-03_T1w.nii.gz")
    index = run(bids, tmp_path / "out")
    assert index["state"].to_dict() == {"sub-01": "ok", "sub-02": "ok", "sub-03": "unavailable"}
    assert "sub-01/anat/sub-01" in index.loc["sub-03", "reason"]


def test_a_bad_channel_costs_the_channel_only(bids, tmp_path):
    noise_image(bids / "sub-01/anat/sub-01_T2w.nii.gz", seed=1)
    (bids / "sub-02/anat/sub-02_T2w.nii.gz").write_bytes(b"")
    index = run(bids, tmp_path / "out")
    assert json.loads(index.loc["sub-01", "channels"]) == {"T2w": str(bids / "sub-01/anat/sub-01_T2w.nii.gz")}
    assert json.loads(index.loc["sub-02", "channels"]) == {}
    assert index.loc["sub-02", "state"] == "ok"
    assert "T2w left out" in index.loc["sub-02", "reason"]


def test_stricter_limits_apply_to_images_that_are_known(bids, tmp_path):
    assert set(run(bids, tmp_path / "out")["state"]) == {"ok"}
    assert set(run(bids, tmp_path / "out", spacing_mm=[0.3, 1.5])["state"]) == {"unavailable"}
    assert set(run(bids, tmp_path / "out", min_shape=64)["state"]) == {"unavailable"}
    assert set(run(bids, tmp_path / "out")["state"]) == {"ok"}


def test_an_interrupted_write_is_repaired(bids, tmp_path):
    run(bids, tmp_path / "out")
    parquet = tmp_path / "out/cohort/index.parquet"
    os.truncate(parquet, 10)
    (tmp_path / "out/cohort/index.tsv").unlink()
    with pytest.raises(InputError):
        read_table(parquet)
    parquet.unlink()
    run(bids, tmp_path / "out")
    assert len(read_table(parquet)) == 3


def test_a_table_of_paths(tmp_path):
    for seed, name in enumerate(["a", "b", "b2", "t2", "mask"]):
        noise_image(tmp_path / f"images {name}.nii.gz", seed)
    table = tmp_path / "cohort.tsv"
    table.write_text(
        "subject\tsession\tt1w\tT2w\tmask\tage\n"
        "01\t\timages a.nii.gz\timages t2.nii.gz\timages mask.nii.gz\t20\n"
        "02\t1\timages b.nii.gz\tn/a\tn/a\t60\n"
        "02\t2\timages b2.nii.gz\tn/a\tn/a\t60\n"
        "03\t\tn/a\tn/a\tn/a\t70\n"
    )
    index = index_cohort(configure(table, query="age > 30"), tmp_path / "out").set_index("scan")
    assert index["state"].to_dict() == {
        "sub-01/anat/sub-01": "excluded",
        "sub-02/ses-1/anat/sub-02_ses-1": "ok",
        "sub-02/ses-2/anat/sub-02_ses-2": "ok",
        "sub-03/anat/sub-03": "unavailable",
    }
    everyone = index_cohort(configure(table), tmp_path / "out2").set_index("scan")
    assert json.loads(everyone.loc["sub-01/anat/sub-01", "channels"]) == {"T2w": str(tmp_path / "images t2.nii.gz")}
    assert read_table(tmp_path / "out2/cohort/participants.tsv")["age"].tolist() == [20, 60, 60, 70]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject\timage\n01\ta.nii.gz\n", "no column 't1w'"),
        ("subject\tt1w\n0 1\ta.nii.gz\n", "not a label"),
        ("subject\tt1w\nn/a\ta.nii.gz\n", "no subject"),
        ("subject\tt1w\n01\ta.nii.gz\nsub-01\tb.nii.gz\n", "listed twice"),
    ],
)
def test_bad_tables_of_paths(tmp_path, text, message):
    (tmp_path / "cohort.tsv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        index_cohort(configure(tmp_path / "cohort.tsv"), tmp_path / "out")


def test_external_atlases_are_rows_of_their_own_role(bids, tmp_path):
    twin = tmp_path / "atlases" / "twin.nii.gz"
    twin.parent.mkdir()
    shutil.copy(bids / "sub-01/anat/sub-01_T1w.nii.gz", twin)
    table = tmp_path / "atlases.tsv"
    table.write_text("atlas\tt1w\tdseg\nA1\tatlases/twin.nii.gz\tatlases/twin.nii.gz\n")
    config = configure(bids)
    config = changed(config, {"fuse": {"atlases": str(table)}})
    index = index_cohort(config, tmp_path / "out").set_index("scan")
    assert index.loc["atlases/sub-A1/anat/sub-A1", ["role", "state"]].tolist() == ["atlas", "ok"]
    assert index.loc["sub-01/anat/sub-01", "state"] == "ok"
    for text in (
        "atlas\tt1w\tdseg\nA 1\tx\ty\n",
        "atlas\tt1w\tdseg\nA1\tx\ty\nA1\tx\ty\n",
        "atlas\tt1w\tdseg\nA1\tx\t\n",
    ):
        table.write_text(text.replace("\t\n", "\tn/a\n"))
        with pytest.raises(ConfigError, match=r"not a label|listed twice|is empty"):
            index_cohort(config, tmp_path / "out")


def test_an_empty_folder_is_not_a_dataset(tmp_path):
    with pytest.raises(InputError, match=r"no sub-\* folder"):
        run(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path / "out")


def test_nothing_in_the_dataset_is_written(bids, tmp_path):
    before = sorted((path, path.stat().st_mtime_ns) for path in bids.rglob("*"))
    run(bids, tmp_path / "out")
    assert sorted((path, path.stat().st_mtime_ns) for path in bids.rglob("*")) == before


def test_orientation_and_spacing_come_from_the_image(tmp_path):
    path = tmp_path / "bids/sub-01/anat/sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    affine = np.array([[0, 0, 1.5, 0], [-1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]], dtype=float)
    data = np.random.default_rng(0).integers(0, 99, (40, 41, 42)).astype(np.int16)
    nib.save(nib.Nifti1Image(data, affine), path)
    row = run(tmp_path / "bids", tmp_path / "out").loc["sub-01"]
    assert (row["shape"], row["spacing_mm"], row["orientation"]) == ("40x41x42", "1x2x1.5", "PSR")
