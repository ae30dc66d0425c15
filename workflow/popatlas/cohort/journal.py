"""The journal of a pass: what was left to do when it began, then each job that begins, ends or fails, a line each.

The Snakemake that runs the jobs writes it; `popatlas.cohort.live` reads it, from any process, while the run works or after
it was killed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

JOURNAL = "logs/journal.tsv"
HEAD, LEFT, GROUP, BEGUN, DONE, FAILED = "run", "left", "jobs", "b", "d", "f"  # first column of its lines
BETWEEN = " "  # scans of a batch
QUEUES = "queues"  # in the first line: jobs that have begun may wait in the queue of a cluster
OF_JOB = "-"  # between the number of a job and that of one of several steps that it runs
Place = tuple[str, str]  # scan and stage of the ledger


@dataclass
class Jobs:
    """How many jobs of a stage of no single scan (atlas, train, report) are done, left, running, queued and failed."""

    done: int = 0
    left: int = 0
    running: int = 0
    queued: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Begun:
    """A job that has begun: of which scans and stage, of which group of jobs, whether it is kept; receipt and log.

    Attributes
    ----------
    stamp : int
        Of its record, just before: another one tells that it has not only been submitted.
    """

    scans: tuple[str, ...]
    stage: str
    group: str
    kept: bool
    name: str
    log: str
    stamp: int = 0


def stamp(out_dir: Path, log: str) -> int:
    """Return what changes whenever a job writes the record beside its log, which it does first of all; 0 without one."""
    try:
        return os.stat(f"{out_dir}/{log}.json").st_mtime_ns  # noqa: PTH116  # hundreds of jobs are looked at
    except OSError:
        return 0


def job_of(number: str) -> str:
    """Return the job of Snakemake that a number in the journal belongs to."""
    return number.partition(OF_JOB)[0]


@dataclass
class Journal:
    """What a journal tells.

    Attributes
    ----------
    goal : str
        Part of the pipeline that the run is for; empty where there is no journal.
    began, last : float
        When the pass began, and when something happened last, seconds since 1970.
    left : Counter
        Scan and stage to the number of its results that are not made.
    groups : dict
        Group of jobs to what became of them.
    running : dict
        Jobs that have begun and not ended, by number.
    failed : dict
        Scan and stage to the log of the job that failed.
    ended : int
        Number of jobs that have ended well; the steps of one count once.
    queues : bool
        Jobs are submitted to a cluster.
    """

    goal: str = ""
    began: float = 0.0
    last: float = 0.0
    left: Counter[Place] = field(default_factory=Counter)
    groups: dict[str, Jobs] = field(default_factory=dict)
    running: dict[str, Begun] = field(default_factory=dict)
    failed: dict[Place, str] = field(default_factory=dict)
    ended: int = 0
    queues: bool = False

    @classmethod
    def read(cls, out_dir: Path) -> Journal:
        """Read the journal of an output folder; an empty one where no run has written any since the last settling."""
        journal = cls()
        try:
            with (out_dir / JOURNAL).open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if line.endswith("\n"):  # the last one may be half written
                        journal.take(line[:-1].split("\t"))
        except FileNotFoundError:
            pass
        return journal

    def take(self, row: list[str]) -> None:
        """Take a line into account; one that is none is left out."""
        try:
            kind = row[0]
            if kind == DONE:
                self._end(row)
            elif kind == BEGUN:
                _, when, number, scans, stage, group, kept, name, log, *more = row
                job = Begun(tuple(filter(None, scans.split(BETWEEN))), stage, group, kept == "1", name, log, *map(int, more))
                self.running[number], self.last = job, float(when)
                for scan in job.scans:
                    self.failed.pop((scan, stage), None)
            elif kind == FAILED:
                job, self.last = self.running.pop(row[2]), float(row[1])
                self.failed |= {(scan, job.stage): job.log for scan in job.scans}
                if job.group:
                    self.groups.setdefault(job.group, Jobs()).failed += 1
            elif kind == LEFT:
                self.left[row[1], row[2]] += int(row[3])
            elif kind == GROUP:
                self.groups[row[1]] = Jobs(int(row[2]), int(row[3]))
            elif kind == HEAD:
                self.began = self.last = float(row[1])
                self.goal, self.queues = row[2], QUEUES in row[3:]
        except (ValueError, IndexError, KeyError):
            return

    def _end(self, row: list[str]) -> None:
        job, self.last = self.running.pop(row[2]), float(row[1])
        self.ended += row[2].partition(OF_JOB)[2] in ("", "0")
        self.settle(job)

    def settle(self, job: Begun) -> None:
        """Take into account that a job has ended well."""
        for scan in job.scans if job.kept else ():
            self.left[scan, job.stage] -= 1
        if job.group and job.group in self.groups:
            group = self.groups[job.group]
            group.done, group.left = group.done + 1, max(group.left - 1, 0)

    def queued(self, out_dir: Path) -> set[str]:
        """Return the numbers of what has been submitted, but has not begun to work: no step of its job has left a record."""
        begun = {job_of(number) for number, job in self.running.items() if stamp(out_dir, job.log) != job.stamp}
        return {number for number in self.running if job_of(number) not in begun} if self.queues else set()

    def rate(self) -> float:
        """Return jobs a second."""
        spent = self.last - self.began
        return self.ended / spent if spent > 0 else 0.0


class Writer:
    """Writes the journal of a pass, line by line.

    Parameters
    ----------
    out_dir : Path
        Output folder.
    """

    def __init__(self, out_dir: Path) -> None:
        self.out_dir, self.path = out_dir, out_dir / JOURNAL
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def begin(self, lines: Iterable[tuple[object, ...]]) -> None:
        """Begin anew with what is left to do; the former journal stays whole until the new one is."""
        temporary = self.path.with_name(f".tmp-{os.getpid()}-journal.tsv")
        temporary.write_text("".join(map(_line, lines)), encoding="utf-8")
        temporary.replace(self.path)

    def add(self, *row: object) -> None:
        """Add a line; whoever shares the file adds whole lines too."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(_line(row))


def _line(row: tuple[object, ...]) -> str:
    return "\t".join(map(str, row)) + "\n"


def end_journal(out_dir: Path) -> None:
    """Take the journal away: the ledger has just been settled, and no job runs."""
    (out_dir / JOURNAL).unlink(missing_ok=True)
