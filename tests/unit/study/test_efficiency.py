"""What jobs asked for and used: the book that a run writes, what follows from it, and what is printed."""

import json

import pytest
import yaml
from jsonschema import Draft202012Validator

from popatlas.cli.efficiency import after_run, last_start
from popatlas.cli.main import main
from popatlas.cohort.jobbook import BOOK, FAILED, KILLED, OK, Asked, Entry, JobBook, Step, read_book
from popatlas.images.io import write_json, write_text
from popatlas.resources import schema_path
from popatlas.study.efficiency import efficiency

FAT = (("conform_image", "logs/a.log"), ("extract_brain", "logs/b.log"), ("normalise_brain", "logs/c.log"))
JOB = Asked("prepare_scan", 1, 1, 2000, 60)


def record(folder, log, state="ok", seconds=10.0, peak=500, **more):
    spent = {"seconds": seconds, "cpu_seconds": 0.9 * seconds, "peak_mb": peak}
    write_json(folder / f"{log}.json", {"state": state} | (spent if state != "running" else {}) | more)


def test_a_job_of_several_steps_has_the_time_of_all_and_the_memory_of_the_largest(tmp_path):
    book = JobBook(tmp_path)
    book.begin(1, JOB, FAT)
    for (_, log), peak in zip(FAT, (500, 1200, 1200), strict=True):
        record(tmp_path, log, peak=peak)
    book.end(1, good=True)
    book.end(2, good=True)  # it had not begun: Snakemake's own targets
    (found,) = read_book(tmp_path)
    assert (found.state, found.rule, found.mem_mb, found.minutes) == (OK, "prepare_scan", 2000, 60)
    assert (found.seconds, found.cpu_seconds, found.peak_mb) == (30.0, 27.0, 1200.0)
    assert [step.rule for step in found.steps] == [rule for rule, _ in FAT]
    (use,) = efficiency([found]).uses
    assert (use.share_mb, use.busy, use.used_minutes) == (0.6, pytest.approx(0.9), (0.5, 0.5))
    assert [(step.rule, step.used_mb) for step in use.steps][:2] == [
        ("conform_image", (500, 500)), ("extract_brain", (1200, 1200)),
    ]  # fmt: skip


def test_a_second_attempt_counts_only_the_steps_that_it_ran_and_tells_what_the_first_died_of(tmp_path):
    book = JobBook(tmp_path)
    book.begin(1, JOB, FAT)
    record(tmp_path, FAT[0][1])
    record(tmp_path, FAT[1][1], "running")
    book.end(1, good=False, said="For further error details see the cluster/cloud log")
    book.begin(1, Asked("prepare_scan", 2, 1, 4000, 120), FAT)
    for _, log in FAT[1:]:
        record(tmp_path, log, peak=2400)
    book.end(1, good=True)
    first, second = read_book(tmp_path)
    assert (first.state, first.code, first.seconds) == (KILLED, "unknown", 10.0)
    assert (second.attempt, second.before, second.seconds) == (2, "oom", 20.0)
    found = efficiency([first, second])
    assert (found.failed, found.jobs) == ({"oom": 1}, 1)
    (advice,) = found.advice
    assert "1 attempt(s) ended for want of memory at 2000 MB; 2400 MB were used at most" in advice.why
    assert advice.change == "--set-resources 'prepare_scan:mem_mb=3200*attempt'"


@pytest.mark.parametrize(
    ("said", "state", "code"),
    [
        ("SLURM-job '12' failed, SLURM status is: 'OUT_OF_MEMORY'", KILLED, "oom"),
        ("SLURM-job '12' failed, SLURM status is: 'TIMEOUT'", KILLED, "time"),
        ("", KILLED, "unknown"),
        (None, FAILED, "gate"),
    ],
)
def test_an_attempt_that_failed_has_the_code_of_its_step_or_of_what_was_said(tmp_path, said, state, code):
    book = JobBook(tmp_path)
    record(tmp_path, "logs/a.log", "failed", code="input")  # of a run before
    book.begin(1, JOB, FAT[:1])
    if said is None:
        record(tmp_path, "logs/a.log", "failed", code="gate", since="now")
    book.end(1, good=False, said=said or "")
    (found,) = read_book(tmp_path)
    assert (found.state, found.code, bool(found.steps)) == (state, code, said is None)


def test_a_job_whose_steps_ended_well_was_not_killed(tmp_path):
    book = JobBook(tmp_path)
    book.begin(1, JOB, FAT[:2])
    for _, log in FAT[:2]:
        record(tmp_path, log)
    book.end(1, good=False, said="files that it should make were missing")
    (found,) = read_book(tmp_path)
    assert (found.state, found.code, book.died) == (FAILED, "unknown", {})


def test_what_is_torn_counts_for_nothing_and_each_shard_adds_to_the_same_book(tmp_path):
    for number in range(2):  # a Snakemake for each shard
        book = JobBook(tmp_path)
        book.begin(1, JOB, FAT[:1])
        record(tmp_path, "logs/a.log", since=number)
        book.end(1, good=True)
        with (tmp_path / BOOK).open("a") as stream:
            stream.write('{"rule": "x"}\n[1]\n{"rule": "torn')
    assert [entry.peak_mb for entry in read_book(tmp_path)] == [500, 500]
    assert read_book(tmp_path, since=1e12) == [] == read_book(tmp_path / "nothing")


def entry(rule="measure_and_draw", mb=800, minutes=2.0, asked=(1000, 30), count=1, cores=1, busy=1.0, **more):
    step = Step("any", 60 * minutes, 60 * minutes * busy * cores, mb)
    return [Entry(rule, 1, cores, *asked, ended=1.0, steps=(step,), **more)] * count


@pytest.mark.parametrize(
    ("entries", "about", "change"),
    [
        (entry(mb=950), "memory", "--set-resources 'measure_and_draw:mem_mb=1300*attempt'"),
        (entry(mb=700, asked=(2000, 30), count=3), "memory", "--set-resources 'measure_and_draw:mem_mb=1000*attempt'"),
        (entry(mb=700, asked=(2000, 30), count=2), None, ""),  # too few to tell
        (entry(mb=100, asked=(500, 30), count=3), None, ""),  # not worth it
        (entry(minutes=25.0), "time", "--set-resources 'measure_and_draw:runtime=60'"),
        (entry(asked=(1000, 240), count=3), "time", "--set-resources 'measure_and_draw:runtime=10'"),
        ([*entry(), Entry("measure_and_draw", state=KILLED, code="time", minutes=30)], "time",
         "--set-resources 'measure_and_draw:runtime=60'"),
        (entry(cores=4, busy=0.3), "cores", "--set-threads measure_and_draw=2"),
        (entry(cores=2, busy=1.8), "cores", "--set-threads measure_and_draw=4"),
        (entry(cores=4, busy=0.3, minutes=0.1), None, ""),  # too short to tell
        (entry("extract_brains", gpus=1, device="cpu"), "GPU", ""),
        (entry("extract_brains", gpus=1, device="cuda", scans=2, count=3), "batch", "--set preprocess.brain.batch=50"),
        (entry("predict_members", gpus=1, device="cuda", count=3), "batch", "--set register.network.batch=50"),
        (entry("extract_brains", gpus=1, device="cuda", scans=50, count=3), None, ""),
    ],
)  # fmt: skip
def test_advice_follows_from_what_was_used(entries, about, change):
    found = [(one.about, one.change) for one in efficiency(entries).advice if one.rule != "all"]
    assert found == ([(about, change)] if about else [])


@pytest.mark.parametrize(("minutes", "busy", "said"), [(2.0, 0.3, "idle for 70 %"), (2.0, 0.6, ""), (0.5, 0.3, "")])
def test_cores_that_are_idle_are_told_once(minutes, busy, said):
    entries = [*entry("one", minutes=minutes, busy=busy), *entry("other", minutes=0.1, busy=busy)]
    found = efficiency([*entries, *entry("gpu", minutes=99, busy=0.01, gpus=1, device="cuda")]).advice
    assert ([one.why for one in found if one.rule == "all"] == []) != bool(said)
    assert not said or said in found[-1].why


def test_a_batch_counts_its_scans_and_shares_are_of_what_each_job_asked_for():
    small, large = entry(mb=900, asked=(1000, 30)), entry(mb=1000, asked=(4000, 30), scans=9)
    found = efficiency([*small, *large])
    (use,) = found.uses
    assert (use.jobs, use.scans, use.asked_mb, use.used_mb, use.share_mb) == (2, 10, (1000, 4000), (950, 1000), 0.9)
    assert found.gb_hours == (pytest.approx(1.9 * 2 / 60), pytest.approx(5 * 2 / 60))
    assert found.core_hours == (pytest.approx(4 / 60), pytest.approx(4 / 60))
    assert efficiency([]).uses == []


def test_what_is_printed_is_in_words_and_as_the_schema_says(tmp_path, capsys):
    assert main(["efficiency", str(tmp_path)]) == 1
    assert "no job has been written down" in capsys.readouterr().err
    book = JobBook(tmp_path)
    for number, (rule, log) in enumerate(FAT):
        book.begin(number, JOB, [(rule, log)])
        record(tmp_path, log, peak=1950 if number else 100)
        book.end(number, good=number < 2)
    validator = Draft202012Validator(yaml.safe_load(schema_path("efficiency").read_text()))
    Draft202012Validator.check_schema(validator.schema)
    assert main(["efficiency", str(tmp_path), "--json"]) == 0
    validator.validate(found := json.loads(capsys.readouterr().out))
    assert (found["jobs"], found["failed"]) == (2, {"unknown": 1})
    assert main(["efficiency", str(tmp_path), "--last-run"]) == 0
    said = capsys.readouterr().out
    assert (
        "2 jobs used 90 % of the cores and 51 % of the memory that they asked for; attempts that failed: 1 unknown" in said
    )
    assert "prepare_scan: memory: 2000 MB were asked for, and nearly all of it was used, 1950 MB at most" in said
    assert next(after_run(tmp_path, 0.0)).endswith(f"1 advice(s): popatlas efficiency {tmp_path} --last-run")
    assert list(after_run(tmp_path, 1e12)) == []


def test_the_last_run_is_the_one_in_which_the_last_job_ended(tmp_path):
    runs = [{"run": name, "started": f"2026-01-0{day}T00:00:00Z"} for day, name in enumerate("abc", 1)]
    write_text(tmp_path / "cohort/runs.jsonl", "".join(json.dumps(run) + "\n" for run in runs))
    assert last_start(tmp_path, last_start(tmp_path, 1e12) - 1) == 1767312000.0  # the second of January
    assert last_start(tmp_path, 0.0) == 0.0
