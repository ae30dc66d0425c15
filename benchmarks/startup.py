"""Start-up: `popatlas --help` and one empty step against the bare interpreter, in the same run.

python -m benchmarks.startup
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

import pandas as pd

from benchmarks.common import at_most, parser, report

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "popatlas --help": ["-m", "popatlas.cli.main", "--help"],
    "popatlas step RegisterImages --help": ["-m", "popatlas.cli.main", "step", "RegisterImages", "--help"],
    "import ants": ["-c", "import ants"],
    "import torch": ["-c", "import torch"],
}


def cost(arguments: list[str]) -> tuple[float, float]:
    """Return wall and CPU seconds of one interpreter."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - started, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, print and write."""
    args = parser(__doc__).parse_args()
    repeats = 3 if args.quick else 9
    rows = []
    for name, arguments in COMMANDS.items():
        walls, cpus = zip(*(cost(arguments) for _ in range(repeats)), strict=True)
        spread = {"wall_s": statistics.median(walls), "wall_s_max": max(walls), "cpu_s": statistics.median(cpus)}
        rows.append({"command": name, "repeats": repeats, **spread})
    table = pd.DataFrame(rows)
    table["ratio to python"] = table["wall_s"] / table["wall_s"].iloc[0]
    bars = [at_most("popatlas --help, wall s", float(table["wall_s"].iloc[1]), 0.5)]
    report("startup", {"Start-up": table}, bars, args, "none")


if __name__ == "__main__":
    main()
