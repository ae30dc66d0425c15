"""Which scans belong to the study: include and exclude lists of subjects, and a query on what is known about each scan."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.config.sections import Cohort
from popatlas.errors import ConfigError, first_few
from popatlas.images.io import read_table

if TYPE_CHECKING:
    import pandas as pd

WITHDRAWN = "cohort/withdrawn.tsv"  # who has withdrawn the consent, see `popatlas.cohort.withdraw`
NAMES = ("participant_id", "scan", "subject", "session")  # columns that are text, whatever they look like


def subject_name(name: str) -> str:
    """Return a subject's name with its `sub-` prefix."""
    return name if name.startswith("sub-") else f"sub-{name}"


def read_withdrawn(out_dir: Path) -> set[str]:
    """Return the subjects that have withdrawn their consent."""
    path = out_dir / WITHDRAWN
    return set(read_table(path, dtype=str)["subject"]) if path.is_file() else set()


def parse_labels(texts: Iterable[str]) -> list[str]:
    """Return the subjects of a command line, each once.

    Parameters
    ----------
    texts : iterable of str
        Labels with or without `sub-`, also several with commas between.

    Raises
    ------
    ConfigError
        For a text that is no label.
    """
    labels = [label.strip() for text in texts for label in text.split(",")]
    odd = next((label for label in labels if not re.fullmatch("(sub-)?[0-9A-Za-z]+", label)), None)
    if odd is not None:
        remedy = "give labels such as 01 or sub-01, after BIDS_DIR and OUT_DIR"
        raise ConfigError(f"--participant-label: '{odd}' is not the label of a subject. Remedy: {remedy}")
    return list(dict.fromkeys(subject_name(label) for label in labels))


def selection_reasons(people: pd.DataFrame, options: Cohort) -> tuple[dict[str, str], list[str]]:
    """Return why scans are left out.

    The lists choose subjects; the query is asked of each scan, with the values of its own session.

    Parameters
    ----------
    people : DataFrame
        One row per scan: scan, subject, session, participant_id and the columns of participants.tsv, as text.
    options : mapping
        The configuration's `cohort`: query, include, exclude.

    Returns
    -------
    reasons : dict
        Scan to reason; a selected scan has no entry.
    notes : list of str
        What the user should know about the query: scans that it cannot judge, values that no scan has.

    Raises
    ------
    ConfigError
        For a name in the lists that is not in the dataset, or a bad query.
    """
    known = sorted(set(people["subject"]))
    include = {subject_name(name) for name in options.include}
    exclude = {subject_name(name) for name in options.exclude}
    for where, names in (("include", include), ("exclude", exclude)):
        for name in sorted(names - set(known)):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the dataset has {len(known)} subjects"
            where = "cohort.include or --participant-label" if where == "include" else f"cohort.{where}"
            raise ConfigError(f"{where}: {name} is not in the dataset. Remedy: {hint}")
    false, notes = _query_reasons(people, options.query) if options.query.strip() else ({}, [])
    reasons = {}
    for scan, subject in zip(people["scan"], people["subject"], strict=True):
        if subject in exclude:
            reasons[scan] = "in cohort.exclude"
        elif include and subject not in include:
            reasons[scan] = "not in cohort.include"
        elif scan in false:
            reasons[scan] = false[scan]
    return reasons, notes


def _query_reasons(people: pd.DataFrame, query: str) -> tuple[dict[str, str], list[str]]:
    """Return the scans for which a query is not true, with the reason, and what is to be said about it."""
    from popatlas.cohort.query import select

    columns = ["participant_id", *(name for name in people if name not in NAMES), "session"]
    found = select(people.set_index("scan", drop=False)[columns], query, NAMES)
    reasons = {}
    for scan, chosen in found.chosen.items():
        if scan in found.unknown:
            missing = ", ".join(found.unknown[scan])
            reasons[str(scan)] = f"cohort.query cannot be judged{f' without {missing}' if missing else ''}: {query}"
        elif not chosen:
            reasons[str(scan)] = f"cohort.query is not true: {query}"
    notes = [f"cohort.query: {note}" for note in found.notes]
    if found.unknown:
        names = first_few(
            f"{str(scan).rsplit('/', 1)[-1]} ({', '.join(lacks) or 'no number'})" for scan, lacks in found.unknown.items()
        )
        notes.append(f"cohort.query: {len(found.unknown)} scan(s) lack what it asks for and are not selected: {names}")
    if not found.chosen.any():
        notes.append("cohort.query is true for no scan")
    return reasons, notes
