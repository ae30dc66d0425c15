"""X-CoReg beside other ways to register a group, on groups with known truth.

    python -m benchmarks.groupwise [--parts slices volumes growth] [--groups 5] [--methods xcoreg-ffd mi-pairs]
    python -m benchmarks.groupwise --parts slices volumes --data LABEL_MAPS
    python -m benchmarks.groupwise --parts types
    python -m benchmarks.groupwise --parts tissues ages atlas --data IXI_BIDS --out FOLDER

`slices`: the experiment of Luo and Zhuang (2023): three contrasts of an axial slice at 1 mm, four levels of misalignment.
`volumes`: the same in 3D at 2 mm. Both take their anatomy from the nilearn wheel, or from each of the label maps (numbers of
FreeSurfer) in the folder of `--data`; what `--methods` and `--levels` leave out keeps its rows. `growth`: time and memory
for 2 to 64 images. One thread; every method has the same moves, levels and steps, but ANTs, which has its own.
`tissues`: volumes of real heads by mixtures, beside Atropos. `ages`: ventricles of real heads along age, in a conditional
atlas and in the single subjects. `atlas`: an atlas of real heads by X-CoReg, beside the mean template of the pipeline.
`deepcc`: a network that learns on other slices.
`types`: how often the planted number of types is found, beside ways that use a part of what popatlas asks.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.common import RESULTS, Bar, Record, at_least, at_most, parser, report
from benchmarks.groupwise.ages import age_tables
from benchmarks.groupwise.atlas import HEADS, METHODS, atlas_bars, atlas_tables
from benchmarks.groupwise.cases import MARGIN, Case, make_case
from benchmarks.groupwise.combined import combined_bars, combined_table
from benchmarks.groupwise.growth import SIZES, growth
from benchmarks.groupwise.labelmaps import label_maps, merged
from benchmarks.groupwise.peers import AGREEMENTS, Agreement, ants_to_first
from benchmarks.groupwise.tissues import tissue_bars, tissue_table
from benchmarks.groupwise.types import type_bars, type_table
from popatlas.groupwise.xcoreg.core import coregister
from popatlas.groupwise.xcoreg.settings import XCoRegSettings
from popatlas.images.io import read_json

LEVELS = (20.0, 15.0, 10.0, 5.0)  # mm, the longest displacement
PAPER = {20.0: 2.292, 15.0: 1.421, 10.0: 0.361, 5.0: 0.252}  # warping index of the paper's four experiments
VOLUME_LEVELS = (15.0, 10.0, 5.0)
DIFFEOMORPHIC = XCoRegSettings(fluid=8.0)
FREE_FORM = {  # by the axes of the images
    2: XCoRegSettings(motion="ffd", step=0.3),
    3: XCoRegSettings(motion="ffd", step=0.3, spacing=(6.0, 6.0, 7.0, 10.0), iterations=(80, 80, 60, 15)),
}
OURS = ("xcoreg-diffeomorphic", "xcoreg-ffd")
TITLES = {
    "slices": "Slices: three contrasts at 1 mm",
    "slices, label maps": "Slices of label maps: three contrasts at 1 mm",
    "volumes": "Volumes: three contrasts at 2 mm",
    "volumes, label maps": "Volumes of label maps: three contrasts at 2 mm",
    "growth": "Growth with the images of a group (slices)",
    "tissues": "Tissue volumes of real heads (IXI at 2 mm)",
    "ages": "Ventricles along age in a conditional atlas (IXI at 2 mm)",
    "slopes": "Growth of the ventricles with age (IXI at 2 mm)",
    "atlas": "Atlas of real heads (IXI at 2 mm)",
    "types": "Types of subjects: planted templates of 64 cells",
    "classes": "Classes of the atlas of X-CoReg (IXI at 2 mm)",
    "deepcc": "DeepCC: slices at 5 mm that the network never saw",
}

INTENSITIES = (
    "`ssd-mean` and `mi-template` (first principal component) take the images for one contrast, or for one up to a line: "
    "with three contrasts they leave the group farther apart than it was."
)
REMARKS = {
    TITLES["slices"]: INTENSITIES,
    TITLES["atlas"]: (
        "`dice`: all structures of the parcellation, mean over all pairs of heads; `tissue_dice`: merged to CSF, grey and "
        "white matter. `sharpness`: of the mean of the warped images, by the same measure. X-CoReg sees T1w through eight "
        "classes for the whole head: within a tissue they say nothing, where the local correlation of the template does."
    ),
}
PARTS = ("slices", "volumes", "growth", "tissues", "ages", "atlas", "deepcc", "types")


def methods(ndim: int) -> tuple[str, ...]:
    """Return the methods of a part."""
    return ("xcoreg-diffeomorphic", "xcoreg-ffd", *(AGREEMENTS if ndim == 2 else ()), "ants")


def run_method(name: str, case: Case) -> Record:
    """Return the scores of a method on a group."""
    if name == "ants":
        fields, seconds = ants_to_first(case)
        chi = math.nan
    else:
        plan = DIFFEOMORPHIC if name == "xcoreg-diffeomorphic" else FREE_FORM[case.inside.ndim]
        metric = Agreement(AGREEMENTS[name]) if name in AGREEMENTS else None
        started = time.process_time()
        result = coregister(case.images, plan, masks=case.masks, metric=metric)
        seconds, fields = time.process_time() - started, result.displacements
        chi = len(fields) * max(result.history[-1]) if metric is None else math.nan
    return {"gwi_mm": case.index(fields), "dice": case.dice(fields), "chi": chi, "cpu_s": seconds}


def compare(
    part: str, groups: int, maps: Sequence[Path], names: Sequence[str] | None, chosen: Sequence[float] | None
) -> tuple[str, pd.DataFrame]:
    """Return title and mean scores of each method at each level of misalignment; what is not named keeps its rows."""
    ndim, spacing = (2, 1) if part == "slices" else (3, 2)
    levels = chosen or (LEVELS if part == "slices" else VOLUME_LEVELS)
    title = TITLES[f"{part}, label maps" if maps else part]
    rows: list[Record] = []
    for level in levels:
        for seed in range(groups):
            tissues = merged(maps[seed % len(maps)], ndim, spacing, MARGIN) if maps else None
            case = make_case(seed, ndim, level, spacing=spacing, tissues=tissues)
            common: Record = {"level_mm": level, "seed": float(seed)}
            rows.append({**common, "method": "unregistered", "gwi_mm": case.index(), "dice": case.dice()})
            for name in methods(ndim) if names is None else names:
                rows.append({**common, "method": name, **run_method(name, case)})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    found = table.groupby(["level_mm", "method"], sort=False)
    means = found[["gwi_mm", "dice", "chi", "cpu_s"]].mean()
    means.insert(1, "gwi_sd", found["gwi_mm"].std(ddof=0))
    means.insert(2, "gwi_median", found["gwi_mm"].median())
    means["groups"] = found["gwi_mm"].size()
    means = means.reset_index()
    return title, with_others(title, means, methods(ndim)) if names or chosen else means


def with_others(title: str, means: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Return a table with the rows of the committed result for what was not run."""
    kept = pd.DataFrame(read_json(RESULTS / "groupwise.json")["rows"].get(title, []), columns=means.columns)
    keys = [name for name in ("level_mm", "method") if name in means]
    known = {tuple(row) for row in means[keys].to_numpy()}
    kept = kept[[tuple(row) not in known for row in kept[keys].to_numpy()]]
    table = pd.concat([kept, means]) if len(kept) else means
    places = {name: number for number, name in enumerate(("unregistered", *order))}
    levels = -table["level_mm"] if "level_mm" in table else 0
    table = table.assign(level=levels, place=table["method"].map(places)).sort_values(["level", "place"])
    return table.drop(columns=["level", "place"]).reset_index(drop=True)


def index_bars(tables: dict[str, pd.DataFrame], part: str) -> list[Bar]:
    """Return what has to hold of the warping index in a part."""
    found: list[Bar] = []
    if TITLES[part] not in tables:
        return found
    index = _index(tables[TITLES[part]])
    for level in sorted({level for level, _ in index}, reverse=True):
        ours = min(index[level, name] for name in OURS if (level, name) in index)
        peers = [index[level, name] for name in (*AGREEMENTS, "ants") if (level, name) in index]
        if peers:
            found.append(at_most(f"{part}, {level:g} mm: warping index against the best peer", ours, min(peers)))
        if part == "slices":
            found.append(at_most(f"slices, {level:g} mm: warping index against the paper's", ours, PAPER[level]))
    return found


def bars_of(tables: dict[str, pd.DataFrame]) -> list[Bar]:
    """Return what has to hold."""
    found = [bar for part in TITLES if part.startswith(("slices", "volumes")) for bar in index_bars(tables, part)]
    if TITLES["growth"] in tables:
        table = tables[TITLES["growth"]]
        slope = np.polyfit(np.log(table["images"]), np.log(table["cpu_s"]), 1)[0]
        found += [
            at_most("growth of the time: power of the number of images", slope, 1.15),
            at_least("growth: images of the largest group", float(table["images"].max()), 64),
        ]
    if TITLES["tissues"] in tables:
        found += tissue_bars(tables[TITLES["tissues"]])
    if TITLES["deepcc"] in tables:
        found += combined_bars(tables[TITLES["deepcc"]])
    if TITLES["types"] in tables:
        found += type_bars(tables[TITLES["types"]])
    return found


def _index(table: pd.DataFrame) -> dict[tuple[float, str], float]:
    """Return the mean warping index by level and method."""
    columns = zip(table["level_mm"].tolist(), table["method"].tolist(), table["gwi_mm"].tolist(), strict=True)
    return {(level, method): index for level, method, index in columns}


def main() -> None:
    """Run, print and write."""
    options = parser(__doc__)
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:3], help="what to run (the first three)")
    options.add_argument("--groups", type=int, default=5, help="groups at each level (5)")
    options.add_argument(
        "--methods", nargs="+", choices=sorted({*methods(2), *METHODS}), help="of those parts and atlas (all)"
    )
    options.add_argument("--levels", nargs="+", type=float, help="of slices and volumes, mm (all)")
    options.add_argument("--heads", type=int, default=HEADS, help=f"of the part atlas ({HEADS})")
    args = options.parse_args()
    if {"tissues", "ages", "atlas"} & {*args.parts} and (args.data is None or args.out is None):
        options.error("the parts tissues, ages and atlas need --data and --out")
    torch.set_num_threads(1)
    groups = 1 if args.quick else args.groups
    makers: dict[str, Callable[[], tuple[str, pd.DataFrame]]] = {
        "slices": partial(compare, "slices", groups, label_maps(args.data), args.methods, args.levels),
        "volumes": partial(compare, "volumes", max(1, groups // 2), label_maps(args.data), args.methods, args.levels),
        "growth": lambda: (TITLES["growth"], growth(SIZES)),
        "types": lambda: (TITLES["types"], type_table(2 if args.quick else 10)),
        "tissues": lambda: (TITLES["tissues"], tissue_table(args.data, args.out / "cohort", 2 if args.quick else None)),
    }
    makers["deepcc"] = lambda: (TITLES["deepcc"], combined_table(args.quick))
    tables = dict(makers[part]() for part in args.parts if part in makers)
    more: list[Bar] = []
    if "ages" in args.parts:
        tables[TITLES["ages"]], tables[TITLES["slopes"]], bars = age_tables(args.data, args.out / "cohort")
        more += bars
    if "atlas" in args.parts:
        heads = 3 if args.quick else args.heads
        table, tables[TITLES["classes"]] = atlas_tables(args.data, args.out / "cohort", heads, args.methods or [*METHODS])
        tables[TITLES["atlas"]] = with_others(TITLES["atlas"], table, [*METHODS]) if args.methods else table
        more += atlas_bars(tables[TITLES["atlas"]])
    data = (
        "tissue maps of MNI152 (nilearn wheel) and training label maps of SynthSeg (Apache-2.0) in simulated contrasts; "
        "IXI Hammersmith (brain-development.org, CC BY-SA 3.0)"
    )
    report("groupwise", tables, bars_of(tables) + more, args, data, tuple(TITLES.values()), REMARKS)


if __name__ == "__main__":
    main()
