"""How far a run is: what is told of it, what follows from that, and how it is shown."""

import json
import logging
import os
import pty
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest

from popatlas.cli import display
from popatlas.cli.display import Everything, Lines, Notes, Standing, display_of, duration, in_words
from popatlas.cli.process import BEGAN, Kept
from popatlas.cli.progress import Progress, Row
from popatlas.cohort.jobbook import KILLED, read_book
from popatlas.cohort.journal import Begun, Journal, Writer, stamp
from popatlas.cohort.outputs import RULES
from popatlas.images.io import write_json
from popatlas.study.progress import MARK, STAGES, JobListener, plan, unit_of
from popatlas.study.rules import PARTS

SCANS = [f"sub-{number}/anat/sub-{number}" for number in range(1, 5)]


class Clock:
    """Time that a test moves."""

    now = 100.0

    def __call__(self):
        return self.now


def told(**content):
    return f"{MARK}{json.dumps(content)}\n"


def begun(number, stage, unit, log="", rule="any", **more):
    return told(job=number, state="begun", stage=stage, unit=unit, rule=rule, log=log, **more)


def ended(number, stage, unit, state="done", rule="any"):
    return told(job=number, state=state, stage=stage, unit=unit, rule=rule, log="")


def planned(**stages):
    """A plan: by stage what is done, and the number of jobs of each unit that is left."""
    empty = {stage: {"done": 0, "jobs": 0, "left": {}} for stage in STAGES}
    return told(plan=empty | {name: {"jobs": 0, **found} for name, found in stages.items()}, scans={"ok": 4, "excluded": 1})


@pytest.fixture
def run():
    """A run of four scans: one is preprocessed, and each of the others has two jobs to do, and one in the next stage."""
    clock = Clock()
    progress = Progress(clock=clock)
    left = dict.fromkeys(SCANS[1:], 2)
    progress.hear(planned(preprocess={"done": 1, "left": left}, register={"done": 0, "left": dict.fromkeys(SCANS, 1)}))
    return progress, clock


def row(progress, stage):
    return next(found for found in progress.rows() if found.stage == stage)


def test_scans_are_counted_once_however_many_jobs_they_have(run):
    progress, clock = run
    progress.hear(begun(1, "preprocess", SCANS[1]))
    assert row(progress, "preprocess") == Row("preprocess", 4, 1, running=1)
    clock.now += 10
    progress.hear(ended(1, "preprocess", SCANS[1]))
    progress.hear(begun(2, "preprocess", SCANS[1]))
    progress.hear(begun(3, "preprocess", SCANS[2]))
    found = row(progress, "preprocess")
    assert (found.done, found.running, found.to_go) == (1, 2, 1)
    assert found.seconds == pytest.approx(50)  # five jobs more, at ten seconds each
    clock.now += 10
    progress.hear(ended(2, "preprocess", SCANS[1]))
    assert (row(progress, "preprocess").done, row(progress, "preprocess").seconds) == (2, pytest.approx(40))
    assert row(progress, "index") == Row("index", 4, 4)
    assert [found.stage for found in progress.rows()] == ["index", "preprocess", "register"]


def test_time_in_which_no_job_of_a_stage_runs_is_not_its_rate(run):
    progress, clock = run
    for number in (1, 2):
        progress.hear(begun(number, "register", SCANS[number]))
        clock.now += 10
        progress.hear(ended(number, "register", SCANS[number]))
        clock.now += 1000
    progress.hear(begun(3, "register", SCANS[3]))
    assert row(progress, "register").seconds == pytest.approx(20)


def test_a_scan_that_fails_is_not_waited_for_until_it_is_tried_again(run):
    progress, _ = run
    progress.hear(begun(1, "preprocess", SCANS[1]))
    progress.hear(ended(1, "preprocess", SCANS[1], "failed"))
    assert row(progress, "preprocess") == Row("preprocess", 4, 1, failed=1)
    assert row(progress, "register").total == 3
    progress.hear(begun(1, "preprocess", SCANS[1]))
    assert row(progress, "preprocess") == Row("preprocess", 4, 1, running=1)
    assert row(progress, "register").total == 4
    progress.hear(ended(1, "preprocess", SCANS[1], "failed", rule="align_channel"))
    assert row(progress, "register").total == 4, "a scan without its channel goes on"


def test_the_ledger_says_who_has_failed_after_a_pass(run):
    progress, _ = run
    progress.hear(begun(1, "preprocess", ""))  # a batch, whose scans it does not name
    progress.hear(ended(1, "preprocess", "", "failed"))
    progress.settle([(SCANS[1], "preprocess"), (SCANS[2], "page")])
    assert row(progress, "preprocess") == Row("preprocess", 4, 1, failed=1)
    assert (row(progress, "register").total, row(progress, "report").failed) == (3, 1)
    left = dict.fromkeys(SCANS[2:], 2)
    progress.hear(planned(preprocess={"done": 1, "left": left}, register={"done": 0, "left": dict.fromkeys(SCANS[1:], 1)}))
    assert row(progress, "preprocess") == Row("preprocess", 4, 1, failed=1), "the next pass leaves it out"


def test_jobs_that_a_stopped_run_ended_have_not_failed(run):
    progress, _ = run
    progress.hear(begun(1, "preprocess", SCANS[1]))
    progress.hear(ended(1, "preprocess", SCANS[1], "failed"))
    progress.settle([])
    assert row(progress, "preprocess") == Row("preprocess", 4, 1) and row(progress, "preprocess").to_go == 3


def test_a_job_in_the_queue_of_a_cluster_does_not_run_until_its_record_says_so(tmp_path):
    clock = Clock()
    progress = Progress(tmp_path, clock)
    progress.hear(planned(register={"done": 0, "left": dict.fromkeys(SCANS, 1)}))
    for number, scan in enumerate(SCANS):
        progress.hear(begun(number, "register", scan, f"logs/{number}.log"))
    write_json(tmp_path / "logs/0.log.json", {"state": "running"})  # of an attempt that died
    progress.hear(begun(0, "register", SCANS[0], "logs/0.log", stamp=stamp(tmp_path, "logs/0.log")))
    write_json(tmp_path / "logs/1.log.json", {"state": "running"})
    progress.look()
    assert row(progress, "register").queued == 4, "it has looked a moment ago"
    clock.now += 60
    progress.look()
    assert (row(progress, "register").running, row(progress, "register").queued) == (1, 3)
    assert in_words(row(progress, "register")) == "register: 0 of 4 done, 1 running, 3 queued"


def test_images_that_are_opened_count_as_progress():
    progress = Progress(clock=Clock())
    assert [in_words(found) for found in progress.rows()] == ["index: looking at the dataset"]
    assert progress.hear("popatlas: opened 50 of 200 images\n")
    assert row(progress, "index").to_go == 149
    assert not progress.hear("popatlas: opened 50 of 200 label files\n")
    assert not progress.hear("rule register_to_template:\n")
    assert progress.hear(f"{MARK}{{cut"), "the end of one that was killed"


def test_every_rule_has_a_stage():
    assert [rule for rules in STAGES.values() for rule in rules if rule not in RULES] == []
    assert sorted(rule for rules in STAGES.values() for rule in rules) == sorted(RULES)
    assert unit_of("register_member", {"scan": "a", "iteration": "1"}, "job") == "job"
    assert unit_of("draw_subject", {"scan": "a"}, "job") == "a"
    assert unit_of("extract_brains", {"batch": "1"}, "job") == ""


def test_what_snakemake_logs_of_jobs_is_told_and_written_down(capsys, tmp_path):
    """The executor of Slurm logs numbers alone when it starts jobs."""

    def job(number, rule, wildcards, log):
        given = {"attempt": 1, "threads": 2, "resources": {"mem_mb": 900, "runtime": 30, "gpu": 1, "tmpdir": "/x"}}
        return SimpleNamespace(jobid=number, rule=SimpleNamespace(name=rule), wildcards_dict=wildcards, log=log, **given)

    jobs = [job(3, "register_to_template", {"scan": SCANS[0]}, ["a.log"]), job(9, "all", {}, [])]
    jobs += [job(4, "extract_brains", {"batch": "1"}, ["b.log"]), job(5, "average_template", {"iteration": "1"}, ["c.log"])]
    conformed = {f"conformed {scan}": SimpleNamespace(scan=scan) for scan in SCANS[:2]}
    batch = {"extract_brains": SimpleNamespace(needs=tuple(conformed), scan="")}
    names = SimpleNamespace(
        name=lambda rule, **names: rule, jobs=conformed | batch, run_by=lambda rule, names: [(rule, names)]
    )
    listener = JobListener(SimpleNamespace(jobs=names), lambda: jobs, Writer(tmp_path))

    def log(event, **found):
        record = logging.LogRecord("snakemake", logging.INFO, "", 0, "", (), None)
        record.__dict__.update(event=event, **found)
        listener.handle(record)

    log("run_info", stats={})
    log("job_started", jobs=[3, 9, "a group"])
    log("job_info", jobid=3, rule_name="register_to_template")
    log("job_finished", job_id=9)
    log("job_error", jobid=3, rule_name="register_to_template", log=["a.log (check)"])
    log("job_finished", job_id=3)
    log("progress", done=1, total=2)
    log("job_started", jobs=[4, 5])
    (asked,) = read_book(tmp_path)
    assert (asked.rule, asked.cores, asked.mem_mb, asked.minutes, asked.gpus) == ("register_to_template", 2, 900, 30, 1)
    assert (asked.state, asked.steps) == (KILLED, ()), "it left no record"
    journal = Journal.read(tmp_path)
    assert journal.failed == {(SCANS[0], "register"): "a.log"}
    batch, average = journal.running.values()
    assert batch == Begun(tuple(SCANS[:2]), "preprocess", "", False, "extract_brains", "b.log")
    assert average == Begun((), "group", "atlas", False, "average_template", "c.log")
    found = [json.loads(line.removeprefix(MARK)) for line in capsys.readouterr().err.splitlines()]
    assert found[0] == {"began": True}
    assert [entry["state"] for entry in found[1:]] == ["begun", "failed", "done", "begun", "begun"]
    place = {
        "job": f"{os.getpid()}.3",
        "stage": "register",
        "unit": SCANS[0],
        "rule": "register_to_template",
        "log": "a.log",
    }
    assert all(entry == place | {"state": entry["state"]} for entry in found[1:4])


# What is shown


def test_lines_are_said_at_growing_intervals_and_only_where_something_changed(run, capsys):
    progress, clock = run
    lines = Lines(progress, clock)
    with lines:
        lines.tick()
        assert capsys.readouterr().out == ""
        progress.hear(begun(1, "preprocess", SCANS[1]))
        clock.now += 11
        lines.tick()
        assert capsys.readouterr().out.splitlines() == [
            "index: 4 of 4 done",
            "preprocess: 1 of 4 done, 1 running, 2 to go",
        ]
        progress.hear(ended(1, "preprocess", SCANS[1]))
        progress.hear(begun(2, "preprocess", SCANS[1]))
        progress.hear(ended(2, "preprocess", SCANS[1]))
        clock.now += 9
        lines.tick()
        assert capsys.readouterr().out == ""
        clock.now += 1
        lines.tick()
        assert capsys.readouterr().out == "preprocess: 2 of 4 done, 2 to go\n"
        clock.now += 36_000
        lines.tick()
        assert lines.next == clock.now + display.SELDOM
    assert capsys.readouterr().out == "", "nothing is said twice"


def test_notes_of_popatlas_come_through_once_and_snakemakes_lines_do_not(run, capsys):
    progress, _ = run
    for shown in (Notes(progress), Everything(progress)):
        with shown:
            for line in ("popatlas: 2 scan(s) new\n", "Finished jobid: 3\n", "popatlas: 2 scan(s) new\n"):
                shown.heard(line)
    said = capsys.readouterr().err.splitlines()
    assert said == ["popatlas: 2 scan(s) new", "popatlas: 2 scan(s) new", "Finished jobid: 3"]
    assert isinstance(display_of(progress, verbose=True), Everything)
    assert type(display_of(progress, verbose=False, quiet=True)) is Notes
    assert type(display_of(progress, verbose=False)) is Lines  # pytest is no terminal


@pytest.mark.parametrize("columns", ["100", "52"])
def test_on_a_terminal_a_line_stands_for_each_stage(run, monkeypatch, columns):
    progress, _ = run
    outer, inner = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    with os.fdopen(inner, "w") as terminal:
        shown = Standing(progress, terminal)
        with shown:
            progress.hear(begun(1, "preprocess", SCANS[1]))
            shown.tick()
            print("popatlas: sub-2 failed", file=sys.stdout)
            shown.tick()
    seen = b""
    with suppress(OSError):  # the other end is closed: all has been read
        while part := os.read(outer, 100_000):
            seen += part
    os.close(outer)
    seen = seen.decode()
    assert "1 of 4 done" in seen and "1 running, 2 to go" in seen
    assert "popatlas: sub-2 failed" in seen and "\x1b[" in seen


def test_times_are_told_coarsely():
    assert [duration(seconds) for seconds in (0.2, 29, 50, 600, 5000, 20_000, 400_000)] == [
        *("1 s", "29 s", "1 min", "10 min", "83 min", "6 h", "5 days")
    ]


def test_of_snakemakes_lines_those_about_jobs_that_go_well_are_not_kept():
    kept = Kept()
    chatter = [
        *("[Mon Nov 30 18:00:00 2026]", "rule fuse_labels:", "    input: a", "    log: logs/b.log", ""),
        *("[Mon Nov 30 18:00:00 2026]", "Finished jobid: 3 (Rule: fuse_labels)", "3 of 9 steps (33%) done"),
    ]
    error = ["Error in rule fuse_labels:", "    message: killed", "    log: logs/b.log"]
    for line in [BEGAN, "job   count", *chatter * 2000, *error, *chatter, told(began=True)]:
        kept.add(f"{line}\n")
    assert kept.text.splitlines() == [BEGAN, "job   count", *error]


def test_a_plan_of_many_scans_is_small_and_quickly_taken_in():
    """10,000 scans in six stages: what the popatlas that shows the run holds, and what a look costs."""
    import time
    import tracemalloc

    scans = [f"sub-{number:05d}/anat/sub-{number:05d}" for number in range(10_000)]
    stages = {stage: {"done": 0, "left": dict.fromkeys(scans, 2)} for stage in ("preprocess", "register", "fuse", "measure")}
    line = planned(**stages)
    tracemalloc.start()
    progress = Progress(clock=Clock())
    progress.hear(line)
    progress.hear(begun(1, "preprocess", scans[0]))
    progress.hear(ended(1, "preprocess", scans[0], "failed"))
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 30e6
    started = time.process_time()
    for _ in range(5):
        progress.rows()
    assert (time.process_time() - started) / 5 < 0.1


def test_the_plan_of_a_study_counts_units(tmp_path):
    names = ("conform", "normalise", "register", "page")
    rules = dict(zip(names, ("conform_image", "normalise_brain", "register_to_template", "write_report"), strict=True))
    jobs = {
        name: SimpleNamespace(name=name, rule=rule, wildcards={} if name == "page" else {"scan": SCANS[0]})
        for name, rule in rules.items()
    }

    def needed(wanted, made):
        return [name for name in wanted if name not in made]

    listed = SimpleNamespace(jobs=jobs, wanted=lambda goal: list(jobs), needed=needed)
    found = plan(SimpleNamespace(jobs=listed, made=frozenset({"conform", "register"})), PARTS[0])
    assert found["preprocess"] == {"done": 0, "jobs": 0, "left": {SCANS[0]: 1}}
    assert found["register"] == {"done": 1, "jobs": 0, "left": {}}
    assert found["report"]["left"] == {"page": 1}
