"""How a job of Slurm ended, in the words of its log: its state is often no more than FAILED.

The state is that of the batch script. A process that the kernel ended for want of memory fails the script, and only the step
of the job, and what Slurm writes into the log, tell of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

TAIL = 20_000  # bytes of the log that are read
# in the log, and in the reason of the failure (`popatlas.reasons` reads it)
ENDS = (
    (re.compile(r"oom.?kill event|task \d+: Out Of Memory|exceeded (?:job|step) memory limit", re.I), "out of memory"),
    (re.compile(r"DUE TO TIME LIMIT"), "time limit"),
    (re.compile(r"DUE TO PREEMPTION"), "PREEMPTED"),
    (re.compile(r"DUE TO NODE FAILURE"), "NODE_FAIL"),
)
NOISE = "Detailed failure reason unavailable (status command is not 'sacct')."  # of the plugin, when squeue was asked


def explained(message: str, logs: Sequence[str | os.PathLike[str] | None]) -> str:
    """Return what a plugin says of a failed job with what Slurm wrote of its end.

    Parameters
    ----------
    message : str
        Words of the plugin.
    logs : sequence of path-like or None
        Logs of the job.
    """
    told = message.replace(NOISE, "").rstrip(" .")
    ends = [end for log in logs if log is not None and (end := end_of(Path(log)))]
    return f"{told}, {ends[0]}, says its log. " if ends else f"{told}. " if told else ""


def end_of(log: Path) -> str:
    """Return how a job ended by its log; empty where that does not say so, or cannot be read."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - TAIL))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return next((end for pattern, end in ENDS if pattern.search(text)), "")
