"""Which scans belong to the study: a query on participants.tsv, include and exclude lists."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popatlas.errors import ConfigError, InputError
from popatlas.images.io import read_table

if TYPE_CHECKING:
    import pandas as pd

# Columns of the index that a column of participants.tsv must not shadow
RESERVED = ("scan", "subject", "session", "state")


def subject_name(name: str) -> str:
    """Return a subject's name with its `sub-` prefix."""
    return name if name.startswith("sub-") else f"sub-{name}"


def read_participants(path: Path) -> pd.DataFrame:
    """Read participants.tsv: `participant_id` with `sub-`, one row per participant; no rows when there is no file."""
    import pandas as pd

    if not path.is_file():
        return pd.DataFrame({"participant_id": pd.Series(dtype=str)})
    table = read_table(path, dtype={"participant_id": str}, encoding="utf-8-sig")
    if "participant_id" not in table:
        found = ", ".join(str(name) for name in table.columns)
        raise InputError(f"no column participant_id, only {found}", file=path, remedy="separate columns by tabs (BIDS)")
    table = table[table["participant_id"].fillna("").str.strip() != ""]
    table = table.assign(participant_id=table["participant_id"].str.strip().map(subject_name))
    return table.drop_duplicates("participant_id").drop(columns=list(RESERVED), errors="ignore")


def query_participants(participants: pd.DataFrame, query: str) -> set[str]:
    """Return the participants for whom a pandas query holds.

    Raises
    ------
    ConfigError
        When the query cannot be evaluated; the columns that exist are named.
    """
    try:
        return set(participants.query(query)["participant_id"])
    except Exception as error:  # pandas raises many kinds for a bad expression
        raise ConfigError(
            f"cohort.query '{query}' cannot be evaluated: {error}. "
            f"Remedy: use the columns of participants.tsv: {', '.join(participants.columns)}"
        ) from error


def selection_reasons(subjects: Iterable[str], participants: pd.DataFrame, options: Mapping[str, Any]) -> dict[str, str]:
    """Return why subjects are left out.

    Parameters
    ----------
    subjects : iterable of str
        Subjects of the dataset, with `sub-`.
    participants : DataFrame
        participants.tsv with `participant_id`.
    options : mapping
        The configuration's `cohort`: query, include, exclude.

    Returns
    -------
    dict
        Subject to reason; a selected subject has no entry.

    Raises
    ------
    ConfigError
        For a name in the lists that is not in the dataset, or a bad query.
    """
    known = sorted(set(subjects))
    include = {subject_name(name) for name in options["include"]}
    exclude = {subject_name(name) for name in options["exclude"]}
    for where, names in (("include", include), ("exclude", exclude)):
        for name in sorted(names - set(known)):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the dataset has {len(known)} subjects"
            raise ConfigError(f"cohort.{where}: {name} is not in the dataset. Remedy: {hint}")
    chosen = query_participants(participants, options["query"]) if options["query"] else None
    reasons = {}
    for subject in known:
        if subject in exclude:
            reasons[subject] = "in cohort.exclude"
        elif include and subject not in include:
            reasons[subject] = "not in cohort.include"
        elif chosen is not None and subject not in chosen:
            reasons[subject] = f"cohort.query is not true: {options['query']}"
    return reasons
