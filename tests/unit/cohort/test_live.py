"""The state of a study while a run works, after it was killed, and when it has ended."""

import json
import os

import pandas as pd
import pytest
import yaml
from jsonschema import Draft202012Validator

from popatlas.cli.main import main
from popatlas.cohort.journal import BEGUN, DONE, FAILED, GROUP, HEAD, LEFT, QUEUES, Writer, end_journal, stamp
from popatlas.cohort.ledger import forget_failures, read_ledger, settle
from popatlas.cohort.live import read_state
from popatlas.cohort.lock import NAME, acquire
from popatlas.errors import InputError
from popatlas.images.io import read_json, write_json, write_table, write_text
from popatlas.receipts import FOLDER, read_attempt
from popatlas.resources import schema_path

from .test_ledger import OUTPUTS, finish, index_of, key, record, states

NAMES = ("01", "02", "03")


@pytest.fixture
def study(tmp_path):
    """A study that has been indexed, whose first pass begins; somebody works there."""
    index = pd.concat([index_of(*NAMES), index_of("04", state="unavailable").assign(reason="it is empty")])
    write_table(index, tmp_path / "cohort" / "index.parquet")
    forget_failures(tmp_path)
    lock = acquire(tmp_path)
    left = [(LEFT, key(name), stage, 1) for name in NAMES for stage in ("preprocess", "preprocess", "register", "page")]
    Writer(tmp_path).begin([(HEAD, 100.0, "all"), (GROUP, "atlas", 1, 4), *left])
    yield tmp_path
    lock.release()


def begin(folder, number, scans, stage, group="", kept=1, place=0):
    job = f"{stage}/{number}"
    number, log = f"7.{number}-{place}" if place else number, f"logs/{job}.log"
    Writer(folder).add(BEGUN, 100, number, scans, stage, group, kept, job, log, stamp(folder, log))


def end(folder, number, kind=DONE):
    Writer(folder).add(kind, 110 + number, number)


def live(folder, name):
    return states(read_state(folder).ledger, name)


def test_the_first_pass_has_a_state_from_its_first_second(study):
    assert live(study, "01") == {
        "index": "ok", "preprocess": "pending", "register": "pending", "fuse": "pending", "measure": "pending",
        "page": "pending",
    }  # fmt: skip
    assert set(live(study, "04").values()) == {"unavailable"}
    begin(study, 1, key("01"), "preprocess")
    begin(study, 2, f"{key('02')} {key('03')}", "preprocess", kept=0)
    assert [live(study, name)["preprocess"] for name in NAMES] == ["running"] * 3
    end(study, 1)
    end(study, 2)
    assert [live(study, name)["preprocess"] for name in NAMES] == ["pending"] * 3, "one of two results is left"
    begin(study, 3, key("01"), "preprocess")
    end(study, 3)
    assert (live(study, "01")["preprocess"], live(study, "02")["preprocess"]) == ("ok", "pending")
    begin(study, 4, "", "group", "atlas")
    state = read_state(study)
    assert (state.run.alive, state.is_interrupted, state.journal.ended) == (True, False, 3)
    assert vars(state.journal.groups["atlas"]) == {"done": 1, "left": 4, "running": 1, "queued": 0, "failed": 0}
    assert state.summary().loc["preprocess"].to_dict() == {
        "ok": 1, "failed": 0, "excluded": 0, "unavailable": 1, "pending": 2, "running": 0, "queued": 0,
    }  # fmt: skip


def test_on_a_cluster_a_job_runs_once_it_has_left_another_record(study, capsys):
    Writer(study).begin([(HEAD, 100.0, "all", QUEUES), *[(LEFT, key(name), "register", 1) for name in NAMES]])
    write_json(study / "logs/register/2.log.json", {"state": "running"})  # of an attempt that died
    for number, name in enumerate(NAMES, 1):
        begin(study, number, key(name), "register")
    begin(study, 4, "", "group", "atlas")
    assert [live(study, name)["register"] for name in NAMES] == ["queued"] * 3
    for log in ("logs/register/2.log", "logs/group/4.log"):
        write_json(study / f"{log}.json", {"state": "running", "since": "now"})
    state = read_state(study)
    assert [live(study, name)["register"] for name in NAMES] == ["queued", "running", "queued"]
    assert (state.jobs, state.journal.groups["atlas"].running) == ((2, 2), 1)
    assert main(["status", str(study)]) == 0
    assert "a run works here: 2 jobs running, 2 queued" in capsys.readouterr().out


def test_the_steps_of_a_job_are_one_job_that_runs_when_one_of_them_does(study):
    Writer(study).begin([(HEAD, 100.0, "all", QUEUES), (LEFT, key("01"), "measure", 1), (LEFT, key("01"), "page", 1)])
    for place, stage in enumerate(("measure", "page"), 1):
        begin(study, 1, key("01"), stage, place=place)
    assert read_state(study).jobs == (0, 1)
    write_json(study / "logs/measure/1.log.json", {"state": "ok"})
    assert read_state(study).jobs == (1, 0)
    assert [live(study, "01")[stage] for stage in ("measure", "page")] == ["running"] * 2
    Writer(study).add(DONE, 101, "7.1-1")
    Writer(study).add(DONE, 101, "7.1-2")
    assert read_state(study).jobs == (0, 0)


def test_a_failure_is_told_with_its_reason_and_a_second_try_takes_it_back(study):
    begin(study, 1, key("01"), "preprocess")
    write_text(study / "logs/preprocess/1.log", "")
    told = {"state": "failed", "code": "oom", "message": "memory ended", "attempt": read_attempt(study)}
    write_json(study / "logs/preprocess/1.log.json", told)
    end(study, 1, FAILED)
    row = read_state(study).ledger.set_index(["scan", "stage"]).loc[key("01"), "preprocess"]
    assert row[["state", "code", "reason", "log"]].to_list() == ["failed", "oom", "memory ended", "logs/preprocess/1.log"]
    begin(study, 1, key("01"), "preprocess")
    assert live(study, "01")["preprocess"] == "running"


def test_after_a_kill_a_job_is_done_when_it_left_its_receipt(study, capsys):
    for number, name in enumerate(NAMES):
        begin(study, number, key(name), "register")
    write_json(study / FOLDER / "register/1.json", {})
    content = read_json(study / NAME)
    write_json(study / NAME, content | {"born": 1.0, "helpers": []})
    state = read_state(study)
    assert (state.run.alive, state.is_interrupted) == (False, True)
    assert [states(state.ledger, name)["register"] for name in NAMES] == ["pending", "ok", "pending"]
    reasons = state.ledger[state.ledger["stage"] == "register"].set_index("scan")["reason"]
    assert "had begun when its run died" in reasons[key("01")]
    assert main(["status", str(study)]) == 0
    assert "the last run ended without a word" in capsys.readouterr().out
    write_json(study / NAME, content)


def test_what_cannot_be_read_is_left_out_and_a_line_that_is_half_written_too(study):
    with (study / "logs/journal.tsv").open("a") as stream:
        stream.write("x\ty\n\nd\t1\t77\nb\tabc\nd\t")
    begin(study, 1, key("01"), "preprocess")
    assert "preprocess" in live(study, "01")


def test_the_ledger_of_the_last_run_gets_what_is_new_and_loses_what_is_gone(study):
    end_journal(study)
    finish(study, "01", "preprocess", "register", "fuse", "measure")
    finish(study, "05", "preprocess")
    settle(study, index_of("01", "05"), OUTPUTS)
    assert set(read_state(study).ledger["scan"]) == {key("01"), key("05")}, "without a journal it is the ledger"
    Writer(study).begin([(HEAD, 100.0, "all"), (LEFT, key("02"), "preprocess", 1)])
    state = read_state(study)
    assert set(state.ledger["scan"]) == {key(name) for name in (*NAMES, "04")}
    assert set(live(study, "01").values()) == {"ok"}
    assert read_ledger(study)["scan"].nunique() == 2, "whoever looks changes nothing"


def test_the_json_is_as_its_schema_says_at_every_moment(study, tmp_path_factory, capsys):
    validator = Draft202012Validator(yaml.safe_load(schema_path("status").read_text()))
    Draft202012Validator.check_schema(validator.schema)
    begin(study, 1, key("01"), "preprocess")
    begin(study, 2, "", "group", "atlas")
    assert main(["status", str(study), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    validator.validate(found)
    assert (found["run"]["state"], found["stages"]["preprocess"]["running"]) == ("running", 1)
    assert f"process {os.getpid()}" in found["run"]["words"]
    new = tmp_path_factory.mktemp("new")
    lock = acquire(new)
    assert main(["status", str(new), "--json"]) == 0
    validator.validate(json.loads(capsys.readouterr().out))
    assert main(["status", str(new)]) == 0
    assert "the dataset is being indexed" in capsys.readouterr().out
    lock.release()
    assert main(["status", str(new)]) == 1, "nothing has been run"
    with pytest.raises(InputError, match="no ledger"):
        read_state(new)


def test_a_look_that_is_repeated_ends_with_the_run(study, capsys, monkeypatch):
    looks = []
    monkeypatch.setattr("time.sleep", lambda seconds: looks.append(seconds) or (study / NAME).unlink())
    assert main(["status", str(study), "--watch", "--interval", "7"]) == 0
    assert looks == [7]
    said = capsys.readouterr().out
    assert said.count("group results: none yet") == 2 and "a run works here" in said


def test_failures_are_told_one_by_one_and_who_waits_for_the_same_together(study, capsys):
    end_journal(study)
    names = [f"{number:03d}" for number in range(60)]
    for name in names[:55]:
        record(study, "preprocess", f"{key(name)}_conform", code="input", message="why", attempt=read_attempt(study))
    settle(study, index_of(*names), OUTPUTS)
    assert main(["status", str(study)]) == 3
    said = capsys.readouterr().out
    assert said.count("(at preprocess, input)") == 50 and "... and 5 more" in said
    assert f"pending     {', '.join(key(name) for name in names[55:])}  (at preprocess)\n  not run yet" in said
