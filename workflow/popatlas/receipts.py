"""Receipts: what a job made, from what, and how. They, and never the mere presence of files, tell what is done.

A step that ends well writes a receipt below ``cohort/receipts``: the fingerprint that the workflow gave it (`made_of`, see
`popatlas.study.madeof`), the SHA-256 of the files that it read, and size and SHA-256 of those that it made. A step removes
the receipt of the last time before it begins, so that a job that was killed has none.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from popatlas.images.io import PathLike, sha256, write_json
from popatlas.settings import Content

FOLDER = "cohort/receipts"
ATTEMPT = "cohort/attempt"  # which attempt of the study the jobs belong to; a failure counts in its own attempt
DIGITS = 16
Made = tuple[int, str]  # bytes and SHA-256 of a file


def read_attempt(out_dir: Path = Path()) -> str:
    """Return which attempt of the study in a folder (the working one) jobs belong to; empty outside of a run."""
    try:
        return (out_dir / ATTEMPT).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def fingerprint(content: object) -> str:
    """Return `DIGITS` hexadecimal digits of a hash over JSON-ready content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGITS]


@dataclass(frozen=True)
class Receipt:
    """What a job made.

    Attributes
    ----------
    made_of : str
        Fingerprint of its settings and of everything upstream.
    inputs : dict
        Path, as the job was given it, to SHA-256.
    outputs : dict
        Path to (bytes, SHA-256).
    facts : dict
        What else is worth knowing.
    """

    made_of: str
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, Made] = field(default_factory=dict)
    facts: Content = field(default_factory=dict)

    @classmethod
    def of(
        cls, made_of: str, inputs: Mapping[str, str], outputs: Iterable[PathLike], facts: Content | None = None
    ) -> Receipt:
        """Return the receipt of files that have just been made; those that are missing are left out."""
        there = [path for path in map(str, outputs) if Path(path).is_file()]
        made = {path: (Path(path).stat().st_size, sha256(path)) for path in dict.fromkeys(there)}
        return cls(made_of, dict(inputs), made, dict(facts or {}))

    def write(self, path: PathLike) -> None:
        """Write the receipt, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: PathLike) -> Receipt | None:
        """Return a receipt; None when there is none, or what lies there is not one."""
        try:
            with open(path, encoding="utf-8") as stream:  # noqa: PTH123  # a study has hundreds of thousands of them
                found = cls(**json.load(stream))
            good = isinstance(found.made_of, str) and all(
                isinstance(part, dict) for part in (found.inputs, found.outputs, found.facts)
            )
            if not good or not all(_is_made(entry) for entry in found.outputs.values()):
                return None
            # one file is in the receipts of all that read it: of each path and digest one is kept
            inputs = {sys.intern(file): sys.intern(digest) for file, digest in found.inputs.items()}
            outputs = {sys.intern(file): (size, sys.intern(digest)) for file, (size, digest) in found.outputs.items()}
            return replace(found, inputs=inputs, outputs=outputs)
        except (OSError, ValueError, RecursionError, TypeError):
            return None


def _is_made(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], int) and isinstance(entry[1], str)


def is_current(path: Path, settings: Mapping[str, object], files: Iterable[Path], inputs: Iterable[Path]) -> bool:
    """Tell whether the files of one scan in a batch are as their receipt says, made with these settings from these inputs.

    Files that are older than an input do not count either.

    Parameters
    ----------
    path : Path
        Receipt, from `Receipt.of` with the fingerprint of the settings.
    settings : mapping
        What the files depend on besides their inputs.
    files, inputs : iterable of Path
        What was made and what it was made from.
    """
    found, made, read = Receipt.read(path), list(files), list(inputs)
    if found is None or found.made_of != fingerprint(settings) or not all(file.is_file() for file in (*made, *read)):
        return False
    if min(file.stat().st_mtime_ns for file in made) < max(file.stat().st_mtime_ns for file in read):
        return False
    if found.inputs != digests_of(read):
        return False
    return all(sha256(file) == found.outputs.get(str(file), (0, ""))[1] for file in made)


def digests_of(inputs: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file by its path."""
    return {str(file): sha256(file) for file in inputs}
