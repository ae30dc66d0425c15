"""A view of OUT_DIR for looking ahead: what a plan or a dry run writes or takes away, it writes and takes away there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from popatlas.errors import PopatlasError

COHORT = "cohort"
# what is Snakemake's or a run's own
NOT_SHOWN = (".snakemake", "snakemake", "logs")


@contextmanager
def view_of(out_dir: Path) -> Iterator[Path]:
    """Yield a temporary folder that shows OUT_DIR: the tables of ``cohort/`` are copies, all else are links.

    OUT_DIR need not exist, and nothing in it is touched. Errors name OUT_DIR.
    """
    with tempfile.TemporaryDirectory(prefix="popatlas-view-") as name:
        folder = Path(name).resolve()
        if out_dir.is_dir():
            _link(out_dir, folder, skip=(*NOT_SHOWN, COHORT))
        (folder / COHORT).mkdir(exist_ok=True)
        if (out_dir / COHORT).is_dir():
            _link(out_dir / COHORT, folder / COHORT, copy=True)
        try:
            yield folder
        except PopatlasError as error:
            error.args = tuple(str(part).replace(str(folder), str(out_dir)) for part in error.args)
            raise


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
