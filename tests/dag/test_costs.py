"""What a plan says of costs, of changed settings, and of scans that get nothing."""

import json

import pytest

from popatlas.cli.main import main
from popatlas.cohort.outputs import RULES
from popatlas.images.io import read_json, read_table, write_json, write_text
from popatlas.study.costs import GPU_KEYS, HEAD, PER_ATLAS, RATES, START, UNRECORDED, cost, mean_megavoxels
from popatlas.study.inventory import Inventory

from ..cohorts import noise_cohort
from .test_dag import NAMES, opened
from .test_fusion import add, fail, leave

SETTINGS = {"atlas": {"members": 3, "iterations": 1}, "fuse": {"methods": ["majority"], "atlases": 2}}


@pytest.fixture
def cohort(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES[:4])
    (tmp_path / "config.yaml").write_text(json.dumps(SETTINGS))
    return tmp_path


def estimate(folder, settings=SETTINGS, before=None):
    study = opened(folder, settings)
    inventory = Inventory(study)
    return cost(inventory, inventory.needed("all"), read_table(folder / "out/cohort/index.parquet"), before)


def finish(folder, seconds=10.0):
    """Leave a finished study whose jobs have records."""
    study = opened(folder, SETTINGS)
    inventory = Inventory(study)
    leave(study, "all", lambda path: "x" * 1000)
    for job in inventory.jobs.jobs.values():
        if job.rule in UNRECORDED:
            continue
        record = {"state": "ok", "cpu_seconds": seconds, "seconds": 2 * seconds}
        write_json(folder / f"out/{inventory.log(job)}.json", record)
    (folder / "out/config.yaml").write_text(json.dumps(SETTINGS))
    return study


def plan(folder, *options):
    line = ["plan", str(folder / "bids"), str(folder / "out"), "--config", str(folder / "config.yaml"), *options]
    return main(line)


def test_a_first_run_is_told_from_measured_rates(cohort):
    found = estimate(cohort)
    index = read_table(cohort / "out/cohort/index.parquet")
    share = mean_megavoxels(index, opened(cohort, SETTINGS).config) / HEAD
    assert share == pytest.approx(36**3 / 1e6 / HEAD)
    factor = 0.61 + 0.39 * share
    jobs, hours, gpus = found.stages["register"]
    assert (jobs, gpus) == (4, 0)
    assert hours == pytest.approx(4 * (START + RATES["register_to_template"] * factor) / 3600)
    fused = 4 * (START + 1.5 * RATES["fuse_labels"] * factor)
    assert found.stages["fuse"][1] == pytest.approx(fused / 3600), "an atlas does not serve itself: 1.5 on average"
    assert (found.before, found.is_own) == (0, False) and found.after > 0


def test_rates_agree_with_the_cost_of_a_subject_that_was_measured():
    """Of a scan that is a member of a template of three iterations, with two atlases."""
    (cost_of,) = [table for name, table in read_json("benchmarks/results/cost.json")["rows"].items() if "subject" in name]
    measured = {row["grid_mm"]: row["cpu_s"] for row in cost_of}
    once = (
        "conform_image",
        "extract_brain",
        "normalise_brain",
        "align_to_reference",
        "register_to_template",
        "measure_scan",
    )
    seconds = sum(RATES[rule] for rule in (*once, "draw_subject")) + 3 * RATES["register_member"] + RATES["average_template"]
    seconds += 3 * 2 * RATES["fuse_labels"]
    assert seconds == pytest.approx(measured[2], rel=0.3)
    assert seconds * (0.61 + 0.39 * 8) == pytest.approx(measured[1], rel=0.3)


def test_every_rate_is_of_a_rule():
    assert {*RATES, *PER_ATLAS, *GPU_KEYS} <= set(RULES)


def test_records_of_the_study_count_where_there_are_any(cohort):
    finish(cohort)
    add(cohort, "sub-09")
    found = estimate(cohort)
    assert found.is_own
    assert found.stages["register"] == (1, pytest.approx((START + 10) / 3600), 0)
    assert found.after > found.before > 4 * 1000, "and the receipts tell the bytes"
    used = estimate(cohort, SETTINGS | {"register": {"gpu": 2}})
    assert used.stages["register"][2] == pytest.approx(2 * (START + 20) / 3600)


def test_records_of_another_grid_are_brought_to_this_one(cohort):
    before = finish(cohort).config
    finer = SETTINGS | {"preprocess": {"resolution_mm": 1}}
    voxels = 36**3 / 1e6 / HEAD
    factor = (0.61 + 0.39 * 8 * voxels) / (0.61 + 0.39 * voxels)
    found = estimate(cohort, finer, before)
    assert found.stages["register"][1] == pytest.approx(4 * (START + 10 * factor) / 3600)
    assert found.after == pytest.approx(8 * found.before, rel=0.2)


def test_a_plan_names_what_changed_and_what_it_costs(cohort, capsys):
    finish(cohort)
    add(cohort, "sub-09")
    (cohort / "config.yaml").write_text(json.dumps(SETTINGS | {"measure": {"surface": False}}))
    assert plan(cohort) == 0
    said = capsys.readouterr().out
    assert "setting measure.surface: True -> False" in said
    assert "made again, for it was made with other settings or inputs: 4 measure_scan" in said
    assert "  new       sub-09\n" in said
    assert "core-minutes, from the records of this study" in said and "of results now, about" in said
    (cohort / "config.yaml").write_text(json.dumps(SETTINGS))
    for path in (cohort / "bids/sub-09").rglob("*.nii.gz"):
        path.unlink()
    path.parent.rmdir()
    path.parent.parent.rmdir()
    assert plan(cohort) == 0
    assert "cost" not in capsys.readouterr().out, "nothing is left to do"


def test_a_scan_with_neither_result_nor_job_is_named_and_the_exit_code_says_so(cohort, capsys):
    write_text(cohort / "bids/sub-04/anat/sub-04_T1w.nii.gz", "")
    assert plan(cohort) == 3
    assert "1 scan(s) have neither a result nor a job: sub-04" in capsys.readouterr().out
    opened(cohort, SETTINGS)
    fail(cohort, "sub-03/anat/sub-03", stage="preprocess")
    assert plan(cohort, "--no-retry", "--set", "atlas.members=all", "fuse.methods=[]") == 3
    assert "2 scan(s) have neither a result nor a job: sub-03, sub-04" in capsys.readouterr().out
    assert plan(cohort, "--participant-label", "01", "02", "--set", "atlas.members=all") == 0, "who is not asked for"
