"""The passes of a run: Snakemake, then the books, until everything that can be made is made and shown to be."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.cli.display import Display, Lines
from popatlas.cli.process import BEGAN, Command, Outcome, goes_on, joined, supervise_all
from popatlas.cli.progress import Progress
from popatlas.cli.snake import command, environment, is_cluster, shares, slots
from popatlas.cohort.lock import TOKEN, Lock
from popatlas.failures import REFUSED, last_words
from popatlas.reasons import kernel_kills
from popatlas.stages import SIDE_STAGES
from popatlas.study.progress import GOAL, QUEUE
from popatlas.study.shards import Request, forget_shards, read_shards, request

if TYPE_CHECKING:
    from popatlas.config.sections import Config
    from popatlas.study.inventory import Inventory
    from popatlas.study.joblist import Job

FINISHED, STOPPED, FINISHED_WITH_FAILURES = 0, 1, 3
MOST_ROUNDS = 6  # of a pass; each one after the first follows from failures, or from results that came out differently
RAISED = re.compile(r"[\w.]*(?:Error|Exception)\b(?! in rule)")  # the head of an error of Snakemake, or of Python
MOST_FAILURES = 20  # that are named after a pass
MOST_LINES = 20  # of an error that are shown
SHELL_SAYS = re.compile(r": line \d+: +\d+ (\w[\w ]*?)(?: \(core dumped\))? {2,}")  # bash, of a process that a signal ended
SEE_LOGS = "For further error details see"  # Snakemake's advice in a message
NO_MEMORY = ": out of memory, the kernel says"
BY_SOMEBODY = ": by somebody, or since it needed more memory or time than there was"


class Passes:
    """The passes of one run.

    Parameters
    ----------
    args : Namespace
        Arguments of `add_study_arguments` and `add_run_arguments`.
    config_file : Path
        Configuration for Snakemake.
    config : dict
        The same.
    settled : dict
        Configuration that the ledger follows, but for the bench.
    lock : Lock
        Lock of the output folder.
    display : Display, optional
        Shows how far the run is.

    Attributes
    ----------
    failed : set of (str, str)
        Scan and stage of all failures of this run.
    failures : dict
        The same, with the reason of each.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        config_file: Path,
        config: Config,
        settled: Config,
        lock: Lock,
        display: Display | None = None,
    ) -> None:
        self.args, self.config_file, self.config, self.settled, self.lock = args, config_file, config, settled, lock
        self.display = display or Lines(Progress())
        self.goal = ""  # last pass
        self.out_dir = Path(config.out_dir)
        self.failures: dict[tuple[str, str], str] = {}
        self.why_stopped = ""
        self.stopped_by = 0
        self.kills = 0  # of the kernel, when a pass began
        self.inventory: Inventory | None = None  # after the last pass

    @property
    def failed(self) -> set[tuple[str, str]]:
        """Scan and stage of all failures."""
        return set(self.failures)

    def run(self, targets: Sequence[str]) -> int:
        """Run the passes; one is repeated while it makes progress and something is left to do."""
        self.goal = targets[-1]
        for target in targets:
            if not self._rounds(target):
                return 128 + self.stopped_by if self.stopped_by else STOPPED
        return FINISHED_WITH_FAILURES if self.failed else FINISHED

    def _rounds(self, target: str) -> bool:
        """Run a pass until nothing is left to do in it; tell whether the run can go on."""
        before: tuple[set[tuple[str, str]], list[str]] | None = None
        for _ in range(MOST_ROUNDS):
            if self.args.verbose:
                print(f"popatlas: pass '{target}'", flush=True)
            outcome = self._snakemake(target)
            if outcome.stopped_by:
                self.display.progress.settle(self.failed)
                self.why_stopped, self.stopped_by = f"stopped by signal {outcome.stopped_by}", outcome.stopped_by
                return False
            if outcome.code < 0:
                self.why_stopped = f"Snakemake was killed by signal {-outcome.code}"
                return False
            if outcome.code and BEGAN not in outcome.text:
                self.why_stopped = _last_error(outcome.text)
                return False
            known = self.failed
            left = self._settle(target, outcome)
            if outcome.code == 0 and not left:
                return True
            if before == (self.failed, left):  # a job may fail after its work is done: then the next round has nothing to do
                self.why_stopped = self.why_stopped or _no_end(target, outcome, self.inventory)
                return False
            before = (self.failed, left)
            if count := len({scan for scan, _ in self.failed - known}):
                print(f"popatlas: {count} scan(s) failed, going on without them", flush=True)
        self.why_stopped = self.why_stopped or _no_end(target, outcome, self.inventory)
        return False

    def _snakemake(self, target: str) -> Outcome:
        """Run Snakemake on a pass: first what all need, then its shards where it is parted (`popatlas.study.shards`)."""
        self.kills = kernel_kills()
        forget_shards(self.out_dir)
        first = request(slots(self.args), self.args.shards)
        outcome = self._run([self._shard(target, first, self.args)], 1)
        others = [replace(first, number=number) for number in range(1, len(read_shards(self.out_dir)))]
        if not goes_on(outcome) or not others:
            return outcome
        number, args = shares(self.args, len(others))
        if self.args.verbose:
            print(f"popatlas: pass '{target}', {len(others)} more shards, {number} at a time", flush=True)
        return joined(outcome, self._run([self._shard(target, shard, args) for shard in others], number))

    def _shard(self, target: str, shard: Request, args: argparse.Namespace) -> Command:
        """Return the command of a Snakemake, and its environment."""
        told = {TOKEN: self.lock.holder.token} | ({} if self.args.verbose else {GOAL: self.goal}) | shard.variable()
        told |= {QUEUE: "1"} if is_cluster(self.args) else {}
        return command(self.config_file, args, [target], []), environment(args) | told

    def _run(self, commands: Sequence[Command], at_once: int) -> Outcome:
        return supervise_all(commands, at_once, self.out_dir, self.lock, self.display)

    def _settle(self, target: str, outcome: Outcome) -> list[str]:
        """Bring the ledger up to date, name new failures, and return the jobs that are left to do without a failure."""
        from popatlas.cohort.journal import end_journal
        from popatlas.cohort.ledger import read_failure
        from popatlas.study.books import leave_records, settle_study, take_stock

        inventory = take_stock(self.config, self.out_dir)
        self.inventory = inventory
        if inventory is None:
            return []
        left = inventory.needed(target)
        unexplained = leave_records(inventory, left, self._why(inventory, outcome)) if outcome.code else []
        inventory.clear_unfinished(left)
        if group := [job for job in unexplained if not job.scan and job.stage == "group"]:
            reason, log = read_failure(self.out_dir, inventory.log(group[0]))
            self.why_stopped = f"{group[0].rule} failed: {reason} (log: {log})"
        self._name_failures(settle_study(inventory, self.settled))
        end_journal(self.out_dir)
        self.display.progress.settle(self.failed)
        return self._left(inventory, left)

    def _left(self, inventory: Inventory, names: Sequence[str]) -> list[str]:
        """Return the jobs that are left to do although none of their scans has failed."""
        out = {scan for scan, stage in self.failed if stage not in SIDE_STAGES}
        side = {(scan, stage) for scan, stage in self.failed}
        jobs = [inventory.jobs.jobs[name] for name in names]
        return [job.name for job in jobs if job.scan not in out and (job.scan, job.stage) not in side]

    def _name_failures(self, failures: dict[tuple[str, str], str]) -> None:
        new = sorted(failures.keys() - self.failures.keys())
        for place in new[:MOST_FAILURES]:
            print(f"popatlas: {place[0]} failed at {place[1]}: {failures[place]}", file=sys.stderr, flush=True)
        if len(new) > MOST_FAILURES:
            print(f"popatlas: ... and {len(new) - MOST_FAILURES} more failed", file=sys.stderr, flush=True)
        self.failures |= failures

    def _why(self, inventory: Inventory, outcome: Outcome) -> Callable[[Job], str]:
        killed = NO_MEMORY if kernel_kills() > self.kills else BY_SOMEBODY
        return lambda job: why_ended(
            outcome.text, inventory.rule_of(job)[0], inventory.snake_log(job), inventory.files(job), killed
        )


def why_ended(text: str, rule: str, log: str, outputs: Sequence[str], killed: str = BY_SOMEBODY) -> str:
    """Return what was said of a job that failed without a record of its own; empty when nothing was.

    Parameters
    ----------
    text : str
        What Snakemake, and the shells of its jobs, said on stderr.
    rule, log : str
        Rule and log of the job.
    outputs : sequence of str
        Files that it should have made.
    killed : str
        What is added where the shell says that it was killed.
    """
    for line in text.splitlines():
        if log in line and (found := SHELL_SAYS.search(line)):
            return f"the job ended with '{found[1].strip()}'{killed if found[1].startswith('Kill') else ''}"
        if line.strip().startswith("Output ") and any(f"Output {path} " in line for path in outputs):
            return line.strip()
    for block in re.split(r"\n(?=\S)", text):
        if not any(path in block for path in (log, *outputs)):
            continue
        if found := re.search(r"^ +message: (?!None)(.+)", block, re.M):
            return found[1].partition(SEE_LOGS)[0].strip(" .")
        if f"in rule {rule}" in block.split("\n", 1)[0] and "Missing" in block:
            return "files that it should make were missing when it had ended"
    return ""


def _last_error(text: str) -> str:
    """Return what the Snakefile said when it refused to go on, or the last words of Snakemake."""
    if REFUSED in text:
        return last_words(text)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("popatlas: pass")]
    return snakemake_error(text) or (lines[-1] if lines else "Snakemake could not begin")


def _no_end(target: str, outcome: Outcome, inventory: Inventory | None) -> str:
    """Return why a pass is given up although no scan of it failed anew."""
    if inventory is not None and (files := inventory.replaced(target)):
        what = f"files of the dataset are others than their size and times tell, or are replaced again and again: {files}"
        return f"{what}. Remedy: let nobody write there, set their times anew (touch), and run again"
    said = snakemake_error(outcome.text) if outcome.code else ""
    return f"the pass '{target}' does not come to its end{': ' if said else ''}{said}"


def snakemake_error(text: str) -> str:
    """Return the last error that Snakemake raised itself, with the lines that follow; empty where it only told of jobs."""
    lines = [line.rstrip() for line in text.splitlines()]
    heads = [place for place, line in enumerate(lines) if RAISED.match(line)]
    if not heads:
        return ""
    return "\n".join([lines[heads[-1]], *takewhile(bool, lines[heads[-1] + 1 : heads[-1] + MOST_LINES])])
