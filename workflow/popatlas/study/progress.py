"""How far a run is: told by the Snakemake that runs the jobs to the popatlas that started it, in lines of JSON on stderr.

Snakemake knows of each job when it begins and ends, wherever it runs; the inventory knows what is left to do in the whole
run, which one pass of Snakemake does not.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # who hears needs none of it
    from popatlas.settings import Content
    from popatlas.study.inventory import Inventory
    from popatlas.study.joblist import Job

MARK = "popatlas-progress: "  # how the lines begin
GOAL = (
    "POPATLAS_PROGRESS"  # environment of Snakemake: the part of the pipeline that the run is for; without it nobody listens
)
# stages as a user sees them, in the order of the pipeline, and the rules of each
STAGES: dict[str, tuple[str, ...]] = {
    "preprocess": ("conform_image", "extract_brain_by_template", "extract_brains", "normalise_brain", "align_channel"),
    "atlas": (
        *("make_reference", "align_to_reference", "initialise_template", "predict_members", "register_member"),
        *("average_template", "publish_template"),
    ),
    "register": ("predict_deformations", "register_to_template"),
    "fuse": ("register_atlas_to_target", "propagate_labels", "fuse_labels", "segment_scan", "labels_to_native"),
    "train": ("train_trust", "train_segmenter", "write_training_table", "train_registration"),
    "measure": ("measure_scan",),
    "report": (
        *("draw_subject", "settle_ledger", "score_truth", "tabulate_cohort", "tabulate_trust", "bench_fusion"),
        "write_report",
    ),
}
STAGE_OF = {rule: stage for stage, rules in STAGES.items() for rule in rules}
BY_JOB = ("atlas", "train", "report")  # stages whose jobs are counted, where others count scans
EVENTS = {"job_started": "begun", "job_finished": "done", "job_error": "failed"}


def unit_of(rule: str, wildcards: Mapping[str, str], name: str) -> str:
    """Return what a stage counts of a job: its scan, or itself; nothing of a batch, whose scans are counted."""
    stage = STAGE_OF[rule]
    if "scan" in wildcards and stage != "atlas":
        return wildcards["scan"]
    return name if stage in BY_JOB else ""


def tell_progress(inventory: Inventory, jobs: Callable[[], Iterable[Any]]) -> None:
    """Tell what is left to do, and from now on what becomes of it, when somebody listens; see `JobListener`."""
    goal = os.environ.get(GOAL)
    if not goal:
        return
    from snakemake.logging import logger

    _tell({"plan": plan(inventory, goal), "scans": _scan_counts(inventory)})
    logger.addHandler(JobListener(inventory, jobs))


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
    """

    def __init__(self, inventory: Inventory, jobs: Callable[[], Iterable[Any]]) -> None:
        super().__init__()
        self.name_of, self.jobs = inventory.jobs.name, jobs

    def emit(self, record: logging.LogRecord) -> None:
        """Tell of a job that begins, ends or fails; of all else that is logged nothing."""
        found: dict[str, Any] = record.__dict__
        event = str(found.get("event") or "")
        if event == "run_info":
            _tell({"began": True})
        elif event in EVENTS:
            numbers = found["jobs"] if "jobs" in found else [found.get("jobid", found.get("job_id"))]
            for number in numbers:
                if number in self.places:
                    _tell({"job": number, "state": EVENTS[event], **self.places[number]})

    @cached_property
    def places(self) -> dict[Any, dict[str, str]]:
        """Stage, unit, rule and log of each job by the number that Snakemake gave it."""
        return {job.jobid: self._place(job) for job in self.jobs() if job.rule.name in STAGE_OF}

    def _place(self, job: Any) -> dict[str, str]:
        rule, wildcards = job.rule.name, {str(key): str(value) for key, value in job.wildcards_dict.items()}
        unit = unit_of(rule, wildcards, self.name_of(rule, **wildcards))
        return {"stage": STAGE_OF[rule], "unit": unit, "rule": rule, "log": str(next(iter(job.log), ""))}


def _tell(content: Content) -> None:
    with suppress(OSError, ValueError):  # whoever listened is gone
        sys.stderr.write(f"{MARK}{json.dumps(content)}\n")
        sys.stderr.flush()
