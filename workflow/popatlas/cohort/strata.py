"""Draws that have of each site and sex as large a share as the cohort, and in each the ages of it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

COLUMNS = {"site": ("site", "site_id", "center", "centre", "scanner"), "sex": ("sex", "gender")}
MOST = 50  # values of a column; one that has more tells people apart, and not groups of them
UNKNOWN = ""


def known_strata(people: pd.DataFrame, scans: Sequence[str]) -> pd.DataFrame:
    """Return site and sex of scans, of those that differ in them.

    Parameters
    ----------
    people : DataFrame
        From `popatlas.cohort.participants.read_people`: column scan and what participants.tsv tells, as text.
    scans : sequence of str
        Scans, which are the index of the result.

    Returns
    -------
    DataFrame
        Columns site and sex as far as they are known; lower case, empty where a cell is missing.
    """
    known = people.drop_duplicates("scan").set_index("scan") if "scan" in people else pd.DataFrame()
    names = {str(name).lower(): name for name in known.columns}
    found = {}
    for key, called in COLUMNS.items():
        column = next((names[name] for name in called if name in names), None)
        if column is not None:
            values = known[column].reindex(list(scans)).fillna(UNKNOWN).astype(str).str.strip().str.lower()
            if 1 < values.nunique() <= MOST:
                found[key] = values
    return pd.DataFrame(found, index=pd.Index(list(scans)))


def in_turns(table: pd.DataFrame, strata: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return the rows of a table with a column `place`: stratum after stratum, each in its order.

    An even draw over the places has of each stratum its share, and of its rows the low, middle and high ones; there is no
    chance in it.

    Parameters
    ----------
    table : DataFrame
        Column scan, and the one of `by`.
    strata : DataFrame
        From `known_strata`, of the scans of the table.
    by : str
        Column that orders the rows of a stratum.
    """
    keys = pd.Series([" ".join(row) for row in strata.to_numpy().tolist()], index=strata.index)
    ordered = table.assign(stratum=table["scan"].map(keys)).sort_values(["stratum", by, "scan"], ignore_index=True)
    return ordered.drop(columns="stratum").assign(place=range(len(ordered)))
