"""The other engines of registration, for real (the cohort of `conftest` runs with the default one), trained fusion and the
bench."""

import shutil

import numpy as np
import pytest
import yaml

from popatlas.cohort.outputs import stage_outputs
from popatlas.config.load import load_config
from popatlas.images.io import read_json, read_table

from ..cohorts import popatlas
from ..zoo import lock_network, tiny_network
from .conftest import SETTINGS, Workspace, attempts

pytestmark = pytest.mark.e2e

# one job finds the brains of all scans
COMMON = SETTINGS | {"preprocess": SETTINGS["preprocess"] | {"brain": {"batch": 3}}}
TWO = ("--participant-label", "01", "02")
FUSION = {
    "atlases": ["01", "02", "03"],
    "methods": ["majority", "jlf", "dataparams"],
    "dataparams": {"epochs": 2, "targets": 3, "gate_quality": True},
    "segmenter": {"enabled": True, "epochs": 2, "targets": 3},
    "bench": True,
}


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory):
    """Three simulated scans that are preprocessed: no engine has a part in that."""
    work = Workspace(tmp_path_factory.mktemp("preprocessed"))
    popatlas("simulate", work.bids, "--subjects", "3", "--seed", "4")
    work.config.write_text(yaml.safe_dump(COMMON))
    result = work.popatlas("run", "--until", "preprocess", check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return work


def go_on(preprocessed, folder, register, fuse, *options, **more):
    """Run the rest, in a copy of the study."""
    work = Workspace(folder)
    shutil.copytree(preprocessed.bids, work.bids)
    shutil.copytree(preprocessed.out, work.out)
    settings = {"register": COMMON["register"] | register, "fuse": COMMON["fuse"] | fuse, **more}
    work.config.write_text(yaml.safe_dump(COMMON | settings))
    before = work.digests("sub-*/anat/*_desc-preproc_T1w.nii.gz")
    result = work.popatlas("run", *options, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert len(before) == 3 and work.digests("sub-*/anat/*_desc-preproc_T1w.nii.gz") == before
    return work


# at 4 mm `quick` leaves out too much
@pytest.fixture(scope="module")
def trained(preprocessed, tmp_path_factory):
    return go_on(preprocessed, tmp_path_factory.mktemp("ffd"), {"engine": "ffd", "preset": "default"}, FUSION)


@pytest.fixture(scope="module")
def greedy(preprocessed, tmp_path_factory):
    """Two scans, of which little is kept."""
    engine = {"engine": "greedy", "preset": "default"}
    return go_on(preprocessed, tmp_path_factory.mktemp("greedy"), engine, {}, *TWO, retention="minimal")


@pytest.mark.parametrize(("fixture", "engine", "scans"), [("trained", "ffd", 3), ("greedy", "greedy", 2)])
def test_the_whole_pipeline_runs_with_another_engine(fixture, engine, scans, request):
    work = request.getfixturevalue(fixture)
    rows = attempts(work)
    assert set(rows["label"]) == {f"{engine}-affine-mass"} and len(rows) == scans
    metrics = read_table(work.out / "group" / "metrics.parquet")
    means = metrics.groupby(["method", "metric"])["value"].mean()
    assert means["registration", "correlation"] > means["affine", "correlation"]
    assert means["jlf", "dice"] > 0.5


def test_a_study_that_is_kept_small_has_no_field_that_follows_from_others_and_lacks_nothing(greedy):
    fields = {path.name.split("_from-")[1] for path in greedy.out.glob("sub-*/anat/*_mode-image*_xfm.nii.gz")}
    assert fields == {f"{way}_mode-image_desc-warp_xfm.nii.gz" for way in ("T1w_to-tiny", "tiny_to-T1w")}
    members = list(greedy.out.glob("work/tpl-tiny/*/iter-1/sub-*/anat/*"))
    assert members and {path.suffix for path in members} == {".mat", ".json"}
    truth = read_table(greedy.out / "group" / "truth.tsv")
    assert (truth.loc[truth["metric"] == "truth_points", "value"] > 0).all(), "the way is made where it is asked for"
    assert "retention: minimal" in greedy.call("status", greedy.out).stdout
    planned = greedy.popatlas("plan", *TWO).stdout
    assert "everything is up to date" in planned and "kept:" not in planned
    greedy.config.write_text(greedy.config.read_text().replace("retention: minimal", "retention: standard"))
    planned = greedy.popatlas("plan", *TWO).stdout
    assert "everything is up to date" in planned
    assert "composed fields of 2 scan(s) are made again" in planned and "without a registration" in planned


@pytest.fixture(scope="module")
def predicted(preprocessed, tmp_path_factory):
    """Registrations of two scans by an untrained network that moves next to nothing: all is left to the refinement."""
    folder = tmp_path_factory.mktemp("network")
    register = {"engine": "network", "preset": "accurate", "weights": "tiny", "network": {"batch": 1}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POPATLAS_WEIGHTS", str(folder / "weights"))
        lock_network(folder, tiny_network(spread=0.01))
        return go_on(preprocessed, folder, register, {"methods": []}, "--until", "subjects", *TWO)


def test_a_network_predicts_batches_and_the_registrations_take_what_it_predicted(predicted):
    batches = {path.name: read_json(path) for path in (predicted.out / "work" / "network").rglob("batch-*.json")}
    scans = [f"sub-0{number}/anat/sub-0{number}" for number in (1, 2)]
    assert {name: list(receipt) for name, receipt in batches.items()} == {
        f"batch-{number}.json": [scan] for number, scan in enumerate(scans, start=1)
    }
    of_members = [read_json(path) for path in (predicted.out / "work").glob("tpl-tiny/*/iter-1/predictions/batch-*.json")]
    assert sorted(scan for receipt in of_members for scan in receipt) == scans
    for scan in scans:
        gate = read_json(next((predicted.out / "work").glob(f"tpl-tiny/*/iter-1/{scan}_gate.json")))
        assert (gate["engine"], len(gate["attempts"])) == ("network", 1)
    for scan, entry in (batches["batch-1.json"] | batches["batch-2.json"]).items():
        assert (entry["state"], entry["device"]) == ("ok", "cpu")
        gate = read_json(predicted.out / f"{scan}_space-tiny_desc-gate_registration.json")
        assert (gate["verdict"], gate["engine"], len(gate["attempts"])) == ("pass", "network", 1)
        assert gate["ncc"] > gate["ncc_affine"] + 0.02
        (made,) = predicted.out.glob(f"work/network/*/*/{scan}/warp.nii.gz")
        assert made.read_bytes() == (predicted.out / f"{scan}_from-T1w_to-tiny_mode-image_desc-warp_xfm.nii.gz").read_bytes()


def test_each_method_leaves_its_files_and_scores(trained):
    promised = stage_outputs(load_config({"fuse": FUSION}), labelled=True)["fuse"]
    assert len(promised) == 3 * 5 + 1
    for number in (1, 2, 3):
        for pattern in promised:
            assert (trained.out / pattern.format(scan=f"sub-0{number}/anat/sub-0{number}")).stat().st_size > 0
    metrics = read_table(trained.out / "group" / "metrics.parquet")
    dice = metrics[metrics["metric"] == "dice"].groupby("method")["value"].mean()
    assert set(dice.index) == {"majority", "jlf", "dataparams", "segmenter"}
    assert dice["dataparams"] > 0.5


def test_the_atlas_weights_table_tells_what_each_atlas_counted(trained):
    atlas_weights = read_table(trained.out / "group" / "trust.parquet")
    assert len(atlas_weights) == 3 * 2 * 3  # scans, atlases of other subjects, methods
    assert {"scan", "method", "atlas", "trust", "rank", "parameter", "overlap"} <= set(atlas_weights.columns)
    assert np.allclose(atlas_weights.groupby(["scan", "method"])["trust"].sum(), 1)
    assert atlas_weights.groupby("method")["parameter"].count().to_dict() == {"dataparams": 6, "jlf": 0, "majority": 0}
    assert (trained.out / "report" / "figures" / "trust.png").stat().st_size > 0


def test_the_bench_recommends_a_method(trained):
    summary = read_json(trained.out / "group" / "fusion-bench.json")
    assert summary["recommended"] in FUSION["methods"]
    assert summary["recommended"] in summary["sentence"]
    assert set(read_table(trained.out / "group" / "fusion-bench.parquet")["scan"]) == {
        f"sub-0{number}/anat/sub-0{number}" for number in (1, 2, 3)
    }
    assert "dataparams" in (trained.out / "report" / "fusion.html").read_text()


def test_the_bench_verb_uses_what_is_there_and_prints_its_recommendation(trained):
    before = trained.digests("config.yaml") | trained.digests("sub-*/anat/*")
    options = ("--config", trained.config, "--cores", "2", "--methods", "majority", "jlf")
    result = popatlas("fuse", "bench", trained.bids, trained.out, *options)
    summary = read_json(trained.out / "group" / "fusion-bench.json")
    assert set(summary["methods"]) == {"majority", "jlf"}
    assert summary["sentence"] in result.stdout
    assert str(trained.out / "report" / "fusion.html") in result.stdout
    assert trained.digests("config.yaml") | trained.digests("sub-*/anat/*") == before


def test_a_trained_network_is_kept_when_subjects_are_added(trained):
    networks = trained.digests("networks/**/*")
    assert len(networks) == 5
    popatlas("simulate", trained.bids, "--subjects", "1", "--first", "4", "--seed", "4")
    result = trained.popatlas("run", "--until", "segmentations", check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    new = trained.out / "sub-04" / "anat"
    assert (new / "sub-04_desc-segmenter_dseg.nii.gz").stat().st_size > 0
    assert not list(new.glob("*_xfm.*")), "labelled without registration"
    assert trained.digests("networks/**/*") == networks
