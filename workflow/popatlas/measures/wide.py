"""Wide volumes, one row per scan, and what is known of the participants, joined to the tables of the group."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import pandas as pd

from popatlas.images.tables import column_of
from popatlas.measures.dictionary import ATLASES
from popatlas.measures.names import column_names

WHO = ["participant_id", "session_id"]
# columns of participants that say whose row it is, in the words of BIDS and in ours
WHOSE = (*WHO, "scan", "subject", "session")


def wide_volumes(
    metrics: pd.DataFrame,
    scans: pd.DataFrame,
    participants: pd.DataFrame | None = None,
    names: Mapping[int, str] | None = None,
) -> pd.DataFrame:
    """Return one row per scan: the columns of `scans`, participant columns, then ``{method}_{label}`` volumes in ml.

    Parameters
    ----------
    metrics : DataFrame
        Tidy table.
    scans : DataFrame
        Columns participant_id, session_id, and any others that come with them.
    participants : DataFrame, optional
        See :func:`with_participants`.
    names : mapping of int to str, optional
        Number to name of all labels of the cohort, so that a column is called the same whichever labels scans have.

    Returns
    -------
    DataFrame
        Labels that a scan lacks are missing values. Names of labels are made safe, see
        :func:`popatlas.measures.names.column_names`.
    """
    columns = volume_names(metrics, names)
    table = with_participants(scans, participants, [*WHO, *columns])
    if not columns:
        return table
    volumes = metrics[metrics["metric"] == "volume"]
    name = {what: column for column, what in columns.items()}
    keys = pd.Series(list(zip(volumes["method"], volumes["label"], strict=True)), index=volumes.index)
    wide = volumes.pivot_table(
        index=WHO, columns=keys.map(name).rename("column"), values="value", aggfunc="first", sort=False
    )
    return table.merge(wide.reset_index(), on=WHO, how="left")


def volume_names(metrics: pd.DataFrame, names: Mapping[int, str] | None = None) -> dict[str, tuple[str, str]]:
    """Return the columns of volumes, in the order of the rows, to method and label."""
    rows = metrics.loc[metrics["metric"] == "volume", ["method", "label"]].drop_duplicates()
    pairs = [(str(method), str(label)) for method, label in rows.itertuples(index=False)]
    numbers = {name: number for number, name in (names or {}).items()}
    safe = column_names([*numbers, *(label for _, label in pairs)], numbers)
    return {f"{method}_{safe[label]}": (method, label) for method, label in pairs}


def with_participants(
    table: pd.DataFrame, participants: pd.DataFrame | None, taken: Collection[str] | None = None
) -> pd.DataFrame:
    """Join the columns of participants to a table.

    Parameters
    ----------
    table : DataFrame
        Columns participant_id, session_id.
    participants : DataFrame, optional
        Column participant_id, with or without ``sub-``, and session (or session_id) where rows are of one each. Rows that
        contradict each other describe nobody; participants without scan are left out.
    taken : collection of str, optional
        Names that participants' columns must not have, those of `table` when left out: they get ``participants_`` before
        their name.

    Returns
    -------
    DataFrame
        The rows of `table`, in their order.
    """
    if participants is None or "participant_id" not in participants.columns:
        return table
    told = participants.drop(columns=list(WHOSE), errors="ignore")
    clashes = {*table.columns, *(taken or ()), ATLASES} & set(told.columns)
    told = told.rename(columns={name: f"participants_{name}" for name in clashes})
    bare = participants["participant_id"].astype(str).str.removeprefix("sub-")
    told.insert(0, "participant_id", "sub-" + bare)
    own = ["participant_id"]
    visit = next((name for name in ("session", "session_id") if name in participants.columns), None)
    if visit is not None:
        visits = participants[visit].fillna("").astype(str)
        told.insert(1, "session_id", ("ses-" + visits.str.removeprefix("ses-")).where(visits != "", ""))
        own = WHO
    told = told.drop_duplicates()
    return table.merge(told[~told.duplicated(own, keep=False)], on=own, how="left")


def with_numbers(table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Return a table with those of some columns of text as numbers that hold nothing else, codes (007) left aside."""
    found = table.copy()
    for name in columns:
        cells = pd.Series(table[name].dropna().unique(), dtype=object)
        column = column_of(cells)
        if column.kind == "numbers" and not column.is_code:
            numbers = column.numbers.astype(float)
            found[name] = table[name].map(dict(zip(cells, numbers, strict=True))).astype(float)
    return found


def with_missing(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table as it is published as TSV: what is empty is missing, for BIDS knows no empty cell."""
    texts = [str(name) for name in table.columns if table[name].dtype.kind == "O"]
    return table.assign(**{name: table[name].where(table[name] != "", np.nan) for name in texts})
