"""Jobs that a run left in Slurm's queue when it was killed: they would write into the results of the next run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from popatlas.errors import InputError

RUNS = Path(".snakemake", "slurm-runs")  # in OUT_DIR: names of Slurm's jobs, one for each Snakemake that submitted some
ENDING = "COMPLETING"  # a job that has ended, but for what Slurm clears away
ENDS_IN = 90.0  # seconds that a cancelled job may take


def note_run(name: str) -> None:
    """Note in the current folder, an output folder, that jobs of a name are in the queue."""
    RUNS.parent.mkdir(exist_ok=True)
    with RUNS.open("a", encoding="utf-8") as file:
        file.write(f"{name}\n")


def end_leftovers(out_dir: Path) -> int:
    """Cancel jobs that earlier runs in an output folder left in Slurm's queue, wait until they have ended, and count them.

    Parameters
    ----------
    out_dir : Path
        Output folder, whose lock the caller has: no run is at work in it.

    Raises
    ------
    InputError
        When there may be such jobs and Slurm does not answer, or they do not end.
    """
    file = out_dir / RUNS
    if not file.is_file():
        return 0
    names = ",".join(dict.fromkeys(file.read_text(encoding="utf-8").split()))
    lines = _asked(file, "squeue", "--noheader", "--array", "--format=%i %T", f"--name={names}").splitlines()
    found = [line.split()[0] for line in lines if line.strip() and not line.endswith(ENDING)]
    if found:
        print(f"popatlas: {len(found)} job(s) of an earlier run are in Slurm's queue; they are ended", file=sys.stderr)
        for name in names.split(","):
            _asked(file, "scancel", f"--name={name}")
    deadline = time.monotonic() + ENDS_IN
    while lines and _asked(file, "squeue", "--noheader", "--format=%i", f"--name={names}").split():
        if time.monotonic() > deadline:
            raise _unknown(file, f"jobs of an earlier run do not end: {lines[0]}")
        time.sleep(0.5)
    file.unlink()
    return len(found)


def _asked(file: Path, *line: str) -> str:
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
    except OSError as error:
        raise _unknown(file, f"jobs of an earlier run may be in Slurm's queue, and there is no {line[0]} here") from error
    if done.returncode:
        raise _unknown(file, f"jobs of an earlier run may be in Slurm's queue, which does not answer: {done.stderr.strip()}")
    return done.stdout


def _unknown(file: Path, message: str) -> InputError:
    remedy = "run the same command when Slurm answers; or, where you know that no such job is left, remove the file"
    return InputError(message, file=file, remedy=remedy)
