"""Tables that name files: a table of paths instead of a BIDS dataset, and the table of an external labelled set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from popatlas.cohort.participants import PARTICIPANTS, Layer, Listing, keyed, read_listing
from popatlas.cohort.select import subject_name
from popatlas.errors import ConfigError
from popatlas.images.tables import is_missing, read_text_table

LABEL = re.compile(r"[0-9A-Za-z]+")
ATLAS_COLUMNS = ("atlas", "t1w", "dseg")


@dataclass(frozen=True)
class PathTable:
    """A table of paths.

    Attributes
    ----------
    scans : DataFrame
        Columns subject, session (with prefixes, empty where there is none), t1w and the extra channels: paths, empty
        where there is none.
    listing : Listing
        What the other columns, and participants.tsv beside the table, tell.
    """

    scans: pd.DataFrame
    listing: Listing


def read_path_table(source: Path, channels: Sequence[str]) -> PathTable:
    """Read a table of paths.

    Parameters
    ----------
    source : Path
        TSV with the columns subject and t1w, optionally session; relative paths are resolved against its folder.
    channels : sequence of str
        Columns of extra channels that are wanted. Other columns of image paths are left aside; all others are covariates.

    Raises
    ------
    ConfigError
        A column that is missing, a row without subject, a name that is no label, a scan that is listed twice.
    InputError
        The file is no table.
    """
    table = _with_columns(source, ("subject", "t1w"), "use subject, t1w, optionally session and one per channel")
    if table["subject"].map(is_missing).any():
        raise ConfigError(f"{source}: {_line(table, table['subject'].map(is_missing))} has no subject. "
                          "Remedy: name it, or delete the row")  # fmt: skip
    subjects = table["subject"].map(subject_name)
    visits = table["session"] if "session" in table else pd.Series("", index=table.index)
    sessions = visits.map(lambda cell: "" if is_missing(cell) else f"ses-{cell.removeprefix('ses-')}")
    repeated = pd.DataFrame({"subject": subjects, "session": sessions}).duplicated()
    if repeated.any():
        name = subjects[repeated].iloc[0]
        raise ConfigError(f"{source}: {name} is listed twice ({_line(table, repeated)}). Remedy: give each row a session")
    _require_labels([*subjects.str[4:], *(name for name in sessions.str[4:] if name)], source)
    folder = source.resolve().parent
    images = [str(name) for name in table if name not in ("subject", "session") and _is_image_column(table[name])]
    scans = pd.DataFrame({"subject": subjects, "session": sessions})
    for name in images:
        if name == "t1w" or name in channels:
            scans[name] = ["" if is_missing(path) else str(folder / path) for path in table[name]]
    covariates = keyed(table.drop(columns=[*images, "subject"]), subjects).assign(session=sessions)
    beside = read_listing(folder, set(subjects)) if source.name != PARTICIPANTS else Listing()
    # what the table itself tells counts more; subjects of participants.tsv that it does not list are not of the study
    return PathTable(scans, Listing((*beside.layers, Layer(source.name, covariates)), (), beside.notes))


def read_atlas_table(source: Path) -> pd.DataFrame:
    """Read a table of external atlases; relative paths are resolved against its folder.

    Raises
    ------
    ConfigError
        A column or cell that is missing, a name that is no label, an atlas that is listed twice.
    InputError
        The file is no table.
    """
    table = _with_columns(source, ATLAS_COLUMNS, "columns are atlas, t1w and dseg")
    empty = table[list(ATLAS_COLUMNS)].map(is_missing).any(axis=1)
    if empty.any():
        raise ConfigError(
            f"{source}: a cell of atlas, t1w or dseg is empty ({_line(table, empty)}). Remedy: fill it, or delete the row"
        )
    names = table["atlas"].map(subject_name)
    _require_labels(names.str[4:], source)
    if names.duplicated().any():
        raise ConfigError(
            f"{source}: an atlas is listed twice ({_line(table, names.duplicated())}). Remedy: give each its own name"
        )
    for column in ("t1w", "dseg"):
        table[column] = [str(source.resolve().parent / path) for path in table[column]]
    return table.reset_index(drop=True)


def _with_columns(source: Path, columns: Sequence[str], remedy: str) -> pd.DataFrame:
    table = read_text_table(source)
    missing = next((column for column in columns if column not in table), None)
    if missing is not None:
        found = ", ".join(str(name) for name in table.columns)
        raise ConfigError(f"{source}: no column '{missing}', only {found}. Remedy: {remedy}")
    return table


def _line(table: pd.DataFrame, wrong: pd.Series[bool]) -> str:
    return f"line {table.index[wrong.to_numpy(dtype=bool)][0]}"


def _require_labels(names: Iterable[str], source: Path) -> None:
    odd = next((name for name in names if not LABEL.fullmatch(name)), None)
    if odd is not None:
        raise ConfigError(f"{source}: '{odd}' is not a label. Remedy: use letters and digits only")


def _is_image_column(cells: pd.Series[str]) -> bool:
    values = cells[~cells.map(is_missing)]
    return cells.name == "t1w" or bool(len(values) and values.str.endswith((".nii", ".nii.gz")).all())
