"""Deformable registration engines side by side, one thread each: accuracy, regularity, CPU seconds and memory.

    python -m benchmarks.registration --out FOLDER [--data BIDS] [--quick] [--engines a,b] [--datasets p96,ixi] [--resume]

Datasets: phantoms with a known field (p96: 96 voxels a side; p160: 160x192x160; with --quick p48 and p64) and, with --data,
labelled pairs of a BIDS dataset (ixi: T1w with derivatives/*/*_dseg; skull cut off by the labels, aligned by one affine that
all engines share). Every run is a fresh process with one thread; runs go one after another. Each result is written to
FOLDER/runs.json at once, and --resume goes on from there. The table of engines is in `peers`, the bars are in `summary`.

CPU seconds are user and system time of the registration call; imports and compiling are `load_cpu_s` of a run. SyN, DIPY and
instance make their inverse within the call, greedy makes it apart (`collect_cpu_s`), demons and ConvexAdam make none.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.common import PICTURES, ROOT, add_to_results, known, parser, report
from benchmarks.registration.cases import Case
from benchmarks.registration.cohort import choose_pairs, load_pair
from benchmarks.registration.peers import ENGINES
from benchmarks.registration.phantoms import Recipe, make_phantom
from benchmarks.registration.plot import plot
from benchmarks.registration.process import run_engine
from benchmarks.registration.rows import Row, Scores
from benchmarks.registration.scores import score
from benchmarks.registration.summary import judge, summarise
from popatlas.images.io import read_json, write_json

PHANTOMS = {
    "p48": Recipe((48, 48, 48), 4.5, 1.5),
    "p64": Recipe((56, 64, 56), 5.5, 2.0),
    "p96": Recipe((96, 96, 96), 9.0, 3.0),
    "p160": Recipe((160, 192, 160), 15.0, 4.7),
}
CASES = {"p48": 1, "p64": 1, "p96": 3, "p160": 1, "ixi": 8}
QUICK, FULL = ("p48", "p64"), ("p96", "p160")
PRINTED: tuple[Literal["dice", "error", "cpu_s"], ...] = ("dice", "error", "cpu_s")
PEERS = ("antspyx", "convexAdam", "dipy", "numba", "picsl_greedy", "SimpleITK", "torch")


def references(case: Case) -> dict[str, np.ndarray]:
    """Return the fields that are not found but given: none and, where it is known, the true one."""
    nothing = np.zeros((3, *case.fixed.shape), np.float32)
    return {"unregistered": nothing} | ({"truth": case.truth} if case.truth.size else {})


def datasets(args: argparse.Namespace) -> dict[str, list[tuple[str, Callable[[], Case]]]]:
    """Return the name of each case and a function that makes it."""
    default = [*(QUICK if args.quick else FULL), *(["ixi"] if args.data else [])]
    chosen: dict[str, list[tuple[str, Callable[[], Case]]]] = {}
    for name in args.datasets or default:
        count = args.cases or (1 if args.quick else CASES[name])
        if name == "ixi":
            pairs = choose_pairs(args.data, count)
            chosen[name] = [(f"{Path(a).name}+{Path(b).name}", partial(load_pair, args.data, a, b)) for a, b in pairs]
        else:
            chosen[name] = [(f"seed{seed}", partial(make_phantom, PHANTOMS[name], seed)) for seed in range(1, count + 1)]
    return chosen


def run_all(args: argparse.Namespace, out: Path) -> list[Row]:
    """Run what is not there yet, and write the rows after each run."""
    file = out / "runs.json"
    rows: list[Row] = read_json(file) if args.resume and file.exists() else []
    rows = [row for row in rows if row["state"] == "ok" and row["engine"] not in args.redo]
    done = {(row["dataset"], row["case"], row["engine"]) for row in rows}
    for dataset, cases in datasets(args).items():
        for name, make in cases:
            for row in run_case(args, done, out / "cases" / f"{dataset}-{name}.npz", make, (dataset, name)):
                rows.append(known(row))
                write_json(file, rows)
    wanted = {*args.engines, "unregistered", "truth"}
    return [row for row in rows if row["engine"] in wanted]


def run_case(
    args: argparse.Namespace, done: set[tuple[str, str, str]], path: Path, make: Callable[[], Case], key: tuple[str, str]
) -> Iterator[Row]:
    """Yield the rows of one case that are not done."""
    todo = [name for name in args.engines if (*key, name) not in done]
    first = (*key, "unregistered") not in done
    if not todo and not first:
        return
    if not (args.resume and path.exists()):
        make().save(path)
    case = Case.load(path)
    base: Row = {"dataset": key[0], "case": key[1]}
    if first:
        for name, field in references(case).items():
            yield {**base, "engine": name, "state": "ok", **score(case, field, None)}
    for name in todo:
        started = time.monotonic()
        record, fields = run_engine(name, path, args.repeats)
        scores: Scores = {} if fields is None else score(case, *fields)
        row: Row = {**base, "engine": name, **record, **scores}
        print(*key, name, *(f"{k} {row[k]:.3g}" for k in PRINTED if k in row), row["state"],
              f"({time.monotonic() - started:.0f} s)", flush=True)  # fmt: skip
        yield row


def peer_versions() -> dict[str, str]:
    """Return the versions of the engines' packages."""
    found = {dist.metadata["Name"].lower().replace("-", "_"): dist.version for dist in metadata.distributions()}
    return {name: found.get(name.lower(), "absent") for name in PEERS}


def present_engines() -> list[str]:
    """Return all engines, those on a GPU only where one is visible."""
    import torch

    return [name for name in ENGINES if torch.cuda.is_available() or not name.endswith("-gpu")]


def options() -> argparse.ArgumentParser:
    """Return the command line."""
    line = parser(__doc__)
    every = f"comma-separated, of: {', '.join(ENGINES)} (all; those on a GPU where there is one)"
    line.add_argument("--engines", type=lambda text: text.split(","), help=every)
    line.add_argument("--datasets", type=lambda text: text.split(","), help=f"comma-separated, of: {', '.join(CASES)}")
    line.add_argument("--cases", type=int, help="seeds or pairs of each dataset")
    line.add_argument(
        "--repeats", type=int, default=1, help="runs of each engine on each case, for the spread of the time (1)"
    )
    line.add_argument("--resume", action="store_true", help="keep the runs and cases that are in --out")
    line.add_argument("--redo", type=lambda text: text.split(","), default=[], help="with --resume: engines to run again")
    return line


def main() -> None:
    """Run, score, print, draw and write."""
    line = options()
    args = line.parse_args()
    args.engines = args.engines or present_engines()
    unknown = [*{*args.engines, *args.redo} - set(ENGINES), *set(args.datasets or ()) - set(CASES)]
    if unknown:
        line.error(f"unknown: {', '.join(unknown)}")
    if "ixi" in (args.datasets or ()) and args.data is None:
        line.error("dataset ixi needs --data")
    out = (args.out or ROOT / "results" / "benchmarks" / "registration").resolve()
    rows = run_all(args, out)
    summary = summarise(rows)
    names = list(dict.fromkeys(summary["dataset"]))
    tables = {name: summary[summary["dataset"] == name].drop(columns="dataset").dropna(axis=1, how="all") for name in names}
    source = f" (pairs of {args.data.resolve().name})" if "ixi" in names else ""
    files = report("registration", tables, judge(summary, args.engines), args, ", ".join(names) + source)
    add_to_results(files, runs=rows, peers=peer_versions())
    plot(summary, out / "registration.png")
    if not args.quick:
        plot(summary, PICTURES / "registration.png")


if __name__ == "__main__":
    main()
