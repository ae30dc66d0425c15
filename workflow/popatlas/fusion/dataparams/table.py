"""Atlas weights of the whole cohort: what each atlas counted for each target, beside the quality of both registrations."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from popatlas.errors import InputError
from popatlas.images.io import read_json, read_table
from popatlas.measures.dictionary import ATLAS_WEIGHTS_COLUMN_TEXT, ATLAS_WEIGHTS_GATE, ATLAS_WEIGHTS_SIDES
from popatlas.measures.scan import split_scan
from popatlas.settings import Content

COLUMNS = list(ATLAS_WEIGHTS_COLUMN_TEXT)
PER_SCAN = ["scan", "method", "atlas", "trust", "rank", "parameter", "overlap"]
GATE_FILE = "_desc-gate_registration.json"


def tabulate_atlas_weights(tables: Iterable[Path], gates: Iterable[Path], derivatives: Path) -> pd.DataFrame:
    """Stack the tables of atlas weights of scans and add the gate's numbers of target and atlas.

    Parameters
    ----------
    tables : iterable of Path
        ``{scan}_desc-{method}_trust.tsv``.
    gates : iterable of Path
        ``{scan}_space-{label}_desc-gate_registration.json`` of targets and atlases; those that are missing leave their
        columns empty.
    derivatives : Path
        Output folder: the path of a gate below it begins with the scan key.

    Returns
    -------
    DataFrame
        Columns of :data:`popatlas.measures.dictionary.ATLAS_WEIGHTS_COLUMN_TEXT`, sorted by method, scan and rank.

    Raises
    ------
    InputError
        A table without its columns, or a gate outside the output folder.
    """
    frames = [frame for frame in map(_read, tables) if len(frame)]
    stacked = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=PER_SCAN)
    stacked = stacked.astype(dict.fromkeys(["trust", "parameter", "overlap"], float))
    quality = {scan_of(gate, derivatives): dict(read_json(gate)) for gate in gates}
    keys = [split_scan(scan) for scan in stacked["scan"]]
    stacked["participant_id"], stacked["session_id"] = [who for who, _ in keys], [session for _, session in keys]
    for side, scans in zip(ATLAS_WEIGHTS_SIDES, (stacked["scan"], stacked["atlas"]), strict=True):
        for name in ATLAS_WEIGHTS_GATE:
            stacked[f"{side}_{name}"] = scans.map(_numbers(quality, name)).astype(float)
    return stacked[COLUMNS].sort_values(["method", "scan", "rank", "atlas"], ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    frame = read_table(path, dtype=dict.fromkeys(["scan", "method", "atlas"], str))
    missing = [column for column in PER_SCAN if column not in frame.columns]
    if missing:
        raise InputError(f"columns {missing} are missing", file=path, remedy="delete the file and run again")
    return frame[PER_SCAN]


def scan_of(gate: Path, derivatives: Path) -> str:
    """Return the scan key of a gate file, which is named after it."""
    name = os.path.relpath(gate, derivatives)  # links are not followed: files of a run may lie elsewhere
    if name.startswith(os.pardir):
        remedy = "give the output folder that the file lies in"
        raise InputError(f"the gate is not inside {derivatives.absolute()}", file=gate, remedy=remedy)
    scan, space, _ = name.removesuffix(GATE_FILE).rpartition("_space-")
    if not space or not name.endswith(GATE_FILE):
        raise InputError("this is not the gate of a scan", file=gate, remedy=f"give files that end in {GATE_FILE}")
    return scan


def _numbers(quality: Mapping[str, Content], name: str) -> dict[str, float]:
    return {scan: float(gate[name]) for scan, gate in quality.items() if gate.get(name) is not None}


def relative_weight(table: pd.DataFrame) -> pd.Series[float]:
    """Return the atlas weight times the number of atlases of a target: 1 is an equal share, whatever the number."""
    counts = table.groupby(["scan", "method"])["atlas"].transform("size")
    return (table["trust"] * counts).rename("relative")


def by_atlas(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return how one method weighed each atlas, the smallest weight first.

    Parameters
    ----------
    table : DataFrame
        From :func:`tabulate_atlas_weights`.
    method : str
        One of its methods.

    Returns
    -------
    DataFrame
        Columns atlas, targets, relative (median of the relative weight), lowest (smallest relative weight), rank (median),
        last (share of the targets where its weight is the smallest), overlap (mean), and atlas_ncc (its own registration).
    """
    rows = table[table["method"] == method].assign(relative=relative_weight)
    lowest = rows.groupby("scan")["rank"].transform("max")  # 1 when all have the same weight
    rows["last"] = (rows["rank"] == lowest) & (lowest > 1)
    groups = rows.groupby("atlas", sort=True)
    found = groups.agg(
        targets=("scan", "size"), relative=("relative", "median"), lowest=("relative", "min"), rank=("rank", "median"),
        last=("last", "mean"), overlap=("overlap", "mean"), atlas_ncc=("atlas_ncc", "first"),
    )  # fmt: skip
    return found.reset_index().sort_values(["relative", "atlas"], ignore_index=True)


def informative(table: pd.DataFrame, smallest: float = 0.01) -> list[str]:
    """Return the methods whose weights differ between atlases, those that differ most first.

    Parameters
    ----------
    table : DataFrame
        From :func:`tabulate_atlas_weights`.
    smallest : float
        Standard deviation of the relative weight below which a method tells nothing.
    """
    spread = table.assign(relative=relative_weight).groupby("method")["relative"].std().fillna(0.0)
    told = spread[spread >= smallest].sort_values(ascending=False, kind="stable")
    return [str(method) for method in told.index]
