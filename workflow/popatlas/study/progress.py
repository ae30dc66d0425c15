"""How far a run is: told by the Snakemake that runs the jobs to the popatlas that started it, in lines of JSON on stderr.

Snakemake knows of each job when it begins and ends, wherever it runs; the inventory knows what is left to do in the whole
run, which one pass of Snakemake does not.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from popatlas.cohort.jobbook import Asked, JobBook
from popatlas.cohort.journal import BEGUN, BETWEEN, DONE, FAILED, GROUP, HEAD, LEFT, OF_JOB, QUEUES, Writer, stamp
from popatlas.stages import SIDE_STAGES

if TYPE_CHECKING:  # who hears needs none of it
    from popatlas.settings import Content
    from popatlas.study.inventory import Inventory
    from popatlas.study.joblist import Job

MARK = "popatlas-progress: "  # how the lines begin
GOAL = (
    "POPATLAS_PROGRESS"  # environment of Snakemake: the part of the pipeline that the run is for; without it nobody listens
)
QUEUE = "POPATLAS_QUEUE"  # environment of Snakemake: its jobs wait in the queue of a cluster before they begin
# stages as a user sees them, in the order of the pipeline, and the rules of each
STAGES: dict[str, tuple[str, ...]] = {
    "preprocess": ("conform_image", "extract_brain", "extract_brains", "normalise_brain", "align_channel"),
    "atlas": (
        *("make_reference", "align_to_reference", "initialise_template", "predict_members", "register_member"),
        *("average_template", "coregister_members", "publish_template", "classify_template"),
    ),
    "register": ("predict_deformations", "register_to_template"),
    "fuse": ("register_atlas_to_target", "propagate_labels", "fuse_labels", "segment_scan", "labels_to_native"),
    "train": ("train_trust", "train_segmenter", "write_training_table", "train_registration"),
    "tissues": ("segment_tissues",),
    "measure": ("measure_scan",),
    "report": (
        *("draw_subject", "settle_ledger", "score_truth", "tabulate_cohort", "tabulate_trust", "bench_fusion"),
        *("make_along", "publish_along", "write_report"),
    ),
}
STAGE_OF = {rule: stage for stage, rules in STAGES.items() for rule in rules}
BY_JOB = ("atlas", "train", "report")  # stages whose jobs are counted, where others count scans
NOTED = {"job_started": BEGUN, "job_finished": DONE, "job_error": FAILED}
EVENTS = {"job_started": "begun", "job_finished": "done", "job_error": "failed"}


def unit_of(rule: str, wildcards: Mapping[str, str], name: str) -> str:
    """Return what a stage counts of a job: its scan, or itself; nothing of a batch, whose scans are counted."""
    stage = STAGE_OF[rule]
    if "scan" in wildcards and stage != "atlas":
        return wildcards["scan"]
    return name if stage in BY_JOB else ""


def tell_progress(inventory: Inventory, jobs: Callable[[], Iterable[Any]], target: str = "all") -> None:
    """Write down what is left to do, and from now on what becomes of it; tell it too when somebody listens.

    Parameters
    ----------
    inventory : Inventory
        Of the study.
    jobs : callable
        Returns the jobs of Snakemake's graph, once there is one.
    target : str
        Part of the pipeline that this Snakemake is for, which is not all that a run is for.
    """
    goal = os.environ.get(GOAL)
    found = plan(inventory, goal or target)
    with suppress(OSError):  # the run itself tells of a full disk
        Writer(inventory.study.out_dir).begin(journal_head(inventory, goal or target, found))
    if goal:
        _tell({"plan": found, "scans": _scan_counts(inventory)})
    listen(inventory, jobs)


def listen(inventory: Inventory, jobs: Callable[[], Iterable[Any]]) -> None:
    """Write down from now on what becomes of the jobs, below what the journal holds, and tell it when somebody listens."""
    from snakemake.logging import logger

    writer = Writer(inventory.study.out_dir)
    logger.addHandler(JobListener(inventory, jobs, writer, is_heard=bool(os.environ.get(GOAL))))


def journal_head(inventory: Inventory, goal: str, found: Content) -> Iterator[tuple[object, ...]]:
    """Yield the first lines of a journal (`popatlas.cohort.live`): what is left to do of each scan, and of the groups.

    Parameters
    ----------
    inventory : Inventory
        Of the study.
    goal : str
        Part of the pipeline that the run is for.
    found : dict
        From `plan`.
    """
    yield HEAD, time.time(), goal, *([QUEUES] if os.environ.get(QUEUE) else [])
    jobs = inventory.jobs
    for stage in BY_JOB:
        left = found[stage]["jobs"] + sum(found[stage]["left"].values())
        if left:
            yield GROUP, stage, found[stage]["done"], left
    for name in jobs.needed(jobs.wanted(goal), inventory.made):
        job = jobs.jobs[name]
        if job.scan and job.is_kept:
            yield LEFT, job.scan, job.stage, 1


def plan(inventory: Inventory, goal: str) -> Content:
    """Return for each stage how much of it is made, and how many jobs are left of each unit that is not.

    Parameters
    ----------
    inventory : Inventory
        Of the study.
    goal : str
        Part of the pipeline that the whole run is for.

    Returns
    -------
    dict
        Stage to ``done`` (number of units), ``left`` (unit to number of jobs) and ``jobs`` (number of jobs of none).
    """
    jobs, wanted = inventory.jobs, inventory.jobs.wanted(goal)
    left = set(jobs.needed(wanted, inventory.made))
    units: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
    done: dict[str, set[str]] = {stage: set() for stage in STAGES}
    for name in jobs.needed(wanted, frozenset()):
        job = jobs.jobs[name]
        stage, unit = STAGE_OF[job.rule], _unit(job)
        if name in left:
            units[stage][unit] += 1
        elif unit:
            done[stage].add(unit)
    return {
        stage: {"done": len(done[stage] - counts.keys()), "jobs": counts.pop("", 0), "left": dict(counts)}
        for stage, counts in units.items()
    }


def _unit(job: Job) -> str:
    return unit_of(job.rule, job.wildcards, job.name)


def _scan_counts(inventory: Inventory) -> dict[str, int]:
    from popatlas.images.io import read_table

    index = read_table(inventory.study.out_dir / "cohort" / "index.parquet")
    states = index.loc[index["role"] == "cohort", "state"].value_counts()
    return {str(state): int(count) for state, count in states.items()}


class JobListener(logging.Handler):
    """Hears what Snakemake logs of its jobs, and tells it.

    Parameters
    ----------
    inventory : Inventory
        Of the study, which knows what jobs are called.
    jobs : callable
        Returns the jobs of Snakemake's graph, once there is one. Not each executor logs which job it starts: that of Slurm
        leaves it at the numbers.
    writer : Writer
        Of the journal.
    is_heard : bool
        Somebody listens on stderr.
    """

    def __init__(
        self, inventory: Inventory, jobs: Callable[[], Iterable[Any]], writer: Writer, *, is_heard: bool = True
    ) -> None:
        super().__init__()
        self.inventory, self.jobs, self.writer, self.is_heard = inventory, jobs, writer, is_heard
        self.listed, self.book = inventory.jobs, JobBook(writer.out_dir)

    def emit(self, record: logging.LogRecord) -> None:
        """Tell of a job that begins, ends or fails; of all else that is logged nothing."""
        found: dict[str, Any] = record.__dict__
        event = str(found.get("event") or "")
        if event == "run_info":
            self._say({"began": True})
        elif event in EVENTS:
            numbers = found["jobs"] if "jobs" in found else [found.get("jobid", found.get("job_id"))]
            for number in numbers:
                if event == "job_started" and number in self.places:
                    self._begin(number)
                for place, happened in self._happened(event, number):
                    told = {key: place[key] for key in ("stage", "unit", "rule", "log")}
                    before = stamp(self.writer.out_dir, place["log"]) if event == "job_started" else 0
                    key = f"{os.getpid()}.{place['key']}"  # shards of a pass run side by side
                    self._say({"job": key, "state": EVENTS[happened], **told} | ({"stamp": before} if before else {}))
                    self._note(happened, place, before)
                if event != "job_started":
                    self.book.end(number, good=event == "job_finished", said=str(found.get("rule_msg") or ""))

    def _begin(self, number: object) -> None:
        """Note what a job asks for."""
        job, places = self.numbered[number], self.places[number]
        given = {key: job.resources.get(key) for key in ("mem_mb", "runtime", "gpu")}
        memory, minutes, gpus = (value if isinstance(value, int) else None for value in given.values())
        scans = len({scan for place in places for scan in place["scans"].split(BETWEEN) if scan})
        asked = Asked(job.rule.name, job.attempt, job.threads, memory, minutes, gpus or 0, max(scans, 1))
        self.book.begin(number, asked, [(place["rule"], place["log"]) for place in places])

    def _happened(self, event: str, number: object) -> list[tuple[dict[str, Any], str]]:
        """Return what became of each step of a job; where one has failed, the first that did comes last: it says why."""
        places = self.places.get(number, [])
        if event != "job_error" or len(places) == 1:
            return [(place, event) for place in places]
        found = [(place, self.inventory.receipt_path(place["name"]).is_file()) for place in reversed(places)]
        return [(place, "job_finished" if is_made else event) for place, is_made in found]

    def _say(self, content: Content) -> None:
        if self.is_heard:
            _tell(content)

    def _note(self, event: str, place: Mapping[str, Any], before: int) -> None:
        """Write an event into the journal, so that others can look and nothing is lost when the run is killed."""
        from popatlas.cohort.outputs import RULES

        made, key = RULES[place["rule"]], f"{os.getpid()}.{place['key']}"
        group = place["stage"] if place["stage"] in BY_JOB and made.stage not in SIDE_STAGES else ""
        row: tuple[object, ...] = (NOTED[event], f"{time.time():.1f}", key)
        if NOTED[event] == BEGUN:
            row += (place["scans"], made.stage, group, int(made.kept), place["name"], place["log"], before)
        with suppress(OSError):
            self.writer.add(*row)

    @cached_property
    def numbered(self) -> dict[Any, Any]:
        """Jobs by the number that Snakemake gave them."""
        return {job.jobid: job for job in self.jobs()}

    @cached_property
    def places(self) -> dict[Any, list[dict[str, Any]]]:
        """Key, stage, unit, rule and log of the steps of each job by its number; jobs without any are left out."""
        return {number: places for number, job in self.numbered.items() if (places := self._places(job))}

    def _places(self, job: Any) -> list[dict[str, Any]]:
        named = {str(key): str(value) for key, value in job.wildcards_dict.items()}
        steps = [step for step in self.listed.run_by(job.rule.name, named) if step[0] in STAGE_OF]
        if len(steps) == 1:
            return [self._place(job.jobid, *steps[0], str(next(iter(job.log), "")))]
        left = [step for step in steps if self.listed.name(step[0], **step[1]) not in self.inventory.made]
        return [
            self._place(f"{job.jobid}{OF_JOB}{place}", rule, names, self.listed.log(rule, names))
            for place, (rule, names) in enumerate(left)
        ]

    def _place(self, key: object, rule: str, wildcards: Mapping[str, str], log: str) -> dict[str, Any]:
        name = self.listed.name(rule, **wildcards)
        place = {"key": key, "stage": STAGE_OF[rule], "unit": unit_of(rule, wildcards, name), "rule": rule, "log": log}
        return place | {"scans": BETWEEN.join(self._scans(name, wildcards)), "name": name}

    def _scans(self, name: str, wildcards: Mapping[str, str]) -> list[str]:
        """Return the scans of a job: its own, or those of a batch."""
        if "scan" in wildcards:
            return [wildcards["scan"]]
        needs = self.listed.jobs[name].needs if "batch" in wildcards and name in self.listed.jobs else ()
        return list(dict.fromkeys(job.scan for need in needs if (job := self.listed.jobs.get(need)) and job.scan))


def _tell(content: Content) -> None:
    with suppress(OSError, ValueError):  # whoever listened is gone
        sys.stderr.write(f"{MARK}{json.dumps(content)}\n")
        sys.stderr.flush()
