"""The book of jobs: what each attempt at a job asked for, what its steps used, and how it ended.

The Snakemake that runs the jobs adds a line when one has ended, wherever it ran; a record is of the last attempt only, and
does not know what was asked for. No scan is named.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from popatlas.cohort.journal import stamp
from popatlas.reasons import OOM, UNKNOWN, code_of_words, kernel_kills

BOOK = "cohort/jobs.jsonl"
OK, FAILED, KILLED = "ok", "failed", "killed"


@dataclass(frozen=True)
class Asked:
    """What an attempt at a job asks for.

    Attributes
    ----------
    rule : str
        Rule of Snakemake.
    attempt : int
        From 1.
    cores, gpus : int
        Processors.
    mem_mb, minutes : int or None
        Memory and time; None where nothing is asked.
    scans : int
        How many it serves.
    """

    rule: str
    attempt: int = 1
    cores: int = 1
    mem_mb: int | None = None
    minutes: int | None = None
    gpus: int = 0
    scans: int = 1


@dataclass(frozen=True)
class Step:
    """What a step used: the rule that it stands for, its time, and the largest memory of its process until its end."""

    rule: str
    seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Entry(Asked):
    """A line of the book: an attempt that has ended.

    Attributes
    ----------
    ended : float
        Seconds since 1970.
    state : str
        `OK`, `FAILED` (a step says why) or `KILLED`.
    code : str
        Why it did not end well (`popatlas.reasons`).
    before : str
        What the attempt before died of, where only this one shows it: it needed more memory than that one had.
    device : str
        Where a network ran; empty without one.
    steps : tuple of Step
        That ran in this attempt and left a record.
    """

    ended: float = 0.0
    state: str = OK
    code: str = ""
    before: str = ""
    device: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def seconds(self) -> float:
        """Time of its steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of its steps."""
        return sum(step.cpu_seconds for step in self.steps)

    @property
    def peak_mb(self) -> float:
        """Largest memory."""
        return max((step.peak_mb for step in self.steps), default=0.0)


@dataclass
class _Open:
    """An attempt that has begun: what it asks for, and rule, log and former stamp of the record of each step."""

    asked: Asked
    steps: list[tuple[str, str, int]] = field(default_factory=list)


class JobBook:
    """Writes the book.

    Parameters
    ----------
    out_dir : Path
        Output folder.
    """

    def __init__(self, out_dir: Path) -> None:
        self.out_dir, self.kills = out_dir, kernel_kills()
        self.open: dict[object, _Open] = {}
        self.died: dict[object, int] = {}  # memory that a job had when it was killed, for no reason that is known

    def begin(self, number: object, asked: Asked, steps: Sequence[tuple[str, str]]) -> None:
        """Note what an attempt asks for; `steps`: rule and log of each."""
        self.open[number] = _Open(asked, [(rule, log, stamp(self.out_dir, log)) for rule, log in steps])

    def end(self, number: object, *, good: bool, said: str = "") -> None:
        """Write down how an attempt ended.

        Parameters
        ----------
        number : object
            That of `begin`.
        good : bool
            Whether the job is done.
        said : str
            What its executor said of it.
        """
        begun = self.open.pop(number, None)
        if begun is None:
            return
        records = [self._record(log, before) for _, log, before in begun.steps]  # empty where a step did not run
        told = [(step[0], record) for step, record in zip(begun.steps, records, strict=True) if record]
        steps = tuple(step for rule, record in told if (step := _step(rule, record)))
        device = next((str(one["notes"]["device"]) for _, one in told if "device" in (one.get("notes") or {})), "")
        entry = Entry(**asdict(begun.asked), ended=round(time.time(), 1), device=device, steps=steps)
        entry = replace(entry, before=self._before(number, entry)) if good else self._failed(number, entry, records, said)
        with suppress(OSError):  # a full disk, which the run itself tells of
            _add(self.out_dir / BOOK, asdict(entry))

    def _before(self, number: object, entry: Entry) -> str:
        had = self.died.pop(number, None)
        return OOM if had is not None and entry.peak_mb > had else ""

    def _failed(self, number: object, entry: Entry, steps: Sequence[Mapping[str, Any]], said: str) -> Entry:
        failed = [record for record in steps if record.get("state") == FAILED]
        if failed:
            return replace(entry, state=FAILED, code=str(failed[0].get("code") or UNKNOWN))
        if steps and all(record.get("state") == OK for record in steps):  # what they made was not taken
            return replace(entry, state=FAILED, code=UNKNOWN)
        code, kills = code_of_words(said), kernel_kills()
        if code == UNKNOWN and kills > self.kills:  # on this machine
            code = OOM
        if code == UNKNOWN and entry.mem_mb is not None:
            self.died[number] = entry.mem_mb
        self.kills = kills
        return replace(entry, state=KILLED, code=code)

    def _record(self, log: str, before: int) -> dict[str, Any]:
        """Return the record of a step, empty when it did not run in this attempt."""
        try:
            with open(f"{self.out_dir}/{log}.json", encoding="utf-8") as stream:  # noqa: PTH123  # of each job
                found = json.load(stream) if os.fstat(stream.fileno()).st_mtime_ns != before else {}
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def read_book(out_dir: Path, since: float = 0.0) -> list[Entry]:
    """Return the lines of a book from a time on, oldest first; one that is torn, or no line of today, counts for nothing."""
    try:
        lines = (out_dir / BOOK).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError, TypeError, KeyError):
            content = json.loads(line)
            entry = Entry(**{**content, "steps": tuple(Step(**step) for step in content["steps"])})
            found += [entry] if entry.ended >= since else []
    return found


def _step(rule: str, record: Mapping[str, Any]) -> Step | None:
    try:
        return Step(rule, *(float(record[key]) for key in ("seconds", "cpu_seconds", "peak_mb")))
    except (KeyError, TypeError, ValueError):
        return None


def _add(file: Path, content: Mapping[str, object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as stream:
        torn = stream.tell() and not _ends_line(stream)
        stream.write((b"\n" if torn else b"") + json.dumps(content).encode() + b"\n")


def _ends_line(stream: Any) -> bool:
    stream.seek(-1, os.SEEK_END)
    return bool(stream.read(1) == b"\n")
