"""The files of one registration of two files: their names, and what is remembered of them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from popatlas.errors import InputError
from popatlas.images.io import atomic_path, read_json, sha256
from popatlas.settings import Content

RECORD = "registration.json"  # written last: without it there is no registration
AFFINE, WARP, INVERSE_WARP = "affine.mat", "warp.nii.gz", "inverse_warp.nii.gz"
WARPED, LABELS, JACOBIAN, PAGE = "warped.nii.gz", "labels.nii.gz", "logjacobian.nii.gz", "page.html"
NAMES = (AFFINE, WARP, INVERSE_WARP, WARPED, LABELS, JACOBIAN, PAGE, RECORD)


@dataclass(frozen=True)
class Outputs:
    """Where the files of a registration are.

    Attributes
    ----------
    prefix : str
        Beginning of their names, before an underscore; or a folder, with a slash at its end where it does not exist yet. Of
        a folder and a registration of one name the registration is meant.
    """

    prefix: str

    def path(self, name: str) -> Path:
        """Return the place of one of `NAMES`."""
        return Path(self.prefix) / name if self.is_folder else Path(f"{self.prefix}_{name}")

    @cached_property
    def is_folder(self) -> bool:
        """Whether the prefix is one; settled when it is first asked for."""
        return self.prefix.endswith("/") or (Path(self.prefix).is_dir() and not Path(f"{self.prefix}_{RECORD}").is_file())

    def read(self) -> Content:
        """Return the record of a registration that passed, its files checked.

        Raises
        ------
        InputError
            When there is none, it failed, or a file of it is gone or another one.
        """
        record = self.path(RECORD)
        if not record.is_file():
            remedy = "give the --out of a popatlas register, or transforms by --transforms"
            raise InputError("there is no registration", file=record, remedy=remedy)
        found: Content = read_json(record)
        if not (isinstance(found, dict) and all("sha256" in found.get(side, {}) for side in ("fixed", "moving"))):
            message = "the file is no record of a registration, or one of an earlier version"
            raise InputError(message, file=record, remedy="run popatlas register again")
        if not found.get("files"):
            remedy = "look at its page; popatlas register --force writes transforms in spite of the gate"
            raise InputError("the registration failed its gate, and left no transforms", file=record, remedy=remedy)
        for name, digest in found["files"].items():
            path = self.path(name)
            if name in (AFFINE, WARP, INVERSE_WARP) and (not path.is_file() or sha256(path) != digest):
                raise InputError("the transform is gone or was changed", file=path, remedy="run popatlas register again")
        return found

    def check(self) -> list[Path]:
        """Return the files of an earlier registration.

        Raises
        ------
        InputError
            When a file of such a name is there and no registration: it is somebody else's.
        """
        there = [path for path in map(self.path, NAMES) if path.exists()]
        if there and not self.path(RECORD).is_file():
            message = "the file exists and no earlier registration has made it"
            raise InputError(message, file=there[0], remedy="choose another --out, or move the file away")
        return there

    def require_folder(self) -> None:
        """Make the folder, and raise an OSError where nothing can be written into it: before the work, not after it."""
        folder = self.path(RECORD).parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass

    def publish(self, folder: Path, names: Iterable[str]) -> dict[str, str]:
        """Move files from a folder to their places, and take away those of an earlier registration; return their SHA-256.

        The record of the earlier one goes first, and the sums are of what was to be written: whatever ends this, or writes
        at the same time, no file is taken for one of another registration.
        """
        earlier = self.check()
        for path in sorted(earlier, key=lambda path: path != self.path(RECORD)):
            path.unlink(missing_ok=True)
        written: dict[str, str] = {}
        try:
            for name in names:
                with atomic_path(self.path(name), check=False) as temporary:
                    shutil.copyfile(folder / name, temporary)
                written[name] = sha256(folder / name)
        except BaseException:  # also Ctrl-C: what stayed would be taken for somebody else's
            for name in written:
                self.path(name).unlink(missing_ok=True)
            raise
        return written
