"""The label files of a study: every one that the configuration names is opened, and what is wrong with it is noted.

They are the label images of the atlases (`fuse.labels`, or the table that `fuse.atlases` names) and the reference labels
(`measure.reference`). The findings stand in `cohort/label-files.tsv`. A file that was good and whose size and times have not
changed is not opened again, unless its scan, the brain mask of its scan, or popatlas itself has changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

import popatlas
from popatlas.cohort.index import scan_key
from popatlas.cohort.inspect import Stamp, in_threads, stamp_of
from popatlas.cohort.pathtable import read_atlas_table
from popatlas.cohort.select import subject_name
from popatlas.config.sections import Config
from popatlas.errors import ConfigError, InputError
from popatlas.images.grid import Grid
from popatlas.images.io import read_table, sha256, table_text, write_if_changed
from popatlas.images.labels import LabelImage, UnreadableError, read_labels, read_mask
from popatlas.images.place import check_place
from popatlas.settings import Content

LABEL_FILES = "cohort/label-files.tsv"
ATLAS, REFERENCE = "atlas", "reference"
NUMBERS = ["bytes", "mtime_ns", "ctime_ns", "labels", "smallest", "largest"]
COLUMNS = ["scan", "use", "state", "reason", "file", "sha256", *NUMBERS, "judged_by"]
FOUND = ["state", "reason", "sha256", "labels", "smallest", "largest"]  # by opening the file
SAME = ["bytes", "mtime_ns", "ctime_ns", "judged_by"]  # of a file that is not opened again
USES = {ATLAS: "it is no atlas", REFERENCE: "the scan is measured without reference"}
NAMED = 5  # files that are named in messages
_FIELD = re.compile(r"\{(scan|subject|session)\}")


@dataclass(frozen=True)
class LabelFinding:
    """What opening a label file told.

    Attributes
    ----------
    state : str
        ``ok``; ``unreadable``: it does not open; ``unusable``: it opens and cannot be used.
    reason : str
        Problem and remedy, empty for a good file.
    sha256 : str
        Of the file, where it opens.
    labels, smallest, largest : int
        Number of labels without background, and their range.
    """

    state: str = "ok"
    reason: str = ""
    sha256: str = ""
    labels: int = 0
    smallest: int = 0
    largest: int = 0

    @classmethod
    def of(cls, error: InputError, digest: str = "") -> LabelFinding:
        """Return the finding of a file that is refused."""
        state = "unreadable" if isinstance(error, UnreadableError) else "unusable"
        return cls(state, f"{error.message}; remedy: {error.remedy}", digest)


def inspect_labels(
    file: Path, image: Path | None, mask: Path | None, spacing_mm: Sequence[float] | None = None
) -> LabelFinding:
    """Open a label file and look for everything that would make labels wrong.

    Parameters
    ----------
    file : Path
        Label image.
    image : Path, optional
        Image that it was drawn on.
    mask : Path, optional
        Brain mask of that image; one that cannot be read is not looked at.
    spacing_mm : (float, float), optional
        Plausible voxel sizes, millimetres.
    """
    digest = ""
    try:
        limits = None if spacing_mm is None else (float(spacing_mm[0]), float(spacing_mm[1]))
        found = read_labels(file, spacing_mm=limits)
        digest = found.sha256
        check_place(found, image=None if image is None else Grid.from_file(image), mask=_brain(mask))
    except InputError as error:
        return LabelFinding.of(error, digest)
    return LabelFinding("ok", "", digest, len(found.values), int(found.values[0]), int(found.values[-1]))


def _brain(mask: Path | None) -> LabelImage | None:
    try:
        return read_mask(mask) if mask is not None and mask.is_file() else None
    except InputError:  # it is no fault of the labels, and named where the mask is used
        return None


def inspect_label_files(config: Config, index: pd.DataFrame, usable: Sequence[str], out_dir: Path) -> pd.DataFrame:
    """Inspect the label files of usable scans and write the findings to `LABEL_FILES`.

    Parameters
    ----------
    config : dict
        Complete configuration.
    index : DataFrame
        Cohort index.
    usable : sequence of str
        Scans that are available and not failed.
    out_dir : Path
        Output folder; brain masks of the scans are used where they are there.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`, one row for each scan and file: scan, use (atlas, reference), state, reason, file, sha256, bytes,
        mtime_ns, ctime_ns, labels (number of them), smallest, largest, judged_by (a hash of what else the finding depends
        on). Scans without a label file have no row.
    """
    former = {(row["scan"], row["file"]): row for row in read_label_files(out_dir).to_dict("records")}
    images = index[index["state"] == "ok"].set_index("scan")[["t1w", "sha256"]].to_dict("index")
    limits = config.content["cohort"]["spacing_mm"]
    rows = []
    for (scan, file), uses in _wanted(config, index, usable).items():
        size, modified, changed = stamp_of(file)
        depends = [popatlas.__version__, images.get(scan, {}).get("sha256"), *stamp_of(_mask_of(scan, out_dir)), limits]
        judged = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]
        stamp = {"bytes": size, "mtime_ns": modified, "ctime_ns": changed}
        rows.append({"scan": scan, "use": " ".join(uses), "file": file, **stamp, "judged_by": judged})

    def look(row: Content) -> LabelFinding:
        image = images.get(row["scan"], {}).get("t1w")
        return inspect_labels(Path(row["file"]), Path(image) if image else None, _mask_of(row["scan"], out_dir), limits)

    for row in rows:
        row.update(_still_good(row, former.get((row["scan"], row["file"]))))
    fresh = [row for row in rows if "state" not in row]
    for row, finding in zip(fresh, in_threads(look, fresh, "label files"), strict=True):
        row.update(asdict(finding))
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values(["scan", "file"], ignore_index=True)
    write_if_changed(out_dir / LABEL_FILES, table_text(table))
    return table


def _still_good(row: Content, former: Mapping[Hashable, object] | None) -> Content:
    """Return the finding about a file that was good and is the same; nothing for others, they are opened."""
    if former is None or former["state"] != "ok" or any(former[name] != row[name] for name in SAME):
        return {}
    return {name: former[name] for name in FOUND}


def read_label_files(out_dir: Path) -> pd.DataFrame:
    """Return the findings about label files, columns `COLUMNS`; none when nothing has been inspected, or not wholly."""
    path, texts = out_dir / LABEL_FILES, [name for name in COLUMNS if name not in NUMBERS]
    try:
        table = read_table(path, dtype=dict.fromkeys(texts, str)) if path.is_file() else pd.DataFrame(columns=COLUMNS)
        return table[COLUMNS].fillna(dict.fromkeys(texts, ""))
    except (InputError, KeyError):  # the files are then opened again
        return pd.DataFrame(columns=COLUMNS)


def used_as(table: pd.DataFrame, use: str, *, good: bool | None = None) -> pd.DataFrame:
    """Return the rows of a use, all or only the good or the bad ones."""
    rows = table[table["use"].str.split().map(lambda uses: use in uses).astype(bool)]
    return rows if good is None else rows[(rows["state"] == "ok") == good]


def label_digest(out_dir: Path, file: Path | str) -> str:
    """Return the SHA-256 of a label file, without reading it where the findings have it and its stamp is the same."""
    table, stamp = read_label_files(out_dir), stamp_of(file)
    known = table[(table["file"] == str(file)) & (table[["bytes", "mtime_ns", "ctime_ns"]] == list(stamp)).all(axis=1)]
    digests = [digest for digest in known["sha256"] if digest]
    return digests[0] if digests else sha256(file)


def left_out(out_dir: Path, scan: str, file: Path | str) -> str:
    """Return why a label file of a scan must not be used, nothing when it is good or has not been inspected."""
    path = out_dir / LABEL_FILES
    return _reasons(path, stamp_of(path)).get((scan, str(file)), "")


@lru_cache(maxsize=8)
def _reasons(path: Path, stamp: Stamp) -> dict[tuple[str, str], str]:
    table = read_label_files(path.parents[1])
    bad = table[table["state"] != "ok"]
    return {(row["scan"], row["file"]): row["reason"] for row in bad.to_dict("records")}


def say_left_out(table: pd.DataFrame) -> None:
    """Print which label files are left out and why, a few of them with their names."""
    bad = table[table["state"] != "ok"]
    for row in bad.head(NAMED).to_dict("records"):
        what = "does not open" if row["state"] == "unreadable" else "cannot be used"
        follows = ", ".join(USES[use] for use in row["use"].split())
        say(f"{row['scan']}: {row['file']} {what} and is left out ({follows}): {row['reason']}")
    if len(bad) > NAMED:
        say(f"{len(bad) - NAMED} more label file(s) are left out, see {LABEL_FILES}")


def say(message: str) -> None:
    """Print a message that the user of a run must see."""
    print(f"popatlas: {message}", file=sys.stderr)


def resolve_pattern(pattern: str, scan: str, root: Path) -> Path:
    """Return the file that a pattern with {scan}, {subject} or {session} names.

    Parameters
    ----------
    pattern : str
        Relative to `root`, or absolute.
    scan : str
        Scan key.
    root : Path
        Dataset; for a table of paths, the folder of the table.
    """
    parts = scan.split("/")
    session = next((part for part in parts if part.startswith("ses-")), "")
    subject = next(part for part in parts if part.startswith("sub-"))
    base = root.parent if root.is_file() else root
    values = {"scan": scan, "subject": subject, "session": session}
    return base / _FIELD.sub(lambda field: values[field[1]], _checked_pattern(pattern))


def _checked_pattern(pattern: str) -> str:
    """Raise ConfigError when a pattern holds braces other than {scan}, {subject} and {session}."""
    if left := re.search(r"[{}]", _FIELD.sub("", pattern)):
        allowed = "{scan}, {subject} and {session}"
        raise ConfigError(f"pattern '{pattern}': a '{left[0]}' that belongs to none of {allowed}. Remedy: use these only")
    return pattern


def wants_atlases(config: Config) -> bool:
    """Tell whether labelled atlases are asked for."""
    wanted = config.fuse.atlases
    return isinstance(wanted, str) or bool(wanted and config.fuse.methods)


def _wanted(config: Config, index: pd.DataFrame, usable: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Return scan and file of all label files that are there, or are listed and are not, with their uses."""
    uses: dict[tuple[str, str], list[str]] = {}
    own = index[index["scan"].isin(usable) & (index["role"] == "cohort")]
    for scan, file in _atlas_files(config, own):
        uses.setdefault((scan, file), []).append(ATLAS)
    pattern, root = config.measure.reference, Path(config.bids_dir)
    for scan in own["scan"] if pattern else ():
        path = resolve_pattern(pattern, scan, root)
        if is_there(path):
            uses.setdefault((scan, str(path)), []).append(REFERENCE)
    return uses


def _atlas_files(config: Config, own: pd.DataFrame) -> list[tuple[str, str]]:
    if not wants_atlases(config):
        return []
    wanted, root = config.fuse.atlases, Path(config.bids_dir)
    if isinstance(wanted, str):
        table = read_atlas_table(Path(wanted))
        return [(atlas_key(row["atlas"]), row["dseg"]) for row in table.to_dict("records")]
    if isinstance(wanted, tuple):
        own = own[own["subject"].isin([subject_name(name) for name in wanted])]
    paths = {scan: resolve_pattern(config.fuse.labels, scan, root) for scan in own["scan"]}
    there = own["scan"].map(lambda scan: is_there(paths[scan])).astype(bool)
    chosen = own[there]
    if isinstance(wanted, tuple):  # one that is asked for by name and has no labels in any session is a fault
        silent = own[~own["subject"].isin(chosen["subject"])].drop_duplicates("subject")
        chosen = pd.concat([chosen, silent])
    return [(scan, str(paths[scan])) for scan in chosen["scan"]]


def atlas_key(name: str) -> str:
    """Return the key of an external atlas."""
    return scan_key(subject_name(name), "", role="atlas")


def is_there(path: Path) -> bool:
    """Tell whether there is a file, or something that should be one."""
    try:
        return path.exists() or path.is_symlink()  # a link to nothing is a label file that does not open
    except PermissionError:  # and so is one in a folder that may not be read
        return True


def _mask_of(scan: str, out_dir: Path) -> Path:
    return out_dir / f"{scan}_desc-brain_mask.nii.gz"
