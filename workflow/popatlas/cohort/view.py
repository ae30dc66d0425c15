"""A view of OUT_DIR for looking ahead: what a plan or a dry run writes or takes away, it writes and takes away there."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TextIO, cast

from popatlas.errors import PopatlasError
from popatlas.manyvalues import FOLDER

COHORT = "cohort"
# what is Snakemake's or a run's own
NOT_SHOWN = (".snakemake", "snakemake", "logs")


@contextmanager
def view_of(out_dir: Path) -> Iterator[Path]:
    """Yield a temporary folder that shows OUT_DIR: the tables of ``cohort/`` are copies, all else are links.

    The lists of commands are not shown: they are written anew whenever a study is opened.

    OUT_DIR need not exist, and nothing in it is touched. Errors and what is said on stderr name OUT_DIR.
    """
    with silent_view_of(out_dir) as folder, speaking_of(folder, out_dir):
        yield folder


@contextmanager
def silent_view_of(out_dir: Path) -> Iterator[Path]:
    """Yield a view that outlives what is said while it is opened (`speaking_of`)."""
    with tempfile.TemporaryDirectory(prefix="popatlas-view-") as name:
        folder = Path(name).resolve()
        if out_dir.is_dir():
            _link(out_dir, folder, skip=(*NOT_SHOWN, COHORT))
        (folder / COHORT).mkdir(exist_ok=True)
        if (out_dir / COHORT).is_dir():
            _link(out_dir / COHORT, folder / COHORT, skip=(Path(FOLDER).name,), copy=True)
        yield folder


@contextmanager
def speaking_of(folder: Path, out_dir: Path) -> Iterator[None]:
    """Name OUT_DIR instead of its view in errors and on stderr."""
    try:
        with redirect_stderr(cast("TextIO", _Renamed(sys.stderr, str(folder), str(out_dir)))):
            yield
    except PopatlasError as error:
        error.args = tuple(str(part).replace(str(folder), str(out_dir)) for part in error.args)
        for name in ("message", "file", "remedy"):
            if (text := getattr(error, name, None)) is not None:
                setattr(error, name, str(text).replace(str(folder), str(out_dir)))
        raise


class _Renamed:
    """A stream in which one path stands for another."""

    def __init__(self, stream: TextIO, path: str, instead: str) -> None:
        self.stream, self.path, self.instead = stream, path, instead

    def write(self, text: str) -> int:
        """Write a text with the path replaced."""
        return self.stream.write(text.replace(self.path, self.instead))

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


def hide(folder: Path, path: str) -> None:
    """Take a file out of a view; the file itself stays where it is."""
    place = folder
    for part in Path(path).parent.parts:
        place /= part
        if place.is_symlink():
            real = place.resolve()
            place.unlink()
            place.mkdir()
            _link(real, place)
    (folder / path).unlink(missing_ok=True)


def _link(source: Path, target: Path, skip: tuple[str, ...] = (), *, copy: bool = False) -> None:
    """Link the entries of a folder in another one; with `copy` its files are copied."""
    for entry in source.iterdir():
        if entry.name in skip:
            continue
        if copy and entry.is_file():
            shutil.copy2(entry, target / entry.name)
        else:
            (target / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())
