"""Errors that a user reads: what is wrong, in which file, of which subject, and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterable


class PopatlasError(Exception):
    """Base of all errors that popatlas raises on purpose; shown without a traceback.

    Attributes
    ----------
    code : str
        What a job that ends with it failed for, see `popatlas.reasons`.
    """

    code = "input"


class ConfigError(PopatlasError):
    """The configuration is wrong or contradicts itself."""

    code = "setup"


class InputError(PopatlasError):
    """An input cannot be used.

    Parameters
    ----------
    message : str
        What is wrong.
    file : path-like, optional
        The file at fault.
    subject : str, optional
        The subject or scan that it belongs to.
    remedy : str, optional
        What the user can do about it.
    code : str, optional
        What it failed for, where another job found that out and it is not the code of the class.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | os.PathLike[str] | None = None,
        subject: str | None = None,
        remedy: str | None = None,
        code: str | None = None,
    ) -> None:
        self.code = code or self.code
        self.message, self.file, self.subject, self.remedy = message, file, subject, remedy
        parts = [message.rstrip(".")]
        if file is not None:
            parts.append(f"[file: {file}]")
        if subject:
            parts.append(f"[subject: {subject}]")
        text = " ".join(parts)
        super().__init__(f"{text}. Remedy: {remedy}" if remedy else text)


class GateError(InputError):
    """A registration that passed the gate in no attempt."""

    code = "gate"


class SetupError(InputError):
    """What is installed, downloaded or configured is at fault, and no image: for every scan it would be the same."""

    code = "setup"


class PackageError(SetupError):
    """An optional package is not installed."""


def first_few(items: Iterable[str], most: int = 5) -> str:
    """Return the first items of a list in words, and how many more there are."""
    names = list(items)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
