"""The table of scans that a registration network is trained on."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn, cast, get_args

from popatlas.errors import InputError
from popatlas.images.io import PathLike, read_table, suffix_of
from popatlas.images.tables import is_missing, read_text_table

Split = Literal["train", "validation", "test"]

REQUIRED = ("subject", "image")
FILES = ("image", "labels", "mask", "affine")
COLUMNS = (*REQUIRED, "session", "labels", "mask", "affine", "group", "split")
VALIDATION_SHARE = 0.1
TYPO = 0.8  # likeness of names from which a column is taken for a misspelt one


@dataclass(frozen=True)
class TrainingScan:
    """One scan of the training table.

    Attributes
    ----------
    subject, session : str
        Who and when; without sessions the second is empty.
    image : Path
        NIfTI file.
    labels, mask : Path or None
        Label map, and the voxels that count, in the world of the image; their grids may differ from its.
    affine : Path or None
        ITK file: points of the common space to points of the image.
    group : str
        Scans are paired with those of their group only.
    split : {"train", "validation", "test"}
        What the scan is for; all scans of a subject are for the same.
    """

    subject: str
    image: Path
    session: str = ""
    labels: Path | None = None
    mask: Path | None = None
    affine: Path | None = None
    group: str = ""
    split: Split = "train"

    @property
    def name(self) -> str:
        """Subject and session, for messages and seeds."""
        return f"{self.subject}_{self.session}" if self.session else self.subject


def read_training_table(path: PathLike) -> list[TrainingScan]:
    """Read and check a training table.

    Parameters
    ----------
    path : path-like
        TSV or Parquet with the columns `subject` and `image` and, optionally, `session`, `labels`, `mask`, `affine`, `group`
        and `split`; other columns are left alone. Relative paths are resolved against the table's folder. Without `split`,
        about a tenth of the subjects, at least one, are for validation, by a hash of their names: the choice hardly changes
        when subjects are added.

    Returns
    -------
    list of TrainingScan
        In the order of the table.

    Raises
    ------
    InputError
        The table cannot be read, lacks a column, has a column that looks misspelt or no row; a row has no subject or image,
        a file that is not there, an unknown split; a scan is listed twice, a subject has two splits, a scan is alone in its
        group, or the training scans make no pair.
    """
    table = _Table(Path(path))
    scans = [table.scan(number, cells) for number, cells in enumerate(table.rows, start=1)]
    table.check_names(scans)
    if "split" not in table.columns:
        scans = split_scans(scans)
    table.check_pairs(scans)
    return scans


class _Table:
    """The cells of a table as text, and errors that say where in it they are."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.resolve().parent
        table = read_table(path) if suffix_of(path) == ".parquet" else read_text_table(path)
        self.columns = [str(name) for name in table.columns]
        for column in REQUIRED:
            if column not in self.columns:
                found = ", ".join(self.columns)
                self.refuse(f"no column {column}, only {found}", remedy=f"the columns are {', '.join(COLUMNS)}")
        for column in self.columns:
            close = [] if column in COLUMNS else difflib.get_close_matches(column, COLUMNS, n=1, cutoff=TYPO)
            if close and close[0] not in self.columns:
                self.refuse(f"unknown column {column}", remedy=f"did you mean {close[0]}? Otherwise rename it")
        texts = table.astype(object).where(table.notna(), "").astype(str).map(str.strip)
        texts = texts.where(~texts.map(is_missing), "")
        self.rows = [{str(name): cell for name, cell in row.items()} for row in texts.to_dict("records")]
        if not self.rows:
            self.refuse("the table has no rows", remedy="list one scan a row")

    def refuse(self, message: str, subject: str = "", remedy: str = "") -> NoReturn:
        """Raise the error of a defect."""
        raise InputError(message, file=self.path, subject=subject or None, remedy=remedy)

    def scan(self, number: int, cells: dict[str, str]) -> TrainingScan:
        """Return the scan of a row, counted from 1."""
        subject = cells["subject"]
        if not subject or not cells["image"]:
            column = "image" if subject else "subject"
            self.refuse(f"row {number} has no {column}", subject, remedy="fill the cell, or delete the row")
        files = {column: self._file(number, subject, column, cells.get(column, "")) for column in FILES}
        split = cells.get("split", "train")
        if split not in get_args(Split):
            known = ", ".join(get_args(Split))
            self.refuse(f"row {number} has the unknown split {split!r}", subject, remedy=f"use one of {known}")
        return TrainingScan(
            subject,
            image=cast(Path, files["image"]),
            session=cells.get("session", ""),
            labels=files["labels"],
            mask=files["mask"],
            affine=files["affine"],
            group=cells.get("group", ""),
            split=cast(Split, split),
        )

    def _file(self, number: int, subject: str, column: str, cell: str) -> Path | None:
        if not cell:
            return None
        path = self.folder / cell
        if not path.is_file():
            self.refuse(
                f"row {number}: the file in column {column} is not there: {path}", subject, remedy="correct the path"
            )
        return path

    def check_names(self, scans: Sequence[TrainingScan]) -> None:
        """Refuse scans that are listed twice and subjects with two splits."""
        numbers: dict[tuple[str, str], int] = {}
        splits: dict[str, str] = {}
        for number, scan in enumerate(scans, start=1):
            first = numbers.setdefault((scan.subject, scan.session), number)
            if first != number:
                message = f"rows {first} and {number} list the same subject and session"
                self.refuse(message, scan.name, remedy="give each scan of a subject a session of its own")
            if splits.setdefault(scan.subject, scan.split) != scan.split:
                message = f"row {number}: the subject is in the splits {splits[scan.subject]} and {scan.split}"
                self.refuse(message, scan.subject, remedy="give all scans of a subject one split")

    def check_pairs(self, scans: Sequence[TrainingScan]) -> None:
        """Refuse groups of one scan and splits that leave nothing to train on."""
        everywhere = Counter(scan.group for scan in scans)
        training = Counter(scan.group for scan in scans if scan.split == "train")
        if not training:
            self.refuse("no row has the split train", remedy="give some subjects the split train")
        for number, scan in enumerate(scans, start=1):
            if everywhere[scan.group] == 1 and len(scans) > 1:
                group = f"group {scan.group!r}" if scan.group else "those without a group"
                remedy = "a scan is paired within its group: correct the group, or delete the row"
                self.refuse(f"row {number} is the only scan in {group}", scan.name, remedy=remedy)
        if max(training.values()) < 2:
            message = "there is no pair of training scans"
            self.refuse(message, remedy="list more scans, or give two of a group the split train in a column split")


def split_scans(scans: Sequence[TrainingScan]) -> list[TrainingScan]:
    """Give each scan a split, train or validation, by a hash of its subject.

    Subjects that are linked by groups stay together, unless all of them are linked.

    Parameters
    ----------
    scans : sequence of TrainingScan
        Their splits are not looked at.

    Returns
    -------
    list of TrainingScan
        In the same order.
    """
    unit = _linked(scans)
    if len(set(unit.values())) < 2:
        unit = {scan.subject: scan.subject for scan in scans}
    ranked = sorted(set(unit.values()), key=_place)
    below = sum(_place(name) < VALIDATION_SHARE for name in ranked)
    chosen = set(ranked[: max(1, min(below, len(ranked) // 2))])
    return [replace(scan, split="validation" if unit[scan.subject] in chosen else "train") for scan in scans]


def _place(name: str) -> float:
    """Return a number from 0 to 1 that looks random and is always the same for a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _linked(scans: Iterable[TrainingScan]) -> dict[str, str]:
    """Return the first subject that each subject is linked with through groups; those without a group are not linked."""
    members: dict[str, set[str]] = defaultdict(set)
    unit: dict[str, str] = {}
    for scan in scans:
        unit[scan.subject] = scan.subject
        if scan.group:
            members[scan.group].add(scan.subject)
    for group in members.values():
        joined = {unit[subject] for subject in group}
        unit.update({subject: min(joined) for subject in unit if unit[subject] in joined})
    return unit
