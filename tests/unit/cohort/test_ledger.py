import os
import time

import pandas as pd
import pytest
import yaml
from jsonschema import Draft202012Validator

from popatlas.cohort.batches import BRAINS, MEMBERS, PREDICTIONS, batches
from popatlas.cohort.ledger import (
    RETRY_MARK,
    failed_scans,
    forget_failures,
    forget_some,
    incomplete,
    left_out,
    read_failures,
    read_ledger,
    settle,
    summary,
)
from popatlas.cohort.plan import cohort_changes, format_plan
from popatlas.errors import InputError
from popatlas.images.io import write_json, write_text
from popatlas.measures.table import members
from popatlas.receipts import read_attempt
from popatlas.resources import schema_path
from popatlas.stages import STAGES

OUTPUTS = {
    "preprocess": ["{scan}_p"],
    "register": ["{scan}_r1", "{scan}_r2"],
    "fuse": ["{scan}_f"],
    "measure": ["{scan}_m"],
}


def key(name):
    return f"sub-{name}/anat/sub-{name}"


def index_of(*names, state="ok", role="cohort"):
    rows = [
        {"scan": key(n), "subject": f"sub-{n}", "session": "", "state": state, "reason": "", "role": role} for n in names
    ]
    return pd.DataFrame(rows)


def finish(out_dir, name, *stages):
    for stage in stages:
        for pattern in OUTPUTS[stage]:
            write_text(out_dir / pattern.format(scan=key(name)), "x")


def record(out_dir, folder, name, state="failed", **content):
    log = out_dir / "logs" / folder / f"{name}.log"
    write_text(log, "")
    write_json(log.with_name(f"{log.name}.json"), {"state": state, **content})
    return log


def states(ledger, name):
    return ledger[ledger["scan"] == key(name)].set_index("stage")["state"].to_dict()


def test_states_and_reasons(tmp_path):
    finish(tmp_path, "01", *STAGES[1:])
    finish(tmp_path, "02", "preprocess")
    record(tmp_path, "register", f"{key('02')}_register", code="gate", message="gate failed\ntwice", remedy="look")
    finish(tmp_path, "03", "preprocess")
    index = pd.concat([index_of("01", "02", "03"), index_of("04", state="excluded"), index_of("05", state="unavailable")])
    ledger = settle(tmp_path, index, OUTPUTS)
    assert states(ledger, "01") == dict.fromkeys(STAGES, "ok")
    assert list(states(ledger, "02").values()) == ["ok", "ok", "failed", "pending", "pending"]
    assert list(states(ledger, "03").values()) == ["ok", "ok", "pending", "pending", "pending"]
    assert set(states(ledger, "04").values()) == {"excluded"}
    assert set(states(ledger, "05").values()) == {"unavailable"}
    row = ledger[(ledger["scan"] == key("02")) & (ledger["stage"] == "register")].iloc[0]
    assert row["reason"] == "gate failed twice; remedy: look"
    assert row["log"] == f"logs/register/{key('02')}_register.log"
    assert set(ledger.loc[ledger["reason"].str.startswith("waits for"), "reason"]) == {"waits for register"}
    told = {"scan": key("02"), "stage": "register", "code": "gate", "reason": row["reason"]}
    assert read_failures(tmp_path).to_dict("records") == [told]
    assert members(index, ledger)[0]["scan"].tolist() == [key("01")]
    assert left_out(ledger).set_index("scan")["state"].to_dict() == {
        key("02"): "failed", key("03"): "pending", key("04"): "excluded", key("05"): "unavailable",
    }  # fmt: skip
    counts = summary(ledger)
    assert counts.to_numpy().sum() == len(ledger) == 25
    assert counts.loc["register"].to_dict() == {"ok": 1, "failed": 1, "excluded": 1, "unavailable": 1, "pending": 1}
    pd.testing.assert_frame_equal(read_ledger(tmp_path), ledger.astype(str))
    validator = Draft202012Validator(yaml.safe_load(schema_path("ledger").read_text()))
    for entry in ledger.to_dict("records"):
        validator.validate(entry)


def test_files_are_written_only_when_they_change(tmp_path):
    index = index_of("01", "02")
    settle(tmp_path, index, OUTPUTS)
    paths = [tmp_path / "cohort" / name for name in ("ledger.tsv", "failures.tsv")]
    stamps = [path.stat().st_mtime_ns for path in paths]
    settle(tmp_path, index, OUTPUTS)
    assert [path.stat().st_mtime_ns for path in paths] == stamps
    finish(tmp_path, "01", "preprocess")
    settle(tmp_path, index, OUTPUTS)
    assert paths[0].stat().st_mtime_ns > stamps[0]


def test_a_job_that_was_killed_or_died_before_its_record_is_failed(tmp_path):
    record(tmp_path, "preprocess", f"{key('01')}_conform", state="running")
    write_text(tmp_path / "logs/preprocess" / f"{key('02')}_conform.log", "Illegal instruction")
    ledger = settle(tmp_path, index_of("01", "02"), OUTPUTS)
    assert states(ledger, "01")["preprocess"] == states(ledger, "02")["preprocess"] == "failed"
    assert ledger["reason"].str.contains("out of memory").sum() == 2


def test_a_step_that_went_well_is_no_failure(tmp_path):
    record(tmp_path, "preprocess", f"{key('01')}_conform", state="ok")
    assert states(settle(tmp_path, index_of("01"), OUTPUTS), "01")["preprocess"] == "pending"


def test_outputs_outweigh_an_old_failure(tmp_path):
    record(tmp_path, "preprocess", f"{key('01')}_brain", message="other method")
    finish(tmp_path, "01", "preprocess")
    assert states(settle(tmp_path, index_of("01"), OUTPUTS), "01")["preprocess"] == "ok"


def test_the_newest_failure_is_named(tmp_path):
    first = record(tmp_path, "preprocess", f"{key('01')}_conform", message="old")
    os.utime(first.with_name(f"{first.name}.json"), (1, 1))
    record(tmp_path, "preprocess", f"{key('01')}_normalise", message="new")
    assert "new" in list(settle(tmp_path, index_of("01"), OUTPUTS)["reason"])


@pytest.mark.parametrize(
    ("done", "folder", "name", "stage"),
    [
        ([], "batches", "brain-1", "preprocess"),
        (["preprocess"], "atlas", f"{key('01')}_iter-2", "register"),
        (["preprocess"], "batches", "predict-1", "register"),
        (["preprocess"], "atlas", "predict_iter-2_batch-1", "register"),
        (["preprocess", "register"], "fuse", f"{key('01')}_from/sub-02/anat/sub-02", "fuse"),
    ],
)
def test_failures_that_stand_in_other_folders(tmp_path, done, folder, name, stage):
    for table in (BRAINS, PREDICTIONS, MEMBERS):
        batches([key("01")], 4, tmp_path, table=table)
    finish(tmp_path, "01", *done)
    record(tmp_path, folder, name, message="broke")
    assert states(settle(tmp_path, index_of("01"), OUTPUTS), "01")[stage] == "failed"


def test_records_of_a_scan_with_a_longer_name_are_not_mixed_up(tmp_path):
    record(tmp_path, "preprocess", f"{key('011')}_conform", message="broke")
    ledger = settle(tmp_path, index_of("01", "011"), OUTPUTS)
    assert (states(ledger, "01")["preprocess"], states(ledger, "011")["preprocess"]) == ("pending", "failed")


def test_stale_results_behind_a_failure_do_not_count(tmp_path):
    finish(tmp_path, "01", "register", "fuse", "measure")
    record(tmp_path, "preprocess", f"{key('01')}_conform", message="the image was replaced by a broken one")
    ledger = settle(tmp_path, index_of("01"), OUTPUTS)
    assert list(states(ledger, "01").values()) == ["ok", "failed", "pending", "pending", "pending"]
    assert members(index_of("01"), ledger)[0].empty


def test_forgotten_failures_are_tried_again_and_new_ones_count(tmp_path):
    log = record(tmp_path, "preprocess", f"{key('01')}_conform", message="old")
    settle(tmp_path, index_of("01"), OUTPUTS)
    assert len(read_failures(tmp_path)) == 1
    time.sleep(0.01)
    forget_failures(tmp_path)
    assert read_failures(tmp_path).empty
    assert states(settle(tmp_path, index_of("01"), OUTPUTS), "01")["preprocess"] == "pending"
    later = (tmp_path / RETRY_MARK).stat().st_mtime + 1
    os.utime(log.with_name(f"{log.name}.json"), (later, later))
    assert states(settle(tmp_path, index_of("01"), OUTPUTS), "01")["preprocess"] == "failed"


def test_a_failure_counts_in_its_attempt_whatever_the_clock_says(tmp_path):
    forget_failures(tmp_path)
    log = record(tmp_path, "preprocess", f"{key('01')}_conform", message="new", attempt=read_attempt(tmp_path))
    os.utime(log.with_name(f"{log.name}.json"), (1, 1))  # the clock was set back
    assert states(settle(tmp_path, index_of("01"), OUTPUTS), "01")["preprocess"] == "failed"
    forget_failures(tmp_path)
    later = 2**31
    os.utime(log.with_name(f"{log.name}.json"), (later, later))
    assert states(settle(tmp_path, index_of("01"), OUTPUTS), "01")["preprocess"] == "pending"


def test_failures_of_some_reasons_are_forgotten_and_the_others_stay(tmp_path):
    forget_failures(tmp_path)
    attempt, index = read_attempt(tmp_path), index_of("01", "02", "03", "04")
    for name, code in (("01", "oom"), ("02", "gate"), ("03", "oom")):
        finish(tmp_path, name, "preprocess")
        record(tmp_path, "register", f"{key(name)}_register", code=code, message="why", attempt=attempt)
    write_text(tmp_path / "logs/preprocess" / f"{key('04')}_conform.log", "died before it had a record")
    before = settle(tmp_path, index, OUTPUTS).set_index(["scan", "stage"])
    assert list(before.loc[before["state"] == "failed", "code"]) == ["oom", "gate", "oom", "unknown"]
    found = forget_some(tmp_path, ["oom", "unknown"])
    assert list(found["scan"]) == [key("01"), key("03"), key("04")]
    assert list(read_failures(tmp_path)["scan"]) == [key("02")]
    assert set(read_ledger(tmp_path)["state"]) == {"ok", "failed", "pending"}
    again = settle(tmp_path, index, OUTPUTS)
    assert list(again.loc[again["state"] == "failed", "scan"]) == [key("02")], "and the next settling knows it too"
    assert forget_some(tmp_path, ["disk"]).empty


def test_files_that_only_lie_there_do_not_count(tmp_path):
    """The inventory tells what is made; a failure of this attempt is told though the files of another time are there."""
    finish(tmp_path, "01", *STAGES[1:])
    record(tmp_path, "fuse", f"{key('01')}_jlf", message="an atlas is damaged")
    ledger = settle(tmp_path, index_of("01"), OUTPUTS, lambda scan, stage: stage in ("preprocess", "register"))
    assert list(states(ledger, "01").values()) == ["ok", "ok", "ok", "failed", "pending"]
    assert members(index_of("01"), ledger)[0].empty


def test_external_atlases_are_neither_fused_nor_measured(tmp_path):
    finish(tmp_path, "A", "preprocess", "register")
    ledger = settle(tmp_path, index_of("A", role="atlas"), OUTPUTS)
    assert states(ledger, "A") == {"index": "ok", "preprocess": "ok", "register": "ok"}
    assert left_out(ledger).empty


def test_an_atlas_that_fails_in_the_bench_is_left_out_there_alone(tmp_path):
    names = ("A", "B", "C")
    rows = "".join(f"{key(name)}\tx\tTrue\n" for name in names[:2])
    write_text(tmp_path / "cohort/label-atlases.tsv", f"atlas\tdseg\texternal\n{rows}")
    for name in names:
        finish(tmp_path, name, "preprocess", "register")
    finish(tmp_path, "A", "fuse")
    record(tmp_path, "fuse", f"{key('B')}_majority", message="memory")
    ledger = settle(tmp_path, index_of(*names, role="atlas"), OUTPUTS | {"bench": OUTPUTS["fuse"]})
    assert [states(ledger, name).get("bench") for name in names] == ["ok", "failed", None]
    empty = {stage: set() for stage in ("", "channel", "tissues", "page")}
    assert failed_scans(tmp_path) == {**empty, "bench": {key("B")}}
    assert (left_out(ledger).empty, list(incomplete(ledger)["scan"])) == (True, [key("B")])


def test_a_scan_that_no_atlas_serves_still_has_labels_of_the_network(tmp_path):
    write_text(tmp_path / "cohort/label-atlases.tsv", f"atlas\tdseg\texternal\n{key('01')}\tx\tFalse\n")
    finish(tmp_path, "01", "preprocess", "register")
    outputs = OUTPUTS | {"fuse": [*OUTPUTS["fuse"], "{scan}_desc-segmenter_dseg.nii.gz"]}
    assert states(settle(tmp_path, index_of("01"), outputs), "01")["fuse"] == "pending"
    write_text(tmp_path / f"{key('01')}_desc-segmenter_dseg.nii.gz", "x")
    assert states(settle(tmp_path, index_of("01"), outputs), "01")["fuse"] == "ok"


def test_the_only_atlas_has_nobody_to_take_labels_from(tmp_path):
    write_text(tmp_path / "cohort/label-atlases.tsv", f"atlas\tdseg\texternal\n{key('01')}\tx\tFalse\n")
    finish(tmp_path, "01", "preprocess", "register", "measure")
    finish(tmp_path, "02", "preprocess", "register")
    ledger = settle(tmp_path, index_of("01", "02"), OUTPUTS)
    assert (states(ledger, "01")["fuse"], states(ledger, "02")["fuse"]) == ("ok", "pending")


def test_no_ledger_yet(tmp_path):
    with pytest.raises(InputError, match="no ledger"):
        read_ledger(tmp_path)


def test_the_plan_names_what_changed():
    before = index_of("01", "02", "03").assign(sha256=["a", "b", "c"])
    after = pd.concat([index_of("02", "03", "04").assign(sha256=["b", "x", "d"]), index_of("05", state="excluded")])
    changes = cohort_changes(before, after)
    assert (changes.added, changes.removed, changes.changed) == ((key("04"),), (key("01"),), (key("03"),))
    text = format_plan({"conform_image": 1, "measure_scan": 12}, changes)
    assert "3 usable (+1 new, -1 gone, 1 changed), 1 left out" in text
    assert "jobs:  13" in text
    assert "up to date" in format_plan({}, cohort_changes(after, after))
    assert len(cohort_changes(None, before).added) == 3


def test_what_a_scan_lacks_is_told_and_keeps_it_in(tmp_path):
    """A scan without the contrast that its tissues ask for has no row of tissues that says ok."""
    index = index_of("A", "B")
    ledger = settle(tmp_path, index, OUTPUTS | {"tissues": ["{scan}_volumes.tsv"]}, lambda scan, stage: True,
                    lambda scan, stage: "it has no T2w" if (scan, stage) == (key("B"), "tissues") else "")  # fmt: skip
    assert [states(ledger, name)["tissues"] for name in "AB"] == ["ok", "unavailable"]
    assert incomplete(ledger)["reason"].tolist() == ["it has no T2w"] and left_out(ledger).empty
    assert failed_scans(tmp_path)["tissues"] == set()
