"""Lock files: which weights there are, what they hold to the byte, what they expect and where they came from.

One is shipped with the package, beside the folder of its weights; one of the user lies beside their own weights.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field, replace
from functools import lru_cache
from pathlib import Path

from popatlas.errors import InputError, SetupError
from popatlas.images.io import write_text
from popatlas.resources import schema_path
from popatlas.settings import Content, settings
from popatlas.yamlfile import read_yaml
from popatlas.zoo.metadata import Facts, InputContract, Memory, Score, TrainingFacts

LOCK = "weights.lock.yaml"
SHIPPED = Path(__file__).parent
HEADER = "# Written by `popatlas weights`; described by the schema `weights`.\n"


@settings
class Entry(Facts):
    """Weights of one network.

    Attributes
    ----------
    name, version : str
        What users write.
    file : str
        Name of the file in the folder of the weights.
    sha256 : str
        Of the file, hexadecimal.
    bytes : int
        Size of the file.
    licence : str
        SPDX identifier.
    source : str
        Citation or address.
    recipe : str or None
        Recipe that trained it.
    architecture : str
        Name of the network.
    ndim : {2, 3}
        Axes.
    transform : str
        "displacement" or "velocity".
    training : TrainingFacts
        Data and effort.
    input : InputContract
        Images that it expects.
    memory : Memory
        Needs of a prediction.
    scores : tuple of Score
        What it reached.
    model_card : str or None
        Page of the documentation.
    folder : Path
        Where the file is; not in the lock file.
    """

    name: str
    version: str
    file: str
    sha256: str
    bytes: int
    licence: str
    source: str
    recipe: str | None
    architecture: str
    ndim: int
    transform: str
    training: TrainingFacts
    input: InputContract
    memory: Memory
    scores: tuple[Score, ...] = ()
    model_card: str | None = None
    folder: Path = field(default=Path(), compare=False)

    @property
    def path(self) -> Path:
        """The weights file."""
        return self.folder / self.file

    @property
    def best(self) -> Score | None:
        """The largest Dice, or the first score when there is none."""
        dice = [score for score in self.scores if score.metric == "dice"]
        return max(dice, key=lambda score: score.value) if dice else next(iter(self.scores), None)

    def to_plain(self) -> Content:
        """Return what the lock file holds."""
        values = super().to_plain()
        del values["folder"]
        return values


def user_folder() -> Path:
    """Return the folder of the user's weights and lock file: ``POPATLAS_WEIGHTS``, or popatlas/weights with other data."""
    if chosen := os.environ.get("POPATLAS_WEIGHTS"):
        return Path(chosen).expanduser()
    if data := os.environ.get("XDG_DATA_HOME"):
        return Path(data) / "popatlas" / "weights"
    try:
        home = Path.home()
    except RuntimeError:  # /etc/passwd does not know the user
        home = Path("/")
    return home / ".local" / "share" / "popatlas" / "weights"


def lock_path(shipped: bool) -> Path:
    """Return the lock file of the package or of the user."""
    return (SHIPPED if shipped else user_folder()) / LOCK


def weights_folder(shipped: bool) -> Path:
    """Return the folder of the weights of the package or of the user."""
    return SHIPPED / "weights" if shipped else user_folder()


def read_lock(shipped: bool) -> list[Entry]:
    """Read a lock file.

    Parameters
    ----------
    shipped : bool
        That of the package, or that of the user, which may be missing.

    Returns
    -------
    list of Entry
        In the order of the file.

    Raises
    ------
    InputError
        When the file is no lock file: unknown keys, impossible values, a name twice.
    """
    path = lock_path(shipped)
    if not shipped and not _is_there(path):
        return []
    remedy = "install popatlas again" if shipped else "repair the file, or move it away and add the weights again"
    try:
        return list(_entries(path, weights_folder(shipped), _stamp(path)))
    except (InputError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SetupError(f"the lock file of the weights cannot be read: {reason}", file=path, remedy=remedy) from error


@lru_cache(maxsize=8)
def _entries(path: Path, folder: Path, stamp: tuple[int, ...]) -> tuple[Entry, ...]:
    """Return the entries of a lock file as it is now; a study asks for them again and again."""
    content = read_yaml(path, "the lock file")
    check_lock(content)
    return tuple(replace(Entry.from_plain(values), folder=folder) for values in content["weights"])


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what tells whether a file has changed; nothing where it cannot be looked at, which reading tells."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # the home of another user: there is nothing of this one in it
        return False


def check_lock(content: Content) -> None:
    """Check the content of a lock file against its schema.

    Raises
    ------
    ValueError
        With one clause for each problem.
    """
    import yaml
    from jsonschema import Draft202012Validator

    schema = yaml.safe_load(schema_path("weights").read_text(encoding="utf-8"))
    problems = [
        f"{'.'.join(map(str, error.absolute_path)) or 'top level'}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(content)
    ]
    if not problems:
        names = [values["name"] for values in content["weights"]]
        problems = [
            f"the name {name} is there {names.count(name)} times" for name in dict.fromkeys(names) if names.count(name) > 1
        ]
    if problems:
        raise ValueError("; ".join(problems))


def content_of(entries: Iterable[Entry]) -> Content:
    """Return what a lock file of entries holds."""
    return {"weights": [entry.to_plain() for entry in entries]}


def write_lock(entries: Iterable[Entry], shipped: bool) -> None:
    """Write a lock file, at once, never half; raises ValueError for entries that its schema forbids."""
    import yaml

    content = content_of(entries)
    check_lock(content)
    write_text(lock_path(shipped), HEADER + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))


@contextmanager
def one_at_a_time(shipped: bool) -> Iterator[None]:
    """Let no other process change the weights of the package or of the user at the same time."""
    folder = weights_folder(shipped)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # ends with the process, whatever becomes of it
        yield
    finally:
        os.close(handle)


def read_locks() -> list[Entry]:
    """Return the weights of the package, then those of the user whose names are not taken."""
    shipped = read_lock(shipped=True)
    names = {entry.name for entry in shipped}
    own = read_lock(shipped=False)
    if shadows := [entry.name for entry in own if entry.name in names]:
        message = f"the names {', '.join(shadows)} belong to weights of the package"
        raise SetupError(message, file=lock_path(shipped=False), remedy="rename them there")
    return shipped + own


def estimate_from_lock(entry: Entry, shape: Sequence[int], batch: int = 1) -> int:
    """Return the bytes that a prediction needs, from the lock entry alone.

    Parameters
    ----------
    entry : Entry
        Weights.
    shape : sequence of int
        Voxels of the fixed image along each axis, in the spacing of the contract, where that has neither a fixed shape nor a
        usual one that is large enough. The brain is smaller, so that this is an upper bound.
    batch : int
        Pairs at a time.
    """
    contract = entry.input
    usual = contract.usual_shape or (0,) * len(shape)
    voxels = batch
    for n, least in zip(contract.shape or shape, usual, strict=True):
        voxels *= max(least, -(-n // contract.multiple) * contract.multiple)
    return entry.memory.of(voxels)
