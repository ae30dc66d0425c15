"""Find weights in the lock files; nothing is loaded, so that a plan costs no torch."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from popatlas.errors import SetupError
from popatlas.images.io import PathLike, sha256
from popatlas.zoo.lock import Entry, read_locks

ADD = "popatlas weights add FILE --name NAME --licence LICENCE"


def find_weights(name_or_path: PathLike) -> Entry:
    """Find weights in the lock files.

    Parameters
    ----------
    name_or_path : str or path-like
        A name, or a `.safetensors` file that is in a lock: itself or a copy.

    Returns
    -------
    Entry
        What is known of them.

    Raises
    ------
    SetupError
        For an unknown name, with names that are like it, and for a file that is in no lock.
    """
    entries = read_locks()
    text = str(name_or_path)
    for entry in entries:
        if entry.name == text:
            return entry
    if not text.endswith(".safetensors"):
        names = [entry.name for entry in entries]
        close = difflib.get_close_matches(text, names, n=3, cutoff=0.4)
        known = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(names) or 'none'}"
        raise SetupError(f"there are no weights {text!r}", remedy=f"{known}; see popatlas weights list")
    path = Path(name_or_path)
    if not path.is_file():
        raise SetupError(
            "there is no such weights file", file=path, remedy="check the path, or give a name of popatlas weights list"
        )
    for entry in entries:
        if entry.path.exists() and entry.path.samefile(path):
            return entry
    digest = sha256(path)
    for entry in entries:
        if entry.sha256 == digest:
            return replace(entry, folder=path.parent, file=path.name)
    raise SetupError(
        "the weights are in no lock file, so that nothing is known of them", file=path, remedy=f"add them: {ADD}"
    )


def check_kind(entry: Entry, *, stripped: bool = True) -> None:
    """Refuse weights that were trained on whole heads where brains are registered, and the other way round."""
    if entry.input.stripped and not stripped:
        message = f"the weights {entry.name} are for brains without skull, and these images are not said to be such"
        remedy = "give --brain (they are), masks of the brains, or --extract-brain; or use other weights"
        raise SetupError(message, file=entry.path, remedy=remedy)
    if stripped and not entry.input.stripped:
        message = f"the weights {entry.name} are for whole heads, and brains without skull are registered"
        raise SetupError(
            message, file=entry.path, remedy="use weights for brains (popatlas weights list), or train such ones"
        )
