"""Label files of a study: inspected once, bad ones left out aloud, the good ones serve."""

import os
import shutil
import time

import numpy as np
import pandas as pd
import pytest

from popatlas.cohort import labelfiles
from popatlas.cohort.freeze import freeze_label_atlases, read_label_atlases
from popatlas.cohort.index import index_cohort
from popatlas.cohort.labelfiles import COLUMNS, LABEL_FILES, label_digest, left_out, read_label_files
from popatlas.config.load import changed, load_config
from popatlas.images.io import save_image, sha256
from tests.cohorts import noise_cohort, noise_image, noise_labels
from tests.unit.cohort.labelled import AFFINE, NAMES, SHAPE, SPOIL, scan

WORDS = {
    "NaN": "voxel(s) are NaN", "fraction": "lie between", "negative": "negative", "4D": "4 axes (36x36x36x2)",
    "empty": "no label", "mirrored": "mirrored", "moved": "moved, up to 4 mm", "cropped": "field of view",
    "spacing": "0.1x0.1x0.1 mm outside 0.3 to 6", "no forms": "neither sform nor qform", "bytes": "0 bytes",
    "truncated": "cannot read image", "link": "does not exist", "folder": "it is a folder",
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOIL)
def test_an_atlas_that_fails_is_left_out_aloud_and_the_others_serve(setup, capsys, kind):
    setup.config = changed(setup.config, {"fuse": {"atlases": 6}})
    setup.spoil("sub-03", kind)
    assert setup.atlases() == [scan(name) for name in NAMES if name != "sub-03"]
    said = capsys.readouterr().err
    assert f"popatlas: {scan('sub-03')}: {setup.label('sub-03')} " in said
    assert "left out (it is no atlas, the scan is measured without reference)" in said
    assert WORDS[kind] in said and "remedy: " in said
    table = read_label_files(setup.out).set_index("scan")
    row = table.loc[scan("sub-03")]
    opens = kind not in ("bytes", "truncated", "link", "folder")
    assert row["state"] == ("unusable" if opens else "unreadable")
    assert (table.drop(scan("sub-03"))["state"] == "ok").all()


def test_the_table_tells_what_was_found(setup):
    labels = np.zeros(SHAPE, np.int32)
    labels[5:9, 5:9, 5:9], labels[9:12, 5:9, 5:9], labels[20:25, 5:9, 5:9] = 7, 2**31 - 1, 1000
    save_image(labels, AFFINE, setup.label("sub-02"))
    table = setup.inspect()
    pd.testing.assert_frame_equal(table, read_label_files(setup.out), check_dtype=False)
    assert list(table.columns) == COLUMNS and len(table) == 6
    row = table.set_index("scan").loc[scan("sub-02")]
    assert (row["labels"], row["smallest"], row["largest"]) == (3, 7, 2**31 - 1)
    assert (row["use"], row["state"], row["reason"]) == ("atlas reference", "ok", "")
    stat = setup.label("sub-02").stat()
    assert (row["bytes"], row["mtime_ns"], row["sha256"]) == (stat.st_size, stat.st_mtime_ns, sha256(setup.label("sub-02")))
    assert label_digest(setup.out, setup.label("sub-02")) == row["sha256"]
    noise_labels(setup.label("sub-02"), seed=77)
    assert label_digest(setup.out, setup.label("sub-02")) == sha256(setup.label("sub-02")) != row["sha256"]


def opened(setup, monkeypatch):
    """Return the names of the label files that an inspection opens."""
    names = []
    plain = labelfiles.inspect_labels
    monkeypatch.setattr(labelfiles, "inspect_labels", lambda file, *rest: names.append(file.name[:6]) or plain(file, *rest))
    setup.inspect()
    monkeypatch.setattr(labelfiles, "inspect_labels", plain)
    return sorted(names)


def test_files_that_have_not_changed_are_not_opened_again(setup, monkeypatch):
    assert opened(setup, monkeypatch) == NAMES
    stamp = (setup.out / LABEL_FILES).stat().st_mtime_ns
    assert opened(setup, monkeypatch) == []
    assert (setup.out / LABEL_FILES).stat().st_mtime_ns == stamp
    noise_labels(setup.label("sub-02"), seed=50)
    os.utime(setup.label("sub-04"), ns=(time.time_ns(), time.time_ns()))
    assert opened(setup, monkeypatch) == ["sub-02", "sub-04"]
    setup.spoil("sub-05")
    assert opened(setup, monkeypatch) == opened(setup, monkeypatch) == ["sub-05"], "what is bad may have been mended"
    setup.mask("sub-06", np.ones(SHAPE))
    assert opened(setup, monkeypatch) == ["sub-05", "sub-06"]
    noise_image(setup.bids / f"{scan('sub-01')}_T1w.nii.gz", seed=500)
    setup.index = index_cohort(setup.config, setup.out)
    assert opened(setup, monkeypatch) == ["sub-01", "sub-05"], "the image that it must lie on has changed"
    setup.config = changed(setup.config, {"cohort": {"spacing_mm": [0.3, 5.0]}})
    assert opened(setup, monkeypatch) == NAMES


@pytest.mark.parametrize("content", ["", "scan\tfile\n", "\x00\x01"])
def test_a_table_of_findings_that_is_broken_is_made_anew(setup, content):
    table = setup.inspect()
    (setup.out / LABEL_FILES).write_text(content)
    pd.testing.assert_frame_equal(setup.inspect(), table)


# Drawn and frozen


def test_a_number_is_drawn_from_the_good_ones(setup):
    for name in ("sub-01", "sub-06"):
        setup.spoil(name)
    assert setup.atlases() == [scan(name) for name in ("sub-02", "sub-04", "sub-05")]


def test_a_frozen_atlas_that_became_bad_is_replaced_and_the_others_stay(setup, capsys):
    assert setup.atlases() == [scan(name) for name in ("sub-01", "sub-03", "sub-06")]
    setup.spoil("sub-03")
    capsys.readouterr()
    assert setup.atlases() == [scan(name) for name in ("sub-01", "sub-02", "sub-06")], "its neighbour in age"
    said = capsys.readouterr().err
    assert "sub-03/anat/sub-03 cannot be used any more; the others stay, drawn instead: sub-02/anat/sub-02" in said
    noise_labels(setup.label("sub-03"), seed=3)
    assert setup.atlases() == [scan(name) for name in ("sub-01", "sub-02", "sub-06")], "mended, but another one serves"
    setup.scans.remove(scan("sub-06"))
    assert setup.atlases() == [scan(name) for name in ("sub-01", "sub-02", "sub-05")], "its scan has failed"


def test_frozen_atlases_without_a_substitute_become_fewer_and_mended_ones_are_offered(setup, capsys):
    setup.scans = setup.scans[:3]
    assert len(setup.atlases()) == 3
    setup.spoil("sub-02")
    assert setup.atlases() == [scan("sub-01"), scan("sub-03")]
    assert "drawn instead: none" in capsys.readouterr().err
    noise_labels(setup.label("sub-02"), seed=3)
    assert setup.atlases() == [scan("sub-01"), scan("sub-03")]
    said = capsys.readouterr().err
    assert "2 of 3 atlases are frozen" in said and "label-atlases.tsv" in said
    (setup.out / "cohort/label-atlases.tsv").unlink()
    assert len(setup.atlases()) == 3


def test_listed_atlases_come_back_when_they_are_mended(setup, capsys):
    setup.config = changed(setup.config, {"fuse": {"atlases": ["01", "sub-03", "05"]}})
    setup.spoil("sub-03")
    setup.label("sub-05").unlink()
    assert setup.atlases() == [scan("sub-01")]
    said = capsys.readouterr().err
    assert (
        f"{setup.label('sub-05')} does not open and is left out (it is no atlas): cannot read image: the file does" in said
    )
    assert "sub-03 cannot be used and is left out" in said
    noise_labels(setup.label("sub-03"), seed=3)
    noise_labels(setup.label("sub-05"), seed=5)
    assert setup.atlases() == [scan(name) for name in ("sub-01", "sub-03", "sub-05")]
    assert capsys.readouterr().err == ""


def test_an_external_atlas_must_lie_on_its_own_image(setup, capsys):
    for name in "abc":
        noise_image(setup.folder / f"{name}.nii.gz", seed=ord(name))
        noise_labels(setup.folder / f"{name}_dseg.nii.gz", seed=1)
    SPOIL["moved"](setup.folder / "b_dseg.nii.gz")
    table = setup.folder / "atlases.tsv"
    table.write_text("atlas\tt1w\tdseg\n" + "".join(f"{name}\t{name}.nii.gz\t{name}_dseg.nii.gz\n" for name in "cab"))
    setup.config = changed(setup.config, {"fuse": {"atlases": str(table)}})
    setup.index = index_cohort(setup.config, setup.out)
    expected = ["atlases/sub-c/anat/sub-c", "atlases/sub-a/anat/sub-a"]
    assert setup.atlases() == expected
    assert "b_dseg.nii.gz cannot be used and is left out (it is no atlas)" in capsys.readouterr().err
    noise_labels(setup.folder / "b_dseg.nii.gz", seed=1)
    assert setup.atlases() == [*expected, "atlases/sub-b/anat/sub-b"]


def test_when_all_fail_it_is_said_and_nothing_is_fused(setup, capsys):
    for name in NAMES:
        setup.spoil(name)
    assert setup.atlases() == []
    said = capsys.readouterr().err
    assert "none of the label images can be an atlas, so nothing is fused" in said
    assert said.count("lie between") == 5 and "1 more label file(s) are left out, see cohort/label-files.tsv" in said
    assert read_label_atlases(setup.out).empty
    assert setup.study().fuse.methods == []


def test_without_methods_no_atlas_is_looked_at(setup):
    setup.config = changed(setup.config, {"fuse": {"methods": []}})
    assert set(setup.inspect()["use"]) == {"reference"}
    setup.config = changed(setup.config, {"measure": {"reference": ""}})
    assert setup.inspect().empty and setup.atlases() == []


def test_a_subject_with_labels_in_one_session_only_is_no_fault(tmp_path, capsys):
    bids = noise_cohort(tmp_path / "bids", ["sub-01", "sub-02"], labels=False)
    for number, visit in enumerate(("1", "2")):
        noise_image(bids / f"sub-03/ses-{visit}/anat/sub-03_ses-{visit}_T1w.nii.gz", seed=20 + number)
    noise_labels(bids / "derivatives/truth/sub-03/ses-2/anat/sub-03_ses-2_desc-truth_dseg.nii.gz", seed=1)
    config = load_config({"fuse": {"atlases": ["03"]}}, bids_dir=str(bids))
    index = index_cohort(config, tmp_path / "out")
    capsys.readouterr()  # of the participants
    found = freeze_label_atlases(config, index, list(index["scan"]), tmp_path / "out")
    assert list(found["atlas"]) == ["sub-03/ses-2/anat/sub-03_ses-2"]
    assert capsys.readouterr().err == ""
    config = changed(config, {"fuse": {"atlases": 2}})
    assert len(freeze_label_atlases(config, index, list(index["scan"]), tmp_path / "out")) == 1
    assert "fuse.atlases asks for 2, and 1 scan(s) have labels that can be used" in capsys.readouterr().err


# The brain mask


def brain(*low):
    inside = np.zeros(SHAPE)
    inside[tuple(slice(start, start + 12) for start in low)] = 1
    return inside


def test_labels_off_the_brain_are_left_out_as_soon_as_there_is_a_mask(setup, capsys):
    for name in NAMES:
        save_image((brain(2, 2, 2) * np.arange(1, 37)).astype(np.int16), AFFINE, setup.label(name))
    setup.config = changed(setup.config, {"fuse": {"atlases": 6}})
    assert len(setup.atlases()) == 6
    for name in NAMES:
        setup.mask(name, brain(3, 2, 2) if name != "sub-04" else brain(20, 20, 20))
    assert setup.atlases() == [scan(name) for name in NAMES if name != "sub-04"]
    assert "100% of the labelled voxels are outside of its mask" in capsys.readouterr().err
    (setup.out / f"{scan('sub-04')}_desc-brain_mask.nii.gz").write_text("broken")
    assert (setup.inspect()["state"] == "ok").all(), "a mask that cannot be read is no fault of the labels"


# References


def test_a_scan_with_a_bad_reference_is_measured_without_it(setup):
    class Wildcards:
        scan = scan("sub-02")

    setup.atlases()
    study = setup.study()
    assert str(setup.label("sub-02")) in study.measure.reference_options(Wildcards)
    setup.spoil("sub-02")
    setup.atlases()
    assert "--in_reference" not in study.measure.reference_options(Wildcards)
    assert "reference" not in study.measure.given(Wildcards.scan), "nor is it what the metrics are made of"
    assert "lie between" in left_out(setup.out, scan("sub-02"), setup.label("sub-02"))
    assert left_out(setup.out, scan("sub-03"), setup.label("sub-03")) == ""
    Wildcards.scan = scan("sub-03")
    assert str(setup.label("sub-03")) in study.measure.reference_options(Wildcards)
    shutil.rmtree(setup.out / "cohort")
    assert left_out(setup.out, scan("sub-02"), setup.label("sub-02")) == "", "nothing has been inspected"


def test_a_network_does_not_learn_from_bad_references(setup):
    from popatlas.cohort.training import freeze_network

    setup.config = changed(
        setup.config,
        {"train": {"recipe": "voxelmorph", "labels": "reference", "changes": {"grid": {"affine_first": False}}}},
    )
    setup.spoil("sub-02")
    freeze_label_atlases(setup.config, setup.index, setup.scans, setup.out)
    plan = freeze_network(setup.config, setup.index, setup.scans, read_label_atlases(setup.out), setup.out)
    assert list(plan.scans) == [scan(name) for name in NAMES if name != "sub-02"]


# What is told
