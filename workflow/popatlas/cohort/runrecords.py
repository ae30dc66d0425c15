"""What each run of a study was: its command line, versions, machine, times and how it ended.

A run adds a line when it begins and one when it ends, so that one without an end was killed.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from popatlas import __version__
from popatlas.images.io import sha256, write_text

FILE = "cohort/runs.jsonl"
CRATE = "ro-crate-metadata.json"  # the whole study, described from this and what steps wrote (`popatlas.report.crate`)
ENDED_BY_ERROR = 1  # exit code of a run that an error or an interrupt ended


@contextmanager
def recorded(out_dir: Path, line: Sequence[str], config_file: Path) -> Iterator[Callable[[int], int]]:
    """Write down that a run begins and how it ended; yield what takes, and returns, its exit code.

    Parameters
    ----------
    out_dir : Path
        Output folder.
    line : sequence of str
        Arguments of `popatlas`.
    config_file : Path
        Complete configuration of the run; its digest is kept.
    """
    name, codes = uuid.uuid4().hex[:12], [ENDED_BY_ERROR]
    command = shlex.join(["popatlas", *line])
    more = {"command": command, "popatlas": __version__, "python": platform.python_version(), "host": platform.node()}
    _add(out_dir, {"run": name, "started": _now(), **more, "config_sha256": sha256(config_file)})

    def ends(code: int) -> int:
        codes.append(code)
        return code

    try:
        yield ends
    finally:
        with suppress(OSError):  # a full disk, which the run itself tells of
            _add(out_dir, {"run": name, "ended": _now(), "exit_code": codes[-1]})


def read_runs(out_dir: Path) -> list[dict[str, Any]]:
    """Return the runs of a study, oldest first; one that was killed has no `ended`, and a torn line counts for nothing."""
    file = out_dir / FILE
    runs: dict[str, dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            told = json.loads(line)
            runs.setdefault(told["run"], {}).update(told)
        except (ValueError, KeyError, TypeError):
            continue
    return [run for run in runs.values() if "started" in run]


def rename_words(out_dir: Path, word: str, other: str) -> None:
    """Replace a word of the command lines of a study, such as the label of a subject."""
    file = out_dir / FILE
    # alone, after an option, in a list, or quoted in a query; not in a path
    whole = re.compile(rf"(^|[=,\[ '\"]){re.escape(word)}(?=$|[,\] '\"])")
    runs = [
        run | {"command": shlex.join(whole.sub(rf"\g<1>{other}", part) for part in shlex.split(run["command"]))}
        for run in read_runs(out_dir)
    ]
    if file.is_file():
        write_text(file, "".join(json.dumps(run) + "\n" for run in runs))


def _add(out_dir: Path, content: dict[str, object]) -> None:
    file = out_dir / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    is_torn = file.is_file() and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as stream:
        stream.write("\n" * is_torn + json.dumps(content) + "\n")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
