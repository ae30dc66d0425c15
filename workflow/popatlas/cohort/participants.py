"""What is known about each scan: rows of participants.tsv, of a table of paths and of sessions tables, joined by visit.

A row belongs to a scan when its id names the subject and, where the table tells visits apart, its session that of the scan.
An id that is written otherwise (`1` for `sub-01`) is matched when one subject only can be meant. Rows that contradict each
other are not used at all: a missing age does less harm than another one's. Everything that is not plain is said.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from popatlas.cohort.select import subject_name
from popatlas.errors import InputError, first_few
from popatlas.images.tables import (
    MISSING,
    NO_NUMBER,
    SAVE_AS,
    column_of,
    is_missing,
    number_of,
    read_text_table,
    require_columns,
    shown,
)

PARTICIPANTS = "participants.tsv"
KEYS = ("scan", "subject", "session")  # columns of the scans, which a column of a table must not shadow
VISITS = ("session_id", "session")  # columns of a table that may tell visits apart, the first one counts
OTHER_NAMES = ("participants.csv", "participants.txt", "participants.xlsx", "participants.xls", "participants.tsv.gz")
AGE_CODE = re.compile(r"-.*|8{3,}|9{3,}")  # what programs write as the age that is not known: -999, 9999


@dataclass(frozen=True)
class Layer:
    """Rows of a table, or of tables of one kind.

    Attributes
    ----------
    name : str
        Of the table, for messages.
    rows : DataFrame
        Text; columns subject, session (as it is written, empty where none is) and what is told; the index is the line. NaN
        where the table of a subject does not have a column.
    """

    name: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Listing:
    """What tables tell about subjects.

    Attributes
    ----------
    layers : tuple of Layer
        A later one counts where it has a column of an earlier one for a subject.
    unknown : tuple of str
        Ids of participants.tsv without a subject in the dataset, with `sub-`.
    notes : tuple of str
        What was not plain.
    """

    layers: tuple[Layer, ...] = ()
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_listing(root: Path, subjects: Collection[str]) -> Listing:
    """Read participants.tsv and the sessions tables (`sub-*/sub-*_sessions.tsv`) of a dataset.

    Parameters
    ----------
    root : Path
        Dataset.
    subjects : collection of str
        Its subjects, with `sub-`.

    Raises
    ------
    InputError
        A participants.tsv that is there and is no BIDS table, or has no column participant_id. A sessions table costs its
        subject the values of its sessions only, and is named.
    """
    path, (visits, bad) = root / PARTICIPANTS, _read_visits(root, subjects)
    if not os.path.lexists(path):
        other = next((name for name in OTHER_NAMES if (root / name).exists()), None)
        note = f"there is no {PARTICIPANTS}, and {other} is not read. Remedy: {SAVE_AS}"
        return Listing(visits, notes=(*([note] if other else []), *bad))
    table = read_text_table(path)
    require_columns(table, ["participant_id"], path)
    matched = match_ids(table["participant_id"], subjects)
    names = {cell: subject_name(cell) for cell in table["participant_id"] if subject_name(cell) in matched.unknown}
    rows = keyed(table.drop(columns="participant_id"), table["participant_id"].map(matched.subjects | names))
    notes = tuple(f"{PARTICIPANTS}: {note}" for note in matched.notes)
    return Listing((Layer(PARTICIPANTS, rows[rows["subject"].notna()]), *visits), matched.unknown, (*notes, *bad))


def _read_visits(root: Path, subjects: Collection[str]) -> tuple[tuple[Layer, ...], list[str]]:
    """Return the sessions tables, and a note for each one that cannot be used."""
    tables: list[pd.DataFrame] = []
    bad: dict[str, str] = {}
    for subject in sorted(subjects):
        path = root / subject / f"{subject}_sessions.tsv"
        if not os.path.lexists(path):  # nor in a folder that may not be read, which costs its scans
            continue
        try:
            tables.append(_visits_of(subject, path))
        except InputError as error:
            bad[subject] = f"{subject} is without the values of its sessions table: {error}"
    if not tables:
        return (), list(bad.values())
    rows = pd.concat(tables)
    if bad:  # what the others' tables tell is not known of these, and must not come from their row of participants.tsv
        lost = pd.DataFrame("", index=[-1] * len(bad), columns=rows.columns).assign(subject=list(bad))
        rows = pd.concat([rows, lost])
    return (Layer("sessions tables", rows),), list(bad.values())


def _visits_of(subject: str, path: Path) -> pd.DataFrame:
    table = read_text_table(path)
    require_columns(table, ["session_id"], path)
    table = table[~table["session_id"].map(is_missing).astype(bool)]  # of no rows, `map` gives no truth values
    return keyed(table, pd.Series(subject, index=table.index, dtype=object)).drop(columns="session_id")


def keyed(table: pd.DataFrame, subjects: pd.Series[str]) -> pd.DataFrame:
    """Give a table the columns subject and session; columns that would be taken for those of the scans are renamed.

    Parameters
    ----------
    table : DataFrame
        From `read_text_table`; session_id, else session, tells visits apart.
    subjects : Series of str
        Subject of each row.
    """
    visit = next((name for name in VISITS if name in table), None)
    sessions = table[visit].map(lambda cell: "" if is_missing(cell) else cell) if visit else ""
    told = table.drop(columns="session") if visit == "session" else table
    taken = {str(name) for name in told.columns}
    told = told.rename(columns={name: _free_name(name, taken) for name in (*KEYS, "participant_id")})
    told.insert(0, "subject", subjects)
    told.insert(1, "session", sessions)
    return told


def _free_name(name: str, taken: Collection[str]) -> str:
    other = f"participants_{name}"
    while other in taken:
        other += "_"
    return other


@dataclass(frozen=True)
class Matched:
    """Ids of a table (as they are written) to subjects; ids that name none; what was not plain."""

    subjects: dict[str, str]
    unknown: tuple[str, ...]
    notes: tuple[str, ...]


def match_ids(ids: Iterable[str], subjects: Collection[str]) -> Matched:
    """Find the subjects that the ids of a table name.

    An id names the subject that is written like it, with or without `sub-`. Failing that it names the one subject that
    differs only in capital letters, leading zeros or decimals (`1`, `001` and `1.0` for `sub-01`), if no other id does.

    Parameters
    ----------
    ids : iterable of str
        Cells of the column participant_id.
    subjects : collection of str
        Subjects of the dataset, with `sub-`.
    """
    cells = list(ids)
    exact = {cell: subject_name(cell) for cell in cells if subject_name(cell) in subjects}
    alike: dict[str | float, list[str]] = defaultdict(list)
    for subject in sorted(subjects):
        alike[_plain(subject)].append(subject)
    fits = {cell: alike.get(_plain(cell), []) for cell in dict.fromkeys(cells) if cell not in exact}
    claims: dict[str, list[str]] = defaultdict(list)
    for cell, found in fits.items():
        if len(found) == 1:
            claims[found[0]].append(cell)
    taken = set(exact.values())
    loose = {found[0]: subject for subject, found in claims.items() if len(found) == 1 and subject not in taken}
    lost = {cell for cell, found in fits.items() if not found and cell.casefold() in (*MISSING, *NO_NUMBER)}
    empty = [cell for cell in cells if cell in lost]
    unknown = tuple(subject_name(cell) for cell, found in fits.items() if not found and cell not in lost)
    doubtful = {cell: found for cell, found in fits.items() if found and cell not in loose}
    notes = []
    if empty:
        notes.append(f"{len(empty)} row(s) without participant_id are left out")
    bare = [cell for cell in exact if not cell.startswith("sub-")]
    if bare:
        notes.append(f"{len(bare)} id(s) are written without sub- and matched: {first_few(bare)}")
    if loose:
        pairs = first_few(f"{shown(cell)} is {subject}" for cell, subject in loose.items())
        notes.append(f"{len(loose)} id(s) are written otherwise than in the dataset and matched: {pairs}")
    if doubtful:
        pairs = first_few(f"{shown(cell)} ({' or '.join(found)})" for cell, found in doubtful.items())
        notes.append(
            f"{len(doubtful)} id(s) fit more than one subject, or one that has a row, and are left out: {pairs}. "
            "Remedy: write them as in the dataset"
        )
    if unknown:
        notes.append(f"{len(unknown)} id(s) have no subject in the dataset: {first_few(unknown)}")
    return Matched(exact | loose, unknown, tuple(notes))


def _plain(name: str) -> str | float:
    """Return what is left of a label without what Excel takes or adds."""
    label = re.sub(r"^\s*(?:sub|ses)-", "", name, flags=re.IGNORECASE).strip()
    value = number_of(label)
    return label.casefold() if value is None else value


def describe_scans(scans: pd.DataFrame, listing: Listing) -> tuple[pd.DataFrame, list[str]]:
    """Join what is known to the scans.

    Parameters
    ----------
    scans : DataFrame
        Columns scan, subject, session (empty where there is none).
    listing : Listing
        From `read_listing` or a table of paths.

    Returns
    -------
    people : DataFrame
        One row per scan, in their order: scan, subject, session, participant_id and what is told, as text; `n/a` and
        whatever else means that a value is missing is empty.
    notes : list of str
        What was not plain, for the user.
    """
    joined: dict[str, pd.Series[str]] = {}
    notes = list(listing.notes)
    for layer in listing.layers:
        rows, found = _joined(scans, layer)
        notes += found
        for name, cells in rows.items():
            has_column = scans["subject"].isin(layer.rows.loc[layer.rows[name].notna(), "subject"])
            joined[str(name)] = cells.where(has_column, joined.get(str(name), ""))
        if layer.name == PARTICIPANTS:
            silent = sorted(set(scans["subject"]) - set(layer.rows["subject"]))
            if silent:
                notes.append(f"{PARTICIPANTS}: {len(silent)} subject(s) of the dataset have no row: {first_few(silent)}")
    odd = [cell for layer in listing.layers for cell in _odd_missing(layer)]
    if odd:
        notes.append(f"{len(odd)} cell(s) without a value are not written n/a and count as missing: {first_few(odd)}")
    told = {name: _without_missing(cells).to_numpy() for name, cells in joined.items()}
    keys = scans[list(KEYS)].reset_index(drop=True).assign(participant_id=scans["subject"].to_numpy())
    people = pd.concat([keys, pd.DataFrame(told, index=keys.index)], axis=1)
    ages = known_ages(people)[1]
    if ages:
        notes.append(f"age: {len(ages)} cell(s) are no age and count as unknown in draws: {first_few(ages)}")
    return people, notes


def _odd_missing(layer: Layer) -> list[str]:
    """Return the cells that are missing in other words than `n/a`."""
    found = []
    for name in layer.rows.columns.drop(["subject", "session"]):
        cells = layer.rows[name].fillna("n/a").reset_index(drop=True)
        if (cells.str.casefold().isin([*MISSING, *NO_NUMBER]) & (cells != "n/a")).any():
            odd = column_of(cells).text.isna() & (cells != "n/a")
            found += [f"{name} of {layer.rows['subject'].iloc[place]} {shown(cells[place])}" for place in odd.index[odd]]
    return found


def _without_missing(cells: pd.Series[str]) -> pd.Series[str]:
    return column_of(cells).text.astype(object).where(lambda text: text.notna(), "")


def _joined(scans: pd.DataFrame, layer: Layer) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of the scans, empty where a scan has none of its own, and what was not plain."""
    told, sessions = layer.rows.drop(columns=["subject", "session"]), list(layer.rows["session"])
    contents = [tuple(row) for row in told.fillna("").to_numpy().tolist()]  # also of a layer without columns
    of_subject: dict[str, list[int]] = defaultdict(list)
    for place, subject in enumerate(layer.rows["subject"]):
        of_subject[subject].append(place)
    known = scans.groupby("subject")["session"].agg(list).to_dict()
    served = {who: rows_of_visits(rows, sessions, known[who]) for who, rows in of_subject.items() if who in known}
    chosen, clashes, lacking = [], [], []
    for scan, subject, session in scans[list(KEYS)].itertuples(index=False, name=None):
        places, name = served.get(subject, {}).get(session, []), scan.rsplit("/", 1)[-1]
        distinct = len({contents[place] for place in places})
        chosen.append(places[0] if distinct == 1 else -1)
        if distinct > 1:
            clashes.append(f"{name} (lines {', '.join(str(layer.rows.index[place]) for place in places)})")
        elif distinct == 0 and subject in served:
            lacking.append(name)
    notes = []
    if clashes:
        notes.append(
            f"{layer.name}: the rows of {len(clashes)} scan(s) contradict each other and are not used: "
            f"{first_few(clashes)}. Remedy: one row per participant, or a column session_id that tells their visits apart"
        )
    if lacking:
        notes.append(f"{layer.name}: {len(lacking)} scan(s) have no row of their own session: {first_few(lacking)}")
    empty = pd.DataFrame([[""] * told.shape[1]], columns=told.columns, index=[-1])
    return pd.concat([told.reset_index(drop=True), empty]).loc[chosen].set_axis(scans.index, axis=0), notes


def rows_of_visits(places: Sequence[int], sessions: Sequence[str], known: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of a subject that tell about each of its scans.

    Parameters
    ----------
    places : sequence of int
        Rows of the subject.
    sessions : sequence of str
        Session of every row of the table as it is written, empty where there is none.
    known : sequence of str
        Sessions of its scans, with `ses-`; empty for a scan without.
    """
    if not any(sessions[place] for place in places):
        return {session: list(places) for session in known}
    if len(places) == 1 and list(known) == [""]:
        return {"": list(places)}  # one row, one scan: whatever the session is called
    found: dict[str, list[int]] = {session: [] for session in known}
    for place in places:
        session = _session_of(sessions[place], known)
        if session is not None:
            found[session].append(place)
    return found


def _session_of(cell: str, known: Sequence[str]) -> str | None:
    """Return the session that a cell names: as it is written, else the only one that it can mean."""
    exact = f"ses-{cell.removeprefix('ses-')}" if cell else ""
    if exact in known:
        return exact
    alike = {session for session in known if session and _plain(session) == _plain(cell)}
    return alike.pop() if cell and len(alike) == 1 else None


def read_people(out_dir: Path) -> pd.DataFrame:
    """Return cohort/participants.tsv of an output folder as text, empty where a value is missing; no rows without it."""
    path = out_dir / "cohort" / PARTICIPANTS
    if not path.is_file():
        return pd.DataFrame(columns=[*KEYS, "participant_id"])
    table = read_text_table(path)
    return table.where(~table.map(is_missing), "")


def known_ages(people: pd.DataFrame) -> tuple[pd.Series[float], list[str]]:
    """Return the ages that can be used.

    Parameters
    ----------
    people : DataFrame
        From `read_people`.

    Returns
    -------
    ages : Series of float
        Scan to years, NaN where the age is missing, no number, or a code for an unknown one.
    odd : list of str
        Scans with a cell that is no age (`23,5`, `>89`, -999), and the cell.
    """
    if "age" not in people:
        return pd.Series(dtype=float), []
    ages = ages_of(people["age"])
    bad = people[ages.isna() & ~people["age"].map(is_missing)]
    odd = [f"{scan.rsplit('/', 1)[-1]} {shown(cell)}" for scan, cell in zip(bad["scan"], bad["age"], strict=True)]
    return ages.set_axis(people["scan"], axis=0), odd


def ages_of(cells: pd.Series[str]) -> pd.Series[float]:
    """Return the cells that are ages as numbers, others (missing, no number, a code like -999) as NaN."""
    return column_of(cells).numbers.astype(float).mask(cells.str.fullmatch(AGE_CODE.pattern))
