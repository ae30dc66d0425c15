"""How far each stage of a run is, from what its Snakemake tells (`popatlas.study.progress`)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from popatlas.cohort.outputs import RULES
from popatlas.stages import SIDE_STAGES
from popatlas.study.progress import MARK, STAGES

INDEX = "index"
LOOK = 5.0  # seconds between looks at jobs that wait
OPENED = re.compile(r"popatlas: opened (\d+) of (\d+) images")  # while the dataset is indexed
# where a failure of the ledger is shown, where its stage has another name
LEDGER_STAGES = {"channel": "preprocess", "page": "report", "bench": "fuse"}
SPARING = frozenset(rule for rule, made in RULES.items() if made.stage in SIDE_STAGES)  # their failure ends no scan


@dataclass(frozen=True)
class Row:
    """How far a stage is, in units: scans, or jobs in stages that are of no single scan.

    Attributes
    ----------
    stage : str
        Its name.
    total, done, failed, running, queued : int
        Units; what is queued waits in the queue of a cluster.
    seconds : float or None
        Time that is left at the rate so far, where there is one.
    """

    stage: str
    total: int
    done: int
    failed: int = 0
    running: int = 0
    queued: int = 0
    seconds: float | None = None

    @property
    def to_go(self) -> int:
        """Number of units that have not begun."""
        return max(self.total - self.done - self.failed - self.running - self.queued, 0)


@dataclass
class Job:
    """A job that Snakemake has started or submitted; `stamp` is that of its record before (`cohort.journal.stamp`)."""

    stage: str
    unit: str
    log: str
    is_begun: bool
    stamp: int = 0


@dataclass
class Stage:
    """The books of a stage.

    Attributes
    ----------
    done : int
        Units that are made.
    left : dict
        Unit that is not to the number of its jobs.
    jobs_left, jobs_done : int
        Jobs of the run.
    failed : dict
        Unit that failed to its number of jobs, should it be tried again.
    busy : float
        Seconds in which a job of the stage ran.
    """

    done: int = 0
    left: dict[str, int] = field(default_factory=dict)
    jobs_left: int = 0
    jobs_done: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    busy: float = 0.0


class Progress:
    """How far the stages of a run are.

    Parameters
    ----------
    out_dir : Path, optional
        Output folder, where jobs are submitted and wait in a queue before they begin.
    clock : callable
        Returns seconds.
    """

    def __init__(self, out_dir: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.out_dir, self.clock = out_dir, clock
        self.lock = Lock()
        self.stages = {stage: Stage() for stage in STAGES}
        self.jobs: dict[int | str, Job] = {}  # by process and number, or number and step
        self.dead: dict[str, int] = {}  # scan to the number of the stage that it failed at
        self.index = Row(INDEX, 0, 0)  # until something is known
        self.began = self.looked = self.counted = clock()

    # What is told

    def hear(self, line: str) -> bool:
        """Take a line of Snakemake's stderr into account; tell whether it was about progress and nothing else."""
        if opened := OPENED.match(line):
            with self.lock:
                self.index = self._opening(*map(int, opened.groups()))
            return True
        if not line.startswith(MARK):
            return False
        try:
            told = json.loads(line.removeprefix(MARK))
        except ValueError:  # cut by the end of the one who wrote it
            return True
        with self.lock:
            self._count_time()
            if "plan" in told:
                self._begin(told["plan"], told["scans"])
            elif "job" in told:
                self._take(told)
        return True

    def _opening(self, opened: int, total: int) -> Row:
        spent = self.clock() - self.began
        return Row(INDEX, total, opened, running=int(opened < total), seconds=spent * (total - opened) / opened)

    def _begin(self, plan: Mapping[str, Any], scans: Mapping[str, int]) -> None:
        self.jobs = {}
        unusable = sum(count for state, count in scans.items() if state not in ("ok", "excluded"))
        self.index = Row(INDEX, scans.get("ok", 0) + unusable, scans.get("ok", 0), failed=unusable)
        for name, found in plan.items():
            stage = self.stages[name]
            stage.done, stage.left = found["done"], dict(found["left"])
            stage.jobs_left = found["jobs"] + sum(stage.left.values())
            stage.failed = {unit: jobs for unit, jobs in stage.failed.items() if unit not in stage.left}
        failed = {unit for stage in self.stages.values() for unit in stage.failed}
        self.dead = {scan: number for scan, number in self.dead.items() if scan in failed}

    def _take(self, told: Mapping[str, Any]) -> None:
        name, unit, state = told["stage"], told["unit"], told["state"]
        stage = self.stages[name]
        if state == "begun":
            if unit in stage.failed:  # it is tried again
                stage.left[unit] = stage.failed.pop(unit)
                self.dead.pop(unit, None)
            self.jobs[told["job"]] = Job(name, unit, told["log"], self.out_dir is None, told.get("stamp", 0))
            return
        self.jobs.pop(told["job"], None)
        if state == "failed":
            if unit in stage.left:
                stage.failed[unit] = stage.left.pop(unit)
            if unit and told["rule"] not in SPARING:
                self.dead.setdefault(unit, list(STAGES).index(name))
            return
        stage.jobs_done += 1
        stage.jobs_left = max(stage.jobs_left - 1, 0)
        if unit in stage.left:
            stage.left[unit] -= 1
            if stage.left[unit] <= 0:
                del stage.left[unit]
                stage.done += 1

    def settle(self, failures: Iterable[tuple[str, str]]) -> None:
        """Take over who has failed, when a pass has ended: jobs that were stopped from outside have not.

        Parameters
        ----------
        failures : iterable of (str, str)
            Scan and stage of the ledger.
        """
        with self.lock:
            self._count_time()
            self.jobs = {}
            for stage in self.stages.values():
                stage.left |= stage.failed
                stage.failed = {}
            self.dead = {}
            for scan, where in failures:
                name = LEDGER_STAGES.get(where, where)
                stage = self.stages[name]
                stage.failed[scan] = stage.left.pop(scan, 1)
                if where not in SIDE_STAGES:
                    self.dead.setdefault(scan, list(STAGES).index(name))

    def look(self) -> None:
        """Find out which submitted jobs have begun: each leaves another record then, wherever it runs."""
        from popatlas.cohort.journal import job_of, stamp

        with self.lock:
            if self.out_dir is None or self.clock() - self.looked < LOOK:
                return
            self.looked = self.clock()
            waiting = {number: job for number, job in self.jobs.items() if not job.is_begun}
        begun = {job_of(str(number)) for number, job in waiting.items() if stamp(self.out_dir, job.log) != job.stamp}
        for number, job in waiting.items():
            job.is_begun = job_of(str(number)) in begun

    # What is shown

    def rows(self) -> list[Row]:
        """Return the stages that have something to do, or had, in the order of the pipeline."""
        with self.lock:
            self._count_time()
            rows = [self._row(number, name) for number, name in enumerate(self.stages)]
            return [self.index, *(row for row in rows if row.total)]

    def _row(self, number: int, name: str) -> Row:
        stage = self.stages[name]
        left = [unit for unit in stage.left if self.dead.get(unit, number) >= number] if self.dead else stage.left
        mine = {place: job for place, job in self.jobs.items() if job.stage == name}
        running = {job.unit or place for place, job in mine.items() if job.is_begun}
        queued = {job.unit or place for place, job in mine.items() if not job.is_begun} - running
        rate = stage.busy / stage.jobs_done if stage.jobs_done and running else None
        return Row(
            stage=name,
            total=stage.done + len(stage.failed) + len(left),
            done=stage.done,
            failed=len(stage.failed),
            running=len(running),
            queued=len(queued),
            seconds=None if rate is None else rate * stage.jobs_left,
        )

    def _count_time(self) -> None:
        now = self.clock()
        busy = {job.stage for job in self.jobs.values() if job.is_begun}
        for name in busy:
            self.stages[name].busy += now - self.counted
        self.counted = now
