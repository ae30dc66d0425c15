"""Measure ten scans, make the tables of the cohort, and read them in pandas: volumes by sex, and the effect of age.

`popatlas run` writes the same tables to OUT_DIR/group. The long one has a row for each value; the wide one has a row for a
scan, with the columns of participants.tsv, ready for statistics.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from popatlas.images.io import write_table
from popatlas.images.miniature import NAMES, draw_miniature
from popatlas.measures.scan import ScanFiles, measure_scan
from popatlas.measures.table import age_effect, scan_table, tabulate

people = pd.DataFrame({"participant_id": [f"sub-{n:02d}" for n in range(1, 11)], "age": np.arange(25.0, 75.0, 5)})
people["sex"] = ["F", "M"] * 5

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    write_table(pd.DataFrame({"index": list(NAMES), "name": list(NAMES.values())}), folder / "dseg.tsv")
    for seed, person in enumerate(people.itertuples(), start=1):
        size = (0.04 if person.sex == "M" else 0.0) - 0.004 * (person.age - 25)  # brains shrink by 0.4 % a year
        _, mask, labels = draw_miniature(seed, bend_mm=2.0, log_volume=size).save(folder, person.participant_id)
        files = ScanFiles(person.participant_id, mask=mask, labels={"truth": labels}, names=folder / "dseg.tsv")
        write_table(measure_scan(files), scan_table(folder, person.participant_id))

    index = pd.DataFrame({"scan": people["participant_id"], "subject": people["participant_id"], "session": ""})
    nobody = pd.DataFrame(columns=["subject", "session", "stage", "state", "reason"])  # the ledger: no scan failed
    tables = tabulate(folder, index, nobody, people)

print(tables.metrics.head(3).to_string(index=False))
volumes = tables.volumes.assign(white=tables.volumes.filter(like="white_matter").sum(axis=1))
print(volumes.groupby("sex")["white"].mean().round(0).to_string())
effect = age_effect(volumes, "white")
print(f"white matter: {effect['slope']:.2f} ml per year (p = {effect['p']:.3f}, {effect['n']:.0f} scans)")
# white matter: -2.01 ml per year (p = 0.000, 10 scans)
