"""The ladder of a registration: what is tried after a failed gate, rung by rung, until one passes."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from popatlas.diskspace import out_of_space
from popatlas.errors import ConfigError, PopatlasError, SetupError
from popatlas.failures import describe
from popatlas.registration.attempt import attempt, attempt_row
from popatlas.registration.pair import Pair
from popatlas.registration.types import Made, Registration, Rung

# Errors of the set-up or of the code: no image causes them, so another engine must not hide them
NOT_OF_THE_IMAGE = (ConfigError, SetupError, ImportError, NameError, AttributeError, TypeError, NotImplementedError)


def climb(
    pair: Pair,
    rungs: Sequence[Rung],
    limits: Mapping[str, Any],
    publish: Callable[[Made], None],
    *,
    predicted: Callable[[], Registration] | None = None,
    threads: int = 1,
) -> Iterator[dict[str, Any]]:
    """Try rung after rung until a registration passes, or none can.

    Parameters
    ----------
    pair : Pair
        Images and masks.
    rungs : sequence of Rung
        In order.
    limits : mapping
        The configuration's `register.gate`.
    publish : callable
        Takes what passed; its files are gone afterwards.
    predicted : callable, optional
        Returns the files that a batch made by the first rung.
    threads : int
        Threads of engines that use them.

    Yields
    ------
    dict
        Each attempt as a row of the gate's file; a rung that raises an error that an image may have caused has failed.

    Raises
    ------
    MemoryError, OSError
        When memory or a disk ends: the next rung would not fit either, and the scheduler may give more.
    Exception
        Of the kinds `NOT_OF_THE_IMAGE`.
    """
    for number, rung in enumerate(rungs):
        row = _try(pair, rung, limits, publish, predicted if number == 0 else None, threads)
        yield row
        if not row["reasons"] or row.get("beyond_repair", False):
            return


def _try(
    pair: Pair,
    rung: Rung,
    limits: Mapping[str, Any],
    publish: Callable[[Made], None],
    predicted: Callable[[], Registration] | None,
    threads: int,
) -> dict[str, Any]:
    """Try one rung, publish what passes, and return its row."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = predicted() if predicted else None
            outcome = attempt(pair, rung, limits, Path(folder), threads, made)
        except (MemoryError, *NOT_OF_THE_IMAGE):
            raise
        except Exception as error:  # of any engine, all of which raise kinds of their own
            if out_of_space(error):
                raise
            if not isinstance(error, PopatlasError):
                traceback.print_exc()
            print(f"{rung} raised an error: {describe(error)}", flush=True)
            return attempt_row(rung, {}, [describe(error)])
        if outcome.reasons or outcome.made is None:
            print(f"{rung} failed the gate: {'; '.join(outcome.reasons)}", flush=True)
        else:
            publish(outcome.made)
        return outcome.row()
