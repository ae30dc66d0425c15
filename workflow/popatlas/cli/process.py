"""A process of ours that must not outlive us, and that we must not outlive: Snakemake under the control of a run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Protocol

from popatlas.cohort.lock import Lock
from popatlas.errors import InputError
from popatlas.study.progress import MARK

if TYPE_CHECKING:
    import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
TICK, GRACE = 0.5, 60.0  # seconds between looks; seconds that Snakemake has to end its jobs when it is asked to stop
KEPT_LINES = 2000
NOTE = "popatlas: "
BEGAN = "Job stats:"  # what Snakemake says when it knows its jobs
JOB = re.compile(r"(?:local)?(?:rule|checkpoint) \w+:")  # the head of what Snakemake says of a job that begins
CHATTER = re.compile(rf"\s*$|\[[^\]]*\]$|Finished jobid: |\d+ of \d+ steps|Select jobs to execute|Execute \d+ jobs|{MARK}")


@dataclass(frozen=True)
class Outcome:
    """How a pass of Snakemake ended.

    Attributes
    ----------
    code : int
        Its exit code; negative where a signal killed it.
    stopped_by : int
        Signal that stopped this run, 0 when none did.
    text : str
        The last lines of what it said on stderr, without those about jobs that begin and end.
    """

    code: int
    stopped_by: int
    text: str


def goes_on(outcome: Outcome) -> bool:
    """Tell whether a pass may go on after one of its shards: jobs may have failed, but nothing stopped it."""
    return not outcome.stopped_by and outcome.code >= 0 and (not outcome.code or BEGAN in outcome.text)


def joined(one: Outcome, other: Outcome) -> Outcome:
    """Return how two shards of a pass ended, together."""
    if not goes_on(other):
        return other
    lines = f"{one.text}{other.text}".splitlines(keepends=True)
    text = f"{BEGAN}\n{''.join(lines[-KEPT_LINES:])}" if BEGAN in f"{one.text}{other.text}" else "".join(lines[-KEPT_LINES:])
    return Outcome(one.code or other.code, 0, text)


class Audience(Protocol):
    """Who follows a command."""

    def heard(self, line: str) -> None:
        """Take a line of its stderr."""

    def tick(self) -> None:
        """Do what is to be done now and then."""


Command = tuple[Sequence[str], dict[str, str]]  # line and environment


def supervise(
    line: Sequence[str], cwd: Path, environment: dict[str, str], lock: Lock, audience: Audience | None = None
) -> Outcome:
    """Run one command, see `supervise_all`."""
    return supervise_all([(line, environment)], 1, cwd, lock, audience)


def supervise_all(
    commands: Iterable[Command], at_once: int, cwd: Path, lock: Lock, audience: Audience | None = None
) -> Outcome:
    """Run commands, some at a time, hand their stderr on, and end when they and all that they started have ended.

    A signal that asks this process to stop is handed to the commands and their jobs. When this process is killed the
    commands end their jobs; when a command is killed its jobs are ended here. After one that ends so that nothing can go
    on (`goes_on`) the others are stopped.

    Parameters
    ----------
    commands : iterable of (sequence of str, dict)
        Command lines and their environments.
    at_once : int
        Commands that run at a time.
    cwd : Path
        Where they run.
    lock : Lock
        Lock of the output folder, which tells of the commands and gets signs of life.
    audience : Audience, optional
        Gets their stderr line by line; without one it goes to the stderr of this process.

    Returns
    -------
    Outcome
        Of all of them, together (`joined`).

    Raises
    ------
    InputError
        When another run has taken the lock by force; the command and its jobs have ended then.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # jobs of a Snakemake that is killed become our children
    before = {child.pid for child in _children()}
    waiting, running, audience = deque(commands), list[_Running](), audience or Passing()
    stopped, ended = _Stop(), list[Outcome]()
    lost: InputError | None = None
    with stopped.listening():
        while running or (waiting and not stopped.is_asked):
            while waiting and len(running) < at_once and not stopped.is_asked:
                running.append(_Running.begin(*waiting.popleft(), cwd, audience))
                stopped.groups.add(running[-1].process.pid)
                lost = lost or _is_lost(lambda: lock.adopt(*stopped.groups), stopped)
            running[0].wait(TICK)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                stopped.groups.discard(one.process.pid)
                if all(map(goes_on, ended)):  # what follows one that does not was stopped here, and tells nothing
                    ended.append(one.outcome(stopped.signal))
            if not stopped.is_asked and not all(map(goes_on, ended)):
                stopped.ask()
            lost = lost or _is_lost(lock.beat, stopped)
            stopped.insist()
            audience.tick()
        _end_orphans(before)
    if lost is not None:
        raise lost
    return reduce(joined, ended) if ended else Outcome(0, stopped.signal, "")


@dataclass(frozen=True)
class _Running:
    """A command that runs, and who reads what it says."""

    process: subprocess.Popen[str]
    lines: Kept
    reader: threading.Thread

    @classmethod
    def begin(cls, line: Sequence[str], environment: dict[str, str], cwd: Path, audience: Audience) -> _Running:
        process = subprocess.Popen(
            line, cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True, errors="replace", process_group=0,
            preexec_fn=_end_with_parent,
        )  # fmt: skip
        assert process.stderr is not None
        lines = Kept()
        reader = threading.Thread(target=_hand_on, args=(process.stderr, lines, audience), daemon=True)
        reader.start()
        return cls(process, lines, reader)

    def wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def outcome(self, stopped_by: int) -> Outcome:
        self.reader.join(timeout=5)
        return Outcome(self.process.returncode, stopped_by, self.lines.text)


def _is_lost(look: Callable[[], None], stopped: _Stop) -> InputError | None:
    """Look at the lock; when it is another's ask the command to stop, and return why."""
    try:
        look()
    except InputError as error:
        stopped.stop(signal.SIGTERM)
        return error
    return None


class Passing:
    """Hands all lines on."""

    def heard(self, line: str) -> None:
        """See `Audience.heard`."""
        sys.stderr.write(line)
        sys.stderr.flush()

    def tick(self) -> None:
        """See `Audience.tick`."""


class Kept:
    """The last lines of Snakemake, without those of jobs that begin and end well: an error may be thousands of jobs ago."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.is_inside = False  # of what is said of a job that begins
        self.began = False

    def add(self, line: str) -> None:
        """Keep a line, where it may be about more than a job."""
        if line.startswith((BEGAN, f'{MARK}{{"began"')):
            self.began = True
            return
        self.is_inside = bool(JOB.match(line)) or (self.is_inside and line.startswith(" "))
        if not self.is_inside and not CHATTER.match(line):
            self.lines.append(line)

    @property
    def text(self) -> str:
        """What was kept, after `BEGAN` where Snakemake came so far."""
        return f"{BEGAN}\n" * self.began + "".join(self.lines)


def _hand_on(stream: IO[str], lines: Kept, audience: Audience) -> None:
    for line in stream:
        lines.add(line)
        audience.heard(line)


class _Stop:
    """Hands the first signal to process groups, and kills them when they do not end."""

    def __init__(self) -> None:
        self.groups: set[int] = set()
        self.signal, self.ticks, self.is_asked = 0, 0, False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen within the block."""
        before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
        is_main = threading.current_thread() is threading.main_thread()
        for number in SIGNALS if is_main else ():
            before[number] = signal.signal(number, self._heard)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.stop(number)

    def stop(self, number: int) -> None:
        """Ask the process groups to stop, for a signal that was heard or would be."""
        if not self.signal:
            self.signal = number
            print("popatlas: stopping; the jobs that run are ended, finished work is kept", file=sys.stderr, flush=True)
        self.ask()

    def ask(self) -> None:
        """Ask the process groups to stop."""
        self.is_asked = True
        self._send(signal.SIGINT)  # Snakemake ends its jobs, those of a cluster too

    def insist(self) -> None:
        """Kill what has not ended in time."""
        if self.is_asked:
            self.ticks += 1
            if self.ticks * TICK > GRACE:
                self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        for group in tuple(self.groups):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)


def _children() -> list[psutil.Process]:
    import psutil

    return psutil.Process().children(recursive=True)


def _end_orphans(others: set[int]) -> None:
    """End the jobs that a killed Snakemake left behind: they would write into the results of the next run."""
    import psutil

    orphans = [child for child in _children() if child.pid not in others]
    for process in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(orphans, timeout=10)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=10)


def _end_with_parent() -> None:
    """Be asked to stop when the parent dies; understand SIGINT also where the parent runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere a killed run leaves its jobs running
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
