"""Share of damaged pairs that are right, refused, or wrong and passed: our step, the gate that it had before, ANTs' affine.

    python -m benchmarks.starts --out FOLDER [--data BIDS] [--quick] [--only ours,...]

With --data the global search (CSNGF) is also asked for poses whose truth is known, beside other starts (`poses`).

Brains are simulated (3 mm) and, with --data, those of a BIDS dataset with labels (2 mm, N4; the mask is what has a label).
The moving brain's header is turned, shifted or mirrored, or its image is cropped, recoloured, sliced thickly or made noisy
(`cases`). *right*: the labels reach 85 % of the Dice that the same method has on the untouched pair, where the image has a
field of view (other contrasts: 80 %); *refused*: an error instead of a result; *wrong*: a result that is not right. Mirrored
brains cannot be right: no method may mirror them back. Whole heads are turned before preprocessing and go through the steps
CorrectAndConform, ExtractBrain, NormaliseBrain and RegisterImages. Everything runs in one process with one thread, seconds
are CPU seconds; each result is written to FOLDER/runs.json at once, and finished ones are kept.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.common import PICTURES, RESULTS, Bar, at_least, at_most, known, parser, report
from benchmarks.starts.brains import Brain
from benchmarks.starts.cases import AXES, SIMULATED_MM, Case, cases
from benchmarks.starts.heads import TURNS, Head, heads, prepare
from benchmarks.starts.learn import left_out
from benchmarks.starts.methods import CONFIG, GATE, METHODS, dice, reason
from benchmarks.starts.plot import plot
from benchmarks.starts.poses import KIND as POSE
from benchmarks.starts.poses import TITLE as POSES_TITLE
from benchmarks.starts.poses import pose_rows, pose_table
from benchmarks.starts.rows import Key, Row
from popatlas.errors import PopatlasError
from popatlas.images.io import read_json, write_json

IXI = "ixi-hh"  # folder of the dataset where --data is one of several
RIGHT, RIGHT_CONTRAST = 0.85, 0.8  # shares of the untouched pair's Dice
REAL, MADE, HEADS = 2, 8, 2
VOXELS = {"simulated": SIMULATED_MM, "IXI": CONFIG.preprocess.resolution_mm}
QUICK = 1
POSES = 10  # brains and heads
COMPARED = 1  # pairs of each kind of data that the other methods are asked about; untouched ones are timed on twice as many
UPRIGHT = ("upright", 0)
TIMED = 3  # repeats of each untouched pair
Untouched = tuple[list[str], float]  # transforms and Dice


class Runs:
    """Results by key, written after each."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[Row] = read_json(file) if file.exists() else []

    def has(self, **key: str) -> bool:
        """Tell whether there is a row with these entries."""
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.rows.append(known(row))
        write_json(self.file, self.rows)
        print({name: value for name, value in row.items() if value != ""}, flush=True)


def verdict(refused: str, overlap: float, reference: float, kind: str) -> str:
    """Return right, refused or wrong."""
    if refused:
        return "refused"
    share = RIGHT_CONTRAST if kind == "other contrast" else RIGHT
    return "right" if kind != "mirrored" and overlap >= share * reference else "wrong"


def run_case(case: Case, methods: list[str], untouched: dict[str, Untouched], folder: Path) -> Iterator[Row]:
    """Yield a row for each method; the untouched case fills `untouched`, which the others are compared with."""
    fixed, moving = case.fixed(), case.damage(case.moving())
    files = fixed.write(folder / "fixed"), moving.write(folder / "moving")
    for method in methods:
        out = folder / method.replace(" ", "-")
        out.mkdir(parents=True)
        found = METHODS[method](*files, out)
        overlap = float("nan") if found.refused and method == "ours" else dice(fixed, moving, found.chain, folder)
        if case.kind == "untouched":
            untouched[method] = found.chain, overlap
        chain, reference = untouched[method]
        if case.kind == "cropped":  # a crop lies where the whole lay: what the untouched pair's transform makes of it
            reference = dice(fixed, moving, chain, folder)
        yield {
            "data": case.data, "pair": case.pair, "kind": case.kind, "case": case.name, "method": method,
            "verdict": verdict(found.refused, overlap, reference, case.kind), "dice": overlap, "reference": reference,
            "seconds": found.seconds, "said": found.refused,
        }  # fmt: skip


def run_ours(args: argparse.Namespace, runs: Runs) -> None:
    """Ask our step about all cases."""
    counts = (QUICK, QUICK) if args.quick else (REAL, MADE)
    run_brains(args, runs, *counts, [name for name in args.only if name == "ours"])


def run_others(args: argparse.Namespace, runs: Runs) -> None:
    """Ask the others about some pairs."""
    run_brains(args, runs, COMPARED, COMPARED, [name for name in args.only if name != "ours"])


def run_brains(args: argparse.Namespace, runs: Runs, real: int, made: int, asked: list[str]) -> None:
    """Run all cases that are not there; the untouched pair is run again where others need its transforms."""
    for _, group in groupby(cases(args.data, real, made), key=lambda case: case.pair):
        pair = list(group)
        todo = {
            case.name: [name for name in asked if not runs.has(pair=case.pair, case=case.name, method=name)] for case in pair
        }
        if not any(todo.values()):
            continue
        untouched: dict[str, Untouched] = {}
        with tempfile.TemporaryDirectory() as scratch:
            for number, case in enumerate(pair):
                methods = asked if case.kind == "untouched" else todo[case.name]
                folder = Path(scratch) / str(number)
                for row in run_case(case, methods, untouched, folder):
                    if row["method"] in todo[case.name]:
                        runs.add(row)
                if case.kind != "untouched" and folder.exists():
                    shutil.rmtree(folder)


def run_times(args: argparse.Namespace, runs: Runs) -> None:
    """Time the untouched pairs again, our step and the old one in turn."""
    count = QUICK if args.quick else 2 * COMPARED
    for case in (case for case in cases(args.data, count, count) if case.kind == "untouched"):
        for repeat in range(1 if args.quick else TIMED):
            if runs.has(data=case.data, pair=case.pair, kind="time", case=f"repeat {repeat}"):
                continue
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                files = case.fixed().write(folder / "fixed"), case.moving().write(folder / "moving")
                for method in ("ours", "old gate"):
                    out = folder / method
                    out.mkdir()
                    seconds = METHODS[method](*files, out).seconds
                    row: Row = {"data": case.data, "pair": case.pair, "kind": "time", "case": f"repeat {repeat}"}
                    runs.add({**row, "method": method, "seconds": seconds})


def run_heads(args: argparse.Namespace, runs: Runs) -> None:
    """Turn whole heads and take them through all steps; they are registered to the first head of their kind, upright."""
    first: dict[str, Head] = {}
    for data, make in heads(args.data, 2 if args.quick else HEADS):
        head = make()
        if data not in first:
            first[data] = head
            continue
        keys = {turn: _head_key(data, head, *turn) for turn in (UPRIGHT, *TURNS)}
        if all(runs.has(**key) for key in keys.values()):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder, reference = Path(scratch), float("nan")
            fixed = prepare(first[data], folder / "fixed")
            for (name, degrees), key in keys.items():
                if degrees and runs.has(**key):
                    continue
                turn = degrees * np.array(AXES.get(name, (0, 0, 0)), float)
                refused, seconds, overlap = _turned_head(fixed, head.turned(turn), folder / f"{degrees}-{name}")
                reference = reference if degrees else overlap
                if not runs.has(**key):
                    judged = verdict(refused, overlap, reference, "whole head")
                    found: Row = {"verdict": judged, "dice": overlap, "reference": reference}
                    runs.add({**key, **found, "seconds": seconds, "said": refused})


def _head_key(data: str, head: Head, name: str, degrees: int) -> Key:
    what = f"{degrees} degrees, {name}" if degrees else name
    return {"data": data, "pair": str(head.name), "kind": "whole head", "case": what, "method": "ours"}


def _turned_head(fixed: Brain, head: Head, folder: Path) -> tuple[str, float, float]:
    """Return why a head was refused, empty when it was not, the seconds of its registration, and Dice."""
    try:
        moving = prepare(head, folder / "prepared")
        found = METHODS["ours"](fixed.write(folder / "fixed"), moving.write(folder / "moving"), folder)
    except PopatlasError as error:
        return reason(error), float("nan"), float("nan")
    overlap = float("nan") if found.refused else dice(fixed, moving, found.chain, folder)
    return found.refused, found.seconds, overlap


def run_sides(args: argparse.Namespace, runs: Runs) -> None:
    """Tell the sides of real brains, each by a discriminant that was learnt from the others."""
    if args.data is None or args.quick or runs.has(kind="sides"):
        return
    for name, score in left_out(args.data).items():
        runs.add({"data": "IXI", "pair": name, "kind": "sides", "case": "left out", "method": "ours", "sides": score})


def run_poses(args: argparse.Namespace, runs: Runs) -> None:
    """Bring turned and recoloured brains and heads back, by several starts."""
    if args.data is not None:
        for row in pose_rows(args.data, QUICK if args.quick else POSES, runs.has):
            runs.add(row)


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """Return the number of cases and the shares of each verdict, by data, kind and method."""
    groups = table.groupby(["data", "kind", "method"], sort=False)
    counts = (
        groups["verdict"].value_counts().unstack(fill_value=0).reindex(columns=["right", "refused", "wrong"], fill_value=0)
    )
    times = groups["seconds"].mean().rename("seconds").round(2)
    return counts.assign(cases=counts.sum(axis=1)).join(times).reset_index()


def bars(table: pd.DataFrame, times: pd.DataFrame, sides: pd.DataFrame, poses: pd.DataFrame) -> list[Bar]:
    """Return what was asked for."""
    ours = table[table["method"] == "ours"]
    brains, whole = ours[ours["kind"] != "whole head"], ours[ours["kind"] == "whole head"]
    turned = brains[brains["kind"].isin(["turned by 90 or 180", "turned, oblique"])]
    untouched = brains[brains["kind"] == "untouched"]
    found = []
    for data, rows in ours.groupby("data", sort=False):
        found.append(
            at_most(f"wrong and passed, ours, {data}, of {len(rows)} cases", int((rows["verdict"] == "wrong").sum()), 0)
        )
    found += [
        at_least("cases of simulated brains", int((brains["data"] == "simulated").sum()), 200),
        at_least("turned brains that are right", (turned["verdict"] == "right").mean(), 0.95),
        at_least("untouched pairs that are right", (untouched["verdict"] == "right").mean(), 1.0),
        at_least("turned whole heads that are right", (whole["verdict"] == "right").mean(), 0.95),
    ]
    for data, rows in times.groupby("data", sort=False):
        best = rows.groupby(["pair", "method"])["seconds"].min().unstack()
        ratio = float((best["ours"] / best["old gate"]).median())
        found.append(
            at_most(f"CPU seconds of an untouched pair, ours over old, {data}, {VOXELS[str(data)]:g} mm", ratio, 1.05)
        )
    if len(sides):
        limit = GATE["sides"]
        found.append(
            at_most("real brains, left out, that are refused as mirrored", float((sides["sides"] < limit).mean()), 0.0)
        )
        found.append(at_least("their mirror images that are refused", float((-sides["sides"] < limit).mean()), 0.95))
    for row in poses[poses["method"] == "CSNGF"].to_dict("records") if len(poses) else ():
        found.append(at_least(f"poses that CSNGF finds, {row['data']}, of {row['cases']}", row["found"], 0.9 * row["cases"]))
    return found


def main() -> None:
    """Run what is not there yet, print and write."""
    options = parser(__doc__)
    options.add_argument("--only", type=lambda names: names.split(","), default=list(METHODS), help="methods")
    args = options.parse_args()
    if args.data is not None and (args.data / IXI).is_dir():
        args.data = args.data / IXI
    args.out = args.out or Path(tempfile.mkdtemp(prefix="popatlas-starts-"))
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    runs = Runs(args.out / "runs.json")
    for run in (run_times, run_sides, run_poses, run_ours, run_heads, run_others):
        run(args, runs)
    table = pd.DataFrame(runs.rows)
    judged = table[table["kind"].isin(["time", "sides", POSE]) == 0]
    summary = shares(judged)
    wrong = judged[(judged["verdict"] == "wrong") & (judged["method"] == "ours")]
    tables = {"Shares": summary, "Wrong and passed, ours": wrong[["data", "pair", "case", "dice", "reference"]]}
    sides = table[table["kind"] == "sides"]
    if len(sides):
        tables["Sides of real brains, each left out"] = sides[["pair", "sides"]].reset_index(drop=True)
    data = "simulated brains" + ("; IXI (brain-development.org, CC BY-SA 3.0)" if args.data else "")
    poses = table[table["kind"] == POSE]
    if len(poses):
        poses = tables[POSES_TITLE] = pose_table(poses)
    report("starts", tables, bars(judged, table[table["kind"] == "time"], sides, poses), args, data)
    if not args.quick:
        plot(summary, PICTURES / "starts.png")
    print(f"runs: {runs.file}, results: {RESULTS}")


if __name__ == "__main__":
    main()
