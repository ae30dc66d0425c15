"""Write what the benchmark measured of the shipped networks into their lock file, beside the scores of their training.

    python -m benchmarks.deep.scores

Reads `benchmarks/results/deep.json`; scores of an earlier run of the benchmark are replaced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.common import RESULTS
from benchmarks.deep.contrast import CONTRASTS
from benchmarks.deep.rows import Tables
from popatlas.images.io import read_json
from popatlas.zoo.lock import one_at_a_time, read_lock, write_lock
from popatlas.zoo.metadata import Score

COMMAND = "python -m benchmarks.deep"
HELD_OUT = "8 held-out subjects of IXI Hammersmith"
PAIRS_TITLE = "T1w pairs"
CONTRAST_TITLE = "Moving T1w, fixed image in other contrasts"
SLICES_TITLE = "Axial slices, 2D: five heights of each pair"
METRICS = ("dice", "hd95", "folded", "sdlogj", "wall_s")


def scores_of(name: str, tables: Tables) -> Iterator[Score]:
    """Yield what the tables of the benchmark say about a network."""
    # the first row of each table that is the network's
    found = {title: row for title, rows in tables.items() for row in reversed(rows) if row.get("engine") == name}
    for title, data, cases in ((PAIRS_TITLE, "T1w pairs", "cases"), (SLICES_TITLE, "axial slices", "slices")):
        row = found.get(title, {})
        for metric in METRICS:
            if (value := row.get(metric)) is not None and math.isfinite(value):
                yield Score(f"{HELD_OUT}, {data}", metric, round(value, 6), int(row[cases]), COMMAND)
    if row := found.get(CONTRAST_TITLE, {}):
        for contrast in CONTRASTS[1:]:
            value = round(row[f"Dice, {contrast}"], 6)
            yield Score(f"{HELD_OUT}, T1w to {contrast}", "dice", value, int(row["pairs"]), COMMAND)


def main() -> None:
    """Replace the scores of all shipped networks."""
    tables = read_json(RESULTS / "deep.json")["rows"]
    with one_at_a_time(shipped=True):
        entries = []
        for entry in read_lock(shipped=True):
            kept = [score for score in entry.scores if score.command != COMMAND]
            entries.append(replace(entry, scores=(*kept, *scores_of(entry.name, tables))))
            print(f"{entry.name}: {len(entries[-1].scores)} scores")
        write_lock(entries, shipped=True)


if __name__ == "__main__":
    main()
