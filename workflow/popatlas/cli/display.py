"""What a run shows while it works: a line for each stage, which stands on a terminal and is said now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from popatlas.cli.process import NOTE
from popatlas.cli.progress import Progress, Row
from popatlas.failures import REFUSED

if TYPE_CHECKING:
    from types import TracebackType

    from rich.live import Live
    from rich.table import Table

SOON, SELDOM = 10.0, 300.0  # seconds between lines where there is no terminal: at the beginning, and after hours
REDRAW = 0.9  # seconds between two drawings of a terminal
SHARE = 30  # of the time of a run so far, that long it is silent
WIDTH = 24  # characters of a bar
SHORTEST = 6  # of one that says something
MINUTE, HOUR, DAY = 60, 3600, 86400


class Display(Protocol):
    """What is shown of a run; `progress` tells how far it is."""

    progress: Progress

    def heard(self, line: str) -> None:
        """Take a line of Snakemake's stderr, and show it where it is for the user."""

    def tick(self) -> None:
        """Show how far the run is, when it is time for that."""


class Notes:
    """Shows notes of popatlas once, and nothing of Snakemake.

    Parameters
    ----------
    progress : Progress
        Is told what Snakemake tells.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress, self.said = progress, set[str]()

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End."""

    def heard(self, line: str) -> None:
        """See `Display.heard`."""
        if not self.progress.hear(line) and line.startswith(NOTE) and not line.startswith(REFUSED) and line not in self.said:
            self.said.add(line)
            sys.stderr.write(line)
            sys.stderr.flush()

    def tick(self) -> None:
        """See `Display.tick`."""
        self.progress.look()


class Everything(Notes):
    """Shows all that Snakemake says, but for notes of popatlas that have been shown before."""

    def heard(self, line: str) -> None:
        """See `Display.heard`."""
        if line not in self.said:
            sys.stderr.write(line)
            sys.stderr.flush()
        if line.startswith(NOTE):
            self.said.add(line)


class Lines(Notes):
    """Says lines of what has changed, at growing intervals.

    Parameters
    ----------
    progress : Progress
        How far the run is.
    clock : callable
        Returns seconds.
    """

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(progress)
        self.clock, self.began, self.shown = clock, clock(), dict[str, Row]()
        self.next = self.began + SOON

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Say how far it came."""
        self._say()

    def tick(self) -> None:
        """See `Display.tick`."""
        super().tick()
        now = self.clock()
        if now >= self.next:
            self._say()
            self.next = now + min(max((now - self.began) / SHARE, SOON), SELDOM)

    def _say(self) -> None:
        for row in self.progress.rows():
            before = self.shown.get(row.stage)
            counts = (row.done, row.failed, row.running, row.queued)
            if before is None and row.done + row.failed < row.total and not (row.running or row.queued or row.failed):
                continue  # it has not begun
            if before is None or counts != (before.done, before.failed, before.running, before.queued):
                print(in_words(row), flush=True)
                self.shown[row.stage] = row


class Standing(Notes):
    """Lets a line for each stage stand on a terminal, with the notes above them.

    Parameters
    ----------
    progress : Progress
        How far the run is.
    stream : text stream
        The terminal.
    """

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(progress)
        self.drawn = 0.0
        self.console = Console(file=stream, highlight=False)
        self.live: Live = Live(
            console=self.console, get_renderable=self._table, auto_refresh=False, redirect_stderr=sys.stderr.isatty()
        )

    def __enter__(self) -> Self:
        """Begin."""
        self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the last state on the terminal."""
        self.live.stop()

    def tick(self) -> None:
        """See `Display.tick`."""
        super().tick()
        if time.monotonic() - self.drawn >= REDRAW:
            self.drawn = time.monotonic()
            self.live.refresh()

    def _table(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 1))
        rows = self.progress.rows()
        words = [(row.stage, *parts(row)) for row in rows]
        # a bar gets what the words leave: on a narrow terminal they would be broken into lines by it
        room = self.console.width - sum(max(map(len, column)) + 1 for column in zip(*words, strict=True)) - 1
        for row, (stage, *told) in zip(rows, words, strict=True):
            bar = ProgressBar(total=max(row.total, 1), completed=row.done + row.failed, width=min(room, WIDTH))
            table.add_row(stage, *([bar] if room >= SHORTEST else []), *told)
        return table


def display_of(progress: Progress, *, verbose: bool, quiet: bool = False) -> Notes:
    """Return what shows a run.

    Parameters
    ----------
    progress : Progress
        How far it is.
    verbose : bool
        Show all that Snakemake says.
    quiet : bool
        Show notes only.
    """
    if verbose:
        return Everything(progress)
    if quiet:
        return Notes(progress)
    return Standing(progress, sys.stdout) if _is_terminal(sys.stdout) else Lines(progress)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def parts(row: Row) -> list[str]:
    """Return how far a stage is: what is done, what became of the rest, and how long it will take."""
    if not row.total:
        return ["looking at the dataset", "", ""]
    counts = {"failed": row.failed, "running": row.running, "queued": row.queued, "to go": row.to_go}
    if row.stage == "index":
        counts = {"cannot be used": row.failed}
    words = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    left = f"about {duration(row.seconds)} left" if row.seconds is not None and row.done < row.total else ""
    return [f"{row.done} of {row.total} done", words, left]


def in_words(row: Row) -> str:
    """Return a line about a stage."""
    return f"{row.stage}: {', '.join(part for part in parts(row) if part)}"


def duration(seconds: float) -> str:
    """Return a time in words, coarsely."""
    if seconds < MINUTE:
        return "1 min" if seconds > MINUTE / 2 else f"{max(round(seconds), 1)} s"
    if seconds < 1.5 * HOUR:
        return f"{round(seconds / MINUTE)} min"
    if seconds < 2 * DAY:
        return f"{round(seconds / HOUR)} h"
    return f"{round(seconds / DAY)} days"
