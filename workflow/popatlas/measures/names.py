"""Names of labels, from the table beside a label image."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from popatlas.images.io import read_table

LABEL_NAMES = "cohort/label-names.tsv"


def read_names(path: Path | None) -> dict[int, str]:
    """Read label names (columns index, name); no file gives no names. Names that repeat get their index appended."""
    table = pd.DataFrame(label_entries(path), columns=["index", "name"])
    repeated = table["name"].duplicated(keep=False)
    names = table["name"].where(~repeated, table["name"] + "-" + table["index"].astype(str))
    return dict(zip(table["index"].astype(int), names.astype(str), strict=True))


def label_entries(path: Path | None) -> list[tuple[int, str]]:
    """Return index and name of the rows of a table that have both; names as they are written."""
    table = read_table(path, dtype={"name": str}) if path is not None else pd.DataFrame()
    if not {"index", "name"} <= set(table.columns):
        return []
    numbers = pd.to_numeric(table["index"], errors="coerce")
    good = numbers.notna() & table["name"].notna()
    return list(zip(numbers[good].astype(int).tolist(), table.loc[good, "name"].tolist(), strict=True))


def find_names(labels: Path | None) -> Path | None:
    """Find the table of label names beside a label image: its own TSV, or dseg.tsv up to the root of its dataset."""
    if labels is None:
        return None
    own = labels.with_name(labels.name.split(".")[0] + ".tsv")
    if own.exists():
        return own
    for folder in list(labels.resolve().parents)[:6]:
        if (folder / "dseg.tsv").exists():
            return folder / "dseg.tsv"
        if (folder / "dataset_description.json").exists():
            return None
    return None
