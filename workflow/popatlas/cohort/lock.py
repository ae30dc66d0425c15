"""The lock of OUT_DIR: one run at a time, taken before the first byte is written.

Snakemake's own lock is not enough: it is taken when the cohort's tables have been written already, and a pass that has
nothing to do takes away that of another run. The lock tells who holds it: host, process, since when, last sign of life.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import secrets
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from popatlas.errors import InputError
from popatlas.images.io import write_text

NAME = "popatlas.lock"
TOKEN = "POPATLAS_LOCK"  # environment of Snakemake: the lock that the run which started it holds
PROGRAMS = ("popatlas", "popatlas.cli.main")  # how a step is called
BEAT = 30.0  # seconds between signs of life
PATIENCE = 0.5  # seconds between looks at a run that is ending


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes
    ----------
    token : str
        Of this taking.
    host, boot : str
        Machine, and its present boot.
    pid : int
        Process, with when it was started (`born`, seconds since 1970), so that another process of the same number is not it.
    command, since : str
        What it does, and since when.
    helpers : list
        [pid, born] of the Snakemake that it runs.
    """

    token: str
    host: str
    boot: str
    pid: int
    born: float
    command: str
    since: str
    helpers: list[list[float]] = field(default_factory=list)

    @classmethod
    def here(cls) -> Holder:
        """Return this process as a holder."""
        command = " ".join(sys.argv[1:])[:200]
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(secrets.token_hex(8), platform.node(), _boot(), os.getpid(), _born(os.getpid()), command, since)

    @property
    def is_here(self) -> bool:
        """Tell whether it is, or was, a process of this machine."""
        return self.host == platform.node()

    @property
    def is_running(self) -> bool:
        """Tell whether the process is alive; only for holders of this machine."""
        return self.boot == _boot() and _is_alive(self.pid, self.born)

    @property
    def alive_helpers(self) -> list[int]:
        """Processes that it started and that are alive; only for holders of this machine."""
        return [int(pid) for pid, born in self.helpers if self.boot == _boot() and _is_alive(int(pid), born)]


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _born(pid: int) -> float:
    import psutil

    return float(psutil.Process(pid).create_time())


def _is_alive(pid: int, born: float) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        return bool(abs(process.create_time() - born) < 1.0 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@dataclass
class Lock:
    """A lock that is held."""

    path: Path
    holder: Holder

    def adopt(self, *pids: int) -> None:
        """Note the processes that belong to this run, and that must end before another run begins."""
        self.require()
        self.holder = replace(self.holder, helpers=[[pid, _born(pid)] for pid in pids])
        write_text(self.path, json.dumps(asdict(self.holder)))

    def beat(self) -> None:
        """Give a sign of life: the time of the file."""
        self.require()
        if time.time() - self.path.stat().st_mtime > BEAT:
            os.utime(self.path)

    def require(self) -> None:
        """Make sure that the lock is still ours; one that was deleted is written again.

        Raises
        ------
        InputError
            When another run has taken it by force: two runs in one folder would mix their results.
        """
        found = _read(self.path)
        if found is None and not self.path.exists():
            found = self.holder if _create(self.path, self.holder) else _read(self.path)
        # what cannot be read for a moment (a network folder) is no other's
        if found is not None and found.token != self.holder.token:
            raise InputError(
                f"another run has taken this output folder by force ({_words(self.path, found)}), so this one stops",
                file=self.path,
                remedy="let the other run finish, or stop it, and run again; finished work is kept",
            )

    def release(self) -> None:
        """Give the lock back, unless somebody else has taken it by force."""
        found = _read(self.path)
        if found is not None and found.token == self.holder.token:
            self.path.unlink(missing_ok=True)


def acquire(out_dir: Path, *, force: bool = False) -> Lock:
    """Take the lock of an output folder, which must exist.

    A lock whose process is dead is taken over, and said aloud; its last jobs are waited for.

    Parameters
    ----------
    out_dir : Path
        Output folder.
    force : bool
        Take it from whoever holds it.

    Raises
    ------
    InputError
        When another run holds it, or a run of another machine may hold it.
    """
    path, holder = out_dir / NAME, Holder.here()
    while True:
        if _create(path, holder):
            return Lock(path, holder)
        found = _read(path)
        if found is None and not path.exists():
            continue
        if not force:
            _wait_or_refuse(path, found)
        elif found is not None:
            print(f"popatlas: took the lock {path} from process {found.pid} on {found.host} by force", file=sys.stderr)
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Look:
    """What the lock of an output folder tells to somebody who only looks.

    Attributes
    ----------
    found : bool
        There is a lock: a run works there, or has died there.
    alive : bool
        It works. Of a run on another machine, it gave a sign of life in the last minutes.
    words : str
        Process, host, since when.
    """

    found: bool = False
    alive: bool = False
    words: str = ""


def look(out_dir: Path) -> Look:
    """Look at the lock of an output folder, and change nothing."""
    path = out_dir / NAME
    found = _read(path)
    if found is None:
        return Look(found=path.exists())
    if found.is_here:
        alive = found.is_running or bool(found.alive_helpers)
    else:
        alive = path.exists() and time.time() - path.stat().st_mtime < 10 * BEAT
    return Look(True, alive, _words(path, found))


def take_over(out_dir: Path) -> None:
    """Make sure that a Snakemake which is about to run jobs holds the lock, or was started by the run that does."""
    out_dir.mkdir(parents=True, exist_ok=True)
    found, token = _read(out_dir / NAME), os.environ.get(TOKEN)
    if token and found is not None and found.token == token:
        return
    atexit.register(acquire(out_dir).release)


def _create(path: Path, holder: Holder) -> bool:
    """Create the lock with its content at once; False when there is one."""
    temporary = path.with_name(f".{path.name}-{holder.token}")
    try:
        temporary.write_text(json.dumps(asdict(holder)), encoding="utf-8")
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(holder)))
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _wait_or_refuse(path: Path, found: Holder | None) -> None:
    """Return when a lock may be taken over; wait for the last jobs of a run that was killed, refuse all else."""
    if found is None:
        raise _refusal(path, "something holds this output folder, but its lock cannot be read")
    if not found.is_here:
        raise _refusal(path, f"a run on {found.host} holds this output folder ({_words(path, found)})")
    if found.is_running:
        raise InputError(
            f"another run works in this output folder ({_words(path, found)})",
            file=path,
            remedy=f"wait until it has finished, or stop it (kill {found.pid})",
        )
    waited = False
    while helpers := found.alive_helpers or _working_steps(path.parent):
        if not waited:
            print(f"popatlas: the run before was killed; waiting for its last jobs (process {helpers[0]})", file=sys.stderr)
        waited = True
        time.sleep(PATIENCE)
    print(f"popatlas: the run before ended without a word ({_words(path, found)}); its lock is taken over", file=sys.stderr)


def _working_steps(out_dir: Path) -> list[int]:
    """Return the steps that work in an output folder on this machine: they outlive a run and a Snakemake that are killed."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if "step" in (words := process.cmdline()) and any(word.endswith(PROGRAMS) for word in words[:3]):
                found += [process.pid] * Path(process.cwd()).samefile(out_dir)
    return found


def _refusal(path: Path, message: str) -> InputError:
    remedy = "when you are sure that no run works there, run again with --force-unlock"
    return InputError(message, file=path, remedy=remedy)


def _words(path: Path, found: Holder) -> str:
    try:
        quiet = time.time() - path.stat().st_mtime
    except OSError:
        quiet = 0.0
    life = f"last sign of life {quiet / 60:.0f} min ago" if quiet > 2 * BEAT else "alive a moment ago"
    return f"process {found.pid}, host {found.host}, since {found.since}, {life}: {found.command}"
