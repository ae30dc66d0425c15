"""One registration in a fresh process: ``python -m benchmarks.registration.worker ENGINE CASE.npz OUT.npz TABLE``.

TABLE is the module whose `ENGINES` holds the engine. Writes OUT.npz (forward and, where there is one, inverse) and OUT.json
with CPU and wall seconds of the registration alone, CPU seconds of loading and of collecting the fields (greedy inverts
there), and memory: the most in all, and what the registration added to libraries and images. It is the kernel's high-water
mark of this program; `ru_maxrss` would also hold what the parent had when it started this one.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from benchmarks.registration.peers import Engine
    from benchmarks.registration.rows import Record

PEERS = "benchmarks.registration.peers"
Result = TypeVar("Result")


def timed(work: Callable[[], Result]) -> tuple[Result, float, float]:
    """Return a result with the CPU (user and system) and wall seconds that it took."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    result = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return result, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.monotonic() - started


def memory_mb(peak: bool) -> float:
    """Return the most memory that this program has held so far, or what it holds now where the system tells, MiB."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1024**2 if sys.platform == "darwin" else 1024)


def work(name: str, case: Path, out: Path, table: str = PEERS) -> Record:
    """Load an engine, run it, write its fields, and return the record."""
    import numpy as np

    engine: Engine = importlib.import_module(table).ENGINES[name]
    try:
        run, load_cpu, _ = timed(lambda: engine.load(**engine.options))
    except ImportError as error:
        return {"state": "absent", "message": str(error)}
    with np.load(case) as arrays:
        fixed, moving = arrays["fixed"], arrays["moving"]
    base = memory_mb(peak=False)
    collect, cpu, wall = timed(lambda: run(fixed, moving))
    peak = memory_mb(peak=True)
    (forward, inverse), collect_cpu, _ = timed(collect)
    if inverse is None:
        np.savez(out, forward=forward)
    else:
        np.savez(out, forward=forward, inverse=inverse)
    return {
        "state": "ok",
        "cpu_s": cpu,
        "wall_s": wall,
        "load_cpu_s": load_cpu,
        "collect_cpu_s": collect_cpu,
        "peak_mb": peak,
        "added_mb": peak - base,
    }


if __name__ == "__main__":
    destination = Path(sys.argv[3])
    record = work(sys.argv[1], Path(sys.argv[2]), destination, sys.argv[4])
    destination.with_suffix(".json").write_text(json.dumps(record), encoding="utf-8")
