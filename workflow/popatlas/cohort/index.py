"""The index: the dataset read once, every image opened, one row per scan.

bids2table reads the tree (not pybids: it gives an Arrow table in one pass, without a database and without the seconds per
hundred subjects that large cohorts cannot afford). Nothing later walks the dataset.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from popatlas.cohort.inspect import CHECKS, Inspection, inspect_image
from popatlas.cohort.select import selection_reasons, subject_name
from popatlas.errors import ConfigError, InputError
from popatlas.images.io import read_table, table_text, write_if_changed, write_table

if TYPE_CHECKING:
    from popatlas.config import Config

COLUMNS = (
    "scan", "subject", "session", "role", "state", "reason", "t1w", "channels", "runs", "unused_runs",
    "sha256", "shape", "spacing_mm", "orientation", "bytes", "mtime_ns",
)  # fmt: skip
# Variants that stand behind the plain image when a session has several
VARIANT_ENTITIES = ("rec", "part", "ce", "acq", "inv", "echo")
LABEL = re.compile(r"^[0-9A-Za-z]+$")
PROGRESS_SECONDS = 5.0


def scan_key(subject: str, session: str, *, role: str = "cohort") -> str:
    """Return the prefix of a scan's derivatives, for example `sub-01/ses-1/anat/sub-01_ses-1`."""
    folder = f"{subject}/{session}" if session else subject
    name = f"{subject}_{session}" if session else subject
    return f"{'atlases/' if role == 'atlas' else ''}{folder}/anat/{name}"


def index_cohort(config: Config, out_dir: Path) -> pd.DataFrame:
    """Index a dataset and write `cohort/index` and `cohort/participants`.

    Parameters
    ----------
    config : dict
        Complete configuration; `bids_dir` is a BIDS dataset or a TSV of paths.
    out_dir : Path
        Output folder.

    Returns
    -------
    DataFrame
        One row per scan with the columns `COLUMNS`, sorted by scan. Images that cannot be used are `unavailable`, scans
        that are not selected `excluded`, both with the reason. Files whose size and time have not changed since the last
        index are not opened again.

    Raises
    ------
    InputError, ConfigError
        When the dataset itself is missing or not understood, or the selection names what does not exist.
    """
    source = Path(config["bids_dir"])
    rows, participants = _read_table_of_paths(source) if source.is_file() else _read_bids(source, config)
    rows += external_atlases(config)
    index = pd.DataFrame(rows, columns=list(COLUMNS[:10]))
    own = index["role"] == "cohort"
    reasons = selection_reasons(index.loc[own, "subject"], participants, config["cohort"])
    left_out = own & index["subject"].isin(reasons)
    index.loc[left_out, "state"] = "excluded"
    index.loc[left_out, "reason"] = index.loc[left_out, "subject"].map(reasons)
    index = _open_images(index, config["cohort"], out_dir / "cohort" / "index.parquet")
    index = index.sort_values("scan", ignore_index=True)
    _write(index, participants, source, out_dir / "cohort")
    return index


def _read_bids(root: Path, config: Config) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    from bids2table import index_dataset

    if not root.is_dir():
        raise InputError("the dataset does not exist", file=root, remedy="check bids_dir")
    if not any(root.glob("sub-*")):
        raise InputError("no sub-* folder was found", file=root, remedy="give the root of a BIDS dataset")
    files = index_dataset(root).to_pandas().astype(object)
    files = files.where(files.notna(), "")
    files = files[(files["datatype"] == "anat") & files["ext"].isin([".nii.gz", ".nii"])]
    rows = [
        _scan_row(str(subject), str(session), group, root, config["cohort"])
        for (subject, session), group in files.groupby(["sub", "ses"], sort=True)
    ]
    table = root / "participants.tsv"
    participants = read_table(table) if table.is_file() else pd.DataFrame({"participant_id": pd.Series(dtype=str)})
    if "participant_id" not in participants:
        raise InputError("no column participant_id", file=table, remedy="make it a BIDS participants.tsv")
    participants["participant_id"] = participants["participant_id"].astype(str).map(subject_name)
    found = {row["subject"] for row in rows} | {path.name for path in root.glob("sub-*") if path.is_dir()}
    silent = sorted((found | set(participants["participant_id"])) - {row["subject"] for row in rows})
    rows += [_unavailable(subject, "", "missing") for subject in silent]
    return rows, participants


def _scan_row(subject: str, session: str, files: pd.DataFrame, root: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    name, visit = f"sub-{subject}", f"ses-{session}" if session else ""
    images = _ordered(files[files["suffix"] == "T1w"])
    if images.empty:
        return _unavailable(name, visit, "missing")
    chosen = images.iloc[0 if options["run"] == "first" else int(_same_variant(images).sum()) - 1]
    channels = {}
    for channel in options["channels"]:
        others = _ordered(files[files["suffix"] == channel])
        if len(others):
            channels[channel] = str(root / others.iloc[0]["path"])
    unused = [str(path) for path in images["path"] if path != chosen["path"]]
    return _row(name, visit, t1w=str(root / chosen["path"]), channels=channels, runs=len(images), unused=", ".join(unused))


def _ordered(files: pd.DataFrame) -> pd.DataFrame:
    """Sort images of one session: fewest variant entities first, then run, then name."""
    variants = (files[list(VARIANT_ENTITIES)] != "").sum(axis=1)
    runs = pd.to_numeric(files["run"], errors="coerce").fillna(0)
    return files.assign(_variants=variants, _run=runs).sort_values(["_variants", "_run", "path"])


def _same_variant(images: pd.DataFrame) -> pd.Series[bool]:
    same: pd.Series[bool] = images["_variants"] == images["_variants"].iloc[0]
    return same


def _read_table_of_paths(source: Path) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    table = read_table(source, dtype=str)
    for column in ("subject", "t1w"):
        if column not in table:
            raise ConfigError(
                f"{source}: no column '{column}'. Remedy: columns are subject, t1w, optionally session and one per channel"
            )
    table["subject"] = table["subject"].map(subject_name)
    visits = table["session"].fillna("") if "session" in table else pd.Series("", index=table.index)
    table["session"] = [f"ses-{visit.removeprefix('ses-')}" if visit else "" for visit in visits]
    repeated = table[table.duplicated(["subject", "session"])]
    if len(repeated):
        raise ConfigError(f"{source}: {repeated.iloc[0]['subject']} is listed twice. Remedy: give each row a session")
    odd = [name for name in [*table["subject"].str[4:], *table["session"].str[4:]] if name and not LABEL.match(name)]
    if odd:
        raise ConfigError(f"{source}: '{odd[0]}' is not a label. Remedy: use letters and digits only")
    folder = source.resolve().parent
    image_columns = [name for name in table if name not in ("subject", "session") and _is_image_column(table[name])]
    rows = []
    for record in table.to_dict("records"):
        if not isinstance(record["t1w"], str):
            rows.append(_unavailable(record["subject"], record["session"], "missing"))
            continue
        named = {str(name): str(folder / record[name]) for name in image_columns if isinstance(record[name], str)}
        rows.append(_row(record["subject"], record["session"], t1w=named.pop("t1w"), channels=named, runs=1))
    others = table.drop(columns=[*image_columns, "session"]).rename(columns={"subject": "participant_id"})
    participants = others.drop_duplicates("participant_id").apply(_to_numbers)
    return rows, participants


def _to_numbers(column: pd.Series[Any]) -> pd.Series[Any]:
    try:
        return pd.to_numeric(column)
    except (ValueError, TypeError):
        return column


def _is_image_column(column: pd.Series[Any]) -> bool:
    values = column.dropna().astype(str)
    return column.name == "t1w" or bool(len(values) and values.str.endswith((".nii", ".nii.gz")).all())


def external_atlases(config: Config) -> list[dict[str, Any]]:
    """Return the rows of an external labelled set (`fuse.atlases` as TSV with columns atlas, t1w, dseg)."""
    source = config["fuse"]["atlases"]
    if not isinstance(source, str):
        return []
    table = read_atlas_table(Path(source))
    return [_row(subject_name(row["atlas"]), "", t1w=row["t1w"], role="atlas") for row in table.to_dict("records")]


def read_atlas_table(source: Path) -> pd.DataFrame:
    """Read a table of external atlases; relative paths are resolved against its folder."""
    table = read_table(source, dtype=str)
    missing = [column for column in ("atlas", "t1w", "dseg") if column not in table]
    if missing:
        raise ConfigError(f"{source}: no column '{missing[0]}'. Remedy: columns are atlas, t1w and dseg")
    for column in ("t1w", "dseg"):
        table[column] = [str(source.resolve().parent / path) for path in table[column]]
    return table


def _row(
    subject: str,
    session: str,
    *,
    t1w: str,
    channels: Mapping[str, str] | None = None,
    runs: int = 1,
    unused: str = "",
    role: str = "cohort",
) -> dict[str, Any]:
    return {
        "scan": scan_key(subject, session, role=role),
        "subject": subject,
        "session": session,
        "role": role,
        "state": "ok",
        "reason": "",
        "t1w": t1w,
        "channels": json.dumps(dict(channels or {})),
        "runs": runs,
        "unused_runs": unused,
    }


def _unavailable(subject: str, session: str, code: str) -> dict[str, Any]:
    row = _row(subject, session, t1w="", runs=0)
    return row | {"state": "unavailable", "reason": f"{CHECKS[code][0]}; remedy: {CHECKS[code][1]}"}


def _open_images(index: pd.DataFrame, limits: Mapping[str, Any], former: Path) -> pd.DataFrame:
    """Open the images of the selected scans and of their channels; mark what cannot be used."""
    known = _former_inspections(former)
    seen: dict[str, str] = {}
    records = []
    said = time.monotonic()
    for number, row in enumerate(index.to_dict("records"), start=1):
        if time.monotonic() - said > PROGRESS_SECONDS:
            said = time.monotonic()
            print(f"popatlas: opened {number} of {len(index)} images", file=sys.stderr, flush=True)
        records.append(_opened(row, limits, known, seen))
    return pd.DataFrame(records, columns=list(COLUMNS))


def _opened(
    row: dict[Any, Any], limits: Mapping[str, Any], known: Mapping[Any, Inspection], seen: dict[str, str]
) -> dict[Any, Any]:
    blank = {"sha256": "", "shape": "", "spacing_mm": "", "orientation": "", "bytes": 0, "mtime_ns": 0}
    if row["state"] != "ok":
        return row | blank
    stamp = _stamp(row["t1w"])
    found = known.get((row["t1w"], *stamp)) or inspect_image(row["t1w"], limits)
    facts = {key: value for key, value in asdict(found).items() if key not in ("code", "detail")}
    row = row | facts | {"bytes": stamp[0], "mtime_ns": stamp[1]}
    if not found.code and found.sha256 in seen:
        found = Inspection("duplicate", seen[found.sha256], found.sha256)
    if found.code:
        return row | {"state": "unavailable", "reason": found.reason}
    seen[found.sha256] = row["scan"]
    return row | _usable_channels(row, limits)


def _usable_channels(row: Mapping[Any, Any], limits: Mapping[str, Any]) -> dict[str, str]:
    """Keep the extra channels that can be used; a bad one does not cost the scan."""
    channels = json.loads(row["channels"])
    bad = {name: inspect_image(path, limits) for name, path in channels.items()}
    notes = [f"{name} left out: {found.reason}" for name, found in bad.items() if found.code]
    kept = {name: path for name, path in channels.items() if not bad[name].code}
    return {"channels": json.dumps(kept), "reason": "; ".join(notes)}


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = Path(path).stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _former_inspections(former: Path) -> dict[Any, Inspection]:
    """Return good images of the last index by (path, bytes, time); what was bad is opened again."""
    if not former.is_file():
        return {}
    table = read_table(former)
    if set(COLUMNS) - set(table):
        return {}
    good = table[(table["state"] == "ok") & (table["sha256"] != "")]
    return {
        (row["t1w"], row["bytes"], row["mtime_ns"]): Inspection(
            sha256=row["sha256"], shape=row["shape"], spacing_mm=row["spacing_mm"], orientation=row["orientation"]
        )
        for row in good.to_dict("records")
    }


def _write(index: pd.DataFrame, participants: pd.DataFrame, source: Path, folder: Path) -> None:
    parquet = folder / "index.parquet"
    if write_if_changed(folder / "index.tsv", table_text(index)) or not parquet.is_file():
        write_table(index, parquet)
    own = index.loc[index["role"] == "cohort", ["scan", "subject", "session", "state"]]
    joined = own.merge(participants, left_on="subject", right_on="participant_id", how="left")
    joined["participant_id"] = joined["subject"]
    kept = joined.loc[joined["state"] != "excluded"].drop(columns="state")
    write_if_changed(folder / "participants.tsv", table_text(kept))
    dictionary = source / "participants.json"
    if dictionary.is_file():
        write_if_changed(folder / "participants.json", dictionary.read_text(encoding="utf-8"))
