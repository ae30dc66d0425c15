"""SHA-256 of files by path, remembered with their stamps, so that a file is read once for each change of it.

A stamp holds the time of the last change (ctime) too: copying tools put size and time of modification back. The inode is not
in it, for it differs between mounts of one folder. A file that is only moved or gets other rights is read once more.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from popatlas.cohort.inspect import NO_FILE, Stamp, stamp_of
from popatlas.errors import InputError
from popatlas.images.io import read_table, sha256, write_table

TABLE = "cohort/digests.parquet"
COLUMNS = ["path", "bytes", "mtime_ns", "ctime_ns", "sha256"]
MISSING = ""
DIGEST = "S64"  # hexadecimal digits


class Noted(NamedTuple):
    """What the table says, in arrays: a large cohort has a million files.

    Attributes
    ----------
    rows : dict
        Hash of a path to its row.
    stamps : (n, 3) int ndarray
        Stamps.
    digests : (n,) bytes ndarray
        SHA-256.
    """

    rows: dict[int, int]
    stamps: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    digests: np.ndarray[tuple[int], np.dtype[np.bytes_]]


class Digests:
    """Digests of files; paths of OUT_DIR are relative to it.

    Parameters
    ----------
    out_dir : Path
        Output folder; what is remembered stands in `TABLE`.
    """

    def __init__(self, out_dir: Path) -> None:
        self.out_dir = out_dir
        self._folder = f"{out_dir}/"
        self._fresh: dict[str, tuple[Stamp, str]] = {}  # what the table does not have yet
        self.is_changed = False

    @cached_property
    def _noted(self) -> Noted:
        """The table; read when it is first asked for, which few jobs do."""
        table = self._read()
        rows = {hash(path): row for row, path in enumerate(table["path"])}
        return Noted(rows, table[COLUMNS[1:4]].to_numpy(), np.array(table["sha256"].to_numpy(), dtype=DIGEST))

    def _read(self) -> pd.DataFrame:
        path = self.out_dir / TABLE
        if path.is_file():
            try:
                types = {"path": "string[pyarrow]", **dict.fromkeys(COLUMNS[1:4], "int64"), "sha256": "string[pyarrow]"}
                return read_table(path, dtype_backend="pyarrow")[COLUMNS].astype(types)
            except (InputError, KeyError, ValueError, TypeError):  # it only saves time: files are read again
                self.is_changed = True
        return pd.DataFrame({name: pd.Series(dtype="int64" if name in COLUMNS[1:4] else "object") for name in COLUMNS})

    def _known(self, path: str) -> tuple[Stamp, str] | None:
        """Return stamp and digest of a file as they are remembered."""
        if (fresh := self._fresh.get(path)) is not None:
            return fresh
        row = self._noted.rows.get(hash(path))
        if row is None:
            return None
        size, modified, changed = self._noted.stamps[row].tolist()
        return (size, modified, changed), self._noted.digests[row].decode()

    def stamp(self, path: str) -> Stamp | None:
        """Return the stamp of a file; None where there is none."""
        found = stamp_of(path if path.startswith("/") else self._folder + path)  # without Path: there are a million of them
        return None if found == NO_FILE else found

    def of(self, path: str | Path, stamp: Stamp | None = None) -> str:
        """Return the SHA-256 of a file; `MISSING` where it is not there or cannot be read.

        `stamp` is its stamp, where that has just been looked at.
        """
        key = str(path)
        stamp = stamp or self.stamp(key)
        if stamp is None:
            return MISSING
        known = self._known(key)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            digest = sha256(self.out_dir / key)
        except OSError:
            return MISSING
        self.remember(key, stamp, digest)
        return digest

    def remember(self, path: str, stamp: Stamp, digest: str) -> None:
        """Note the digest of a file as it is now."""
        self._fresh[path] = (stamp, digest)
        self.is_changed = True

    def write(self) -> None:
        """Write what is remembered, where it has changed."""
        if self.is_changed:
            fresh = pd.DataFrame([(path, *stamp, digest) for path, (stamp, digest) in self._fresh.items()], columns=COLUMNS)
            noted = self._read()
            table = pd.concat([noted[~noted["path"].isin(fresh["path"])], fresh]) if len(noted) else fresh
            write_table(table.sort_values("path", ignore_index=True), self.out_dir / TABLE)
            self.is_changed = False
