"""What is broken and can be made again: it is named, set aside below ``broken/``, and made again."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from popatlas.errors import InputError
from popatlas.images.io import read_table

FOLDER = "broken"
# columns without which a table of ``cohort/`` is none
COLUMNS = {
    "batches.tsv": ("scan", "batch"),
    "register-batches.tsv": ("scan", "batch"),
    "member-batches.tsv": ("scan", "batch"),
    "failures.tsv": ("scan", "stage", "reason"),
    "ledger.tsv": ("scan", "stage", "state", "reason", "log"),
    "label-atlases.tsv": ("atlas", "dseg", "external"),
    "index.parquet": ("scan", "state", "reason", "sha256", "t1w", "role"),
}


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


def set_aside_garbage(out_dir: Path) -> None:
    """Set aside the tables of ``cohort/`` that cannot be read, so that they are made again.

    Lists of frozen members are not among them: whether they may be drawn again is told by `popatlas.cohort.members`.
    """
    for path in sorted((out_dir / "cohort").glob("*")):
        is_members = path.name.startswith("atlas-") and path.suffix == ".tsv"
        if path.is_file() and not is_members and not _is_readable(path):
            set_aside(out_dir, f"cohort/{path.name}", "cannot be read")


def _is_readable(path: Path) -> bool:
    try:
        if path.suffix in (".tsv", ".parquet"):
            columns = set(read_table(path).columns)
            return len(columns) > 0 and set(COLUMNS.get(path.name, ())) <= columns
        text = path.read_text(encoding="utf-8")
        return path.suffix != ".json" or json.loads(text) is not None
    except (InputError, ValueError, OSError):
        return False
