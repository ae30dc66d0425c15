"""What parts of the engines bring, each beside the same engine without it: IXI pairs, in three contrasts.

    python -m benchmarks.parts --data IXI_BIDS --out FOLDER [--cohort FOLDER] [--pairs 2]

Pairs, affines and scores are those of `benchmarks.deep`. Free form: its similarities, and the preset `accurate`. Flows:
velocities that change with time (`lddmm-default`) against a stationary one. Folds: a loose free form without and with the
penalty on folds. Each run is a fresh process of one thread; finished rows are kept.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from benchmarks.common import Bar, add_to_results, at_least, at_most, parser, report
from benchmarks.deep.cohort import prepare
from benchmarks.deep.contrast import CONTRASTS
from benchmarks.deep.engines import ENGINES
from benchmarks.deep.pairs import cases
from benchmarks.deep.rows import Row
from benchmarks.deep.runs import AFFINE, identity, run_rows
from popatlas.images.io import read_json

PAIRS = 2
PEERS = ("instance-default", "instance-auto")
FREE_FORM = ("ffd-default", "ffd-accurate", "ffd-nmi", "ffd-mind")
FLOWS = ("lddmm-fast", "lddmm-default", "lddmm-stationary")
FOLDS = ("ffd-loose", "ffd-loose-folding")
OTHERS = (*PEERS, *FREE_FORM, "lddmm-auto")  # on all contrasts
SCORES = ("hd95", "sdlogj", "folded_voxels", "inverse_error", "cpu_s", "peak_mb")


def table_of(rows: list[Row], engines: tuple[str, ...]) -> pd.DataFrame:
    """Return Dice for each contrast that an engine ran on, and the means of its other scores with the first one."""
    table = pd.DataFrame(rows)
    found = []
    for name in (AFFINE, *engines):
        mine = table[table["engine"] == name]
        if mine.empty:
            continue
        plain = mine[mine["dataset"] == CONTRASTS[0]]
        dice = {f"Dice, {contrast}": mine.loc[mine["dataset"] == contrast, "dice"].mean() for contrast in CONTRASTS}
        scores = {score: plain[score].astype(float).mean() if score in plain else float("nan") for score in SCORES}
        found.append({"engine": name, **dice, **scores, "pairs": plain["case"].nunique()})
    return pd.DataFrame(found).dropna(axis=1, how="all")


def bars_of(tables: dict[str, pd.DataFrame]) -> list[Bar]:
    """Return what each part has to bring."""
    means = pd.concat(tables.values()).drop_duplicates("engine").set_index("engine")
    means = means.reindex([*OTHERS, *FLOWS, *FOLDS])
    dice, folded = means["Dice, t1w"], means["folded_voxels"]
    found = [
        at_least("ffd-accurate, Dice against ffd-default", dice["ffd-accurate"], dice["ffd-default"]),
        at_least("lddmm-default, Dice against lddmm-stationary", dice["lddmm-default"], dice["lddmm-stationary"]),
        at_most(
            "ffd-loose-folding, folds against a tenth of ffd-loose",
            folded["ffd-loose-folding"],
            0.1 * folded["ffd-loose"],
        ),
    ]
    return [bar for bar in found if not math.isnan(bar.value + bar.threshold)]


def known(row: Row) -> bool:
    """Tell whether a row is of the affine, or of an engine with the settings of today."""
    return row["engine"] == AFFINE or (row["engine"] in ENGINES and row["settings"] == identity(row["engine"], {}))


def kept(file: Path) -> list[Row]:
    """Return the finished rows of today's settings on the pairs that the default of `ffd` has run on."""
    rows: list[Row] = [row for row in read_json(file) if row["state"] == "ok" and known(row)]
    cases = {row["case"] for row in rows if row["engine"] == FREE_FORM[0]}
    return [row for row in rows if row["case"] in cases]


def main() -> None:
    """Run what is missing, print and write."""
    options = parser(__doc__)
    options.add_argument("--cohort", type=Path, help="folder of the preprocessed cohort (OUT/cohort)")
    options.add_argument("--pairs", type=int, default=PAIRS, help=f"how many, at most 16 ({PAIRS})")
    options.add_argument("--kept", action="store_true", help="report what the folder holds, and run nothing")
    args = options.parse_args()
    if args.out is None or args.data is None:
        options.error("give --data and --out")
    args.out = args.out.resolve()
    args.cohort = (args.cohort or args.out / "cohort").resolve()
    prepare(args.data, args.cohort)
    rows: list[Row] = [] if not args.kept else kept(args.out / "runs.json")
    for contrast in () if args.kept else CONTRASTS:
        chosen = (*OTHERS, *FLOWS, *FOLDS) if contrast == CONTRASTS[0] else OTHERS
        rows += run_rows(args.out, cases(args.cohort, args.out / "cases", args.pairs, (contrast,)), chosen, {})
    tables = {
        "Free form in 3D, and flows, in other contrasts of the fixed image": table_of(rows, OTHERS),
        "Velocities that change with time": table_of([row for row in rows if row["dataset"] == CONTRASTS[0]], FLOWS),
        "Penalty on folds": table_of([row for row in rows if row["dataset"] == CONTRASTS[0]], FOLDS),
    }
    tables = {title: table for title, table in tables.items() if len(table) > 1}  # more than the affine
    data = "IXI Hammersmith at 2 mm, subjects held out of all trainings (brain-development.org, CC BY-SA 3.0)"
    add_to_results(report("parts", tables, bars_of(tables), args, data), runs=rows)


if __name__ == "__main__":
    main()
