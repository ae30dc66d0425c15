"""What was drawn for the training of a network: the list of scans, and the note beside it that tells its version.

The version is a hash over the list and all else that the training depends on, so a list that is cut or changed is noticed.
Once a network has been trained its scans stay, whatever file of it is lost afterwards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from popatlas.cohort.notes import note_beside, read_note, write_note
from popatlas.errors import ConfigError, InputError, first_few
from popatlas.images.io import read_table, table_text, write_if_changed
from popatlas.receipts import FOLDER
from popatlas.settings import Content


@dataclass(frozen=True)
class Drawn:
    """The scans that a network is trained on.

    Attributes
    ----------
    out_dir : Path
        Output folder.
    table : str
        List of scans, relative to it; the note is the JSON file beside it.
    network : str
        Name of the network, without its version.
    key : str
        What the list is called in the version.
    """

    out_dir: Path
    table: str
    network: str
    key: str

    @property
    def path(self) -> Path:
        """The list."""
        return self.out_dir / self.table

    @property
    def note(self) -> Content:
        """Version, what it is made of, and whether the network has been trained; empty where there is none."""
        return read_note(self.path, ("version", "request", "atlases"))

    def rows(self) -> pd.DataFrame | None:
        """Return the list as it lies there; None where it cannot be read."""
        try:
            found = read_table(self.path, dtype=str).fillna("")
        except InputError:
            return None
        return found if {"scan", "sha256"} <= set(found.columns) else None

    def version(self, rows: pd.DataFrame, made_of: Mapping[str, object]) -> str:
        """Return the version of a training."""
        return digest_of({**made_of, self.key: rows.to_numpy().tolist()})

    def is_whole(self) -> bool:
        """Tell whether the list is the one that the note tells of."""
        rows, note = self.rows(), self.note
        made_of = {key: note.get(key) for key in ("request", "atlases")}
        return rows is not None and bool(note) and self.version(rows, made_of) == note["version"]

    def is_trained(self, version: str) -> bool:
        """Tell whether a version has been trained: by the note or its receipt, whether its files lie there or not."""
        note = self.note
        noted = note.get("version") == version and bool(note.get("trained"))
        return noted or (self.out_dir / FOLDER / "train" / f"{self.network}-{version}.json").is_file()

    def mend(self, made_of: Mapping[str, object]) -> None:
        """Write a lost note anew when the network of the list, with the settings of today, has been trained."""
        rows = self.rows()
        if not self.note and rows is not None and self.is_trained(self.version(rows, made_of)):
            self.write(rows, made_of)

    def write(self, rows: pd.DataFrame, made_of: Mapping[str, object]) -> str:
        """Write list and note; return the version."""
        version = self.version(rows, made_of)
        trained = {"trained": True} if self.is_trained(version) else {}
        write_if_changed(self.path, table_text(rows))
        write_note(self.path, {"version": version, **made_of, **trained})
        return version

    def note_trained(self) -> None:
        """Note that the network has been trained."""
        write_note(self.path, self.note | {"trained": True})

    def refusal(self) -> InputError:
        """Return the error for a list that is lost or changed, and that would be drawn otherwise today."""
        version = self.note["version"]
        why = "is not what it was" if self.path.is_file() else "is lost"
        return InputError(
            f"the list of scans that the network {self.network}-{version} was trained on {why}, and another one would be "
            "drawn today",
            file=self.path,
            remedy=f"put the file back; to train another network delete it and {note_beside(self.path).name}",
        )

    def require_usable(self, scans: Sequence[str], usable: Sequence[str]) -> None:
        """Refuse to train a lost network again when some of its scans cannot be used any more."""
        lost = sorted(set(scans) - set(usable))
        if lost:
            name = f"{self.network}-{self.note['version']}"
            raise ConfigError(
                f"files of the trained network networks/{name} are gone, and {len(lost)} scan(s) that it was trained on are "
                f"not used any more: {first_few(lost)}. Remedy: put the files back, or select these scans again; to train "
                f"another network delete {self.path} and {note_beside(self.path).name}"
            )


def digest_of(content: Mapping[str, object]) -> str:
    """Return a version: 8 hexadecimal digits of a hash over content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
