"""The attempts at registering a scan, as rows of its metric table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from popatlas.errors import InputError
from popatlas.images.io import read_json
from popatlas.measures.dictionary import ATTEMPT
from popatlas.measures.metrics import METRICS

PREFIX = "gate_"


def attempt_rows(path: Path) -> Iterator[tuple[str, str, str, float]]:
    """Yield method, label, metric and value of each number of each attempt.

    The method is ``attempt-1`` and so on; the label says what was tried, ``engine-linear-start``.

    Parameters
    ----------
    path : Path
        What the gate wrote, ``desc-gate_registration.json``.

    Raises
    ------
    InputError
        When it has no list of attempts.
    """
    attempts = read_json(path).get("attempts")
    if not isinstance(attempts, list):
        raise InputError("there are no attempts in it", file=path, remedy="delete the file and run again")
    for number, attempt in enumerate(attempts, start=1):
        method, label = f"{ATTEMPT}-{number}", tried(attempt)
        yield method, label, f"{PREFIX}passed", float(not attempt["reasons"])
        for name, value in attempt["metrics"].items():
            if f"{PREFIX}{name}" in METRICS:
                yield method, label, f"{PREFIX}{name}", float(value)


def tried(attempt: Mapping[str, object]) -> str:
    """Return what an attempt was, ``engine-linear-start``, for example ``instance-affine-mass``."""
    return "-".join(str(attempt[key]) for key in ("engine", "linear", "start") if attempt.get(key))
