"""Names of labels, from the table beside a label image."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from popatlas.errors import InputError
from popatlas.images.tables import is_missing, number_of, read_text_table, shown

LABEL_NAMES = "cohort/label-names.tsv"
DSEG_NAMES = "dseg.tsv"  # at the top of a dataset: of all label images below
LOST = "labels that no other table names have their numbers for names"  # what follows from a table that is left out


def read_names(path: Path | None) -> dict[int, str]:
    """Read label names (columns index, name); no file gives no names.

    No two labels have the same name in a table: names that repeat, or that are the number of another label, get their
    index appended.
    """
    names = dict(label_entries(path))
    odd = {label for label, name in names.items() if name.isdigit() and name != str(label)}
    while odd := odd | _repeated(names):
        names |= {label: f"{names[label]}-{label}" for label in odd}
        odd = set()
    return names


def _repeated(names: Mapping[int, str]) -> set[int]:
    counts = Counter(names.values())
    return {label for label, name in names.items() if counts[name] > 1}


def column_names(labels: Iterable[str], numbers: Mapping[str, int] | None = None) -> dict[str, str]:
    """Return a name for each label that every program takes for a column: lower case, digits and `_`, no two alike.

    Parameters
    ----------
    labels : iterable of str
        Names of labels as they are written.
    numbers : mapping of str to int, optional
        Label to its number, which labels get after their name when their names differ only in what is left out.

    Returns
    -------
    dict
        Label to name; ``Left Lateral-Ventricle`` is ``left_lateral_ventricle``.
    """
    plain = {label: _column_name(label) for label in sorted(set(labels))}
    counts, found = Counter(plain.values()), dict[str, str]()
    for label, name in plain.items():
        if counts[name] > 1 and numbers and label in numbers:
            name = f"{name}_{numbers[label]}"
        free, place = name, 1
        while free in found.values() or (free != plain[label] and free in counts):
            place += 1
            free = f"{name}_{place}"
        found[label] = free
    return found


def _column_name(label: str) -> str:
    letters = unicodedata.normalize("NFKD", label.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", letters).strip("_") or "label"


def label_entries(path: Path | None) -> list[tuple[int, str]]:
    """Return index and name of the rows of a table that have both; names as they are written.

    Raises
    ------
    InputError
        What is no table (see `images.tables`), an index that is no whole number, or one that has two names.
    """
    if path is None:
        return []
    table = read_text_table(path)
    if not {"index", "name"} <= set(table.columns):
        return []
    named: dict[int, str] = {}
    for line, index, name in table[["index", "name"]].itertuples(name=None):
        if is_missing(index) or is_missing(name):
            continue
        number = number_of(index)
        if number is None or number != int(number):
            remedy = "write the label of the image as a whole number"
            raise InputError(f"line {line}: the index {shown(index)} is no label", file=path, remedy=remedy)
        if named.setdefault(int(number), name) != name:
            message = f"line {line}: label {int(number)} is named {shown(named[int(number)])} and {shown(name)}"
            raise InputError(message, file=path, remedy="give each label one name")
    return list(named.items())


def names_beside(images: Iterable[Path]) -> tuple[dict[Path, list[tuple[int, str]]], list[str]]:
    """Read the tables of names beside label images.

    Parameters
    ----------
    images : iterable of Path
        Label images.

    Returns
    -------
    entries : dict
        By table, in the order of the images, what `label_entries` returns of it; those that cannot be used are left out.
    faults : list of str
        What is wrong with each of these, with file and remedy.
    """
    entries: dict[Path, list[tuple[int, str]]] = {}
    faults = []
    for table in dict.fromkeys(found for image in images if (found := find_names(image)) is not None):
        try:
            entries[table] = label_entries(table)
        except InputError as error:
            faults.append(str(error))
    return entries, faults


def find_names(labels: Path | None) -> Path | None:
    """Find the table of label names beside a label image: its own TSV, or dseg.tsv up to the root of its dataset."""
    if labels is None:
        return None
    own = labels.with_name(labels.name.split(".")[0] + ".tsv")
    if own.exists():
        return own
    for folder in list(labels.resolve().parents)[:6]:
        if (folder / DSEG_NAMES).exists():
            return folder / DSEG_NAMES
        if (folder / "dataset_description.json").exists():
            return None
    return None
