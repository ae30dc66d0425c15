"""Disks and quotas that end: which folder is full, and what to do."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from popatlas.errors import InputError

FULL = {errno.ENOSPC: "is full", errno.EDQUOT: "is full: the quota of the user is used up"}
MEGABYTE = 1_000_000


def out_of_space(error: BaseException, folders: Iterable[Path] = ()) -> InputError | None:
    """Return an error that names the folder that is full.

    Parameters
    ----------
    error : exception
        Any error; what it was raised from counts too.
    folders : iterable of Path
        Where was written, besides the current folder and that for temporary files.

    Returns
    -------
    InputError or None
        None when nothing says that a disk or a quota is full.
    """
    found = next((one for one in _chain(error) if isinstance(one, OSError) and one.errno in FULL), None)
    if found is None or found.errno is None:
        return None
    temporary = temporary_folder()
    if isinstance(found.filename, str):
        folder = existing(Path(found.filename).parent)
    else:  # the one with the least space must be it
        written = [Path(), *folders] if temporary is None else [Path(), *folders, temporary]
        folder = min(map(existing, written), key=free_bytes)
    message = f"the folder {folder} {FULL[found.errno]} ({free_bytes(folder) / MEGABYTE:.0f} MB are free)"
    return InputError(message, remedy=remedy_for(folder))


def remedy_for(folder: Path) -> str:
    """Return what to do when a folder has not enough space."""
    temporary = temporary_folder()
    if temporary is not None and folder.is_relative_to(temporary):
        return "free some space there, or set TMPDIR to a folder with more: TMPDIR=/folder popatlas ..."
    return "free some space there and run the same command again, or choose a folder on another disk"


def temporary_folder() -> Path | None:
    """Return the folder for temporary files, None when there is none that can be written."""
    try:
        return existing(Path(tempfile.gettempdir()))
    except OSError:
        return None


def existing(folder: Path) -> Path:
    """Return a folder, or the first one above it that exists."""
    whole = folder.absolute()
    return next((path for path in (whole, *whole.parents) if path.exists()), Path("/"))


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free in a folder, or in the first one above it that exists."""
    return shutil.disk_usage(existing(folder)).free


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
