"""What is broken and can be made again: it is named, set aside below ``broken/``, and made again."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pandas as pd

from popatlas.errors import InputError
from popatlas.images.io import read_table

FOLDER = "broken"
INDEX = "index.parquet"
# columns without which a table of ``cohort/`` is none
COLUMNS = {
    "batches.tsv": ("scan", "batch"),
    "register-batches.tsv": ("scan", "batch"),
    "member-batches.tsv": ("scan", "batch"),
    "failures.tsv": ("scan", "stage", "reason"),
    "ledger.tsv": ("scan", "stage", "state", "reason", "log"),
    "label-atlases.tsv": ("atlas", "dseg", "external"),
    INDEX: ("scan", "state", "reason", "sha256", "t1w", "role"),
}

MAY_BE_EMPTY = ("reason", "log", "sha256", "t1w")
AS_JSON = ("channels", "candidates", "inspected")  # columns of the index
MOST_BATCHES = 1e9


def set_aside(out_dir: Path, path: str, why: str) -> None:
    """Move a file of an output folder to its `FOLDER`, and say so: somebody may have changed it on purpose.

    Parameters
    ----------
    out_dir : Path
        Output folder.
    path : str
        File, relative to it.
    why : str
        What is wrong with it, as the end of a sentence.
    """
    target = out_dir / FOLDER / time.strftime("%Y%m%d-%H%M%S") / path
    target.parent.mkdir(parents=True, exist_ok=True)
    (out_dir / path).replace(target)
    print(f"popatlas: {path} {why}; it is set aside in {target.parent} and made again", file=sys.stderr)


def take_away(out_dir: Path, path: str) -> None:
    """Remove a file that is made anew; a folder of its name is set aside, for it is nothing of ours."""
    if (out_dir / path).is_dir() and not (out_dir / path).is_symlink():
        set_aside(out_dir, path, "is a folder where a file should be")
    else:
        (out_dir / path).unlink(missing_ok=True)


def set_aside_garbage(out_dir: Path) -> None:
    """Set aside the tables of ``cohort/`` that cannot be read, so that they are made again.

    Lists of frozen members are not among them: whether they may be drawn again is told by `popatlas.cohort.members`.
    """
    for path in _garbage(out_dir):
        set_aside(out_dir, path, "cannot be read")


def hide_garbage(view: Path) -> list[str]:
    """Take the tables that a run would set aside out of a view, whose tables are copies; return a line for each."""
    found = _garbage(view)
    for path in found:
        (view / path).unlink()
    return [f"{path} cannot be read: a run sets it aside and makes it again" for path in found]


def _garbage(out_dir: Path) -> list[str]:
    found = []
    for path in sorted((out_dir / "cohort").glob("*")):
        is_members = path.name.startswith("atlas-") and path.suffix == ".tsv"
        if path.is_dir():
            is_bad = path.suffix in (".tsv", ".parquet", ".json", ".txt", ".yaml")
        else:
            is_bad = path.is_file() and not is_members and not _is_readable(path)
        if is_bad:
            found.append(f"cohort/{path.name}")
    return found


def _is_readable(path: Path) -> bool:
    try:
        if path.suffix in (".tsv", ".parquet"):
            table, needed = read_table(path), COLUMNS.get(path.name, ())
            return len(table.columns) > 0 and set(needed) <= set(table.columns) and _is_filled(table[list(needed)], table)
        text = path.read_text(encoding="utf-8")
        return path.suffix != ".json" or json.loads(text) is not None
    except (InputError, ValueError, TypeError, OSError, RecursionError):
        return False


def _is_filled(needed: pd.DataFrame, table: pd.DataFrame) -> bool:
    """Tell whether every cell that must hold something does, unlike in a table that was cut in the middle of a line."""
    cells = needed.drop(columns=[name for name in MAY_BE_EMPTY if name in needed])
    batches = pd.to_numeric(cells["batch"], errors="coerce") if "batch" in cells else pd.Series(dtype=float)
    for name in (name for name in AS_JSON if name in table):
        for text in table[name]:
            json.loads(text or "{}")
    whole = (batches == batches.round()) & (batches.abs() < MOST_BATCHES)
    return bool(whole.all()) and not bool((cells.isna() | (cells.astype(str) == "")).to_numpy().any())
