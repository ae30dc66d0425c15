"""Attempts at a registration, one after another, until one passes the gate."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from popatlas.diskspace import out_of_space
from popatlas.errors import ConfigError, PopatlasError, SetupError
from popatlas.failures import describe
from popatlas.reasons import code_of
from popatlas.registration.attempt import attempt_row, try_once
from popatlas.registration.gate import Limits
from popatlas.registration.pair import Pair
from popatlas.registration.types import Attempt, Made, Registration
from popatlas.settings import Content

# Errors of the set-up or of the code: no image causes them, so another engine must not hide them
NOT_OF_THE_IMAGE = (ConfigError, SetupError, ImportError, NameError, AttributeError, TypeError, NotImplementedError)


def try_in_turn(
    pair: Pair,
    attempts: Sequence[Attempt],
    limits: Limits,
    publish: Callable[[Made], None],
    *,
    refused: Callable[[Made], None] | None = None,
    predicted: Callable[[], Registration] | None = None,
    threads: int = 1,
) -> Iterator[Content]:
    """Make attempt after attempt until one passes, or none can.

    Parameters
    ----------
    pair : Pair
        Images and masks.
    attempts : sequence of Attempt
        In order.
    limits : mapping
        The configuration's `register.gate`.
    publish : callable
        Takes what passed; its files are gone afterwards.
    refused : callable, optional
        Takes what was deformed and did not pass, to be looked at.
    predicted : callable, optional
        Returns the files that a batch made for the first attempt.
    threads : int
        Threads of engines that use them.

    Yields
    ------
    dict
        Each attempt as a row of the gate's file; one that raises an error that an image may have caused has failed.

    Raises
    ------
    MemoryError, OSError
        When memory or a disk ends: the next attempt would not fit either, and the scheduler may give more.
    Exception
        Of the kinds `NOT_OF_THE_IMAGE`.
    """
    for number, attempt in enumerate(attempts):
        row = _try(pair, attempt, limits, (publish, refused), predicted if number == 0 else None, threads)
        yield row
        if not row["reasons"] or row.get("beyond_repair", False):
            return


def _try(
    pair: Pair,
    attempt: Attempt,
    limits: Limits,
    take: tuple[Callable[[Made], None], Callable[[Made], None] | None],
    predicted: Callable[[], Registration] | None,
    threads: int,
) -> Content:
    """Make one attempt, hand on what passes or what does not, and return its row."""
    publish, refused = take
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = predicted() if predicted else None
            outcome = try_once(pair, attempt, limits, Path(folder), threads, made)
        except (MemoryError, *NOT_OF_THE_IMAGE):
            raise
        except Exception as error:  # of any engine, all of which raise kinds of their own
            if out_of_space(error):
                raise
            if not isinstance(error, PopatlasError):
                traceback.print_exc()
            print(f"{attempt} raised an error: {describe(error)}", flush=True)
            return attempt_row(attempt, {}, [describe(error)]) | {"code": code_of(error)}
        if outcome.reasons or outcome.made is None:
            print(f"{attempt} failed the gate: {'; '.join(outcome.reasons)}", flush=True)
            if refused is not None and outcome.made is not None:
                refused(outcome.made)
        else:
            publish(outcome.made)
        return outcome.row()
