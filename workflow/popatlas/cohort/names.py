"""Names of the cohort's labels, collected once, so that a structure has one name in the table of every scan."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from popatlas.cohort.freeze import resolve_pattern
from popatlas.config.sections import Config
from popatlas.images.io import table_text, write_if_changed
from popatlas.measures.names import LABEL_NAMES, LOST, names_beside


def freeze_label_names(config: Config, dsegs: Iterable[str], scans: Sequence[str], out_dir: Path) -> dict[int, str]:
    """Collect the names beside the label images in `cohort/label-names.tsv`; every scan is measured with that table.

    A table that cannot be used is named and left out.

    Parameters
    ----------
    config : dict
        Complete configuration; `measure.reference` names the reference labels.
    dsegs : iterable of str
        Labels of the frozen atlases. Their names come first: where tables differ, the first one counts.
    scans : sequence of str
        Scans of the cohort, for the names beside their reference labels.
    out_dir : Path
        Output folder; the file is written also where there are no names, and only when its content changed.

    Returns
    -------
    dict
        Label to name.
    """
    pattern, root = config.measure.reference, Path(config.bids_dir)
    references = [resolve_pattern(pattern, scan, root) for scan in scans] if pattern else []
    images = [*map(Path, dsegs), *(path for path in references if path.is_file())]
    names: dict[int, str] = {}
    clashes: list[str] = []
    tables, faults = names_beside(images)
    for fault in faults:
        print(f"popatlas: a table of label names is left out, and {LOST}: {fault}", file=sys.stderr)
    for table, entries in tables.items():
        if not entries:
            print(f"popatlas: {table} names no label: it needs the columns index and name", file=sys.stderr)
        for label, name in entries:
            if names.setdefault(label, name) != name:
                clashes.append(f"label {label} is '{names[label]}' and, in {table}, '{name}'")
    if clashes:
        print(
            f"popatlas: {len(clashes)} name(s) of labels contradict an earlier table, for example {clashes[0]}; "
            "the earlier one counts",
            file=sys.stderr,
        )
    rows = pd.DataFrame(sorted(names.items()), columns=["index", "name"])
    write_if_changed(out_dir / LABEL_NAMES, table_text(rows))
    return names
