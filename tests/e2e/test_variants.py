"""Another path through the pipeline, for real: sessions, a T2w channel, classical brain extraction, direct fusion, ANTs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from popatlas.images.io import load_image, read_json, read_table

from ..cohorts import popatlas
from .conftest import SETTINGS, Workspace, attempts

pytestmark = pytest.mark.e2e
VISITS = [("01", "1"), ("01", "2"), ("02", "1")]
SCANS = [f"sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}" for subject, session in VISITS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    work = Workspace(tmp_path_factory.mktemp("variants"))
    popatlas("simulate", work.bids, "--subjects", "2", "--sessions", "2", "--t2w", "--seed", "4", "--voxel-size", "3")
    shutil.rmtree(work.bids / "sub-02" / "ses-2")
    settings = SETTINGS | {
        "preprocess": SETTINGS["preprocess"] | {"brain": {"method": "template"}, "denoise": True},
        "fuse": {"atlases": ["01"], "methods": ["majority"], "through": "direct", "ties": "lowest", "space": "native"},
        "register": SETTINGS["register"] | {"engine": "ants", "linear": "ants"},
    }
    work.config.write_text(yaml.safe_dump(settings))
    result = work.popatlas("run", check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return work


def test_each_session_is_a_scan_of_its_own(finished):
    index = read_table(finished.out / "cohort" / "index.parquet")
    assert sorted(index["scan"]) == SCANS
    metrics = read_table(finished.out / "group" / "metrics.parquet")
    assert set(metrics.loc[metrics["participant_id"] != "group", "session_id"]) == {"ses-1", "ses-2"}
    volumes = read_table(finished.out / "group" / "volumes.tsv").set_index(["participant_id", "session_id"])
    assert len(volumes) == 3
    years = volumes["age"].unstack()
    assert years.loc["sub-01", "ses-2"] > years.loc["sub-01", "ses-1"], "each scan has the age at its own session"
    masks = metrics[(metrics["metric"] == "volume") & (metrics["method"] == "mask")].set_index(
        ["participant_id", "session_id"]
    )
    assert (volumes["mask_brain"] == masks.loc[volumes.index, "value"]).all()


def test_the_t2w_lies_on_the_t1w(finished):
    """CSF is bright in T2w and dark in T1w: inside the brain the two are anticorrelated when they are aligned."""
    for scan in SCANS:
        t1w, t2w, mask = (
            np.asarray(load_image(finished.out / f"{scan}_{name}.nii.gz").dataobj)
            for name in ("desc-brain_T1w", "space-T1w_desc-preproc_T2w", "desc-brain_mask")
        )
        inside = mask > 0
        aligned = np.corrcoef(t1w[inside], t2w[inside])[0, 1]
        shifted = np.corrcoef(t1w[inside], np.roll(t2w, 2, axis=1)[inside])[0, 1]
        assert aligned < -0.3
        assert aligned < shifted - 0.1


def test_classical_brain_extraction_finds_the_brain(finished):
    truth = read_table(finished.out / "group" / "truth.tsv")
    assert (truth.loc[truth["metric"] == "mask_dice", "value"] > 0.85).all()


def test_direct_fusion_uses_one_registration_per_pair(finished):
    pairs = sorted((finished.out / "work" / "pairs").rglob("*_desc-warp_xfm.nii.gz"))
    # both sessions of sub-01 are atlases of the scan of sub-02; none serves its own subject
    assert len(pairs) == 2
    metrics = read_table(finished.out / "group" / "metrics.parquet")
    dice = metrics[metrics["metric"] == "dice"].groupby("participant_id")["value"].mean()
    assert list(dice.index) == ["sub-02"]
    assert dice["sub-02"] > 0.5


def test_labels_come_back_to_the_raw_grid(finished):
    """They score as those of the preprocessed grid do, and have their volumes."""
    scan = "sub-02/ses-1/anat/sub-02_ses-1"
    stem = f"{scan}_space-orig_desc-majority_dseg"
    labels, told = load_image(finished.out / f"{stem}.nii.gz", np.int32), read_json(finished.out / f"{stem}.json")
    raw = load_image(finished.bids / f"{scan}_T1w.nii.gz")
    assert labels.shape == raw.shape and np.array_equal(labels.affine, raw.affine)
    assert sorted(path.name for path in finished.out.rglob("*_space-orig_*.nii.gz")) == [f"{Path(stem).name}.nii.gz"]
    truth = np.asarray(load_image(finished.bids / f"derivatives/truth/{scan}_desc-truth_dseg.nii.gz", np.int32).dataobj)
    found, metrics = np.asarray(labels.dataobj), read_table(finished.out / f"{scan}_desc-metrics_table.tsv")
    rows = metrics[metrics["method"] == "majority"]
    numbers = read_table(finished.out / "dseg.tsv").set_index("name")["index"]
    large = rows[(rows["metric"] == "volume") & (rows["value"] > 5)].set_index("label")["value"]
    dice = rows[rows["metric"] == "dice"].set_index("label")["value"]
    gains = []
    for name, ml in large.items():
        one, two = found == numbers[name], truth == numbers[name]
        assert told["Volumes"][str(numbers[name])] == pytest.approx(ml, rel=0.2)  # thin ones lose most, at 4 mm
        gains.append(2 * (one & two).sum() / (one.sum() + two.sum()) - dice[name])
    assert len(gains) > 3 and np.mean(gains) > -0.02 and min(gains) > -0.15
    total = rows.loc[rows["metric"] == "volume", "value"].sum()
    assert sum(told["Volumes"].values()) == pytest.approx(total, rel=0.03)


def test_the_tables_tell_which_engine_made_what(finished):
    rows = attempts(finished)
    assert len(rows) == len(SCANS)
    assert set(rows["label"]) == {"ants-ants-mass"} and set(rows["method"]) == {"attempt-1"} and (rows["value"] == 1).all()
    assert "ants-ants-mass: 3" in (finished.out / "report" / "index.html").read_text()
