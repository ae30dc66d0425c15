"""Large cohorts: what each command takes at 100, 1,000 and 10,000 subjects, simulated runs of them, and overhead.

python -m benchmarks.scale [--subjects 100 1000 10000] [--parts commands runs overhead] [--out FOLDER] [--quick]

The cohort has one tiny image a subject. Commands are the real ones, and so are the Snakefile, the tables and the pages; only
`popatlas step` is a stub that leaves small files, where the science would take weeks. Without --out everything is in a
temporary folder, some 2 GB for 10,000 subjects.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.common import Bar, at_most, parser, report
from benchmarks.scale.measure import Measured, Row
from benchmarks.scale.overhead import WHOLE, overhead
from benchmarks.scale.simulate import KILLED, Simulation, machine
from popatlas.study.inventory import Inventory
from popatlas.study.study import open_study

COMMANDS, GROWTH, RUNS, OVERHEAD = "Commands", "Growth", "Simulated runs", "Overhead"
SUBJECTS, QUICK = (100, 1000, 10000), (20,)
SLOTS = (1, 16, 256)
PARTS = ("commands", "runs", "overhead")
DATA = (
    "tiny images, one a subject, 200 members of the template; steps are stubs. Other work ran beside it, so that cpu_s "
    "tells more than the seconds of the clock. Simulated runs: jobs of real heads at 1 mm with drawn times, "
    f"{100 * KILLED:g} % of the attempts killed; the ideal has the same jobs on as many slots without failures, start-ups, "
    "waiting and passes. Overhead: of real runs that add one and three subjects to a finished study of coarse heads, the "
    "difference in CPU time, less the work of the steps; three fusion methods, the template is there"
)
MOST_OVERHEAD = 15.0  # CPU seconds of a subject
# what is measured, of how many subjects, with the most seconds or megabytes that were asked for
BARS = (
    ("the graphs of all", 10000, "seconds", 300.0),
    ("the graphs of all", 10000, "MB", 4000.0),
    ("status", 10000, "seconds", 2.0),
    ("first job of two subjects more", 10000, "seconds", 60.0),
    ("plan of a new study", 10000, "seconds", 60.0),
    ("tables", 10000, "MB", 1000.0),
)


def growth(rows: Sequence[Row]) -> list[dict[str, float | str]]:
    """Return by which power of the number of subjects each command grows, from the two largest cohorts."""
    found: list[dict[str, float | str]] = []
    for what in dict.fromkeys(row.what for row in rows if not row.what.startswith("the graphs")):
        ends = sorted((row for row in rows if row.what == what), key=lambda row: row.subjects)[-2:]
        if len(ends) == 2:
            apart = math.log(ends[1].subjects / ends[0].subjects)
            cpu, memory = math.log(ends[1].cpu_s / ends[0].cpu_s), math.log(ends[1].MB / ends[0].MB)
            powers: dict[str, float | str] = {"cpu_s": cpu / apart, "MB": memory / apart}
            found.append({"what": what, "from": ends[0].subjects, "to": ends[1].subjects, **powers})
    return found


def bars_of(commands: Sequence[Row], runs: Sequence[dict[str, float]]) -> list[Bar]:
    """Return which of the bars hold, of those that were measured."""
    found = []
    for what, subjects, column, most in BARS:
        values = [getattr(row, column) for row in commands if row.what.startswith(what) and row.subjects == subjects]
        found += [at_most(f"{what}, {subjects} subjects, {column}", value, most) for value in values]
    for run in runs:
        if (run["subjects"], run["slots"]) == (1000, 256):
            found.append(at_most("1000 subjects on 256 slots, times the ideal", run["times the ideal"], 2.0))
    return found


def bars_of_overhead(rows: Sequence[dict[str, float | str]]) -> list[Bar]:
    """Return whether the overhead of a subject keeps to what was asked for, where it was measured."""
    found = [float(row["per subject"]) for row in rows if row["what"] == WHOLE]
    return [at_most("overhead of a subject, CPU s", value, MOST_OVERHEAD) for value in found]


def simulated(measured: Measured) -> list[dict[str, float]]:
    """Return simulated runs of a cohort on machines of several sizes."""
    out_dir = measured.folder / "simulated"
    out_dir.mkdir(exist_ok=True)
    study = open_study(measured.config(out_dir).content, main=True)
    return [
        {"subjects": measured.subjects, "slots": slots, **Simulation(Inventory(study), machine(slots)).run()}
        for slots in SLOTS
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, simulate, print and write."""
    options = parser(__doc__)
    options.add_argument("--subjects", type=int, nargs="+", help="sizes of the cohort (100 1000 10000)")
    options.add_argument("--parts", nargs="+", choices=PARTS, help="all but the last with --quick")
    args = options.parse_args(arguments)
    parts = args.parts or (PARTS[:-1] if args.quick else PARTS)
    commands: list[Row] = []
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="popatlas-scale-") as temporary:
        for subjects in args.subjects or (QUICK if args.quick else SUBJECTS):
            measured = Measured(args.out or Path(temporary), subjects, args.cores)
            if "runs" in parts:
                runs += simulated(measured)
            if "commands" in parts:
                commands += measured.measure()
        beside = overhead((args.out or Path(temporary)) / "overhead", args.cores) if "overhead" in parts else []
    rows: dict[str, Sequence[Any]] = {COMMANDS: list(map(asdict, commands)), GROWTH: growth(commands), RUNS: runs}
    rows[OVERHEAD] = beside
    tables = {title: pd.DataFrame(found) for title, found in rows.items() if found}
    bars = [*bars_of(commands, runs), *bars_of_overhead(beside)]
    report("scale", tables, bars, args, DATA, parts=(COMMANDS, GROWTH, RUNS, OVERHEAD))


if __name__ == "__main__":
    main()
