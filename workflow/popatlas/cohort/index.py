"""The index: the dataset read once, every image opened, one row per scan.

bids2table reads the tree (not pybids: it gives an Arrow table in one pass, without a database and without the seconds
per hundred subjects that large cohorts cannot afford). Nothing later walks the dataset.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from popatlas.cohort.folders import hidden_folders, subject_folders, unnamed
from popatlas.cohort.inspect import Inspection, in_threads, inspect_image, stamp_of
from popatlas.cohort.participants import Listing, describe_scans, read_listing
from popatlas.cohort.pathtable import read_atlas_table, read_path_table
from popatlas.cohort.select import selection_reasons, subject_name
from popatlas.errors import InputError
from popatlas.images.io import read_table, table_text, write_if_changed, write_table

if TYPE_CHECKING:
    from popatlas.config import Config

COLUMNS = (
    "scan", "subject", "session", "role", "state", "reason", "t1w", "channels", "runs", "unused_runs",
    "sha256", "shape", "spacing_mm", "orientation", "bytes", "mtime_ns", "channel_stamps",
)  # fmt: skip
BIDS_FOLDER = re.compile(r"sub-[0-9A-Za-z]+")
Key = tuple[str, int, int]


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
        that are not selected `excluded`, both with the reason. Files whose size and time have not changed since the
        last index are not opened again.

    Raises
    ------
    InputError, ConfigError
        When the dataset itself is missing or not understood, or the selection names what does not exist.
    """
    source = Path(config["bids_dir"])
    rows, listing = _read_table_of_paths(source, config) if source.is_file() else _read_bids(source, config)
    index = pd.DataFrame([*rows, *external_atlases(config)], columns=list(COLUMNS[:10]))
    people, notes = describe_scans(index[index["role"] == "cohort"], listing)
    reasons, said = selection_reasons(people, config["cohort"])
    for note in (*notes, *said):
        print(f"popatlas: {note}", file=sys.stderr)
    left_out = index["scan"].isin(reasons)
    index.loc[left_out, "state"] = "excluded"
    index.loc[left_out, "reason"] = index.loc[left_out, "scan"].map(reasons)
    index = _open_images(index, config["cohort"], out_dir / "cohort" / "index.parquet")
    index = index.sort_values("scan", ignore_index=True)
    _write(index, people, source, out_dir / "cohort")
    return index


def _read_bids(root: Path, config: Config) -> tuple[list[dict[str, Any]], Listing]:
    if not root.is_dir():
        raise InputError("the dataset does not exist", file=root, remedy="check bids_dir")
    folders = subject_folders(root)
    files = read_tree(root, ["T1w", *config["cohort"]["channels"]])
    rows = [
        _scan_row(str(subject), str(session), group, root, config["cohort"])
        for (subject, session), group in files.groupby(["sub", "ses"], sort=True)
    ]
    seen = {(row["subject"], row["session"]) for row in rows}
    rows += [_unavailable(*hidden) for hidden in hidden_folders(root, folders) if hidden[:2] not in seen]
    found = {*folders, *(row["subject"] for row in rows)}
    listing = read_listing(root, found)
    silent = sorted({*found, *listing.unknown} - {row["subject"] for row in rows})
    rows += [_unavailable(name, "", "missing" if BIDS_FOLDER.fullmatch(name) else "label") for name in silent]
    return rows, listing


def read_tree(root: Path, suffixes: Sequence[str]) -> pd.DataFrame:
    """Find the anatomical images of a BIDS dataset.

    Parameters
    ----------
    root : Path
        Dataset.
    suffixes : sequence of str
        BIDS suffixes, for example T1w and T2w.

    Returns
    -------
    DataFrame
        Columns sub, ses, run, suffix, path (relative to `root`), missing entities empty. A file whose name belongs to
        another subject or session than its folder is left out: nobody knows whose it is.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from bids2table import index_dataset

    logging.getLogger("bids2table").setLevel(logging.ERROR)
    # bids2table gives the root to glob, refuses names with a dot, remembers what it saw: a fresh link avoids all that
    with tempfile.TemporaryDirectory(prefix="popatlas-") as folder:
        link = Path(folder) / "dataset"
        link.symlink_to(root.resolve(), target_is_directory=True)
        try:
            table = index_dataset(link).select(["sub", "ses", "run", "suffix", "ext", "datatype", "path"])
        except UnicodeError as error:
            raise unnamed(root) from error
    extensions = pa.array([".nii.gz", ".nii"])
    wanted = pc.and_(pc.is_in(table["suffix"], pa.array(suffixes)), pc.is_in(table["ext"], extensions))
    kept = table.filter(pc.and_(wanted, pc.equal(table["datatype"], "anat")))
    files: pd.DataFrame = kept.to_pandas().astype(object)
    files = files.where(files.notna(), "")
    own = [_in_own_folder(*row) for row in zip(files["path"], files["sub"], files["ses"], strict=True)]
    return files[pd.Series(own, index=files.index, dtype=bool)]


def _in_own_folder(path: str, subject: str, session: str) -> bool:
    parts = path.split("/")
    return parts[0] == f"sub-{subject}" and (parts[1][4:] if parts[1].startswith("ses-") else "") == session


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
    variants = files["path"].str.rsplit("/", n=1).str[-1].str.replace(r"^sub-[^_]*_|(?:ses|run)-[^_]*_", "", regex=True)
    # an acquisition name tells protocols apart; any other entity marks a derived or partial image
    weight = 2 * variants.str.count("_") - variants.str.contains(r"(?:^|_)acq-").astype(int)
    runs = pd.to_numeric(files["run"], errors="coerce").fillna(0)
    ordered = files.assign(_weight=weight, _variants=variants, _run=runs)
    return ordered.sort_values(["_weight", "_variants", "_run", "path"])


def _same_variant(images: pd.DataFrame) -> pd.Series[bool]:
    return images["_variants"].eq(images["_variants"].iloc[0])


def _read_table_of_paths(source: Path, config: Config) -> tuple[list[dict[str, Any]], Listing]:
    table = read_path_table(source, config["cohort"]["channels"])
    rows = []
    for record in table.scans.to_dict("records"):
        named = {str(name): path for name, path in record.items() if name not in ("subject", "session") and path}
        if "t1w" in named:
            rows.append(_row(record["subject"], record["session"], t1w=named.pop("t1w"), channels=named, runs=1))
        else:
            rows.append(_unavailable(record["subject"], record["session"], "missing"))
    return rows, table.listing


def external_atlases(config: Config) -> list[dict[str, Any]]:
    """Return the rows of an external labelled set (`fuse.atlases` as TSV with columns atlas, t1w, dseg)."""
    source = config["fuse"]["atlases"]
    if not isinstance(source, str):
        return []
    table = read_atlas_table(Path(source))
    return [_row(subject_name(row["atlas"]), "", t1w=row["t1w"], role="atlas") for row in table.to_dict("records")]


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


def _unavailable(subject: str, session: str, code: str, detail: str = "") -> dict[str, Any]:
    row = _row(subject, session, t1w="", runs=0)
    return row | {"state": "unavailable", "reason": Inspection(code, detail).reason}


def _open_images(index: pd.DataFrame, limits: Mapping[str, Any], former: Path) -> pd.DataFrame:
    """Open the images of the selected scans and of their channels; mark what cannot be used."""
    known = {key: found for key, found in _former_inspections(former).items() if _within(found, limits)}
    rows = [{str(key): value for key, value in row.items()} for row in index.to_dict("records")]
    alive = [row for row in rows if row["state"] == "ok"]
    paths = dict.fromkeys(path for row in alive for path in (row["t1w"], *json.loads(row["channels"]).values()))
    stamps = {path: stamp_of(path) for path in paths}
    fresh = [path for path in paths if (path, *stamps[path]) not in known]
    opened = dict(zip(fresh, in_threads(lambda path: inspect_image(path, limits), fresh, "images"), strict=True))
    found = {path: opened[path] if path in opened else known[path, *stamps[path]] for path in paths}
    seen: dict[tuple[str, str], str] = {}
    return pd.DataFrame([_opened(row, found, stamps, seen) for row in rows], columns=list(COLUMNS))


def _within(found: Inspection, limits: Mapping[str, Any]) -> bool:
    """Tell whether an image that was good before satisfies the present limits (they may have been changed since)."""
    low, high = limits["spacing_mm"]
    spacing = [float(value) for value in found.spacing_mm.split("x") if value]
    shape = [int(value) for value in found.shape.split("x")[:3] if value]
    return all(low < value < high for value in spacing) and all(value >= limits["min_shape"] for value in shape)


def _opened(
    row: Mapping[str, Any],
    inspections: Mapping[str, Inspection],
    stamps: Mapping[str, tuple[int, int]],
    seen: dict[tuple[str, str], str],
) -> dict[str, Any]:
    blank = {"sha256": "", "shape": "", "spacing_mm": "", "orientation": "", "bytes": 0, "mtime_ns": 0}
    if row["state"] != "ok":
        return {**row, **blank, "channel_stamps": "{}"}
    stamp, found = stamps[row["t1w"]], inspections[row["t1w"]]
    facts = {key: value for key, value in asdict(found).items() if key not in ("code", "detail")}
    row = {**row, **facts, "bytes": stamp[0], "mtime_ns": stamp[1], "channel_stamps": "{}"}
    key = (row["role"], found.sha256)
    if not found.code and key in seen:
        found = Inspection("duplicate", seen[key], found.sha256)
    if found.code:
        return {**row, "state": "unavailable", "reason": found.reason}
    seen[key] = row["scan"]
    return {**row, **_usable_channels(row, inspections, stamps)}


def _usable_channels(
    row: Mapping[str, Any], inspections: Mapping[str, Inspection], stamps: Mapping[str, tuple[int, int]]
) -> dict[str, str]:
    """Keep the extra channels that can be used; a bad one does not cost the scan."""
    channels = json.loads(row["channels"])
    bad = {name: inspections[path].reason for name, path in channels.items() if inspections[path].code}
    notes = [f"{name} left out: {reason}" for name, reason in bad.items()]
    kept = {name: path for name, path in channels.items() if name not in bad}
    facts = {
        path: [*stamps[path], inspections[path].sha256, inspections[path].shape, inspections[path].spacing_mm]
        for path in kept.values()
    }
    return {"channels": json.dumps(kept), "reason": "; ".join(notes), "channel_stamps": json.dumps(facts)}


def _former_inspections(former: Path) -> dict[Key, Inspection]:
    """Return good images of the last index by (path, bytes, time); what was bad is opened again."""
    if not former.is_file():
        return {}
    table = read_table(former)
    if set(COLUMNS) - set(table):
        return {}
    good = table[(table["state"] == "ok") & (table["sha256"] != "")]
    found: dict[Key, Inspection] = {}
    for row in good.to_dict("records"):
        for path, (size, stamp, digest, shape, spacing) in json.loads(row["channel_stamps"]).items():
            found[path, size, stamp] = Inspection(sha256=digest, shape=shape, spacing_mm=spacing)
        found[row["t1w"], row["bytes"], row["mtime_ns"]] = Inspection(
            sha256=row["sha256"], shape=row["shape"], spacing_mm=row["spacing_mm"], orientation=row["orientation"]
        )
    return found


def _write(index: pd.DataFrame, people: pd.DataFrame, source: Path, folder: Path) -> None:
    parquet = folder / "index.parquet"
    text, tsv = table_text(index), folder / "index.tsv"
    if not (parquet.is_file() and tsv.is_file() and tsv.read_text(encoding="utf-8") == text):
        write_table(index, parquet)  # before the TSV: an interruption between the two is then noticed next time
    write_if_changed(tsv, text)
    excluded = set(index.loc[index["state"] == "excluded", "scan"])
    kept = people[~people["scan"].isin(excluded)].sort_values("scan")
    write_if_changed(folder / "participants.tsv", table_text(kept.replace("", pd.NA)))
    dictionary = (source if source.is_dir() else source.parent) / "participants.json"
    if dictionary.is_file():
        write_if_changed(folder / "participants.json", dictionary.read_text(encoding="utf-8", errors="replace"))
