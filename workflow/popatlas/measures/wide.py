"""Wide volumes, one row per scan, and what is known of the participants, joined to the tables of the group."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import pandas as pd

from popatlas.images.tables import column_of, number_of
from popatlas.measures.dictionary import ATLASES, TISSUES
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
    volumes = Volumes()
    volumes.add(metrics)
    return volumes.table(scans, participants, names)


class Volumes:
    """Volumes of all scans, gathered piece by piece: a column for each method and label, in the order of the rows."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], int] = {}
        self._pieces: list[pd.DataFrame] = []

    def add(self, metrics: pd.DataFrame) -> None:
        """Add the rows of some scans."""
        rows = metrics[metrics["metric"] == "volume"]
        if rows.empty:
            return
        pairs = zip(rows["method"].astype(str), rows["label"].astype(str), strict=True)
        codes = pd.Series([self.found.setdefault(pair, len(self.found)) for pair in pairs], index=rows.index, name="column")
        self._pieces.append(rows.pivot_table(index=WHO, columns=codes, values="value", aggfunc="first", sort=False))

    def columns(self, names: Mapping[int, str] | None = None) -> dict[str, tuple[str, str]]:
        """Return the columns to method and label."""
        numbers = {name: number for number, name in (names or {}).items()}
        safe = column_names([*numbers, *(label for method, label in self.found if method != TISSUES)], numbers)
        # a structure and a tissue may have one name: neither changes how the other is called
        plain = column_names(label for method, label in self.found if method == TISSUES)
        return {f"{method}_{(plain if method == TISSUES else safe)[label]}": (method, label) for method, label in self.found}

    def table(
        self, scans: pd.DataFrame, participants: pd.DataFrame | None = None, names: Mapping[int, str] | None = None
    ) -> pd.DataFrame:
        """Return one row per scan, see `wide_volumes`."""
        columns = self.columns(names)
        table = with_participants(scans, participants, [*WHO, *columns])
        if not columns:
            return table
        wide = pd.concat(self._pieces)
        if wide.index.has_duplicates:
            wide = wide.groupby(level=WHO, sort=False).first()
        codes = [code for code in self.found.values() if code in wide]
        wide = wide.reindex(columns=codes).set_axis([list(columns)[code] for code in codes], axis=1)
        return table.merge(wide.reset_index(), on=WHO, how="left")


def volume_names(metrics: pd.DataFrame, names: Mapping[int, str] | None = None) -> dict[str, tuple[str, str]]:
    """Return the columns of volumes, in the order of the rows, to method and label."""
    volumes = Volumes()
    volumes.add(metrics)
    return volumes.columns(names)


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


def number_columns(table: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    """Return those of some columns of text that hold numbers and nothing else, codes (007) left aside."""
    found = []
    for name in columns:
        column = column_of(pd.Series(table[name].dropna().unique(), dtype=object))
        if column.kind == "numbers" and not column.is_code:
            found.append(name)
    return found


def with_numbers(table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Return a table with those of some columns of text as numbers that hold nothing else, codes (007) left aside."""
    return as_numbers(table, number_columns(table, columns))


def as_numbers(table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Return a table with some columns of text as numbers; what is none is missing."""
    found = table.copy()
    for name in columns:
        cells = table[name].dropna().unique()
        numbers = pd.Series([number_of(str(cell)) for cell in cells], dtype="Float64").astype(float)
        found[name] = table[name].map(dict(zip(cells, numbers, strict=True))).astype(float)
    return found


def with_missing(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table as it is published as TSV: what is empty is missing, for BIDS knows no empty cell."""
    texts = [str(name) for name in table.columns if table[name].dtype.kind == "O"]
    return table.assign(**{name: table[name].where(table[name] != "", np.nan) for name in texts})
