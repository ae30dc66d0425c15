"""What is made and what is left to do, judged by receipts: lost, broken, outdated and superseded results of every kind."""

import json
import os
import re
import shutil

import pytest

from popatlas.cli.notes import out_of_date
from popatlas.cohort.outputs import RULES
from popatlas.cohort.plan import describe_changes, read_index
from popatlas.config.load import load_config
from popatlas.errors import ConfigError, InputError
from popatlas.images.io import read_json, write_text
from popatlas.measures.truth import truth_files
from popatlas.receipts import FOLDER, Receipt
from popatlas.study.inventory import BROKEN, LOST, MADE, NEVER, OUTDATED, SUPERSEDED, Inventory
from popatlas.study.opening import begin, clear, forced

from ..cohorts import noise_cohort, noise_image, noise_labels, popatlas
from .test_dag import NAMES, opened, plan
from .test_fusion import add, digest, dry, fail, leave

SETTINGS = {"atlas": {"members": 3, "iterations": 1}, "fuse": {"methods": ["majority", "jlf"], "atlases": ["02", "03"]}}
SCAN = "sub-02/anat/sub-02"


@pytest.fixture
def cohort(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES[:4])
    noise_image(tmp_path / "bids/sub-02/anat/sub-02_T2w.nii.gz", seed=77)
    (tmp_path / "config.yaml").write_text(json.dumps(SETTINGS))
    leave(opened(tmp_path, SETTINGS), "all")
    return tmp_path


def stock(folder, settings=SETTINGS):
    return Inventory(opened(folder, settings))


def left(inventory, target="all"):
    """Return the rules of the jobs that are left to do, with the verdict of each."""
    jobs = inventory.jobs.jobs
    return {(jobs[name].rule, jobs[name].scan): inventory.verdicts[name] for name in inventory.needed(target)}


def changed(**fuse):
    return SETTINGS | {"fuse": SETTINGS["fuse"] | fuse}


def test_a_finished_study_has_nothing_left_and_times_and_places_do_not_count(cohort):
    assert left(stock(cohort)) == {}
    for path in (cohort / "bids").rglob("*.nii.gz"):
        os.utime(path, (2**31, 2**31))
    for number, path in enumerate(sorted((cohort / "out").rglob("*"))):
        os.utime(path, (number, number))
    shutil.rmtree(cohort / "out" / ".snakemake", ignore_errors=True)
    assert left(stock(cohort)) == {}
    moved = cohort / "elsewhere"
    (cohort / "out").rename(moved)
    shutil.copytree(cohort / "bids", cohort / "copy")
    config = load_config(SETTINGS, bids_dir=str(cohort / "copy"), out_dir=str(moved))
    assert Inventory(begin(config, ["--lint"], main=True)).needed("all") == []


LABEL = "popatlas"
DELIVERABLES = {
    f"{SCAN}_desc-preproc_T1w.nii.gz": "conform_image",
    f"{SCAN}_desc-brain_T1w.nii.gz": "normalise_brain",
    f"{SCAN}_desc-brain_mask.nii.gz": "normalise_brain",
    f"{SCAN}_desc-qc_mask.json": "normalise_brain",
    f"{SCAN}_space-T1w_desc-preproc_T2w.nii.gz": "align_channel",
    f"{SCAN}_from-T2w_to-T1w_mode-image_xfm.mat": "align_channel",
    f"{SCAN}_from-T1w_to-{LABEL}_mode-image_xfm.nii.gz": "register_to_template",
    f"{SCAN}_from-T1w_to-{LABEL}_mode-image_desc-affine_xfm.mat": "register_to_template",
    f"{SCAN}_space-{LABEL}_desc-gate_registration.json": "register_to_template",
    f"{SCAN}_desc-jlf_dseg.nii.gz": "fuse_labels",
    f"{SCAN}_desc-jlf_trust.tsv": "fuse_labels",
    f"{SCAN}_desc-jlf_entropy.nii.gz": "fuse_labels",
    f"{SCAN}_desc-metrics_table.tsv": "measure_scan",
    "report/thumbnails/sub-02/anat/sub-02.png": "draw_subject",
    f"tpl-{LABEL}/tpl-{LABEL}_T1w.nii.gz": "publish_template",
    f"tpl-{LABEL}/template_description.json": "publish_template",
    f"tpl-{LABEL}/tpl-{LABEL}_probseg.nii.gz": "classify_template",
    "group/volumes.tsv": "tabulate_cohort",
    "group/metrics.parquet": "tabulate_cohort",
    "group/trust.tsv": "tabulate_trust",
    "report/figures/trust.png": "tabulate_trust",
    "report/index.html": "write_report",
}


def test_every_result_that_is_lost_is_made_again_by_its_own_job(cohort):
    inventory = stock(cohort)
    for path, rule in DELIVERABLES.items():
        kept = (cohort / "out" / path).read_bytes()
        (cohort / "out" / path).unlink()
        found = {rule_: verdict for (rule_, _), verdict in left(Inventory(inventory.study)).items()}
        # candidates are temporary: they are made for the labels that need them; made results downstream stay
        assert found == {rule: LOST}, path
        (cohort / "out" / path).write_bytes(kept)
    assert {rule for rule, made in RULES.items() if made.kept} - set(DELIVERABLES.values()) == {
        "train_trust", "train_segmenter", "segment_scan", "train_registration", "score_truth", "bench_fusion",
        "labels_to_native", "segment_tissues", "publish_along",
    }  # fmt: skip


def test_what_is_not_what_was_made_is_set_aside_and_said(cohort, capsys):
    warp, brain = f"{SCAN}_from-T1w_to-{LABEL}_mode-image_desc-warp_xfm.nii.gz", f"{SCAN}_desc-brain_T1w.nii.gz"
    write_text(cohort / "out" / warp, "garbage")
    write_text(cohort / "out" / "sub-02/anat/.tmp-0123.nii.gz", "half")
    inventory = stock(cohort)
    assert left(inventory) == {("register_to_template", SCAN): BROKEN}
    clear(inventory, "all")
    said = capsys.readouterr().err
    assert f"{warp} was changed or damaged since it was made; it is set aside in" in said
    (aside,) = (cohort / "out" / "broken").rglob("*.nii.gz")
    assert aside.read_text() == "garbage"
    assert not list((cohort / "out").glob(f"{SCAN}_from-T1w_to-{LABEL}*")), "the others of the job are taken away too"
    assert not list((cohort / "out").rglob(".tmp-*"))
    assert (cohort / "out" / brain).is_file()
    assert left(stock(cohort)) == {("register_to_template", SCAN): NEVER}


def test_settings_and_labels_make_what_follows_from_them_out_of_date_and_nothing_else(cohort):
    found = left(stock(cohort, changed(jlf={"beta": 3.0})))
    assert {rule for rule, _ in found} == {
        "fuse_labels", "measure_scan", "draw_subject", "settle_ledger", "tabulate_cohort",
        "tabulate_trust", "write_report",
    }  # fmt: skip
    inventory = stock(cohort, changed(jlf={"beta": 3.0}))
    methods = {inventory.jobs.jobs[name].wildcards.get("method") for name in inventory.needed("all")}
    assert methods == {None, "jlf"}, "majority does not depend on it"
    noise_labels(cohort / "bids/derivatives/truth/sub-03/anat/sub-03_desc-truth_dseg.nii.gz", seed=99)
    found = left(stock(cohort))
    assert {scan for rule, scan in found if rule == "fuse_labels"} == {f"sub-0{n}/anat/sub-0{n}" for n in (1, 2, 4)}
    assert found["measure_scan", "sub-03/anat/sub-03"] == OUTDATED, "its reference is another one"


def test_results_of_an_earlier_run_are_not_named_as_those_of_this_one(cohort):
    """Brains alone are made anew on another grid: templates, labels and tables beside them are of the former one."""
    finer = SETTINGS | {"preprocess": {"resolution_mm": 1.5}}
    study = opened(cohort, finer)
    Inventory(study).clear("preprocess")
    leave(study, "preprocess")
    inventory = Inventory(study)
    assert inventory.needed("preprocess") == []
    wanted = ["group/metrics.tsv", "group/volumes.tsv", "report/index.html"]
    assert inventory.stale(wanted) == set(wanted)
    (line,) = out_of_date(inventory, ["metrics"])
    assert "metrics, results of 4 scan(s)" in line
    whole = stock(cohort)
    leave(whole.study, "all")
    whole = stock(cohort)
    assert whole.stale(wanted) == set() and list(out_of_date(whole, [])) == []


@pytest.mark.parametrize("file", truth_files([SCAN]))
def test_another_truth_is_scored_again(tmp_path, file):
    """Only simulation.json was looked at."""
    noise_cohort(tmp_path / "bids", NAMES[:3])
    truth = tmp_path / "bids/derivatives/truth"
    for name in truth_files([SCAN]):
        write_text(truth / name, "{}")
    leave(opened(tmp_path, SETTINGS), "all")
    assert left(stock(tmp_path)) == {}
    write_text(truth / file, "another")
    found = left(stock(tmp_path))
    assert found["score_truth", ""] == OUTDATED
    assert {rule for rule, _ in found} == {"score_truth", "tabulate_cohort", "write_report"}


def test_the_ledger_is_nobodys_alone_and_its_receipt_holds_up_no_group_result(cohort):
    """The main process writes it too: a receipt of the job that wrote it once made the group tables superseded for ever."""
    path = stock(cohort).receipt_path("group/settle_ledger")
    receipt = read_json(path)
    receipt["outputs"] = {name: [size + 1, "0" * 64] for name, (size, _) in receipt["outputs"].items()}
    assert "cohort/ledger.tsv" in receipt["outputs"]
    write_text(path, json.dumps(receipt))
    assert left(stock(cohort)) == {}


def test_one_method_more_leaves_the_others_and_renews_the_group(cohort):
    inventory = stock(cohort, changed(methods=["majority", "jlf", "staple"]))
    jobs = [inventory.jobs.jobs[name] for name in inventory.needed("all")]
    assert {job.wildcards["method"] for job in jobs if job.rule == "fuse_labels"} == {"staple"}
    assert {"tabulate_cohort", "tabulate_trust", "write_report"} <= {job.rule for job in jobs}


def test_maps_that_are_wanted_later_are_made(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES[:3])
    without = SETTINGS | {"fuse": SETTINGS["fuse"] | {"maps": False}}
    leave(opened(tmp_path, without), "all")
    assert left(stock(tmp_path, without)) == {}
    assert left(stock(tmp_path))["fuse_labels", SCAN] == NEVER


def rewrite(folder, path, rule_folder, text="other"):
    """Make a file anew, as a job that gives something else this time would, with its receipt."""
    write_text(folder / "out" / path, text)
    receipt = folder / "out" / FOLDER / f"{rule_folder}.json"
    made = Receipt.read(receipt)
    Receipt(made.made_of, made.inputs, made.outputs | {path: [len(text), digest(text)]}).write(receipt)


def test_what_was_made_from_a_file_that_came_out_differently_is_superseded(cohort):
    rewrite(cohort, f"{SCAN}_desc-metrics_table.tsv", f"measure/{SCAN}_measure")
    found = left(stock(cohort))
    assert found["draw_subject", SCAN] == SUPERSEDED
    assert {rule for rule, _ in found} >= {"tabulate_cohort", "write_report"}
    assert ("measure_scan", SCAN) not in found


def test_a_failed_target_still_serves_the_others_as_an_atlas(cohort):
    before = stock(cohort)
    fail(cohort, SCAN, stage="fuse")
    after = stock(cohort)
    assert SCAN in after.study.fuse.atlases and SCAN not in after.study.scans.own
    for name in before.made:
        job = before.jobs.jobs[name]
        if job.scan and job.scan != SCAN:
            assert after.verdicts[name] == MADE
    row = f"{SCAN}\tregister\tgate\n"
    write_text(cohort / "out/cohort/failures.tsv", f"scan\tstage\treason\n{row}")
    assert SCAN not in stock(cohort).study.fuse.atlases


@pytest.mark.parametrize(("stage", "stale"), [("register", {"tabulate_cohort", "write_report"}), ("page", {"write_report"})])
def test_group_results_that_name_a_failure_are_made_again_when_its_reason_is_another(cohort, stage, stale):
    fail(cohort, "sub-04/anat/sub-04", stage=stage)
    leave(opened(cohort, SETTINGS), "all")
    assert left(stock(cohort)) == {}
    text = (cohort / "out/cohort/failures.tsv").read_text()
    write_text(cohort / "out/cohort/failures.tsv", text.replace("memory", "gate"))
    assert {rule for rule, _ in left(stock(cohort))} == stale


def test_stale_labels_of_a_failed_scan_are_taken_away(cohort):
    fail(cohort, SCAN, stage="fuse")
    inventory = stock(cohort, changed(through="direct"))
    inventory.clear("subjects")
    assert not (cohort / "out" / f"{SCAN}_desc-jlf_dseg.nii.gz").exists()
    assert (cohort / "out" / f"{SCAN}_desc-brain_T1w.nii.gz").exists()


def test_a_receipt_that_is_garbage_counts_as_none(cohort):
    for text in ("garbage", "[]", '{"made_of": 3}', '{"made_of": "x", "outputs": {"a": 1}}'):
        write_text(cohort / "out" / FOLDER / f"measure/{SCAN}_measure.json", text)
        assert left(stock(cohort))["measure_scan", SCAN] == NEVER


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        changed(through="direct", methods=["majority"]),
        SETTINGS | {"preprocess": {"brain": {"method": "template"}}},
        changed(methods=["majority", "dataparams"], dataparams={"targets": 2, "epochs": 2}, bench=True),
        changed(methods=["jlf"], segmenter={"enabled": True, "targets": 2}, space="native"),
    ],
)
def test_the_plan_and_snakemakes_own_graph_agree(tmp_path, settings):
    """Of a new cohort, and of a finished one that gets a subject; of one killed while members were aligned."""
    noise_cohort(tmp_path / "bids", NAMES[:4])
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    jobs, _ = dry(tmp_path, ["run"])
    assert jobs.pop("all") == 1
    assert jobs == plan(tmp_path, settings)
    leave(opened(tmp_path, settings), "all")
    add(tmp_path, "sub-07")
    if settings is SETTINGS:
        for path in (tmp_path / "out" / FOLDER / "atlas").rglob("*.json"):
            if path.name not in ("make_reference.json", "sub-04_iter-0.json"):
                path.unlink()
    jobs, _ = dry(tmp_path, ["run"])
    jobs.pop("all")
    assert jobs == plan(tmp_path, settings) != {}


def test_forced_jobs_run_in_spite_of_their_receipts(cohort):
    inventory = stock(cohort)
    rules = {name: job.rule for name, job in inventory.jobs.jobs.items()}
    found = forced(["all", "--forcerun", "draw_subject", "conform_image", "--cores", "2"], inventory)
    assert {rules[name] for name in found} == {"draw_subject", "conform_image"} and len(found) == 8
    assert len(forced(["-R", "group/volumes.tsv"], inventory)) == 1
    assert forced(["-F"], inventory) == set(inventory.made)
    with pytest.raises(ConfigError, match="--touch"):
        forced(["--touch"], inventory)
    inventory.force(forced(["-R", "measure_scan"], inventory))
    assert {rule for rule, _ in left(inventory)} >= {"measure_scan", "draw_subject", "tabulate_cohort", "write_report"}


def test_a_plan_tells_what_is_tried_again_and_why_results_are_made_anew(cohort):
    fail(cohort, SCAN, stage="fuse")
    (cohort / "out" / "sub-04/anat/sub-04_desc-metrics_table.tsv").unlink()
    text = popatlas("plan", cohort / "bids", cohort / "out", "--config", cohort / "config.yaml").stdout
    assert "made again, for it was made and is gone: 1 measure_scan" in text and "measure_and_draw" in text
    assert "1 scan(s) failed before: a run tries them again (not with --no-retry), 1 jobs in all" in text
    assert re.findall(r"^  ([a-z_]+) +([0-9]+)$", text, re.M) == [("measure_and_draw", "1")], "what the run starts, no more"


def test_a_subject_that_gets_its_first_session_is_told_by_its_image(cohort):
    before = read_index(cohort / "out")
    (cohort / "bids/sub-04/ses-1").mkdir()
    (cohort / "bids/sub-04/anat").rename(cohort / "bids/sub-04/ses-1/anat")
    for path in (cohort / "bids/sub-04/ses-1/anat").iterdir():
        path.rename(path.with_name(path.name.replace("sub-04_", "sub-04_ses-1_")))
    noise_image(cohort / "bids/sub-05/anat/sub-05_T1w.nii.gz", seed=1)
    noise_image(cohort / "bids/sub-01/anat/sub-01_T1w.nii.gz", seed=2)
    opened(cohort, SETTINGS | {"atlas": {"members": ["02", "03"], "iterations": 1, "label": "new"}})
    lines = list(describe_changes(before, read_index(cohort / "out")))
    assert [line for line in lines if line.startswith("sub-04 is called sub-04_ses-1 now (the same image)")]
    assert "1 scan(s) new: sub-05" in lines and "1 scan(s) with another image than before: sub-01" in lines
    assert list(describe_changes(None, before)) == []


@pytest.mark.parametrize(
    "name", ["index.parquet", "batches.tsv", "label-atlases.tsv", "label-names.tsv", "label-atlases.json"]
)
def test_tables_that_cannot_be_read_are_set_aside_and_made_again(cohort, name, capsys):
    folder = cohort / "out" / "cohort"
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(b"\xff\x00garbage")
    config = load_config(SETTINGS, bids_dir=str(cohort / "bids"), out_dir=str(cohort / "out"))
    study = begin(config, ["all"], main=True)
    assert study.jobs.to_make["all"] == []
    assert f"cohort/{name} cannot be read; it is set aside" in capsys.readouterr().err
    assert name == "index.parquet" or (folder / name).read_bytes() == before


def test_frozen_members_that_cannot_be_read_are_never_drawn_again(cohort):
    (cohort / "out/cohort/atlas-popatlas.tsv").write_bytes(b"\xff\x00garbage")
    config = load_config(SETTINGS, bids_dir=str(cohort / "bids"), out_dir=str(cohort / "out"))
    with pytest.raises(InputError, match=r"frozen members.*Remedy: put the file back"):
        begin(config, ["all"], main=True)


def test_a_template_that_does_not_exist_is_refused_before_anything_is_made(cohort):
    config = load_config(
        SETTINGS | {"atlas": {"template": str(cohort / "none.nii.gz")}},
        bids_dir=str(cohort / "bids"),
        out_dir=str(cohort / "out"),
    )
    with pytest.raises(InputError, match=r"atlas\.template does not exist"):
        begin(config, ["all"], main=True)


def test_group_results_name_what_they_were_made_from(cohort):
    inventory = stock(cohort)
    (name,) = (name for name, job in inventory.jobs.jobs.items() if job.rule == "tabulate_cohort")
    receipt = read_json(inventory.receipt_path(name))
    assert {path for path in receipt["inputs"] if path.endswith("ledger.tsv")}, "of the jobs that it needs"
    assert receipt["made_of"] == inventory.study.jobs.made_of("tabulate_cohort")
