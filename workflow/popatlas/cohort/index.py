"""The index: the dataset read once, every image opened, one row per scan."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pandas as pd

from popatlas.cohort import seen
from popatlas.cohort.choice import Rules, filter_words, read_rules
from popatlas.cohort.folders import hidden_folders, subject_folders
from popatlas.cohort.inspect import Inspection, in_threads, inspect_image, stamp_of
from popatlas.cohort.opened import COLUMNS, Opened, former_inspections, say_choices
from popatlas.cohort.participants import Listing, describe_scans, read_listing
from popatlas.cohort.pathtable import read_atlas_table, read_path_table
from popatlas.cohort.select import read_withdrawn, selection_reasons, subject_name
from popatlas.cohort.tree import Tree, read_tree
from popatlas.errors import ConfigError, InputError, first_few
from popatlas.images.io import read_table, table_text, write_if_changed, write_table

if TYPE_CHECKING:
    from popatlas.config.sections import Cohort, Config

BIDS_FOLDER = re.compile(r"sub-[0-9A-Za-z]+")


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
        that are not selected `excluded`, both with the reason. Files whose size and times have not changed since the
        last index are not opened again.

    Raises
    ------
    InputError, ConfigError
        When the dataset itself is missing or not understood, or the selection names what does not exist.
    """
    source = Path(config.bids_dir)
    if source.is_file() and (config.cohort.filter or config.cohort.prefer):
        raise ConfigError(
            "cohort.filter and cohort.prefer choose among the images of a BIDS dataset, but bids_dir is a table of paths. "
            "Remedy: remove them, and name the image wanted in the table"
        )
    rows, listing = _read_table_of_paths(source, config) if source.is_file() else _read_bids(source, config)
    withdrawn = read_withdrawn(out_dir)
    rows = [row for row in rows if row["subject"] not in withdrawn]
    index = pd.DataFrame([*rows, *external_atlases(config)], columns=[*COLUMNS[:10], "images", "filtered"])
    people, notes = describe_scans(index[index["role"] == "cohort"], listing)
    reasons, said = selection_reasons(people, config.cohort)
    for note in (*notes, *said):
        print(f"popatlas: {note}", file=sys.stderr)
    left_out = index["scan"].isin(reasons)
    index.loc[left_out, "state"] = "excluded"
    index.loc[left_out, "reason"] = index.loc[left_out, "scan"].map(reasons)
    index = _open_images(index, config.cohort, read_former(out_dir), source)
    index = index.sort_values("scan", ignore_index=True)
    _write(index, people, source, out_dir / "cohort")
    return index


class ScanRow(TypedDict):
    """A scan before its images are opened: all that pass the filters, and why others do not, by suffix."""

    scan: str
    subject: str
    session: str
    role: str
    state: str
    reason: str
    t1w: str
    channels: str
    runs: int
    unused_runs: str
    images: dict[str, list[str]]
    filtered: dict[str, dict[str, str]]


def _read_bids(root: Path, config: Config) -> tuple[list[ScanRow], Listing]:
    if not root.is_dir():
        raise InputError("the dataset does not exist", file=root, remedy="check bids_dir")
    folders = subject_folders(root)
    tree = read_tree(root, ["T1w", *config.cohort.channels])
    if tree.strays:
        print(
            f"popatlas: {len(tree.strays)} image(s) lie in the folder of another subject or session and are left out: "
            f"{first_few(tree.strays)}",
            file=sys.stderr,
        )
    rules = read_rules(config.cohort, tree.images["path"])
    rows = [_scan_row(*place, files, root, rules, tree) for place, files in sorted(_by_scan(tree).items())]
    _require_filtered(rows, rules)
    seen = {(row["subject"], row["session"]) for row in rows}
    rows += [_unavailable(*hidden) for hidden in hidden_folders(root, folders) if hidden[:2] not in seen]
    found = {*folders, *(row["subject"] for row in rows)}
    listing = read_listing(root, found)
    for name in sorted({*found, *listing.unknown} - {row["subject"] for row in rows}):
        code = "missing" if BIDS_FOLDER.fullmatch(name) else "label"
        rows.append(_unavailable(name, "", code, tree.instead(name)))
    return rows, listing


def _by_scan(tree: Tree) -> dict[tuple[str, str], dict[str, list[str]]]:
    """Return subject and session to suffix to images."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    images = tree.images
    for subject, session, suffix, path in zip(images["sub"], images["ses"], images["suffix"], images["path"], strict=True):
        found.setdefault((str(subject), str(session)), {}).setdefault(str(suffix), []).append(path)
    return found


def _scan_row(subject: str, session: str, files: Mapping[str, list[str]], root: Path, rules: Rules, tree: Tree) -> ScanRow:
    """Return the row of a scan with all images that pass the filters; which one is taken is known once they are open."""
    name, visit = f"sub-{subject}", f"ses-{session}" if session else ""
    images: dict[str, list[str]] = {}
    filtered: dict[str, dict[str, str]] = {}
    for suffix, paths in sorted(files.items()):
        for path in sorted(paths):
            if why := rules.why_not(path, suffix):
                filtered.setdefault(suffix, {})[str(root / path)] = why
            else:
                images.setdefault(suffix, []).append(str(root / path))
    left = filtered.get("T1w", {})
    if not images.get("T1w") and not left:
        return _unavailable(name, visit, "missing", tree.instead(name, visit))
    row = _row(name, visit, runs=len(images.get("T1w", [])) + len(left))
    state, reason = ("ok", "") if images.get("T1w") else _not_filtered(rules, left)
    return {**row, "images": images, "filtered": filtered, "state": state, "reason": reason}


def _not_filtered(rules: Rules, left: Mapping[str, str]) -> tuple[str, str]:
    """Return state and reason of a scan of which no T1w passes the filters."""
    wanted = rules.filters["T1w"]
    if all("(ses:" in why for why in left.values()):
        return "excluded", f"not in cohort.filter ({filter_words(wanted)})"
    detail = f"{filter_words(wanted)}; found {first_few(Path(path).name for path in left)}"
    return "unavailable", Inspection("filter", detail).reason


def _require_filtered(rows: Sequence[ScanRow], rules: Rules) -> None:
    """Raise ConfigError when the filters leave no T1w of any scan."""
    with_images = [row for row in rows if "images" in row]
    if with_images and not any(row["images"].get("T1w") for row in with_images):
        reason = next((row["reason"] for row in with_images if row["state"] != "excluded"), with_images[0]["reason"])
        wanted = filter_words(rules.filters["T1w"])
        raise ConfigError(f"cohort.filter ({wanted}) leaves no T1w image of any scan: {reason}")


def _read_table_of_paths(source: Path, config: Config) -> tuple[list[ScanRow], Listing]:
    table = read_path_table(source, config.cohort.channels)
    rows = []
    for record in table.scans.to_dict("records"):
        named = {str(name): path for name, path in record.items() if name not in ("subject", "session") and path}
        if "t1w" in named:
            rows.append(_row(record["subject"], record["session"], t1w=named.pop("t1w"), channels=named, runs=1))
        else:
            rows.append(_unavailable(record["subject"], record["session"], "missing"))
    return rows, table.listing


def external_atlases(config: Config) -> list[ScanRow]:
    """Return the rows of an external labelled set (`fuse.atlases` as TSV with columns atlas, t1w, dseg)."""
    source = config.fuse.atlases
    if not isinstance(source, str):
        return []
    table = read_atlas_table(Path(source))
    return [_row(subject_name(row["atlas"]), "", t1w=row["t1w"], role="atlas") for row in table.to_dict("records")]


def _row(
    subject: str,
    session: str,
    *,
    t1w: str = "",
    channels: Mapping[str, str] | None = None,
    runs: int = 1,
    role: str = "cohort",
) -> ScanRow:
    named = {"T1w": t1w, **(channels or {})}
    return {
        "scan": scan_key(subject, session, role=role),
        "subject": subject,
        "session": session,
        "role": role,
        "state": "ok",
        "reason": "",
        "t1w": "",
        "channels": "{}",
        "runs": runs,
        "unused_runs": "",
        "images": {name: [path] for name, path in named.items() if path},
        "filtered": {},
    }


def _unavailable(subject: str, session: str, code: str, detail: str = "") -> ScanRow:
    return {**_row(subject, session, runs=0), "state": "unavailable", "reason": Inspection(code, detail).reason}


def read_former(out_dir: Path) -> pd.DataFrame:
    """Return the last index of an output folder; an empty table where there is none, or one of another version."""
    path = out_dir / "cohort" / "index.parquet"
    table = read_table(path) if path.is_file() else pd.DataFrame(columns=list(COLUMNS))
    return pd.DataFrame(columns=list(COLUMNS)) if set(COLUMNS) - set(table) else table


def _open_images(index: pd.DataFrame, options: Cohort, former: pd.DataFrame, source: Path) -> pd.DataFrame:
    """Open all images of the selected scans and of their channels, and take one of each kind that can be used."""
    known = former_inspections(former, options)
    rows = [{str(key): value for key, value in row.items()} for row in index.to_dict("records")]
    paths = dict.fromkeys(path for row in rows if row["state"] == "ok" for group in row["images"].values() for path in group)
    stamps = {path: stamp_of(path) for path in paths}
    unknown = {path: stamps[path] for path in paths if (path, *stamps[path]) not in known}
    opened = seen.recall(source, unknown, options)
    fresh = [path for path in unknown if path not in opened]
    opened |= zip(fresh, in_threads(lambda path: inspect_image(path, options), fresh, "images"), strict=True)
    found = {path: opened[path] if path in opened else known[path, *stamps[path]] for path in paths}
    if len(fresh) >= seen.FEWEST:
        seen.remember(source, found, stamps)
    usable = former[former["state"] == "ok"]
    before = dict(zip(usable["scan"], usable["t1w"], strict=True))
    pictures = Opened(found, stamps, before, read_rules(options, paths))
    table = pd.DataFrame([pictures.row(row) for row in rows], columns=list(COLUMNS))
    say_choices(table, former)
    return table


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
