"""Run an engine on a case in fresh processes of one thread each, one after another."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT
from benchmarks.registration.peers import Fields
from benchmarks.registration.rows import Record
from benchmarks.registration.worker import PEERS
from popatlas.images.io import read_json

THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


def run_engine(name: str, case: Path, repeats: int, table: str = PEERS) -> tuple[Record, Fields | None]:
    """Run an engine some times; return the record (medians of the costs) and the fields of the last run.

    Parameters
    ----------
    name : str
        Key of the table of engines.
    case : Path
        File of `benchmarks.registration.cases.Case.save`.
    repeats : int
        Runs.
    table : str
        Module whose `ENGINES` holds the engine.
    """
    environment = os.environ | dict.fromkeys(THREADS, "1") | {"OMP_WAIT_POLICY": "PASSIVE"}
    records: list[Record] = []
    with tempfile.TemporaryDirectory(prefix="popatlas-bench-") as folder:
        out = Path(folder) / "out.npz"
        line = [sys.executable, "-m", "benchmarks.registration.worker", name, str(case), str(out), table]
        for _ in range(repeats):
            ended = subprocess.run(
                line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if ended.returncode != 0:
                return {"state": "failed", "message": ended.stdout.strip()[-400:]}, None
            records.append(read_json(out.with_suffix(".json")))
            if records[-1]["state"] != "ok":
                return records[-1], None
        with np.load(out) as fields:
            result = fields["forward"], fields.get("inverse")
    costs = medians(records)
    cpu = [record["cpu_s"] for record in records]
    spread = (max(cpu) - min(cpu)) / costs["cpu_s"] if repeats > 1 else float("nan")
    return {"state": "ok", **costs, "cpu_spread": spread, "repeats": repeats}, result


def medians(records: Sequence[Record]) -> Record:
    """Return the median of each cost."""
    return {
        "cpu_s": statistics.median(record["cpu_s"] for record in records),
        "wall_s": statistics.median(record["wall_s"] for record in records),
        "load_cpu_s": statistics.median(record["load_cpu_s"] for record in records),
        "collect_cpu_s": statistics.median(record["collect_cpu_s"] for record in records),
        "peak_mb": statistics.median(record["peak_mb"] for record in records),
        "added_mb": statistics.median(record["added_mb"] for record in records),
    }
