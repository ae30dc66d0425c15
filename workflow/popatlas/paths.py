"""Paths that the workflow can take: anything but what Snakemake reads as a placeholder, and what is no text.

Snakemake fills in {name} and <name> wherever it finds them, in the path of an input too, and knows no way to escape them.
Quotes, spaces, dollar signs and the like are no trouble: every path is quoted where a command is made of it.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

from popatlas.errors import InputError

PLACEHOLDERS = {"braces {}": re.compile(r"\{.+\}", re.DOTALL), "angle brackets <>": re.compile(r"<.+>", re.DOTALL)}


def unworkable(path: str | os.PathLike[str], *, is_input: bool = True) -> str:
    """Tell which characters of a path the workflow cannot take.

    Parameters
    ----------
    path : path-like
        Any path.
    is_input : bool
        Jobs read it; placeholders hurt there only.

    Returns
    -------
    str
        Empty when it can take all.
    """
    text = os.fspath(path)
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        return "a line break or another control character"
    if not is_text(text):
        return "a name that is not in UTF-8"
    return next((name for name, pattern in PLACEHOLDERS.items() if is_input and pattern.search(text)), "")


def is_text(path: str) -> bool:
    """Tell whether a path is in UTF-8; names of files may be of any bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(path: str | os.PathLike[str]) -> str:
    """Return a path as text in UTF-8, bytes that are none as escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def check_path(path: str | os.PathLike[str], what: str, *, is_input: bool = True) -> None:
    """Raise InputError when the workflow cannot take a path; `what` names it. See `unworkable`."""
    if problem := unworkable(path, is_input=is_input):
        remedy = "rename the folder"
        if is_input:
            remedy += ", or give a link to it that has none: ln -s PATH LINK"
        raise InputError(f"{what} has {problem} in its path", file=printable(path), remedy=remedy)


def resolved(path: str | os.PathLike[str]) -> str:
    """Return an absolute path without links; with them, where the workflow can take it so only.

    Raises
    ------
    InputError
        When links refer to each other in a ring.
    """
    given = Path(path).absolute()
    try:
        real = given.resolve()
    except (OSError, RuntimeError) as error:
        raise InputError("the path cannot be followed: links in a ring", file=given, remedy="correct the links") from error
    return str(given if unworkable(real) and not unworkable(given) else real)


def path_prefix() -> str:
    """Return the words that a shell command of Snakemake begins with, so that it finds the programs of this Python."""
    folder = shlex.quote(str(Path(sys.executable).parent))
    return f"export PATH={folder}:$PATH; ".replace("{", "{{").replace("}", "}}")
