"""What has to be said of scans that are ok: words of their steps, and registrations that stand apart from the cohort.

Steps leave their words in the receipts: a head that lies turned, sides in doubt. Remarks keep nobody from the group results:
they say where to look first. They are written when the ledger is settled, and stand in a table of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd

from popatlas.errors import InputError
from popatlas.images.io import read_json, read_table, table_text, write_if_changed
from popatlas.registration.cohort_gate import stand_apart
from popatlas.settings import Content

TABLE = "cohort/remarks.tsv"
COLUMNS = ["scan", "stage", "remark"]


def remarks(said: Iterable[tuple[str, str, str]], gates: Mapping[str, Content]) -> pd.DataFrame:
    """Return what has to be said of scans.

    Parameters
    ----------
    said : iterable of (str, str, str)
        Scan, stage and words of a step.
    gates : mapping
        By scan, what the gate file of its registration holds.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`, none or several rows for a scan; those of a scan stand together.
    """
    rows = [*said, *((scan, "register", apart.reason) for scan, apart in stand_apart(gates).items())]
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("scan", kind="stable", ignore_index=True)


def write_remarks(out_dir: Path, said: Iterable[tuple[str, str, str]], gate_files: Mapping[str, str]) -> None:
    """Write `TABLE`, where it has changed.

    Parameters
    ----------
    out_dir : Path
        Output folder.
    said : iterable of (str, str, str)
        As for `remarks`.
    gate_files : mapping
        By scan whose registration is made, its gate file in the output folder.
    """
    gates = {}
    for scan, path in gate_files.items():
        try:
            gate = read_json(out_dir / path)
        except InputError:  # the inventory tells of files that are gone or damaged
            continue
        if isinstance(gate, dict):
            gates[scan] = gate
    write_if_changed(out_dir / TABLE, table_text(remarks(said, gates)))


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
