"""Subjects who have withdrawn their consent: all that was derived from them is removed, and they are not taken in again.

What was made of several subjects cannot be taken apart: such a template or network is named and stays until a new one is
made; in the lists of its members the subject is called otherwise, so that nothing else has to be made again. The id stands
in one place, the list of those who have withdrawn, with the date: the raw data may still lie in the dataset.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import yaml

from popatlas.cohort.freeze import ALIASES, read_aliases, template_version
from popatlas.cohort.ledger import FAILURES, KEPT, LEDGER
from popatlas.cohort.members import MemberList
from popatlas.cohort.runrecords import CRATE, rename_words
from popatlas.cohort.select import WITHDRAWN, read_withdrawn
from popatlas.config.beside import NOTE, is_kept
from popatlas.config.load import load_config
from popatlas.config.sections import Config
from popatlas.errors import PopatlasError
from popatlas.images.io import read_table, sha256, table_text, write_json, write_table, write_text
from popatlas.receipts import FOLDER, Receipt

COLUMNS = ["subject", "date"]
# tables from which the rows of the subject are taken; in all other texts it is called otherwise
ROWS = (
    "cohort/index.parquet", "cohort/index.tsv", "cohort/participants.tsv", "cohort/digests.parquet", LEDGER, FAILURES,
    "cohort/remarks.tsv", "cohort/batches.tsv", "cohort/register-batches.tsv", "cohort/member-batches.tsv",
    "cohort/label-files.tsv",
)  # fmt: skip
# results of all scans, with their receipts: the next run makes them again
GROUP = ("group", "report/index.html", f"{FOLDER}/group", CRATE, KEPT)
# notes and logs of Snakemake go as a whole, but for the programs that it has installed
SNAKEMAKE, PROGRAMS = ".snakemake", ("conda", "conda-archive", "singularity")
CONFIGS = ("config.yaml", "cohort/config.yaml")
IMAGES = (".nii.gz", ".nii", ".mat", ".png")  # their names alone can tell of a subject
NETWORKS = "cohort/*-targets.tsv", "cohort/*-scans.tsv"


@dataclass
class Withdrawal:
    """What lies in an output folder of a subject.

    Attributes
    ----------
    out_dir : Path
        Output folder.
    subject, pseudonym : str
        Its name, and what it is called in lists that must stay.
    own : list of Path
        Files and folders that are of it alone, or of it and another one.
    texts : list of Path
        Files of others that name it.
    fused : list of Path
        Labels of other scans that were fused from its own, by whatever method, what follows from them, and receipts.
    still_in : list of str
        What was made of it and others, in words.
    """

    out_dir: Path
    subject: str
    pseudonym: str
    own: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    fused: list[Path] = field(default_factory=list)
    still_in: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, out_dir: Path, subject: str) -> Withdrawal:
        """Look for all that is there of a subject, and change nothing."""
        found = cls(out_dir, subject, f"sub-withdrawn{len(read_withdrawn(out_dir) - {subject}) + 1}")
        for path in _walk(out_dir, found.word):
            if found.word.search(path.name):
                found.own.append(path)
            elif path.name.endswith(IMAGES) or path.relative_to(out_dir).as_posix() == WITHDRAWN:
                continue
            elif found.names(path):
                found.texts.append(path)
        found.fused = list(found._fused())
        found.still_in = list(found._still_in())
        return found

    @property
    def word(self) -> re.Pattern[str]:
        """Its name as a word of its own: sub-1 is not in sub-11."""
        return re.compile(rf"(?<![0-9A-Za-z]){re.escape(self.subject)}(?![0-9A-Za-z])")

    @property
    def is_anywhere(self) -> bool:
        """Tell whether anything is there of it."""
        return bool(self.own or self.texts)

    @property
    def labels(self) -> int:
        """Number of label images of other scans that were fused from its labels."""
        return sum(path.name.endswith("_dseg.nii.gz") for path in self.fused)

    @property
    def size(self) -> int:
        """Bytes that are removed."""
        files = [file for path in self.own for file in (path.rglob("*") if path.is_dir() else [path])]
        return sum(file.lstat().st_size for file in files if not file.is_dir())

    def names(self, path: Path) -> bool:
        """Tell whether a file names the subject."""
        if path.suffix == ".parquet":
            with suppress(PopatlasError):  # one that is damaged is looked at as it is
                return bool(_rows_with(read_table(path), self.word).any())
        content = path.read_bytes()
        return self.subject.encode() in content and bool(self.word.search(content.decode("utf-8", errors="replace")))

    def _fused(self) -> Iterator[Path]:
        paths = (self.out_dir / FOLDER / "fuse").rglob("*.json")
        others = [path for path in sorted(paths) if not self.word.search(path.relative_to(self.out_dir).as_posix())]
        receipts = {path: receipt for path in others if (receipt := Receipt.read(path)) is not None}
        gone: set[str] = set()

        def follows(receipt: Receipt) -> bool:
            return any(name in gone or self.word.search(name) for name in receipt.inputs)

        while more := [path for path, receipt in receipts.items() if follows(receipt)]:
            for path in more:
                made = _ours(receipts.pop(path).outputs)
                gone.update(made)
                yield from (path, *(self.out_dir / name for name in made))

    def _still_in(self) -> Iterator[str]:
        for path in sorted((self.out_dir / "cohort").glob("atlas-*.tsv")):
            if path in self.texts:
                label = path.stem.removeprefix("atlas-")
                version = _versions(self.out_dir, label)
                name = f"{label}@{version}" if version else label
                yield f"the template {name} (tpl-{label}/), of which it is a member"
        if self.out_dir / "atlases" / self.subject in self.own:
            yield "the table of external atlases (fuse.atlases): take it out there, or the next run takes it in again"
        for pattern in NETWORKS:
            for path in sorted((self.out_dir / "cohort").glob(pattern)):
                if path in self.texts:
                    yield f"the network {path.stem.removesuffix('-targets').removesuffix('-scans')}, which was trained on it"

    def carry_out(self) -> None:
        """Remove what is the subject's, and its name from all else; it is not taken in from now on.

        Whatever stops this, the same again goes on with it.
        """
        before = _list(self.out_dir)
        if self.subject not in set(before["subject"]):
            row = pd.DataFrame([[self.subject, time.strftime("%Y-%m-%d")]], columns=COLUMNS)
            write_text(self.out_dir / WITHDRAWN, table_text(pd.concat([before, row], ignore_index=True)))
        self._keep_version()
        raw = self._raw_files()
        also = (*CONFIGS, *(ROWS if raw else ()))  # they may name it by its label alone, or by its files
        self.texts += [path for name in also if (path := self.out_dir / name).is_file() and path not in self.texts]
        for path in (*self.own, *self.fused):
            _remove(path)
        for name in (*self._group_files(), *GROUP):
            _remove(self.out_dir / name)
        for path in (self.out_dir / SNAKEMAKE).glob("*"):
            if path.name not in PROGRAMS:
                _remove(path)
        rename_words(self.out_dir, self.subject.removeprefix("sub-"), self.pseudonym.removeprefix("sub-"))
        replaced: dict[str, tuple[int, str]] = {}
        digests: dict[str, str] = {}
        for path in self.texts:
            if path.is_file() and not path.is_relative_to(self.out_dir / FOLDER):
                former = sha256(path)
                self._rewrite(path, raw)
                if path.is_file():
                    replaced[path.relative_to(self.out_dir).as_posix()] = (path.stat().st_size, sha256(path))
                    digests[former] = sha256(path)
        self._mend_receipts(replaced, digests)
        self._mend_notes(digests)

    def _rewrite(self, path: Path, raw: set[str]) -> None:
        if path.relative_to(self.out_dir).as_posix() in ROWS:
            with suppress(PopatlasError):  # damaged: below
                table = read_table(path) if path.suffix == ".parquet" else read_table(path, dtype=str)
                bad = _rows_with(table, self.word) | table.isin(raw).any(axis=1)
                write_table(table[~bad].reset_index(drop=True), path)
            if not self.names(path):
                return
        if path.relative_to(self.out_dir).as_posix() in CONFIGS:
            content = _without(yaml.safe_load(path.read_text(encoding="utf-8")), self.subject)
            note = NOTE if is_kept(path) else ""
            write_text(path, note + self._renamed(yaml.safe_dump(content, sort_keys=False)))
        else:
            try:
                write_text(path, self._renamed(path.read_text(encoding="utf-8")))
            except UnicodeDecodeError:  # no text of ours: a log with anything in it, a checkpoint
                path.unlink()

    def _renamed(self, text: str) -> str:
        return self.word.sub(self.pseudonym, text)

    def _raw_files(self) -> set[str]:
        """Return the files of the dataset that the index names for it, which need not have its name."""
        path = self.out_dir / "cohort" / "index.parquet"
        if not path.is_file():
            return set()
        index = read_table(path)
        rows = index[index["subject"] == self.subject]
        found = {str(value) for value in rows["t1w"] if value}
        return found | {str(file) for text in rows["channels"] for file in json.loads(text or "{}").values()}

    def _group_files(self) -> list[str]:
        """Return what jobs of the group have made; pictures and Parquet do not show whom they hold."""
        receipts = [Receipt.read(path) for path in sorted((self.out_dir / FOLDER / "group").glob("*.json"))]
        made = [name for receipt in receipts if receipt is not None for name in receipt.outputs]
        return [name for name in _ours(made) if name not in ROWS]

    def _keep_version(self) -> None:
        """Let the template keep its version, though one of its members is called otherwise from now on."""
        config = _last_config(self.out_dir)
        if config is None or config.atlas.template is not None:
            return
        path = MemberList(self.out_dir, config.atlas.label).path
        if path not in self.texts:
            return
        members = read_table(path, dtype=str).fillna("")
        version = template_version(members, config)
        renamed = members.map(self._renamed)
        aliases = read_aliases(self.out_dir)
        if (computed := template_version(renamed, config)) != version:
            write_json(self.out_dir / ALIASES, aliases | {computed: version})

    def _mend_receipts(self, replaced: dict[str, tuple[int, str]], digests: dict[str, str]) -> None:
        """Let receipts know the files whose content names the subject no more."""
        for path in sorted((self.out_dir / FOLDER).rglob("*.json")):
            receipt = Receipt.read(path)
            if receipt is None:
                continue
            outputs = {self._renamed(name): replaced.get(name, made) for name, made in receipt.outputs.items()}
            inputs = {self._renamed(name): digests.get(digest, digest) for name, digest in receipt.inputs.items()}
            facts = json.loads(self._renamed(json.dumps(receipt.facts)))
            mended = replace(receipt, outputs=outputs, inputs=inputs, facts=facts)
            if mended != receipt:
                mended.write(path)

    def _mend_notes(self, digests: dict[str, str]) -> None:
        """Let the notes beside frozen lists know the lists as they are now."""
        for path in (self.out_dir / "cohort").glob("*.json"):
            text = path.read_text(encoding="utf-8")
            found = re.sub(r"[0-9a-f]{64}", lambda match: digests.get(match[0], match[0]), text)
            if found != text:
                write_text(path, found)


def _list(out_dir: Path) -> pd.DataFrame:
    path = out_dir / WITHDRAWN
    return read_table(path, dtype=str) if path.is_file() else pd.DataFrame(columns=COLUMNS)


def _walk(folder: Path, word: re.Pattern[str]) -> Iterator[Path]:
    """Yield all files below a folder, and folders that a name is in, which are not entered."""
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        path = Path(entry.path)
        if word.search(entry.name) or not entry.is_dir(follow_symlinks=False):
            yield path
        elif entry.name != SNAKEMAKE:
            yield from _walk(path, word)


def _rows_with(table: pd.DataFrame, word: re.Pattern[str]) -> pd.Series:
    texts = table.select_dtypes(exclude="number").astype(str)
    found: pd.Series = texts.apply(lambda column: column.str.contains(word)).any(axis=1)
    return found


def _ours(names: Iterable[str]) -> list[str]:
    """Return the names of files that are in the output folder."""
    return [name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _without(content: object, subject: str) -> object:
    """Return settings without the entries of lists that are a subject."""
    if isinstance(content, dict):
        return {key: _without(value, subject) for key, value in content.items()}
    if isinstance(content, list):
        return [_without(value, subject) for value in content if value not in (subject, subject.removeprefix("sub-"))]
    return content


def _last_config(out_dir: Path) -> Config | None:
    try:
        return load_config(out_dir / "config.yaml", out_dir=str(out_dir))
    except PopatlasError:  # of another version, or none
        return None


def _versions(out_dir: Path, label: str) -> str:
    """Return the version of the template of a label, as far as the last settings tell it."""
    config = _last_config(out_dir)
    if config is None or config.atlas.label != label or config.atlas.template is not None:
        return ""
    path = MemberList(out_dir, label).path
    return template_version(read_table(path, dtype=str).fillna(""), config)
