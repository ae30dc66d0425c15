"""Batches: scans that one job serves with one loaded network. New scans form new ones and leave the old ones as they are."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from popatlas.errors import InputError
from popatlas.images.io import read_json, read_table, table_text, write_if_changed
from popatlas.manyvalues import FOLDER, values_in
from popatlas.settings import Content

# tables, columns scan and batch: of brain extraction, and of predicted registrations to the template and while it is built
BRAINS, PREDICTIONS, MEMBERS = "cohort/batches.tsv", "cohort/register-batches.tsv", "cohort/member-batches.tsv"


def batches(
    usable: Sequence[str],
    size: int,
    out_dir: Path,
    records: str = "",
    *,
    table: str = BRAINS,
    settled: Container[str] = (),
) -> dict[str, int]:
    """Return the batch of each scan; new scans form new batches and the old ones stay as they are.

    A batch that has run consists of the scans in its record. A usable scan that is not there, or failed there, is tried
    again in a new batch, so that it does not redo the others of its old one.

    Parameters
    ----------
    usable : sequence of str
        Scans that need a batch.
    size : int
        Scans per batch.
    out_dir : Path
        Output folder.
    records : str
        Folder of the records of the batches, relative to `out_dir`.
    table : str
        Table of this kind of batches, relative to `out_dir`.
    settled : container of str
        Scans that got another way what they failed to get from their batch: they are not tried again.
    """
    rows, failed = [], set()
    for number, members in read_batch_members(out_dir, table).items():
        found = _told(out_dir / records / f"batch-{number}.json") if records else {}
        found = found or {scan: {} for scan in members}
        rows += [(scan, number) for scan in members if scan in found]
        failed |= {(scan, number) for scan, entry in found.items() if entry.get("state") == "failed"}
    known = dict(rows)
    tried = {scan for scan, number in known.items() if (scan, number) not in failed or scan in settled}
    fresh = [scan for scan in sorted(usable) if scan not in tried]
    start = max(read_batches(out_dir, table).values(), default=0) + 1
    rows += [(scan, start + number // size) for number, scan in enumerate(fresh)]
    write_if_changed(out_dir / table, table_text(pd.DataFrame(rows, columns=["scan", "batch"])))
    return dict(rows)


def _told(record: Path) -> dict[str, Content]:
    """Return what the batch record says of its scans; nothing when there is none, or it cannot be read."""
    try:
        found = read_json(record) if record.is_file() else {}
    except InputError:  # the inventory sets it aside when it is needed
        return {}
    is_one = isinstance(found, dict) and all(isinstance(entry, dict) for entry in found.values())
    return found if is_one else {}


def read_batches(out_dir: Path, table: str = BRAINS) -> dict[str, int]:
    """Return the batch of each scan that has one; the last one of a scan that was tried again."""
    return {scan: number for number, members in read_batch_members(out_dir, table).items() for scan in members}


def read_batch_members(out_dir: Path, table: str = BRAINS) -> dict[int, tuple[str, ...]]:
    """Return the scans of each batch, by rising number, those that have gone to a later batch too."""
    path = out_dir / table
    members: dict[int, tuple[str, ...]] = {}
    for row in read_table(path).sort_values("batch", kind="stable").to_dict("records") if path.is_file() else []:
        members[int(row["batch"])] = (*members.get(int(row["batch"]), ()), str(row["scan"]))
    return members


def batch_list(table: str, number: int) -> str:
    """Return the list of the scans of a batch, relative to the output folder."""
    return f"{FOLDER}/{Path(table).stem}-{number}.txt"


@dataclass(frozen=True)
class Batches:
    """One kind of batches, as its rules see them.

    Attributes
    ----------
    out_dir : Path
        Output folder.
    table : str
        Table of this kind of batches, relative to it.
    reads : str
        Pattern with `{scan}` of what a batch reads of a scan, relative to it.
    alive : container of str
        Scans that are not failed.
    of : mapping
        Scan to its batch.
    members : mapping
        Batch to its scans.
    """

    out_dir: Path
    table: str
    reads: str
    alive: Container[str]
    of: Mapping[str, int] = field(repr=False)
    members: Mapping[int, tuple[str, ...]] = field(repr=False)

    @classmethod
    def read(cls, out_dir: Path, table: str, reads: str, alive: Container[str]) -> Batches:
        """Read the batches of a table."""
        return cls(out_dir, table, reads, alive, read_batches(out_dir, table), read_batch_members(out_dir, table))

    def scans(self, number: int) -> list[str]:
        """Return the scans of a batch: those that it ran with; before it has run, those that are alive."""
        members = self.members.get(number, ())
        return [
            scan
            for scan in members
            if self._is_live(scan, number) or (self.out_dir / self.reads.format(scan=scan)).is_file()
        ]

    def files(self, number: int, pattern: str) -> list[str]:
        """Return a file of each scan of a batch, from a pattern with `{scan}`.

        A scan that failed, was excluded or went to another batch stays in the list, as a file that no job makes and that
        is never news: the set of inputs is the one of the last time, so the other scans of the batch are not redone.
        """
        from snakemake.io import ancient
        from snakemake.ioflags import before_update

        files = {scan: pattern.format(scan=scan) for scan in self.scans(number)}
        return [file if self._is_live(scan, number) else ancient(before_update(file)) for scan, file in files.items()]

    def named(self, number: int, pattern: str = "") -> str:
        """Return what stands in a command for the scans of a batch, or for a file of each."""
        return values_in(batch_list(self.table, number), pattern.replace("{scan}", "{}"))

    def listed(self) -> dict[str, list[str]]:
        """Return the lists of the scans of each batch, which its job reads."""
        return {batch_list(self.table, number): self.scans(number) for number in self.members}

    def _is_live(self, scan: str, number: int) -> bool:
        return scan in self.alive and self.of.get(scan) == number
