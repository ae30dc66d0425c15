"""Which of several images of a scan the index takes, and which of them it opens for that."""

import json
import os

import nibabel as nib
import pandas as pd
import pytest

from popatlas.cli.check import describe_cohort
from popatlas.cohort import index as index_module
from popatlas.cohort.index import index_cohort
from popatlas.errors import ConfigError
from tests.cohorts import noise_image
from tests.unit.cohort.indexed import configure, run


@pytest.mark.parametrize(("policy", "chosen"), [("first", "run-1"), ("last", "run-10")])
def test_runs_are_ordered_by_number_and_variants_stand_back(tmp_path, policy, chosen):
    anat = tmp_path / "bids/sub-01/anat"
    names = ["run-1", "run-2", "run-10", "rec-norm_run-11", "acq-fast_run-12", "desc-defaced_run-13"]
    for seed, name in enumerate(names):
        noise_image(anat / f"sub-01_{name}_T1w.nii.gz", seed)
    index = run(tmp_path / "bids", tmp_path / "out", run=policy)
    assert index.loc["sub-01", "t1w"].endswith(f"/sub-01_{chosen}_T1w.nii.gz")
    assert index.loc["sub-01", "unused_runs"].count("T1w") == 5


def test_last_run_stays_within_one_acquisition(tmp_path):
    for seed, name in enumerate(["acq-a_run-1", "acq-a_run-2", "acq-b_run-1", "acq-b_run-3"]):
        noise_image(tmp_path / f"bids/sub-01/anat/sub-01_{name}_T1w.nii.gz", seed)
    index = run(tmp_path / "bids", tmp_path / "out", run="last")
    assert index.loc["sub-01", "t1w"].endswith("acq-a_run-2_T1w.nii.gz")


def head_image(path, seed, spacing=4.0, shape=(40, 48, 44)):
    """Write noise in the field of view of a whole head."""
    return noise_image(path, seed, shape, spacing)


@pytest.fixture
def several(tmp_path):
    """One subject with a truncated run-1, a good run-2, a localizer whose name comes first, and two T2w."""
    anat = tmp_path / "bids/sub-01/anat"
    good = head_image(anat / "sub-01_run-1_T1w.nii.gz", 1)
    good.write_bytes(good.read_bytes()[:3000])
    head_image(anat / "sub-01_run-2_T1w.nii.gz", 2)
    noise_image(anat / "sub-01_acq-localizer_T1w.nii.gz", 3, (64, 64, 8), 4.0)
    head_image(anat / "sub-01_acq-a_T2w.nii.gz", 4, 5.0, (40, 40, 40))
    head_image(anat / "sub-01_acq-b_T2w.nii.gz", 5)
    return tmp_path / "bids"


def test_images_are_looked_at_before_one_is_taken(several, tmp_path):
    row = run(several, tmp_path / "out").loc["sub-01"]
    assert row["state"] == "ok"
    assert row["t1w"].endswith("/sub-01_run-2_T1w.nii.gz")
    assert row["choice"].startswith("run-2: run-1 cannot be used: the file cannot be read (EOFError")
    assert (row["runs"], row["unused_runs"]) == (3, "sub-01_acq-localizer_T1w.nii.gz, sub-01_run-1_T1w.nii.gz")
    why = json.loads(row["candidates"])
    assert why["T1w"]["sub-01_run-2_T1w.nii.gz"] == ""
    assert "too few voxels" in why["T1w"]["sub-01_acq-localizer_T1w.nii.gz"]
    assert json.loads(row["channels"])["T2w"].endswith("acq-b_T2w.nii.gz")
    assert "coarser" in why["T2w"]["sub-01_acq-a_T2w.nii.gz"]
    described = describe_cohort(index_cohort(configure(several), tmp_path / "out"))
    assert any(line.startswith("choices        1 scans with several images") for line in described)
    assert any("sub-01: run-2: run-1 cannot be used" in line for line in described)


def test_good_and_bad_findings_are_remembered(several, tmp_path, opened):
    first = run(several, tmp_path / "out")
    assert len(opened) == 5
    pd.testing.assert_frame_equal(run(several, tmp_path / "out"), first)
    assert len(opened) == 5
    # a limit that was changed is applied to what is known, and what it ruled out is opened again
    assert "localizer" not in run(several, tmp_path / "out", run="last").loc["sub-01", "t1w"]
    run(several, tmp_path / "out", min_shape=4)
    assert [path.rsplit("_", 2)[-2] for path in opened[5:]] == ["acq-localizer"]


def test_a_file_that_could_not_be_read_is_opened_again(bids, tmp_path, monkeypatch):
    calls = []

    def refuse(path, limits):
        calls.append(path)
        return index_module.Inspection("unreadable", "PermissionError", lasting=False)

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "inspect_image", refuse)
        assert set(run(bids, tmp_path / "out")["state"]) == {"unavailable"}
    assert set(run(bids, tmp_path / "out")["state"]) == {"ok"}


def test_another_choice_than_before_is_said(several, tmp_path, capsys):
    run(several, tmp_path / "out")
    assert "of 1 scan(s) with several images one was taken" in capsys.readouterr().err
    run(several, tmp_path / "out")
    assert capsys.readouterr().err == ""
    head_image(several / "sub-01/anat/sub-01_run-1_T1w.nii.gz", 1)
    run(several, tmp_path / "out")
    said = capsys.readouterr().err
    assert "sub-01/anat/sub-01: the T1w was sub-01_run-2_T1w.nii.gz and is now sub-01_run-1_T1w.nii.gz" in said
    run(several, tmp_path / "out")
    assert "the T1w was" not in capsys.readouterr().err


def test_a_new_file_does_not_change_a_choice_among_equals(tmp_path):
    anat = tmp_path / "bids/sub-01/anat"
    noise_image(anat / "sub-01_acq-mprage_T1w.nii.gz", 1)
    run(tmp_path / "bids", tmp_path / "out")
    noise_image(anat / "sub-01_acq-earlier_T1w.nii.gz", 2)
    row = run(tmp_path / "bids", tmp_path / "out").loc["sub-01"]
    assert row["t1w"].endswith("acq-mprage_T1w.nii.gz")
    assert "was not taken before" in row["choice"]


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({"filter": {"acquisition": "b"}}, "acq-b_run-1"),
        ({"filter": {"acquisition": ["b", "c"], "run": 2}}, "acq-b_run-2"),
        ({"prefer": ["acq-b", "run-2"]}, "acq-b_run-2"),
        ({"prefer": ["acq-c"]}, "acq-a_run-1"),
    ],
)
def test_filter_and_prefer_choose(tmp_path, options, chosen):
    for seed, name in enumerate(["acq-a_run-1", "acq-a_run-2", "acq-b_run-1", "acq-b_run-2"]):
        noise_image(tmp_path / f"bids/sub-01/anat/sub-01_{name}_T1w.nii.gz", seed)
    row = run(tmp_path / "bids", tmp_path / "out", **options).loc["sub-01"]
    assert row["t1w"].endswith(f"/sub-01_{chosen}_T1w.nii.gz")
    assert (row["runs"], row["unused_runs"].count("T1w")) == (4, 3)


def test_a_filter_that_nothing_passes_is_said(bids, tmp_path):
    noise_image(bids / "sub-01/anat/sub-01_acq-x_T1w.nii.gz", 7)
    index = run(bids, tmp_path / "out", filter={"acquisition": "x"})
    assert index["state"].to_dict() == {"sub-01": "ok", "sub-02": "unavailable", "sub-03": "unavailable"}
    assert "no image passes cohort.filter (acq: x; found sub-02_T1w.nii.gz)" in index.loc["sub-02", "reason"]
    with pytest.raises(ConfigError, match="leaves no T1w image of any scan"):
        run(bids, tmp_path / "out", filter={"acquisition": "y"})


def test_a_session_is_filtered_as_a_scan(tmp_path):
    for session in ("1", "2"):
        noise_image(tmp_path / f"bids/sub-01/ses-{session}/anat/sub-01_ses-{session}_T1w.nii.gz", int(session))
    index = index_cohort(configure(tmp_path / "bids", filter={"session": 2}), tmp_path / "out").set_index("session")
    assert index["state"].to_dict() == {"ses-1": "excluded", "ses-2": "ok"}


def test_a_table_of_paths_knows_no_filter(tmp_path):
    (tmp_path / "cohort.tsv").write_text("subject\tt1w\n01\ta.nii.gz\n")
    with pytest.raises(ConfigError, match=r"table of paths.*Remedy"):
        index_cohort(configure(tmp_path / "cohort.tsv", prefer=["acq-a"]), tmp_path / "out")


def test_a_copy_that_was_compressed_anew_is_the_same_image(bids, tmp_path):
    image = nib.load(bids / "sub-01/anat/sub-01_T1w.nii.gz")
    (bids / "sub-03/anat/sub-03_T1w.nii.gz").unlink()
    nib.save(image, bids / "sub-03/anat/sub-03_T1w.nii")
    index = run(bids, tmp_path / "out")
    assert index.loc["sub-03", "state"] == "unavailable"
    assert "sub-01/anat/sub-01" in index.loc["sub-03", "reason"]
    # another run of the scan takes its place
    noise_image(bids / "sub-03/anat/sub-03_run-2_T1w.nii.gz", 9)
    row = run(bids, tmp_path / "out").loc["sub-03"]
    assert row["t1w"].endswith("run-2_T1w.nii.gz")
    assert "under another scan (sub-01/anat/sub-01)" in row["choice"]


def test_a_file_dated_in_the_future_is_an_ordinary_one(bids, tmp_path, opened):
    os.utime(bids / "sub-01/anat/sub-01_T1w.nii.gz", (4e9, 4e9))
    assert set(run(bids, tmp_path / "out")["state"]) == {"ok"}
    run(bids, tmp_path / "out")
    assert len(opened) == 3


@pytest.fixture
def opened(monkeypatch):
    paths = []
    inspect = index_module.inspect_image
    monkeypatch.setattr(index_module, "inspect_image", lambda path, limits: paths.append(path) or inspect(path, limits))
    return paths


def test_unchanged_images_and_channels_are_not_opened_again(bids, tmp_path, opened):
    noise_image(bids / "sub-01/anat/sub-01_T2w.nii.gz", seed=1)
    first = run(bids, tmp_path / "out")
    assert len(opened) == 4
    files = sorted((tmp_path / "out/cohort").iterdir())
    stamps = [path.stat().st_mtime_ns for path in files]
    pd.testing.assert_frame_equal(run(bids, tmp_path / "out"), first)
    assert len(opened) == 4
    assert [path.stat().st_mtime_ns for path in files] == stamps
    noise_image(bids / "sub-02/anat/sub-02_T1w.nii.gz", seed=77)
    run(bids, tmp_path / "out")
    assert opened[4:] == [str(bids / "sub-02/anat/sub-02_T1w.nii.gz")]
