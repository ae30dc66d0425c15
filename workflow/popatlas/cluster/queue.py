"""The state of a job of Grid Engine or PBS, in the words that Snakemake's plugin `cluster-generic` understands.

python -m popatlas.cluster.queue sge|pbs JOB
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

RUNNING, SUCCESS, FAILED = "running", "success", "failed"


def asked(*line: str) -> tuple[int, str]:
    """Run a program of the queue; return its exit code and what it printed."""
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
    except OSError as error:
        return 127, str(error)
    return done.returncode, done.stdout + done.stderr


def sge(job: str) -> str:
    """Return the state of a job of Grid Engine: of `qstat` while it knows it, then of `qacct`, which may be late."""
    code, text = asked("qstat", "-j", job)
    if code == 0:
        return FAILED if re.search(r"^job_state.*:\s*E", text, re.MULTILINE) else RUNNING
    if not re.search("do(?:es)? not exist", text):
        return RUNNING  # it did not answer
    code, text = asked("qacct", "-j", job)
    ends = [re.search(rf"^{name}\s+(\d+)", text, re.MULTILINE) for name in ("exit_status", "failed")]
    if code or None in ends:
        return RUNNING  # not in the books yet
    return SUCCESS if all(end and end[1] == "0" for end in ends) else FAILED


def pbs(job: str) -> str:
    """Return the state of a job of PBS, which keeps those that have ended for a while (``-x``)."""
    code, text = asked("qstat", "-x", "-f", job)
    if code:
        return FAILED if re.search("unknown job", text, re.IGNORECASE) else RUNNING
    state = re.search(r"job_state = (\w)", text)
    if state is None or state[1] not in "FXC":
        return RUNNING
    end = re.search(r"exit_status = (-?\d+)", text, re.IGNORECASE)
    return SUCCESS if end and end[1] == "0" else FAILED


QUEUES: dict[str, Callable[[str], str]] = {"sge": sge, "pbs": pbs}

if __name__ == "__main__":
    print(QUEUES[sys.argv[1]](sys.argv[2].strip()))
