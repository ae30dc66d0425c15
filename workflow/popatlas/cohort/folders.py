"""Folders of a dataset that hide their images: not readable, or links to nothing. An index passes over them in silence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from popatlas.errors import InputError
from popatlas.paths import printable


class Hidden(NamedTuple):
    """A folder whose images nobody sees: subject, session (or empty), code of `CHECKS`, and folder in the dataset."""

    subject: str
    session: str
    code: str
    folder: str


def subject_folders(root: Path) -> list[str]:
    """Return the names of the subjects' folders of a dataset, links to nothing among them.

    Parameters
    ----------
    root : Path
        Dataset.

    Raises
    ------
    InputError
        When it cannot be read, or has no such folder.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        message = f"the dataset cannot be read: {error.strerror}"
        raise InputError(message, file=root, remedy="check the path, or ask for the right to read it") from error
    subjects = (entry for entry in entries if entry.name.startswith("sub-"))
    names = [printable(entry.name) for entry in subjects if entry.is_symlink() or entry.is_dir()]
    if not names:
        raise InputError("no sub-* folder was found", file=root, remedy="give the root of a BIDS dataset")
    return names


def hidden_folders(root: Path, names: list[str]) -> Iterator[Hidden]:
    """Yield the folders of subjects, sessions and anatomical images that cannot be read, or are links to nothing.

    Parameters
    ----------
    root : Path
        Dataset.
    names : list of str
        Folders of subjects.
    """
    for subject in names:
        for session in ("", *_below(root / subject, "ses-")):
            folders = (f"{subject}/{session}".rstrip("/"), f"{subject}/{session}/anat".replace("//", "/"))
            found = next(((code, folder) for folder in folders if (code := _problem(root / folder))), None)
            if found is not None:
                yield Hidden(subject, session, *found)


def _below(folder: Path, start: str) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.name.startswith(start))
    except OSError:
        return []


def _problem(folder: Path) -> str:
    if folder.is_symlink() and not folder.exists():
        return "link"
    try:
        os.scandir(folder).close()
    except PermissionError:
        return "denied"
    except OSError:  # no such folder, or a file of that name: nothing is hidden there
        return ""
    return "" if os.access(folder, os.X_OK) else "denied"


def unnamed(root: Path) -> InputError:
    """Return the error for a dataset in which a name of a file or folder is not in UTF-8; it tells the first one."""
    found = ""
    for folder, folders, files in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name.startswith("sub-")]
        paths = (str((Path(folder) / name).relative_to(root)) for name in (*folders, *files))
        found = found or next((printable(path) for path in paths if printable(path) != path), "")
    remedy = "rename it, for example: convmv -f latin1 -t utf8 -r --notest BIDS_DIR"
    return InputError(f"a name in the dataset is not in UTF-8: {found}", file=root, remedy=remedy)
