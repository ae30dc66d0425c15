"""SHA-256 of files by path, remembered with their stamps, so that a file is read once for each change of it.

A stamp holds the time of the last change (ctime) too: copying tools put size and time of modification back. The inode is not
in it, for it differs between mounts of one folder. A file that is only moved or gets other rights is read once more.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import pandas as pd

from popatlas.cohort.inspect import NO_FILE, Stamp, stamp_of
from popatlas.errors import InputError
from popatlas.images.io import read_table, sha256, write_table

TABLE = "cohort/digests.parquet"
COLUMNS = ["path", "bytes", "mtime_ns", "ctime_ns", "sha256"]
MISSING = ""


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
        self.is_changed = False

    @cached_property
    def known(self) -> dict[str, tuple[Stamp, str]]:
        """Stamp and digest of each file; read when it is first asked for, which few jobs do."""
        path = self.out_dir / TABLE
        if path.is_file():
            try:
                table = read_table(path)[COLUMNS].astype(dict.fromkeys(COLUMNS[1:4], "int64"))
                columns = (table[name].tolist() for name in COLUMNS)
                return {str(name): ((size, modified, changed), str(digest)) for name, size, modified, changed, digest
                        in zip(*columns, strict=True)}  # fmt: skip
            except (InputError, KeyError, ValueError, TypeError):  # it only saves time: files are read again
                self.is_changed = True
        return {}

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
        known = self.known.get(key)
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
        self.known[path] = (stamp, digest)
        self.is_changed = True

    def write(self) -> None:
        """Write what is remembered, where it has changed."""
        if self.is_changed:
            rows = [(path, *stamp, digest) for path, (stamp, digest) in sorted(self.known.items())]
            write_table(pd.DataFrame(rows, columns=COLUMNS), self.out_dir / TABLE)
            self.is_changed = False
