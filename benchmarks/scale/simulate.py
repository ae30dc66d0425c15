"""A run simulated event by event: the jobs of a real study with drawn times and failures, on slots of a machine.

Jobs and shards are those of popatlas itself (`popatlas.study.shards`). Drawn are how long a job takes, whether an attempt is
killed, and when. What the controller takes (opening the study, graphs, books) follows from what `benchmarks.scale` measures,
submission and polling from the profile. A member of the template that fails twice is left out, where a run would begin the
template anew.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from popatlas.study.inventory import Inventory
from popatlas.study.joblist import Job
from popatlas.study.shards import Request, request, split

# seconds of the jobs on real heads on a grid of 1 mm, by rule; what is not here takes OTHER
SECONDS = {
    "prepare_scan": 56.0, "conform_image": 40.0, "extract_brains": 12.0, "normalise_brain": 4.0, "align_channel": 15.0,
    "align_to_reference": 10.0, "register_member": 25.0, "register_to_template": 46.0, "propagate_labels": 10.0,
    "fuse_scan": 55.0, "fuse_labels": 15.0, "measure_and_draw": 23.0, "average_template": 60.0,
}  # fmt: skip
OTHER, SPREAD = 10.0, 0.3  # seconds; standard deviation of the logarithm
KILLED, ATTEMPTS = 0.01, 2  # share of the attempts that are killed: out of memory, lost nodes
OPEN, OPEN_SCAN, GRAPH_JOB, SETTLE_SCAN = 3.0, 0.003, 0.003, 0.003  # seconds of the controller, in all and for each
PASSES = ("preprocess", "subjects", "all")


@dataclass(frozen=True)
class Machine:
    """Where jobs run.

    Attributes
    ----------
    slots : int
        Jobs that run at a time.
    start : float
        Seconds from the start of a job to that of its step: programs, and on a cluster a Snakemake.
    poll : float
        Seconds between looks at the jobs.
    submit : float
        Seconds of the controller for each job.
    """

    slots: int
    start: float
    poll: float
    submit: float


def machine(slots: int) -> Machine:
    """Return a workstation of up to 64 slots, else a cluster."""
    return Machine(slots, 1.0, 0.0, 0.01) if slots <= 64 else Machine(slots, 5.0, 15.0, 0.03)


@dataclass
class Books:
    """What has happened: seconds of work that counted, of attempts that were killed, of starts; and who is out."""

    work: float = 0.0
    lost: float = 0.0
    starts: float = 0.0
    jobs: int = 0
    out: int = 0


class Simulation:
    """One run.

    Parameters
    ----------
    inventory : Inventory
        Of a study in which nothing is made; what is made in the simulation is noted there.
    place : Machine
        Where it runs.
    seed : int
        Of the draws.
    killed : float
        Share of the attempts that are killed.
    """

    def __init__(self, inventory: Inventory, place: Machine, seed: int = 0, killed: float = KILLED) -> None:
        self.inventory, self.place, self.killed, self.draw = inventory, place, killed, random.Random(seed)
        self.books, self.now, self.controller = Books(), 0.0, 0.0
        self.failed: set[str] = set()
        self.made: set[str] = set()
        self.jobs, self.runs = _run_together(inventory)

    def run(self) -> dict[str, float]:
        """Return what the run took."""
        scans = len(self.inventory.jobs.scans)
        asked: Request = request(self.place.slots, None)
        for target in PASSES:
            self.inventory.made = frozenset(name for name, run in self.runs.items() if run in self.made)
            self._control(OPEN + OPEN_SCAN * scans)
            for number, names in enumerate(split(self.inventory, target, asked)):
                runs = dict.fromkeys(self.runs[name] for name in names)
                self._control(GRAPH_JOB * len(runs) + (OPEN if number else 0.0))
                self._shard([self.jobs[run] for run in runs])
            self._control(SETTLE_SCAN * scans)
        ideal = self.ideal()
        return {
            "jobs": self.books.jobs,
            "work_h": self.books.work / 3600,
            "ideal_h": ideal / 3600,
            "makespan_h": self.now / 3600,
            "times the ideal": self.now / ideal,
            "controller_min": self.controller / 60,
            "lost work, %": 100 * self.books.lost / self.books.work,
            "start-ups, %": 100 * self.books.starts / self.books.work,
            "jobs given up": self.books.out,
        }

    def ideal(self) -> float:
        """Return the seconds of the same jobs on as many slots, without failures, start-ups, waiting and passes."""
        jobs = self.inventory.jobs
        free = Simulation(self.inventory, Machine(self.place.slots, 0.0, 0.0, 0.0), killed=0.0)
        names = jobs.needed(jobs.wanted(PASSES[-1]), frozenset())
        free._shard([self.jobs[run] for run in dict.fromkeys(self.runs[name] for name in names)])
        return free.now

    def _control(self, seconds: float) -> None:
        self.now += seconds
        self.controller += seconds

    def _shard(self, listed: Sequence[Job]) -> None:
        """Run the jobs of a shard to their end."""
        waiting, readers = _graph(listed, self.made, self.failed)
        ready = deque(name for name, needs in waiting.items() if not needs)
        rules = {job.name: job for job in listed}
        events: list[tuple[float, str, bool]] = []
        free, submitted, attempts = self.place.slots, self.now, dict[str, int]()
        while ready or events:
            while ready and free:
                name = ready.popleft()
                submitted = max(submitted, self.now) + self.place.submit
                end, is_killed = self._attempt(rules[name], submitted)
                heapq.heappush(events, (end + self.draw.uniform(0, self.place.poll), name, is_killed))
                free -= 1
            self.now, name, is_killed = heapq.heappop(events)
            free += 1
            attempts[name] = attempts.get(name, 0) + 1
            if is_killed and attempts[name] < ATTEMPTS:
                ready.append(name)
                continue
            if is_killed:
                self.books.out += 1
                self.failed.add(name)
            else:
                self.made.add(name)
            for reader in readers.get(name, ()):
                waiting[reader].discard(name)
                if is_killed and rules[reader].scan:  # what reads it is not made
                    self.failed.add(reader)
                elif not waiting[reader] and reader not in self.failed:
                    ready.append(reader)

    def _attempt(self, job: Job, begin: float) -> tuple[float, bool]:
        seconds = self.draw.lognormvariate(0.0, SPREAD) * SECONDS.get(job.rule, OTHER)
        is_killed = self.draw.random() < self.killed
        seconds *= self.draw.random() if is_killed else 1.0
        self.books.jobs += 1
        self.books.starts += self.place.start
        if is_killed:
            self.books.lost += seconds
        else:
            self.books.work += seconds
        return begin + self.place.start + seconds, is_killed


def _run_together(inventory: Inventory) -> tuple[dict[str, Job], dict[str, str]]:
    """Return the jobs of Snakemake, each of which may run several of the study, and the one that runs each of these."""
    steps: dict[str, list[Job]] = {}
    runs: dict[str, str] = {}
    for name, job in inventory.jobs.jobs.items():
        rule, wildcards = inventory.rule_of(job)
        runs[name] = name if rule == job.rule else f"{rule}/{wildcards['scan']}"
        steps.setdefault(runs[name], []).append(job)
    found: dict[str, Job] = {}
    for run, jobs in steps.items():
        rule, wildcards = inventory.rule_of(jobs[0])
        needs = {runs[need] for job in jobs for need in job.needs if need in runs} - {run}
        found[run] = Job(run, rule, wildcards, jobs[0].scan, tuple(sorted(needs)))
    return found, runs


def _graph(
    listed: Iterable[Job], made: set[str], failed: set[str]
) -> tuple[dict[str, set[str]], Mapping[str, Sequence[str]]]:
    """Return what each job waits for, and who reads each; jobs that need a failed one of their scan are left out."""
    waiting: dict[str, set[str]] = {}
    readers: dict[str, list[str]] = {}
    for job in listed:
        if job.name in made or job.name in failed:
            continue
        if job.scan and failed & set(job.needs):
            failed.add(job.name)
            continue
        waiting[job.name] = {need for need in job.needs if need not in made and need not in failed}
    for name, needs in waiting.items():
        needs &= waiting.keys()
        for need in needs:
            readers.setdefault(need, []).append(name)
    return waiting, readers
