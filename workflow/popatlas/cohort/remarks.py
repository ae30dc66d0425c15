"""What has to be said of registrations that passed: doubts of their gate, and who stands apart from the cohort.

Remarks keep nobody from the group results: they say where to look first. They are written when the ledger is settled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from popatlas.errors import InputError
from popatlas.images.io import read_json, read_table, table_text, write_if_changed
from popatlas.registration.cohort_gate import stand_apart

TABLE = "cohort/remarks.tsv"
COLUMNS = ["scan", "stage", "remark"]


def remarks(gates: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return what has to be said of registrations.

    Parameters
    ----------
    gates : mapping
        By scan, what its gate file holds.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`, none or several rows for a scan.
    """
    apart = stand_apart(gates)
    rows = [
        (scan, "register", text)
        for scan, gate in gates.items()
        for text in [*gate.get("notes", ()), *([apart[scan].reason] if scan in apart else [])]
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def write_remarks(out_dir: Path, gate_files: Mapping[str, str], scans: Iterable[str]) -> None:
    """Write `TABLE`, where it has changed.

    Parameters
    ----------
    out_dir : Path
        Output folder.
    gate_files : mapping
        By scan, its gate file in the output folder.
    scans : iterable of str
        Scans whose registration is made.
    """
    gates = {}
    for scan in scans:
        try:
            gate = read_json(out_dir / gate_files[scan])
        except InputError:  # the inventory tells of files that are gone or damaged
            continue
        if isinstance(gate, dict):
            gates[scan] = gate
    write_if_changed(out_dir / TABLE, table_text(remarks(gates)))


def read_remarks(out_dir: Path) -> pd.DataFrame:
    """Return the remarks of the last settling; none where nothing has been settled."""
    path = out_dir / TABLE
    return read_table(path, dtype=str) if path.is_file() else pd.DataFrame(columns=COLUMNS)


def remark_lines(out_dir: Path, most: int) -> Iterator[str]:
    """Yield a line for each scan with remarks, the first ones, and one that tells how many there are beside."""
    found = read_remarks(out_dir)
    grouped = list(found.groupby("scan", sort=False))
    for scan, rows in grouped[:most]:
        yield f"look at {str(scan).rsplit('/', 1)[-1]}: {'; '.join(rows['remark'])}"
    if len(grouped) > most:
        yield f"... and at {len(grouped) - most} more, see {out_dir / TABLE}"
