"""X-CoReg beside other ways to register a group, on groups with known truth.

    python -m benchmarks.groupwise [--parts slices volumes growth] [--groups 5]
    python -m benchmarks.groupwise --parts tissues ages --data IXI_BIDS --out FOLDER

`slices`: the experiment of Luo and Zhuang (2023): three contrasts of an axial slice at 1 mm, four levels of misalignment.
`volumes`: the same in 3D at 2 mm. `growth`: time and memory for 2 to 64 images. One thread; every method has the same moves,
levels and steps, but ANTs, which has its own. `tissues`: volumes of real heads by mixtures, beside Atropos.
`ages`: ventricles of real heads along age, in a conditional atlas and in the single subjects.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import math
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from benchmarks.common import Bar, Record, at_least, at_most, parser, report
from benchmarks.groupwise.ages import age_tables
from benchmarks.groupwise.cases import Case, make_case
from benchmarks.groupwise.growth import SIZES, growth
from benchmarks.groupwise.peers import AGREEMENTS, Agreement, ants_to_first
from benchmarks.groupwise.tissues import tissue_bars, tissue_table
from popatlas.groupwise.xcoreg.core import coregister
from popatlas.groupwise.xcoreg.settings import XCoRegSettings

LEVELS = (20.0, 15.0, 10.0, 5.0)  # mm, the longest displacement
PAPER = {20.0: 2.292, 15.0: 1.421, 10.0: 0.361, 5.0: 0.252}  # warping index of the paper's four experiments
VOLUME_LEVELS = (15.0, 10.0, 5.0)
DIFFEOMORPHIC = XCoRegSettings(fluid=8.0)
FREE_FORM = XCoRegSettings(motion="ffd", step=0.3)
TITLES = {
    "slices": "Slices: three contrasts at 1 mm",
    "volumes": "Volumes: three contrasts at 2 mm",
    "growth": "Growth with the images of a group (slices)",
    "tissues": "Tissue volumes of real heads (IXI at 2 mm)",
    "ages": "Ventricles along age in a conditional atlas (IXI at 2 mm)",
    "slopes": "Growth of the ventricles with age (IXI at 2 mm)",
}

PARTS = ("slices", "volumes", "growth", "tissues", "ages")


def methods(ndim: int) -> tuple[str, ...]:
    """Return the methods of a part."""
    return ("xcoreg-diffeomorphic", "xcoreg-ffd", *AGREEMENTS, "ants") if ndim == 2 else ("xcoreg-diffeomorphic", "ants")


def run_method(name: str, case: Case) -> Record:
    """Return the scores of a method on a group."""
    if name == "ants":
        fields, seconds = ants_to_first(case)
        chi = math.nan
    else:
        plan = DIFFEOMORPHIC if name == "xcoreg-diffeomorphic" else FREE_FORM
        metric = Agreement(AGREEMENTS[name]) if name in AGREEMENTS else None
        started = time.process_time()
        result = coregister(case.images, plan, masks=case.masks, metric=metric)
        seconds, fields = time.process_time() - started, result.displacements
        chi = len(fields) * max(result.history[-1]) if metric is None else math.nan
    return {"gwi_mm": case.index(fields), "dice": case.dice(fields), "chi": chi, "cpu_s": seconds}


def compare(ndim: int, levels: Sequence[float], groups: int, spacing: int) -> pd.DataFrame:
    """Return the mean scores of each method at each level of misalignment."""
    rows: list[Record] = []
    for level in levels:
        for seed in range(groups):
            case = make_case(seed, ndim, level, spacing=spacing)
            common: Record = {"level_mm": level, "seed": float(seed)}
            rows.append({**common, "method": "unregistered", "gwi_mm": case.index(), "dice": case.dice()})
            for name in methods(ndim):
                rows.append({**common, "method": name, **run_method(name, case)})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    found = table.groupby(["level_mm", "method"], sort=False)
    means = found[["gwi_mm", "dice", "chi", "cpu_s"]].mean()
    means.insert(1, "gwi_sd", found["gwi_mm"].std(ddof=0))
    means.insert(2, "gwi_median", found["gwi_mm"].median())
    means["groups"] = found["gwi_mm"].size()
    return means.reset_index()


def bars_of(tables: dict[str, pd.DataFrame]) -> list[Bar]:
    """Return what has to hold."""
    found: list[Bar] = []
    if TITLES["slices"] in tables:
        index = _index(tables[TITLES["slices"]])
        for level in LEVELS:
            ours = min(index[level, f"xcoreg-{motion}"] for motion in ("diffeomorphic", "ffd"))
            peers = min(index[level, name] for name in (*AGREEMENTS, "ants"))
            found += [
                at_most(f"slices, {level:g} mm: warping index against the best peer", ours, peers),
                at_most(f"slices, {level:g} mm: warping index against the paper's", ours, PAPER[level]),
            ]
    if TITLES["volumes"] in tables:
        index = _index(tables[TITLES["volumes"]])
        for level in VOLUME_LEVELS:
            ours, theirs = index[level, "xcoreg-diffeomorphic"], index[level, "ants"]
            found.append(at_most(f"volumes, {level:g} mm: warping index against ANTs", ours, theirs))
    if TITLES["growth"] in tables:
        table = tables[TITLES["growth"]]
        slope = np.polyfit(np.log(table["images"]), np.log(table["cpu_s"]), 1)[0]
        found += [
            at_most("growth of the time: power of the number of images", slope, 1.15),
            at_least("growth: images of the largest group", float(table["images"].max()), 64),
        ]
    if TITLES["tissues"] in tables:
        found += tissue_bars(tables[TITLES["tissues"]])
    return found


def _index(table: pd.DataFrame) -> dict[tuple[float, str], float]:
    """Return the mean warping index by level and method."""
    columns = zip(table["level_mm"].tolist(), table["method"].tolist(), table["gwi_mm"].tolist(), strict=True)
    return {(level, method): index for level, method, index in columns}


def main() -> None:
    """Run, print and write."""
    options = parser(__doc__)
    options.add_argument(
        "--parts", nargs="+", choices=[*TITLES][:5], default=[*TITLES][:3], help="what to run (the first three)"
    )
    options.add_argument("--groups", type=int, default=5, help="groups at each level (5)")
    args = options.parse_args()
    if {"tissues", "ages"} & {*args.parts} and (args.data is None or args.out is None):
        options.error("the parts tissues and ages need --data and --out")
    torch.set_num_threads(1)
    groups = 1 if args.quick else args.groups
    makers = {
        "slices": lambda: compare(2, LEVELS, groups, 1),
        "volumes": lambda: compare(3, VOLUME_LEVELS, max(1, groups // 2), 2),
        "growth": lambda: growth(SIZES),
        "tissues": lambda: tissue_table(args.data, args.out / "cohort", 2 if args.quick else None),
    }
    tables = {TITLES[part]: makers[part]() for part in args.parts if part in makers}
    more: list[Bar] = []
    if "ages" in args.parts:
        tables[TITLES["ages"]], tables[TITLES["slopes"]], more = age_tables(args.data, args.out / "cohort")
    data = (
        "tissue maps of MNI152 (nilearn wheel) in simulated contrasts; IXI Hammersmith (brain-development.org, CC BY-SA 3.0)"
    )
    report("groupwise", tables, bars_of(tables) + more, args, data, tuple(TITLES.values()))


if __name__ == "__main__":
    main()
