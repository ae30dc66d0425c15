"""LabelReg on prostate MR and ultrasound, cross-validated, beside what needs no training.

    python -m benchmarks.labelreg --data PAIRS --out FOLDER [--folds 9] [--steps N] [--quick] [--json FILE]

27 pairs (the demonstration data of DeepReg, Apache-2.0), 9 folds: 22 pairs to learn from, 2 that choose the best step, 3
that are scored. The recipe is `labelreg` with a network and a grid that a CPU can train in minutes: a fourth of the
channels, voxels of 3.2 mm, a rate of 1e-3. All runs in one process of one thread; networks and scores in the folder are
kept. TRE is that of the paper: root mean square of the distances of the landmarks' centroids, without the gland.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import wilcoxon

from benchmarks.common import Bar, add_to_results, at_least, at_most, parser, report
from benchmarks.labelreg.cases import FOLDS, fold_splits, fold_table, prepare, read_pairs
from benchmarks.labelreg.methods import METHODS, Loaded, Row, network, rows_of
from popatlas.errors import InputError
from popatlas.images.io import read_json, write_json
from popatlas.training.recipe import Recipe, load_recipe
from popatlas.training.train import WEIGHTS, Options, train

STEPS, QUICK_STEPS = 400, 10
NETWORK = "labelreg"
USELESS = "no better than without registration"  # what training says then
DATA = "27 pairs of prostate MR and ultrasound, DeepReg's demonstration data (Apache-2.0), voxels taken as 1.6 mm"
PUBLISHED = "LabelReg as published (108 pairs of 76 patients, 0.8 mm, 48 h on a GPU)"
CHANGES = {
    "grid": {"shape": [24, 32, 24], "spacing_mm": 3.2},
    "network": {"options": {"channels": 8, "halvings": 3}},
    "loss": {"labels": {"count": 3}},
}
WORDS = {
    "middles": "middles of the images together",
    "mind": "our engine, MIND-SSC",
    NETWORK: "LabelReg, held-out pairs",
    "gland": "glands' centroids together (uses their labels)",
    "gland + mind": "the same, then our engine, MIND-SSC",
    "gland + mind and its label": "the same, by MIND-SSC and the glands' labels",
}


def recipe_of(steps: int) -> Recipe:
    """Return the recipe of a short training on a CPU."""
    every = max(1, steps // 6)
    plan = {"steps": steps, "rate": 1e-3, "warm_up": steps // 20, "decay": "cosine", "batch": 4}
    often = {"validate_every": every, "checkpoint_every": every, "record_every": max(1, steps // 40)}
    return load_recipe(NETWORK, {**CHANGES, "schedule": {**plan, **often}})


def run_fold(table: Path, out: Path, fold: int, steps: int, pairs: list[Loaded]) -> list[Row]:
    """Train, or go on, and return the rows of the pairs that were held out; what is done is kept."""
    folder = out / f"fold-{fold}-{steps}"
    file = folder / "scores.json"
    if not file.is_file():
        recipe, started = recipe_of(steps), time.process_time()
        try:
            if not train(recipe, fold_table(table, fold), folder, Options()).finished:
                raise SystemExit(f"fold {fold} was interrupted: run the same command again")
        except InputError as error:
            if USELESS not in error.message:
                raise
            print(f"fold {fold}: {error.message}", flush=True)
        seconds = time.process_time() - started
        splits = fold_splits([loaded.pair.name for loaded in pairs], fold)
        held = [loaded for loaded in pairs if splits[loaded.pair.name] == "test"]
        learnt = (folder / WEIGHTS).is_file()
        rows = rows_of(NETWORK, network(recipe, folder) if learnt else METHODS["middles"], held)
        write_json(file, [{**row, "fold": fold, "learnt": learnt, "training_cpu_s": seconds} for row in rows])
    found: list[Row] = read_json(file)
    return found


def run_others(out: Path, pairs: list[Loaded]) -> list[Row]:
    """Return the rows of the methods that need no training, on all pairs; what is done is kept."""
    rows: list[Row] = []
    for name, method in METHODS.items():
        file = out / f"{name.replace(' ', '-')}.json"
        if not file.is_file():
            write_json(file, rows_of(name, method, pairs))
            print(f"{name} done", flush=True)
        rows += read_json(file)
    return rows


def summary(rows: list[Row]) -> pd.DataFrame:
    """Return a row for each method: medians with quartiles, as the paper prints them, and means."""
    table, found = pd.DataFrame(rows), []
    for name, words in WORDS.items():
        own = table[table["method"] == name]
        if own.empty:
            continue
        tre, dice = own["tre_mm"].dropna(), own["gland_dice"]
        found.append(
            {
                "method": words,
                "pairs": len(own),
                "gland Dice, median": dice.median(),
                "quartiles": quartiles(dice),
                "landmark Dice, mean": own["landmark_dice"].mean(),
                "TRE mm, median": tre.median(),
                "quartiles of TRE": quartiles(tre),
                "gland centroids mm, median": own["gland_mm"].median(),
                "folded": own["folded"].mean(),
                "cpu_s": own["cpu_s"].mean(),
            }
        )
    return pd.DataFrame(found)


def quartiles(values: pd.Series) -> str:
    """Return the quartiles as text."""
    low, high = values.quantile([0.25, 0.75])
    return f"{low:.3g} to {high:.3g}"


def tests(rows: list[Row]) -> pd.DataFrame:
    """Return paired Wilcoxon tests of LabelReg against the others, on the pairs that it was scored on."""
    table = pd.DataFrame(rows).pivot(index="case", columns="method", values=["gland_dice", "tre_mm"])
    found = []
    for name in [name for name in WORDS if name != NETWORK]:
        for metric in ("gland_dice", "tre_mm"):
            gain = (table[metric][NETWORK] - table[metric][name]).astype(float).dropna()
            p = float(wilcoxon(gain).pvalue) if gain.any() else 1.0
            found.append({"LabelReg minus": WORDS[name], "metric": metric, "n": len(gain), "median": gain.median(), "p": p})
    return pd.DataFrame(found)


def bars(rows: list[Row]) -> list[Bar]:
    """Return what a network that has learnt something fulfils."""
    table = pd.DataFrame(rows)
    own = table[table["method"] == NETWORK].set_index("case")
    before, mind = (table[table["method"] == name].set_index("case").loc[own.index] for name in ("middles", "mind"))
    return [
        at_least(
            "LabelReg, median Dice of the gland over that of middles", *(t["gland_dice"].median() for t in (own, before))
        ),
        at_least(
            "LabelReg, median Dice of the gland over that of MIND-SSC", *(t["gland_dice"].median() for t in (own, mind))
        ),
        at_most("LabelReg, median TRE (mm) below that of middles", *(t["tre_mm"].median() for t in (own, before))),
        at_most("LabelReg, median TRE (mm) below that of MIND-SSC", *(t["tre_mm"].median() for t in (own, mind))),
    ]


def options() -> argparse.ArgumentParser:
    """Return the command line."""
    line = parser(__doc__)
    line.add_argument("--folds", type=int, default=FOLDS, help=f"train only the first so many ({FOLDS})")
    line.add_argument("--steps", type=int, help=f"of each training ({STEPS}; quick: {QUICK_STEPS})")
    return line


def main() -> None:
    """Run what is missing, then print and write everything."""
    line = options()
    args = line.parse_args()
    if args.out is None or args.data is None:
        line.error("give --data and --out")
    torch.set_num_threads(1)
    steps, folds = args.steps or (QUICK_STEPS if args.quick else STEPS), 1 if args.quick else args.folds
    args.out.mkdir(parents=True, exist_ok=True)
    table = prepare(args.data, args.out)
    pairs = [Loaded.of(pair) for pair in read_pairs(table)]
    rows = [row for fold in range(folds) for row in run_fold(table, args.out, fold, steps, pairs)]
    rows += run_others(args.out, pairs)
    known = {row["case"] for row in rows if row["method"] == NETWORK}
    same = [row for row in rows if row["case"] in known]
    trained = pd.DataFrame([row for row in same if row["method"] == NETWORK]).drop_duplicates("fold")
    published = {"method": PUBLISHED, "gland Dice, median": 0.87, "TRE mm, median": 3.6, "quartiles of TRE": "2.3 to 6.5"}
    tables = {
        "Held-out pairs": summary(same),
        "The paper": pd.DataFrame([published]),
        "LabelReg against the others: paired Wilcoxon tests": tests(same),
        "Trainings": trained[["fold", "learnt", "training_cpu_s"]].assign(steps=steps),
    }
    add_to_results(report("labelreg", tables, bars(same), args, DATA), runs=rows)


if __name__ == "__main__":
    main()
