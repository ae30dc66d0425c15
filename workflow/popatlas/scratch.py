"""Temporary files of a step: in a folder of its own, on a disk of the node, gone when the step has ended.

A step that is killed cannot remove its folder; the next step of the study on that node does.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from popatlas.surroundings import TEMPORARY, unusable

# where the scratch disk of a node is, before TMPDIR: of the user, of the site
VARIABLES = ("POPATLAS_SCRATCH", "SLURM_TMPDIR")
PREFIX = "popatlas-scratch-"  # of a study's folder
PRIVATE = 0o700
TRIES = 10


@contextmanager
def scratch(study: Path) -> Iterator[Path]:
    """Let temporary files of this process, and of those that it starts, go to a folder that is gone in the end.

    Parameters
    ----------
    study : Path
        Output folder. Each study, and each user, has a folder of its own on the disk, with one for each step that runs.

    Yields
    ------
    Path
        The folder.
    """
    before, place = {name: os.environ.get(name) for name in TEMPORARY}, _disk()
    own = hashlib.sha256(os.fsencode(study.absolute())).hexdigest()[:12]
    folder = _folder(place / f"{PREFIX}{os.getuid()}-{own}")
    try:
        _go_to(dict.fromkeys(TEMPORARY, str(folder)))
        yield folder
    finally:
        _go_to(before)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent != place:
            with suppress(OSError):  # other steps of the study are at work
                folder.parent.rmdir()


def _folder(shared: Path) -> Path:
    """Make a folder for this process in that of a study."""
    for _ in range(TRIES):  # another step may remove the empty one of the study just now
        with suppress(FileNotFoundError):
            shared.mkdir(mode=PRIVATE, exist_ok=True)
            if shared.is_symlink() or shared.stat().st_uid != os.getuid():  # of somebody who guessed the name
                return Path(tempfile.mkdtemp(prefix=PREFIX, dir=shared.parent))
            _sweep(shared)
            return Path(tempfile.mkdtemp(prefix=f"{_name(os.getpid())}+", dir=shared))
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=shared.parent))


def _disk() -> Path:
    """Return the scratch disk of this node."""
    for name in VARIABLES:
        if not os.environ.get(name):
            continue
        folder = os.path.expandvars(os.environ[name])  # of the job, such as $SLURM_JOB_ID
        if not (problem := unusable(folder, size=0)):
            Path(folder).mkdir(parents=True, exist_ok=True)
            return Path(folder)
        print(f"popatlas: {name} ({folder}) {problem}: it is not used", file=sys.stderr)
    return Path(tempfile.gettempdir())


def _go_to(places: dict[str, str | None]) -> None:
    for name, value in places.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    tempfile.tempdir = None  # it is looked for once and remembered


def _name(process: int) -> str:
    """Return the name of a process of this node that no other has, before or after it."""
    try:  # what follows the name of the program, in which there may be anything; the 22nd field is the time of its start
        began = (
            Path("/proc", str(process), "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    except (OSError, IndexError):
        began = "0"
    return f"{socket.gethostname()}+{process}+{began}"


def _sweep(shared: Path) -> None:
    """Remove the folders of steps of this node that are dead."""
    for folder in shared.iterdir():
        host, _, rest = folder.name.partition("+")
        number = rest.partition("+")[0]
        if host == socket.gethostname() and number.isdigit() and not folder.name.startswith(f"{_name(int(number))}+"):
            shutil.rmtree(folder, ignore_errors=True)
