"""Why a job failed, in one word: the codes that records, ledger, tables and `popatlas retry --reason` share.

A step gives the code of its own error. A job that left no word of its own gets one from what was said of its end: by its
shell, by Snakemake, or by the scheduler of a cluster.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from pathlib import Path

from popatlas.diskspace import out_of_space
from popatlas.errors import PopatlasError

OOM, TIME, SIGNAL, DISK, GATE, INPUT = "oom", "time", "signal", "disk", "gate", "input"
SETUP, BUG, UNKNOWN = "setup", "bug", "unknown"
# what each code means, and what can be done before the job is tried again
CODES = {
    OOM: (
        "the job needed more memory than there was",
        "give it more memory (`popatlas efficiency` tells how much), or use fewer cores",
    ),
    TIME: ("a time limit ended the job", "raise the time in the profile (runtime)"),
    SIGNAL: ("a signal from outside ended the job, or its node was lost", "run again"),
    DISK: ("a disk or a quota is full, or a folder cannot be written", "free space or mend the folder, and run again"),
    GATE: (
        "the registration passed the gate in no attempt",
        "look at it; widen register.gate, or exclude the subject",
    ),
    INPUT: ("an image, labels or a table cannot be used", "follow the remedy of the message"),
    SETUP: ("something installed, downloaded or configured is at fault", "follow the remedy of the message"),
    BUG: ("an error that nobody foresaw, or a crash of a library", "see the log, and report it"),
    UNKNOWN: ("the job ended without a word", "see its log; give it more memory or time if it needs that"),
}
# words about the end of a job, in the order in which they are looked for
SAID = (
    (
        OOM,
        re.compile(
            r"out.?of.?memory|\bOOM\b|oom.?kill|memory ended|fit into the memory|(?:can ?not|can't|failed to) allocate", re.I
        ),
    ),
    (TIME, re.compile(r"\bTIMEOUT\b|\bDEADLINE\b|time limit|walltime|TERM_RUNLIMIT", re.I)),
    (DISK, re.compile(r"No space left|quota exceeded|Read-only file system|Input/output error|is full", re.I)),
    (BUG, re.compile(r"Segmentation fault|Aborted|Bus error|Illegal instruction|Floating point|core dumped")),
    (SIGNAL, re.compile(r"'(?:Killed|Terminated|Hangup|Interrupt)|\b(?:CANCELLED|PREEMPTED|NODE_FAIL|BOOT_FAIL|REVOKED)\b")),
)
NO_MEMORY = ("OutOfMemoryError", "ArrayMemoryError")  # classes of libraries that need not be loaded
COUNTERS = ("/proc/vmstat", "/sys/fs/cgroup/memory.events")  # of processes that the kernel ended for want of memory
OF_DISKS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE}


def code_of(error: BaseException) -> str:
    """Return the code of an error that ended a step.

    Parameters
    ----------
    error : exception
        Any error.

    Returns
    -------
    str
        One of `CODES`.
    """
    if out_of_space(error):
        return DISK
    if isinstance(error, MemoryError) or type(error).__name__ in NO_MEMORY:
        return OOM
    if isinstance(error, PopatlasError):  # it may tell of an error of a batch, in its words
        return OOM if error.code == INPUT and SAID[0][1].search(str(error)) else error.code
    if isinstance(error, OSError) and error.errno is not None:
        return OOM if error.errno == errno.ENOMEM else DISK if error.errno in OF_DISKS else BUG
    return OOM if SAID[0][1].search(str(error)) else BUG


def code_of_words(text: str) -> str:
    """Return the code of a job's end as somebody else told it; `UNKNOWN` when that says nothing."""
    return next((code for code, pattern in SAID if pattern.search(text)), UNKNOWN)


def kernel_kills() -> int:
    """Return how many processes of this machine its kernel has ended for want of memory; 0 where it does not say."""
    found = []
    for path in map(Path, COUNTERS):
        try:
            found += re.findall(r"^oom_kill (\d+)$", path.read_text(encoding="ascii"), re.M)
        except (OSError, ValueError):
            continue
    return sum(map(int, found))


def parse_codes(names: Iterable[str]) -> list[str]:
    """Return the codes that a user names, in any case, with ``|`` or commas between them.

    Raises
    ------
    ValueError
        For a name that is no code.
    """
    found = [part.strip().lower() for name in names for part in re.split(r"[|,]", name) if part.strip()]
    for code in found:
        if code not in CODES:
            raise ValueError(f"'{code}' is no reason: use {', '.join(CODES)}")
    return list(dict.fromkeys(found))
