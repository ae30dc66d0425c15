"""The list of a template's members: whether the template has been built, and that the list is still the one it was built of.

Three things tell that: the note beside the list (``cohort/atlas-<label>.json``), the receipt of the published template, and
the template's description. Members that were frozen stay so as long as one of them says it, whatever else is lost.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from popatlas.cohort.notes import read_note, write_note
from popatlas.errors import InputError
from popatlas.images.io import read_json, read_table, table_text, write_if_changed
from popatlas.receipts import FOLDER, Receipt
from popatlas.settings import Content

COLUMNS = ["scan", "subject", "session", "sha256"]


@dataclass(frozen=True)
class MemberList:
    """The list of the members of one template.

    Attributes
    ----------
    out_dir : Path
        Output folder.
    label : str
        Name of the template.
    """

    out_dir: Path
    label: str

    @property
    def path(self) -> Path:
        """The table of members."""
        return self.out_dir / "cohort" / f"atlas-{self.label}.tsv"

    @property
    def note(self) -> Content:
        """What was noted with the list: the request (members), its SHA-256, and whether the template is built."""
        return read_note(self.path)

    def frozen(self) -> pd.DataFrame | None:
        """Return the members of a template that has been built; None when it has not, and they may be drawn.

        A list that is lost, cut or changed is restored from the description of the template.

        Raises
        ------
        InputError
            When it cannot be restored: drawn again, the members might be others under the same label.
        """
        note, described = self.note, self._described()
        known = {digest for digest in (note.get("sha256"), self._published()) if digest}
        # an existing template (atlas.template) has a description too, but no list, no note and no members in it
        has_description = self._description.is_file() and (self.path.is_file() or bool(note) or described is not None)
        if not (note.get("built") or self._published() or has_description):
            return None
        if not known and described is not None:
            known = {_digest(described)}
        if not self._is_whole(known):
            if described is None or _digest(described) not in known:
                raise self._refusal()
            write_if_changed(self.path, described)
            print(
                f"popatlas: cohort/{self.path.name} was lost or changed; the members of the template are taken from "
                f"tpl-{self.label}/{self._description.name}",
                file=sys.stderr,
            )
        self._write_note(note.get("members"), built=True)
        return read_table(self.path, dtype=str).fillna("")

    def write(self, members: pd.DataFrame, request: object) -> None:
        """Write a list that has been drawn, and the request that it follows from."""
        write_if_changed(self.path, table_text(members))
        self._write_note(request, built=False)

    def _write_note(self, request: object, *, built: bool) -> None:
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        write_note(self.path, {"members": request, "sha256": digest, "built": built})

    def _is_whole(self, known: set[str]) -> bool:
        """Tell whether the list lies there, can be read and has a digest that is known; any where none is."""
        try:
            columns = set(read_table(self.path, dtype=str).columns)
        except InputError:
            return False
        same = not known or hashlib.sha256(self.path.read_bytes()).hexdigest() in known
        return same and set(COLUMNS) <= columns

    def _published(self) -> str:
        """Return the SHA-256 of the list that the published template was made from; empty without a receipt."""
        receipt = Receipt.read(self.out_dir / FOLDER / "atlas" / self.label / "publish_template.json")
        return "" if receipt is None else str(receipt.inputs.get(f"cohort/{self.path.name}", ""))

    @property
    def _description(self) -> Path:
        return self.out_dir / f"tpl-{self.label}" / "template_description.json"

    def _described(self) -> str | None:
        """Return the list as the description of the template tells it; None where it tells none."""
        try:
            members = pd.DataFrame(read_json(self._description)["Members"])
            return table_text(members[COLUMNS].astype(object).fillna("")) if len(members) else None
        except (InputError, KeyError, TypeError, ValueError):
            return None

    def _refusal(self) -> InputError:
        why = "cannot be read or are not those that it was built from" if self.path.is_file() else "are lost"
        remedy = (
            f"put the file back (its scans stand under Members in tpl-{self.label}/template_description.json), or set "
            "atlas.label to a new name, so that a new template is built beside the old one"
        )
        return InputError(f"the frozen members of the template {why}", file=self.path, remedy=remedy)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
