"""What programs find around them: a home, a folder for temporary files, a user's name, no network. Set up at the start.

A container that runs as a user it does not know has no entry in /etc/passwd and no home that can be written, and its TMPDIR
may be one of another machine. Snakemake, Nipype, numba, matplotlib and torch each keep something there. Rather than to tell
each of them another place, the variables that all of them follow are repaired for this process and all that it starts.
"""

from __future__ import annotations

import getpass
import os
import pwd
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path

from popatlas.errors import InputError

# Nipype would ask a server for its newest version in each step, and wait where nobody answers; git need not be installed
QUIET = {"NO_ET": "1", "NIPYPE_NO_ET": "1", "GIT_PYTHON_REFRESH": "quiet"}
TEMPORARY = ("TMPDIR", "TEMP", "TMP")
USUAL = ("/tmp", "/var/tmp")
# folders that a user or an image may have chosen; without the variable they are below the home
CHOSEN = (
    "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "NIPYPE_CONFIG_DIR",
    "TORCH_HOME",
)  # fmt: skip
BELOW_HOME = {"XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config"}
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where getpass looks for the user before it asks /etc/passwd
PLAIN = re.compile(r"[\w./+@%=~-]+")  # a path that every program takes
PRIVATE = ".popatlas-tmp-"  # beginning of the name of a folder for temporary files in a user's folder; gone at the end
BLOCK = 4096  # bytes that must fit: an empty file can be made on a full disk


def silence(environment: MutableMapping[str, str]) -> None:
    """Keep libraries from asking a server about themselves, in an environment."""
    for name, value in QUIET.items():
        environment.setdefault(name, value)


@contextmanager
def settled(places: Iterable[Path] = (), *, required: bool = True) -> Iterator[dict[str, str | None]]:
    """Give this process and those that it starts what they lack; say so once, on stderr.

    Parameters
    ----------
    places : iterable of Path
        Where temporary files may go when none of the usual folders can be written, for example OUT_DIR.
    required : bool
        Whether a folder for temporary files is needed at all.

    Yields
    ------
    dict of str to str or None
        What was changed in the environment; None: removed. It is put back, and what was made is removed, at the end.

    Raises
    ------
    InputError
        When the current folder is gone, or no folder for temporary files can be written.
    """
    _check_current_folder()
    before, made = dict(os.environ), list[Path]()
    try:
        changes, notices = _repairs(before, places, made, required)
        for notice in notices:
            print(f"popatlas: {notice}", file=sys.stderr)
        for name, value in changes.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        silence(os.environ)
        tempfile.tempdir = None  # it is looked for once and remembered
        yield changes
    finally:
        os.environ.clear()
        os.environ.update(before)
        tempfile.tempdir = None
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)


def _repairs(
    found: Mapping[str, str], places: Iterable[Path], made: list[Path], required: bool
) -> tuple[dict[str, str | None], list[str]]:
    """Return what has to change in an environment, and what to say; private folders are made and noted in `made`."""
    home, notices = found.get("HOME") or _listed_home(), list[str]()
    changes = _absolute(found, home)
    temporary, notice = _temporary(found, places, made)
    if temporary is None:
        if required:
            raise InputError(notice, remedy="set TMPDIR to a folder that can be written; in a container, mount one as /tmp")
        return changes, notices
    changes |= {"TMPDIR": str(_plainly_named(temporary, made)), "HOME": home}
    notices += [notice] * bool(notice)
    for name in CHOSEN:
        if name in found and (problem := unusable(found[name])):
            changes[name] = None
            notices.append(f"{name} ({found[name]}) {problem}: it is not used")
    if problem := unusable(home, make=False) if home else "is not known (HOME is not set)":
        changes |= {"HOME": str(_private(temporary, made)), **_kept_weights(found, home)}
        notices.append(f"the home folder {home} {problem}: another one is used, for this time only".replace("  ", " "))
    else:
        for name, folder in BELOW_HOME.items():
            place = Path(home) / folder
            if changes.get(name, found.get(name)) is None and (problem := unusable(str(place))):
                changes[name] = str(_private(temporary, made))
                notices.append(f"{place} {problem}: another folder is used, for this time only")
    if not _has_name(found):
        changes |= {"USER": f"uid-{os.getuid()}", "LOGNAME": f"uid-{os.getuid()}"}
    return {name: value for name, value in changes.items() if value != found.get(name)}, notices


def _listed_home() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""


def _absolute(found: Mapping[str, str], home: str) -> dict[str, str | None]:
    """Return paths as absolute ones: jobs run in another folder, where relative ones mean something else."""
    absolute: dict[str, str | None] = {}
    if weights := found.get("POPATLAS_WEIGHTS"):
        weights = weights.replace("~", home, 1) if weights.startswith("~/") else weights
        absolute["POPATLAS_WEIGHTS"] = str(Path(weights).absolute())
    if code := found.get("PYTHONPATH"):
        absolute["PYTHONPATH"] = os.pathsep.join(str(Path(part).absolute()) for part in code.split(os.pathsep))
    return absolute


def _temporary(found: Mapping[str, str], places: Iterable[Path], made: list[Path]) -> tuple[Path | None, str]:
    """Return the first folder for temporary files that can be written, and what is wrong with those before it."""
    wanted = {found[name]: f"{name} ({found[name]})" for name in reversed(TEMPORARY) if found.get(name)}
    tried: list[str] = []
    for folder in (*reversed(wanted), *USUAL):
        problem = unusable(folder, make=False, size=0)
        if not problem:
            return Path(folder).absolute(), f"{'; '.join(tried)}: {folder} is used" if tried else ""
        tried.append(f"{wanted.get(folder, folder)} {problem}")
    for place in places:
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            made.append(Path(tempfile.mkdtemp(prefix=PRIVATE, dir=place.absolute())))
            return made[-1], f"no usual folder for temporary files can be written: {made[-1]} is used, for this time only"
    return None, f"no folder for temporary files can be written: {'; '.join(dict.fromkeys(tried))}"


def _plainly_named(folder: Path, made: list[Path]) -> Path:
    """Return a folder by a name that ANTs and greedy can take, which split what they are given at commas and spaces."""
    usual = next((place for place in USUAL if not unusable(place, make=False)), None)
    if PLAIN.fullmatch(str(folder)) or usual is None:
        return folder
    made.append(Path(tempfile.mkdtemp(prefix="popatlas-tmp-", dir=usual)))
    link = made[-1] / "link"
    link.symlink_to(folder, target_is_directory=True)
    return link


def unusable(folder: str, *, make: bool = True, size: int = BLOCK) -> str:
    """Tell why nothing can be kept in a folder; empty when something can.

    Parameters
    ----------
    folder : str
        Its path.
    make : bool
        A folder that does not exist is as good as one, where it can be made.
    size : int
        Bytes that must fit in.
    """
    path = Path(folder)
    if not path.is_absolute():
        return "is no absolute path"
    try:
        while make and not path.exists() and path != path.parent:
            path = path.parent
        if not path.is_dir():
            return "is no folder" if path.exists() else "does not exist"
        with tempfile.TemporaryFile(dir=path, buffering=0) as file:
            file.write(bytes(size))
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    return ""


def _private(temporary: Path, made: list[Path]) -> Path:
    made.append(Path(tempfile.mkdtemp(prefix="popatlas-home-", dir=temporary)))
    return made[-1]


def _kept_weights(found: Mapping[str, str], home: str) -> dict[str, str | None]:
    """Return where the user's trained networks are: they can be read in a home that cannot be written."""
    if found.get("POPATLAS_WEIGHTS") or found.get("XDG_DATA_HOME") or not home:
        return {}
    folder = Path(home, ".local", "share", "popatlas", "weights")
    try:
        return {"POPATLAS_WEIGHTS": str(folder)} if folder.is_dir() else {}
    except PermissionError:  # the home of another user
        return {}


def _has_name(found: Mapping[str, str]) -> bool:
    if any(found.get(name) for name in NAMES):
        return True
    try:
        return bool(getpass.getuser())
    except (KeyError, OSError, ImportError):  # /etc/passwd does not know the user
        return False


def _check_current_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        message = f"the current folder cannot be used ({error.strerror}): perhaps it was removed"
        raise InputError(message, remedy="change to another folder: cd /tmp") from error
