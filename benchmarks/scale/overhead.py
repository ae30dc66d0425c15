"""What a subject costs beside the work of its steps: starts of Python, imports, Snakemake, checks of files; really run.

A small study of coarse heads is finished; then some subjects are added, twice. The second time more are added than the
first, so that what a run costs whatever it does, tables and pages included, drops out of the difference.

Overhead is the CPU time of the run and all its processes, less what the records of its steps say; the libraries that a step
imports, and its checksums and receipts, count as overhead and not as its work.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.scale.measure import cost_of
from popatlas.images.io import read_json

SPENT = (
    "POPATLAS_SPENT"  # environment: folder in which each process of a step leaves what it spent (`spent/sitecustomize.py`)
)
FIRST, ADDED = 3, (1, 3)  # subjects of the finished study, and those that are added
SEED = 3
WHOLE = "overhead, CPU s"
# real steps, but coarse: what they do hardly counts here
SETTINGS = {
    "preprocess": {"resolution_mm": 4.0, "n4": {"iterations": [20, 20]}},
    "register": {"preset": "quick", "gate": {"mask_dice": 0.8}},
    "atlas": {"iterations": 1, "presets": ["quick"]},
    "fuse": {"atlases": ["01", "02"]},
}


@dataclass(frozen=True)
class Spent:
    """CPU seconds of a run: of all, of its steps, and of these those of imports and of checks; processes that ran steps."""

    total: float
    steps: float
    imports: float
    checks: float
    processes: int

    @property
    def overhead(self) -> float:
        """CPU seconds beside the work of the steps."""
        return self.total - self.steps + self.imports + self.checks


def overhead(folder: Path, cores: int) -> list[dict[str, float | str]]:
    """Return the overhead of a subject and its parts, CPU seconds; what lies in the folder of a finished study is kept."""
    bids, out, subjects = folder / "bids", folder / "out", FIRST
    if not (out / "report" / "index.html").exists():
        _simulate(bids, 1, subjects)
        _run(folder, cores)
    else:
        subjects = len(list(bids.glob("sub-*")))
    found = []
    for count in ADDED:
        _simulate(bids, subjects + 1, count)
        subjects += count
        found.append(_run(folder, cores))
    one, other = found
    apart = ADDED[1] - ADDED[0]
    each = {name: (getattr(other, name) - getattr(one, name)) / apart for name in vars(one)}
    whole = (other.overhead - one.overhead) / apart
    started = whole - each["imports"] - each["checks"]
    rows = {
        WHOLE: whole,
        "of it libraries that steps import, CPU s": each["imports"],
        "of it checksums and receipts of steps, CPU s": each["checks"],
        "of it starts of Python, Snakemake, the books, CPU s": started,
    }
    print(
        f"{each['processes']:.1f} processes a subject; a run itself: {one.overhead - ADDED[0] * whole:.1f} s",
        file=sys.stderr,
    )
    processes: dict[str, float | str] = {"what": "processes that run steps", "per subject": each["processes"]}
    return [processes, *({"what": name, "per subject": seconds} for name, seconds in rows.items())]


def _simulate(bids: Path, first: int, count: int) -> None:
    line = ("simulate", bids, "--subjects", count, "--first", first, "--seed", SEED)
    cost_of((sys.executable, "-m", "popatlas.cli.main", *line))


def _run(folder: Path, cores: int) -> Spent:
    """Run the study and return what that took."""
    config, notes = folder / "overhead.yaml", folder / "spent"
    config.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir()
    path = os.pathsep.join([str(Path(__file__).parent / "spent"), os.environ.get("PYTHONPATH", "")])
    line = ("run", folder / "bids", folder / "out", "--config", config, "--cores", cores)
    cost = cost_of((sys.executable, "-m", "popatlas.cli.main", *line), None, **{"PYTHONPATH": path, SPENT: str(notes)})
    told = [read_json(file) for file in notes.glob("*.json")]
    steps, imports, checks = (sum(one[name] for one in told) for name in ("steps", "imports", "checks"))
    print(json.dumps({"total": cost.cpu, "steps": steps, "imports": imports, "checks": checks}), file=sys.stderr, flush=True)
    return Spent(cost.cpu, steps, imports, checks, len(told))
