"""What is told about the label files of a study: how many are good, which are not, and patterns that match nothing."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from popatlas.cohort.labelfiles import (
    ATLAS,
    LABEL_FILES,
    NAMED,
    REFERENCE,
    USES,
    read_label_files,
    resolve_pattern,
    used_as,
    wants_atlases,
)
from popatlas.config import Config
from popatlas.images.header import NIFTI
from popatlas.measures.names import LOST, names_beside

MANY = {ATLAS: "atlases", REFERENCE: "references"}
ALIKE = 0.6  # likeness of two paths from which one may be meant by the other
MOST_ENTRIES = 20_000  # of folders that are looked through for a file that may be meant
SUBJECT_FOLDER = re.compile(r"sub-[0-9A-Za-z]+")


def labels_summary(config: Config, index: pd.DataFrame, out_dir: Path, *, named: int = NAMED) -> list[str]:
    """Return the lines about the label files that have been inspected.

    Parameters
    ----------
    config : dict
        Complete configuration.
    index : DataFrame
        Cohort index.
    out_dir : Path
        Folder with `popatlas.cohort.labelfiles.LABEL_FILES`.
    named : int
        Most bad files that are named; the others are counted.

    Returns
    -------
    list of str
        How many atlases and references were found and are good; a line with file, reason and remedy for each bad one; a
        line for each pattern that matches no file, with the file that may be meant; a line for labels of several subjects
        that are one and the same; a line for each table of label names that cannot be used.
    """
    table = read_label_files(out_dir)
    wanted = {ATLAS: wants_atlases(config), REFERENCE: bool(config["measure"]["reference"])}
    uses = [use for use, is_wanted in wanted.items() if is_wanted]
    counts = [_count(table, use) for use in uses]
    lines = [f"labels         {'; '.join(counts) or 'none are asked for'}"]
    bad = table[table["state"] != "ok"]
    for row in bad.head(named).to_dict("records"):
        follows = ", ".join(USES[use] for use in row["use"].split())
        lines.append(f"  left out    {row['scan']}: {row['file']} ({follows}): {row['reason']}")
    if len(bad) > named:
        lines.append(f"  left out    {len(bad) - named} more, see {LABEL_FILES}")
    empty = [use for use in uses if used_as(table, use).empty]
    faults = names_beside(Path(file) for file in table.loc[table["state"] == "ok", "file"])[1]
    unnamed = [f"  no names    {LOST}: {fault}" for fault in faults[:named]]
    if len(faults) > named:
        unnamed.append(f"  no names    {len(faults) - named} more tables of label names cannot be used")
    return [*lines, *_unmatched(config, index, empty), *_copies(table), *unnamed]


def _count(table: pd.DataFrame, use: str) -> str:
    found = used_as(table, use)
    good = used_as(table, use, good=True)
    counts = sorted({int(number) for number in good["labels"]})
    spread = f" ({' to '.join(str(number) for number in dict.fromkeys((counts[0], counts[-1])))} labels)" if counts else ""
    return f"{MANY[use]}: {len(found)} files, {len(good)} good{spread}"


def _unmatched(config: Config, index: pd.DataFrame, uses: list[str]) -> Iterator[str]:
    """Say which pattern matches no file, once for each pattern, and what may be meant."""
    keys = {ATLAS: ("fuse", "labels", "nothing is fused"), REFERENCE: ("measure", "reference", "nothing is scored")}
    patterns: dict[str, list[tuple[str, str]]] = {}
    for use in uses:
        section, key, follows = keys[use]
        if use != ATLAS or not isinstance(config["fuse"]["atlases"], str):
            patterns.setdefault(config[section][key], []).append((f"{section}.{key}", follows))
    scans = list(index.loc[(index["state"] == "ok") & (index["role"] == "cohort"), "scan"])
    for pattern, named in patterns.items():
        close = nearest_file(pattern, scans[0], Path(config["bids_dir"])) if scans else None
        hint = "" if close is None else f"; did you mean {close}?"
        keys_text, follows_text = (" and ".join(texts) for texts in zip(*named, strict=True))
        yield f"  no file     {keys_text} ('{pattern}') matches no file, {follows_text}{hint}"


def _copies(table: pd.DataFrame) -> Iterator[str]:
    """Say which labels stand under several subjects: at most one of them can be right."""
    known = table[(table["sha256"] != "") & (table["state"] == "ok")]
    for _, rows in known.groupby("sha256", sort=False):
        subjects = rows.assign(subject=rows["scan"].str.split("/anat/").str[0].str.split("/ses-").str[0])
        first = subjects.drop_duplicates("subject")
        if len(first) > 1:
            shown = ", ".join(first["scan"].head(NAMED))
            yield f"  the same    {len(first)} subjects share one label image ({shown}), such as {rows['file'].iloc[0]}"


def nearest_file(pattern: str, scan: str, root: Path) -> str | None:
    """Return the image of a scan that a pattern without any match may mean.

    Parameters
    ----------
    pattern : str
        See `popatlas.cohort.labelfiles.resolve_pattern`.
    scan : str
        Scan that has the image.
    root : Path
        Dataset.

    Returns
    -------
    str or None
        Path below the dataset, None when nothing is alike.
    """
    path = resolve_pattern(pattern, scan, root)
    start = next((folder for folder in path.parents if folder.is_dir()), None)
    base = root.parent if root.is_file() else root
    if start is None or not start.is_relative_to(base):
        return None
    subject = next(part for part in scan.split("/") if part.startswith("sub-"))
    names = [str(file.relative_to(base)) for file in _images_near(start, subject)]
    raw = f"{scan}_"  # the scan's own images are no labels
    close = difflib.get_close_matches(
        str(path.relative_to(base)), [name for name in names if not name.startswith(raw)], 1, ALIKE
    )
    return close[0] if close else None


def _images_near(start: Path, subject: str) -> Iterator[Path]:
    """Yield the images of a subject below a folder; folders of other subjects are not entered."""
    seen = 0
    for folder, folders, files in os.walk(start):
        folders[:] = [name for name in sorted(folders) if name == subject or not SUBJECT_FOLDER.fullmatch(name)]
        seen += len(folders) + len(files)
        yield from (Path(folder) / name for name in sorted(files) if name.endswith(NIFTI) and subject in f"{folder}/{name}")
        if seen > MOST_ENTRIES:
            return
