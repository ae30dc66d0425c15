"""A dataset that was moved has the same images: nothing is said of another choice, unless there is one."""

import shutil

from popatlas.cohort.index import index_cohort
from popatlas.config.load import load_config
from tests.cohorts import noise_cohort, noise_image


def said(root, out, capsys):
    index_cohort(load_config(bids_dir=str(root)), out)
    return capsys.readouterr().err


def test_a_moved_dataset_has_no_other_images(tmp_path, capsys):
    before, after = noise_cohort(tmp_path / "a", ["sub-01", "sub-02"], labels=False), tmp_path / "b" / "sub-01" / "bids"
    assert said(before, tmp_path / "out", capsys) == ""
    after.parent.mkdir(parents=True)
    before.rename(after)
    assert said(after, tmp_path / "out", capsys) == ""


def test_a_moved_dataset_with_another_image_is_said(tmp_path, capsys):
    before, after = noise_cohort(tmp_path / "a", ["sub-01", "sub-02"], labels=False), tmp_path / "b"
    said(before, tmp_path / "out", capsys)
    shutil.copytree(before, after)
    (after / "sub-01/anat/sub-01_T1w.nii.gz").unlink()
    noise_image(after / "sub-01/anat/sub-01_run-2_T1w.nii.gz", seed=9)
    told = said(after, tmp_path / "out", capsys)
    assert told.count("the T1w was") == 1
    assert "sub-01/anat/sub-01: the T1w was sub-01_T1w.nii.gz and is now sub-01_run-2_T1w.nii.gz" in told


def test_another_file_of_the_same_name_is_said_with_its_folder(tmp_path, capsys):
    images = [noise_image(tmp_path / name / "t1w.nii.gz", seed) for seed, name in enumerate("xy")]
    table = tmp_path / "cohort.tsv"
    table.write_text(f"subject\tt1w\n01\t{images[0]}\n")
    said(table, tmp_path / "out", capsys)
    table.write_text(f"subject\tt1w\n01\t{images[1]}\n")
    assert f"the T1w was {images[0]} and is now {images[1]}" in said(table, tmp_path / "out", capsys)
