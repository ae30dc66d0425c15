"""Values of an option that stand in a file: those that are as many as the scans are too many for a command line.

Linux takes no more than 128 KiB in one argument, and a rule's whole command is one. ``@FILE`` stands for the lines of a
file; ``@FILE::PATTERN`` for the pattern, once for each line, which takes the place of ``{}``.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

AT, FILLED, BLANK = "@", "::", "{}"
FOLDER = "cohort/lists"  # of these files, relative to OUT_DIR


def values_in(path: str, pattern: str = "") -> str:
    """Return what stands in a command for the lines of a file, or for a pattern with each of them; quoted."""
    if pattern and BLANK not in pattern:
        raise ValueError(f"{pattern}: nothing is filled in")
    return shlex.quote(f"{AT}{path}{FILLED}{pattern}" if pattern else f"{AT}{path}")


def with_values(words: Sequence[str]) -> list[str]:
    """Return the words of a command with the values that stand in files.

    Raises
    ------
    OSError
        A file cannot be read.
    """
    found: list[str] = []
    for word in words:
        found += _values(word.removeprefix(AT)) if word.startswith(AT) else [word]
    return found


def _values(named: str) -> list[str]:
    path, _, pattern = named.partition(FILLED)
    lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [pattern.replace(BLANK, line) for line in lines] if pattern else lines
