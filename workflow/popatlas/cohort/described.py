"""Files at the top of the output folder that describe those below it: columns of tables, names and colours of labels.

BIDS wants a JSON file beside each table and a lookup table beside each label image. By its inheritance principle one file
at the top of a dataset serves all below whose name ends like its own, so that there is one for each kind and none for each
scan: all scans and methods of a study share names and columns.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from popatlas.images.colours import label_hex
from popatlas.images.io import table_text, write_if_changed
from popatlas.measures.dictionary import top_files
from popatlas.measures.names import DSEG_NAMES, LABEL_NAMES, read_names


def describe_outputs(out_dir: Path) -> None:
    """Write the files that describe tables and label images, those that changed.

    Parameters
    ----------
    out_dir : Path
        Output folder with the frozen names of labels. Labels without a name are not in ``dseg.tsv``; without any name
        there is no such file.
    """
    for file, columns in top_files().items():
        write_if_changed(out_dir / file, json.dumps(columns, indent=2, ensure_ascii=False) + "\n")
    names = read_names(out_dir / LABEL_NAMES)
    if not names:
        (out_dir / DSEG_NAMES).unlink(missing_ok=True)
        return
    rows = [(label, name, label_hex(label)) for label, name in sorted(names.items())]
    write_if_changed(out_dir / DSEG_NAMES, table_text(pd.DataFrame(rows, columns=["index", "name", "color"])))
