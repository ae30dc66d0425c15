"""Errors as a user meets them: those of the system and of us in a line, all others with their traceback in a file."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from popatlas import __version__
from popatlas.diskspace import out_of_space
from popatlas.errors import InputError, PopatlasError

REFUSED = "popatlas: error: "  # how the last words of a Snakefile begin
REMEDIES = {
    errno.EACCES: "ask for the right to read or write it, or give another path",
    errno.EPERM: "ask for the right to read or write it, or give another path",
    errno.EROFS: "it lies on a disk that can only be read: give another path",
    errno.ENOENT: "check the path",
    errno.EEXIST: "a file is in the place of a folder: move it, or give another path",
    errno.ENOTDIR: "a part of the path is a file: check it",
    errno.EISDIR: "it is a folder: give a file",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EMFILE: "allow more open files: ulimit -n 4096",
    errno.ESTALE: "the network folder was mounted anew: run the same command again",
    errno.EIO: "the disk cannot be read or written there: check it",
}


def foreseen(error: BaseException) -> PopatlasError | None:
    """Return what a user is told about an error of the system, such as a folder that may not be read.

    Parameters
    ----------
    error : exception
        Any error.

    Returns
    -------
    PopatlasError or None
        None when the error is none of the system, but one of the program.
    """
    if isinstance(error, PopatlasError):
        return error
    if full := out_of_space(error):
        return full
    if isinstance(error, MemoryError):
        return InputError("memory ended", remedy="close other programs, or use a machine with more memory")
    if isinstance(error, OSError) and error.filename is not None and error.errno in REMEDIES:
        return InputError(str(error.strerror), file=error.filename, remedy=REMEDIES[error.errno])
    return None


def describe(error: BaseException) -> str:
    """Return an error in one line: our own as they are, others with their type; a full disk with its folder and remedy."""
    error = out_of_space(error) or error
    return str(error) if isinstance(error, PopatlasError) else f"{type(error).__name__}: {error}"


def unforeseen(error: BaseException, arguments: list[str]) -> str:
    """Write the traceback of an error to a file, and return the message that names it.

    Parameters
    ----------
    error : exception
        Any error.
    arguments : list of str
        Command line.

    Returns
    -------
    str
        Where the file cannot be written, with the traceback itself.
    """
    text = "".join(traceback.format_exception(error))
    head = f"popatlas {__version__}, Python {sys.version.split()[0]}\narguments: {arguments!r}\n\n"
    message = f"an error that popatlas did not foresee: {type(error).__name__}: {str(error)[:500]}"
    try:
        handle, name = tempfile.mkstemp(prefix="popatlas-error-", suffix=".txt")
        os.close(handle)
        Path(name).write_text(head + text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return f"{message}\n{text}"
    return f"{message} [traceback: {name}]. Remedy: report it with that file; it names paths, but holds no data"


@contextmanager
def stopping() -> Iterator[None]:
    """End the process with code 1 and one message where an error that is foreseen would come up inside of Snakemake.

    Snakemake would add the file and the line of the Snakefile and a list of calls to it.
    """
    try:
        yield
    except Exception as error:
        told = foreseen(error)
        if told is None:
            raise
        print(f"{REFUSED}{told}", file=sys.stderr, flush=True)
        raise SystemExit(1) from error


def last_words(output: str) -> str:
    """Return what `stopping` said in the output of Snakemake, or all of it."""
    _, found, said = output.partition(REFUSED)
    return said.strip() if found else output.strip()
