"""Notes beside the tables of what was drawn: JSON files of the same name, which tell what a table was drawn for."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from popatlas.errors import InputError
from popatlas.images.io import read_json, write_if_changed
from popatlas.settings import Content


def note_beside(table: Path) -> Path:
    """Return the note of a table."""
    return table.with_suffix(".json")


def read_note(table: Path, keys: Collection[str] = ()) -> Content:
    """Return what is noted of a table; empty where there is no note, or one that cannot be read or lacks some keys."""
    try:
        found = read_json(note_beside(table))
    except InputError:
        return {}
    return dict(found) if isinstance(found, Mapping) and set(keys) <= set(found) else {}


def write_note(table: Path, note: Mapping[str, object]) -> None:
    """Write the note of a table unless it is there already."""
    write_if_changed(note_beside(table), json.dumps(note))
