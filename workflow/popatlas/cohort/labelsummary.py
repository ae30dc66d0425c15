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
    is_there,
    read_label_files,
    resolve_pattern,
    used_as,
    wants_atlases,
)
from popatlas.config.load import default_config
from popatlas.config.sections import Config
from popatlas.images.header import NIFTI
from popatlas.measures.names import LOST, names_beside

# file patterns of the configuration, and what follows when one matches no file
PATTERNS = {
    "fuse.labels": "nothing is fused",
    "measure.reference": "nothing is scored",
    "measure.landmarks": "no distance of landmarks is measured",
}
TABLES = (".tsv",)
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
    wanted = {ATLAS: wants_atlases(config), REFERENCE: bool(config.measure.reference)}
    uses = [use for use, is_wanted in wanted.items() if is_wanted]
    counts = [_count(table, use) for use in uses]
    lines = [f"labels         {'; '.join(counts) or 'none are asked for'}"]
    bad = table[table["state"] != "ok"]
    for row in bad.head(named).to_dict("records"):
        follows = ", ".join(USES[use] for use in row["use"].split())
        lines.append(f"  left out    {row['scan']}: {row['file']} ({follows}): {row['reason']}")
    if len(bad) > named:
        lines.append(f"  left out    {len(bad) - named} more, see {LABEL_FILES}")
    faults = names_beside(Path(file) for file in table.loc[table["state"] == "ok", "file"])[1]
    unnamed = [f"  no names    {LOST}: {fault}" for fault in faults[:named]]
    if len(faults) > named:
        unnamed.append(f"  no names    {len(faults) - named} more tables of label names cannot be used")
    return [*lines, *_unmatched(config, index, out_dir), *_copies(table), *unnamed]


def _count(table: pd.DataFrame, use: str) -> str:
    found = used_as(table, use)
    good = used_as(table, use, good=True)
    counts = sorted({int(number) for number in good["labels"]})
    spread = f" ({' to '.join(str(number) for number in dict.fromkeys((counts[0], counts[-1])))} labels)" if counts else ""
    return f"{MANY[use]}: {len(found)} files, {len(good)} good{spread}"


def unmatched_patterns(config: Config, index: pd.DataFrame, out_dir: Path) -> list[str]:
    """Return the keys of `PATTERNS` whose file pattern matches no file of any scan that can be used.

    Landmarks are asked for by a pattern of the user only, label images by the shipped pattern too. Without a scan that can
    be used nobody knows.
    """
    table, shipped = read_label_files(out_dir), default_config().measure.landmarks
    by_pattern = not isinstance(config.fuse.atlases, str)
    wanted = {
        "fuse.labels": wants_atlases(config) and by_pattern and used_as(table, ATLAS).empty,
        "measure.reference": used_as(table, REFERENCE).empty,
        "measure.landmarks": config.measure.landmarks != shipped,
    }
    scans, root = _own_scans(index), Path(config.bids_dir)

    def is_silent(key: str) -> bool:
        pattern = _pattern(config, key)
        return bool(pattern and scans) and not any(is_there(resolve_pattern(pattern, scan, root)) for scan in scans)

    return [key for key, is_wanted in wanted.items() if is_wanted and is_silent(key)]


def _pattern(config: Config, key: str) -> str:
    return {
        "fuse.labels": config.fuse.labels,
        "measure.reference": config.measure.reference,
        "measure.landmarks": config.measure.landmarks,
    }[key]


def _own_scans(index: pd.DataFrame) -> list[str]:
    return list(index.loc[(index["state"] == "ok") & (index["role"] == "cohort"), "scan"])


def _unmatched(config: Config, index: pd.DataFrame, out_dir: Path) -> Iterator[str]:
    """Say which pattern matches no file, once for each pattern, and what may be meant."""
    patterns: dict[str, list[str]] = {}
    for key in unmatched_patterns(config, index, out_dir):
        patterns.setdefault(_pattern(config, key), []).append(key)
    for pattern, keys in patterns.items():
        endings = TABLES if keys == ["measure.landmarks"] else NIFTI
        close = nearest_file(pattern, _own_scans(index)[0], Path(config.bids_dir), endings)
        hint = "" if close is None else f"; did you mean {close}?"
        follows = " and ".join(PATTERNS[key] for key in keys)
        yield f"  no file     {' and '.join(keys)} ('{pattern}') matches no file, {follows}{hint}"


def _copies(table: pd.DataFrame) -> Iterator[str]:
    """Say which labels stand under several subjects: at most one of them can be right."""
    known = table[(table["sha256"] != "") & (table["state"] == "ok")]
    for _, rows in known.groupby("sha256", sort=False):
        subjects = rows.assign(subject=rows["scan"].str.split("/anat/").str[0].str.split("/ses-").str[0])
        first = subjects.drop_duplicates("subject")
        if len(first) > 1:
            shown = ", ".join(first["scan"].head(NAMED))
            yield f"  the same    {len(first)} subjects share one label image ({shown}), such as {rows['file'].iloc[0]}"


def nearest_file(pattern: str, scan: str, root: Path, endings: tuple[str, ...] = NIFTI) -> str | None:
    """Return the file of a scan that a pattern without any match may mean.

    Parameters
    ----------
    pattern : str
        See `popatlas.cohort.labelfiles.resolve_pattern`.
    scan : str
        Scan that has the file.
    root : Path
        Dataset.
    endings : tuple of str
        How names of such files end.

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
    names = [str(file.relative_to(base)) for file in _files_near(start, subject, endings)]
    raw = f"{scan}_"  # the scan's own images are no labels
    close = difflib.get_close_matches(
        str(path.relative_to(base)), [name for name in names if not name.startswith(raw)], 1, ALIKE
    )
    return close[0] if close else None


def _files_near(start: Path, subject: str, endings: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files of a subject below a folder; folders of other subjects are not entered."""
    seen = 0
    for folder, folders, files in os.walk(start):
        folders[:] = [name for name in sorted(folders) if name == subject or not SUBJECT_FOLDER.fullmatch(name)]
        seen += len(folders) + len(files)
        yield from (
            Path(folder) / name for name in sorted(files) if name.endswith(endings) and subject in f"{folder}/{name}"
        )
        if seen > MOST_ENTRIES:
            return
