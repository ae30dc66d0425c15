"""Snakemake's Slurm plugin, kept from losing jobs when the controller of Slurm does not answer.

By itself the plugin forgets all jobs that it waits for when it asks in vain for their states, and waits for ever; a job that
cannot be submitted just then counts as failed; and a job that Slurm has forgotten is waited for. Here jobs that nothing is
known of are asked for again, submissions are repeated until Slurm takes them, and a job that has left the queue is judged by
the files that it should have made. The methods are replaced in the process of Snakemake that submits jobs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popatlas.cluster.ends import explained
from popatlas.cluster.leftovers import note_run

PLUGIN = "snakemake_executor_plugin_slurm"
# what sbatch says when it is to be tried again
AWAY = re.compile(
    "unable to contact slurm controller|connect(?:ion)? (?:failure|refused|timed out)|socket timed out|zero bytes were"
    "|controller not responding|transport endpoint|temporarily un(?:available|able)|communication connection failure"
    "|unexpected message received|slurm_persist_conn|unable to establish",
    re.IGNORECASE,
)
FULL = re.compile("(?:Submit|Jobs)\\w*Limit|job submit limit|MaxSubmitJob", re.IGNORECASE)
WAITS = (2.0, 5.0, 10.0, 20.0, 30.0)  # seconds before one more try to submit, the last one again and again
MOST = 4  # the longest time between looks at the queue, in shortest ones; the plugin goes up to 180 s
LOST_AFTER = 3  # looks at a queue that answers, without the job, after which it has ended
PATIENCE = 45.0  # seconds that this takes at least
NEVER = 10**9
Jobs = AsyncIterator[Any]


@dataclass
class Books:
    """What is known of the jobs of an executor.

    Attributes
    ----------
    settled : set
        Jobs that were reported as ended, by identity.
    queue : set of str
        Jobs that Slurm has, by its numbers.
    numbers : set of str
        All that it ever had.
    missing : dict
        Job to how often, and since when, the queue answered without it.
    refused : dict
        Job to what sbatch said when it is to be tried again.
    silent : float or None
        When the controller did not answer for the first time, in seconds of the clock; None while it does.
    stopping : Event
        Set when the run ends its jobs.
    """

    settled: set[int] = field(default_factory=set)
    queue: set[str] = field(default_factory=set)
    numbers: set[str] = field(default_factory=set)
    missing: dict[str, tuple[int, float]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    silent: float | None = None
    stopping: threading.Event = field(default_factory=threading.Event)


def guard_slurm() -> bool:
    """Guard the executor of the Slurm plugin in this process, once, where it is installed; tell whether it is guarded."""
    plugin = sys.modules.get(PLUGIN)
    if plugin is None or getattr(plugin, "is_guarded", False):
        return plugin is not None
    guard(plugin, plugin.Executor)
    plugin.is_guarded = True  # type: ignore[attr-defined]
    return True


def guard(plugin: Any, executor: Any) -> None:
    """Replace methods of an executor class of a plugin by those that lose no job."""
    look, submit, cancel = executor.check_active_jobs, executor.run_job, executor.cancel
    submitted, refused = executor._report_job_submission_threadsafe, executor._report_job_error_threadsafe
    succeeded, failed = executor.report_job_success, executor.report_job_error
    ask = plugin.query_job_status
    latest: list[tuple[str, Any]] = []

    async def asking(command: str, logger: Any) -> Any:
        answer = await ask(command, logger)
        latest[:] = [(command, answer[0])]
        return answer

    async def looking(self: Any, active: list[Any]) -> Jobs:
        books = _books(self)
        books.settled.clear()
        latest.clear()
        left = {id(job): job for job in active}
        async for job in look(self, active):
            left.pop(id(job), None)
            if not _judge_lost(self, job, latest):
                yield job
        for place, job in left.items():
            if place not in books.settled:  # Slurm did not answer
                yield job
        if latest:
            _tell(books, answers=latest[-1][1] is not None)
        longest = MOST * self.workflow.executor_settings.init_seconds_before_status_checks
        self.next_seconds_between_status_checks = min(self.next_seconds_between_status_checks, longest)

    def submitting(self: Any, job: Any) -> None:
        books = _books(self)
        for wait in _waits():
            if books.stopping.is_set():
                return
            submit(self, job)
            if (said := books.refused.pop(id(job), None)) is None:
                return
            _explain(books, said)
            if books.stopping.wait(wait):
                return
            if AWAY.search(said) and (number := _adopted(self, job, books)):
                _take(plugin, self, job, number)
                return

    def is_submitted(self: Any, info: Any) -> None:
        books = _books(self)
        if not books.numbers:
            note_run(self.run_uuid)
        books.queue.add(str(info.external_jobid))
        books.numbers.add(str(info.external_jobid))
        submitted(self, info)

    def is_refused(self: Any, info: Any, msg: str) -> None:
        books = _books(self)
        said = msg.partition("sbatch call:")[0]
        if not info.job.is_group() and (AWAY.search(said) or (FULL.search(said) and books.queue)):
            books.refused[id(info.job)] = said
        else:
            refused(self, info, msg)

    def cancelling(self: Any) -> None:
        _books(self).stopping.set()
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
        cancel(self)

    def failing(self: Any, info: Any, msg: str | None = None, aux_logs: list[str] | None = None, **kwargs: Any) -> None:
        failed(self, info, msg=explained(msg or "", aux_logs or []), aux_logs=aux_logs, **kwargs)

    plugin.query_job_status = asking
    plugin.get_min_job_age = lambda: NEVER  # squeue, where it is asked for, and never sacct instead
    executor.check_active_jobs, executor.run_job, executor.cancel = looking, submitting, cancelling
    executor._report_job_submission_threadsafe, executor._report_job_error_threadsafe = is_submitted, is_refused
    executor.report_job_success, executor.report_job_error = _settling(succeeded), _settling(failing)


def _books(executor: Any) -> Books:
    found: Books = executor.__dict__.setdefault("_popatlas_books", Books())
    return found


def _settling(report: Callable[..., None]) -> Callable[..., None]:
    """Return a report of an executor that also notes that the job has ended."""

    def settle(self: Any, info: Any, *args: Any, **kwargs: Any) -> None:
        books = _books(self)
        books.settled.add(id(info))
        books.queue.discard(str(info.external_jobid))
        books.missing.pop(str(info.external_jobid), None)
        report(self, info, *args, **kwargs)

    return settle


def _judge_lost(executor: Any, info: Any, latest: list[tuple[str, Any]]) -> bool:
    """Report a job that the queue no longer has, by the files that it should have made; tell whether that is so."""
    number, missing = str(info.external_jobid), _books(executor).missing
    if not latest or latest[-1][1] is None or not latest[-1][0].startswith("squeue"):
        return False
    if {number, number.split("_")[0]} & set(latest[-1][1]):
        missing.pop(number, None)
        return False
    count, since = missing.get(number, (0, time.monotonic()))
    missing[number] = (count + 1, since)
    if count + 1 < LOST_AFTER or time.monotonic() - since < PATIENCE:
        return False
    if all(Path(str(file)).exists() for file in info.job.output):
        executor.report_job_success(info)
    else:
        executor.report_job_error(info, msg=f"SLURM-job '{number}' has left the queue without having made its files. ")
    return True


def _waits() -> Iterator[float]:
    """Yield seconds between tries, without an end."""
    yield from WAITS
    while True:
        yield WAITS[-1]


def _explain(books: Books, said: str) -> None:
    if AWAY.search(said):
        _tell(books, answers=False)
    else:
        _say("Slurm takes no more jobs of yours at a time; the others wait")


def _tell(books: Books, *, answers: bool) -> None:
    """Say when the controller falls silent, and when it answers again."""
    now = time.time()
    if not answers and books.silent is None:
        books.silent = now
        at = time.strftime("%H:%M:%S", time.localtime(now))
        _say(f"{at}: the controller of Slurm does not answer; jobs are waited for, none is lost")
    elif answers and books.silent is not None:
        _say(f"the controller of Slurm answers again, after {now - books.silent:.0f} s")
        books.silent = None


def _say(text: str) -> None:
    print(f"popatlas: {text}", file=sys.stderr, flush=True)


def _adopted(executor: Any, job: Any, books: Books) -> str | None:
    """Return the number of a job that Slurm has taken although its answer got lost; None when it has not."""
    line = ["squeue", "--noheader", "--states=all", "--format=%i|%k", "--name", executor.run_uuid]
    wildcards = "_".join(job.wildcards).replace("/", "_") if job.wildcards else ""
    comment = f"rule_{job.name}_wildcards_{wildcards}" if wildcards else f"rule_{job.name}"
    for wait in _waits():
        answer = subprocess.run(line, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            found = [row.partition("|")[::2] for row in answer.stdout.splitlines()]
            return next((number for number, said in found if said == comment and number not in books.numbers), None)
        if books.stopping.wait(wait):
            return None
    return None


def _take(plugin: Any, executor: Any, job: Any, number: str) -> None:
    """Report a job as submitted that Slurm has taken without saying so."""
    log = executor.slurm_logdir / f"rule_{job.name}" / plugin.get_job_wildcards(job) / f"{number}.log"
    info = plugin.SubmittedJobInfo(job, external_jobid=number, aux={"slurm_logfile": log})
    executor._report_job_submission_threadsafe(info)
