"""Kinds of arguments of the command line that argparse does not have."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from popatlas.errors import PopatlasError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

Subparsers: TypeAlias = "_SubParsersAction[ArgumentParser]"  # what verbs are added to


class UsageError(PopatlasError):
    """A command line that cannot be understood; it ends with code 2, as those that argparse refuses."""


def given_path(text: str) -> Path:
    """Return a path; see `not_empty`."""
    return Path(not_empty(text))


def not_empty(text: str) -> str:
    """Return the beginning of a path; an empty one would be the current folder, and is most likely an empty variable."""
    if not text.strip():
        raise ArgumentTypeError("an empty path: is a variable of the shell not set?")
    return text


def count(text: str) -> int:
    """Return a whole number from 0."""
    return _at_least(0, text)


def positive(text: str) -> int:
    """Return a whole number from 1."""
    return _at_least(1, text)


def duration(text: str) -> float:
    """Return a number from 0; it may be infinite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise ArgumentTypeError(f"{text!r} is no number from 0")
    return value


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ArgumentTypeError(f"{text!r} is no whole number from {least}")
    return int(text)
