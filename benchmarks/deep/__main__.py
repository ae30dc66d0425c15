"""Deep registration against optimisation, on subjects that no network of ours has seen.

    python -m benchmarks.deep --data IXI_BIDS --out FOLDER [--cohort FOLDER] [--checkpoints FOLDER]
        [--parts pairs front fine systems contrast slices pediatric pipeline] [--quick] [--json FILE]

* pairs: 8 ordered pairs of the 8 held-out subjects, each with the next one (`--pairs 16`: and the one after). One affine
  for each pair, shared by all engines; the parcellation scores them. Networks of the zoo, alone and with steps of the
  instance engine from their field; public checkpoints of `--checkpoints`, imported on the way (at 1 mm); the instance
  engine, SyN and greedy. Each run is a fresh process of one thread, one after another.
* contrast: the same pairs, the fixed image as it is, inverted, and like T2 (`benchmarks.deep.contrast`): the networks,
  and the instance engine with LNCC (squared, and signed) and with MIND-SSC.
* front: overlap against smoothness, the instance engine, greedy and the network at several (`benchmarks.deep.front`).
* fine: the pairs with voxels of 1 mm (doubled): the engine, the network with refinement, greedy (`benchmarks.deep.fine`).
* systems: the networks of papers, each trained by its recipe for `--budget` CPU seconds (`benchmarks.deep.systems`), on the
  same pairs beside the affine, the instance engine and the shipped network.
* slices: the 2D network on axial slices at the same five heights of MNI152.
* pediatric: what to align before training, and at which resolution; six trainings of `--steps` steps.
* pipeline: `popatlas run` with the network engine on all 32 scans, against the results of `benchmarks.cohort_ixi`.

Seconds of a network are without loading; they hold conforming, prediction, refinement, inverse, and the way back to the grid
of the pair. Finished rows are kept in the folder, while weights and settings are the same. The preprocessed cohort lies in
`--cohort` (made by `benchmarks.deep.cohort` where it is missing). Data from the IXI dataset, brain-development.org, CC BY-SA
3.0.

Tables of parts that a run leaves out stay as they are in the committed result, with their date.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from benchmarks.common import RESULTS, Bar, add_to_results, parser, report
from benchmarks.deep.bars import DEFAULT, contrast_bars, contrast_table, network_rows, pair_bars, pairs_table
from benchmarks.deep.cohort import prepare
from benchmarks.deep.contrast import CONTRASTS
from benchmarks.deep.engines import FINE, FRONT, OTHER_CONTRAST, PAPERS, SAME_CONTRAST, SLICES, T1W
from benchmarks.deep.fine import TITLE as FINE_TITLE
from benchmarks.deep.fine import doubled_cases, fine_bars, fine_table
from benchmarks.deep.front import SHOWN, draw_front, front_bars, front_table
from benchmarks.deep.front import TITLE as FRONT_TITLE
from benchmarks.deep.pairs import Prepared, cases
from benchmarks.deep.pediatric import pediatric_table, pediatric_tests, run_pediatric
from benchmarks.deep.pipeline import pipeline_table, run_pipeline
from benchmarks.deep.plot import draw
from benchmarks.deep.rows import Row
from benchmarks.deep.runs import available, run_rows, weights_of
from benchmarks.deep.scores import CONTRAST_TITLE, PAIRS_TITLE, SLICES_TITLE
from benchmarks.deep.slices import run_slices, slice_table
from benchmarks.deep.systems import TITLE as SYSTEMS_TITLE
from benchmarks.deep.systems import add_all, systems_table, train_all
from popatlas.images.io import read_json

PARTS = ("pairs", "front", "fine", "systems", "contrast", "slices", "pediatric", "pipeline")
PAIRS, QUICK_PAIRS = 8, 2
STEPS, QUICK_STEPS = 600, 20
BUDGET, QUICK_BUDGET = 180.0, 10.0  # CPU seconds
NETWORKS_TITLE = "Networks on the pairs that all of them ran on"
PEDIATRIC_TITLE = "Alignment before training, and resolution"
TESTS_TITLE = "Alignment and resolution: one-sided Wilcoxon tests"
PIPELINE_TITLE = "Whole pipeline, 32 scans (24 of them seen in training)"
TITLES = (
    PAIRS_TITLE,
    NETWORKS_TITLE,
    FRONT_TITLE,
    FINE_TITLE,
    SYSTEMS_TITLE,
    CONTRAST_TITLE,
    SLICES_TITLE,
    PEDIATRIC_TITLE,
    TESTS_TITLE,
    PIPELINE_TITLE,
)
DATA = "IXI Hammersmith at 2 mm, 8 subjects held out of all trainings (brain-development.org, CC BY-SA 3.0)"


def t1w_pairs(args: argparse.Namespace) -> Iterator[Prepared]:
    """Return the T1w pairs."""
    return cases(args.cohort, args.out / "cases", args.pairs, CONTRASTS[:1])


def run_pairs(args: argparse.Namespace, digests: dict[str, str]) -> list[Row]:
    """Run everything on T1w pairs."""
    return run_rows(args.out, t1w_pairs(args), chosen(SAME_CONTRAST, args, digests), digests)


def run_contrast(args: argparse.Namespace, digests: dict[str, str]) -> list[Row]:
    """Run the engines of the other contrasts on all of them."""
    prepared = cases(args.cohort, args.out / "cases", args.pairs, CONTRASTS)
    return run_rows(args.out, prepared, chosen(OTHER_CONTRAST, args, digests), digests)


def run_systems(args: argparse.Namespace, digests: dict[str, str]) -> tuple[pd.DataFrame, list[Row]]:
    """Train what is missing of the papers' networks, and run them on T1w pairs beside engines that need no training."""
    found = train_all(args.cohort / "training.tsv", args.out / "systems", args.budget)
    digests = digests | add_all(found)
    rows = run_rows(args.out, t1w_pairs(args), chosen([*PAPERS, DEFAULT, T1W], args, digests), digests)
    return systems_table(rows, found), rows


def chosen(names: Iterable[str], args: argparse.Namespace, digests: dict[str, str]) -> list[str]:
    """Return the engines that were asked for and can run."""
    return available([name for name in names if args.engines is None or name in args.engines], digests)


def tables_of(args: argparse.Namespace, digests: dict[str, str]) -> tuple[dict[str, pd.DataFrame], list[Bar], list[Row]]:
    """Run the parts; return their tables, bars and rows, and draw the picture."""
    tables: dict[str, pd.DataFrame] = {}
    bars: list[Bar] = []
    kept: list[Row] = []
    pairs = contrast = None
    if "pairs" in args.parts:
        rows = run_pairs(args, digests)
        pairs = tables[PAIRS_TITLE] = pairs_table(rows)
        tables[NETWORKS_TITLE] = pairs_table(network_rows(rows))
        bars, kept = pair_bars(rows), rows
    if "front" in args.parts:
        rows = run_rows(args.out, t1w_pairs(args), chosen(SHOWN, args, digests), digests)
        front = tables[FRONT_TITLE] = front_table(rows)
        bars, kept = bars + front_bars(front), kept + [row for row in rows if row["engine"] in FRONT]
        draw_front(front, args.out / "front.png")
        if not args.quick:
            draw_front(front)
    if "fine" in args.parts:
        prepared = doubled_cases(t1w_pairs(args), args.out / "cases")
        rows = run_rows(args.out, prepared, chosen(FINE, args, digests), digests)
        fine = tables[FINE_TITLE] = fine_table(rows)
        bars, kept = bars + fine_bars(fine), kept + rows
    if "systems" in args.parts:
        tables[SYSTEMS_TITLE], rows = run_systems(args, digests)
        kept = kept + [row for row in rows if row["engine"] in PAPERS]
    if "contrast" in args.parts:
        rows = run_contrast(args, digests)
        contrast = tables[CONTRAST_TITLE] = contrast_table(rows)
        bars, kept = bars + contrast_bars(rows), kept + rows
    if "slices" in args.parts:
        tables[SLICES_TITLE] = slice_table(
            run_slices(args.cohort / "training.tsv", args.out, args.pairs, digests.get(SLICES, ""))
        )
    if "pediatric" in args.parts:
        trained = run_pediatric(args.cohort / "training.tsv", args.out / "pediatric", args.pairs, args.steps)
        tables[PEDIATRIC_TITLE] = pediatric_table(trained)
        tables[TESTS_TITLE] = pediatric_tests(trained)
    if "pipeline" in args.parts and T1W in digests:
        tables[PIPELINE_TITLE] = pipeline_table(run_pipeline(args.data, args.out, args.cores, digests[T1W]))
    elif "pipeline" in args.parts:
        print(f"skipped the pipeline: there are no weights {T1W}", flush=True)
    draw(pairs, contrast, args.out / "deep.png")
    return tables, bars, kept


def all_runs(rows: list[Row]) -> list[Row]:
    """Return the rows of this run, and those of the committed result that it has not made anew."""
    file = RESULTS / "deep.json"
    earlier: list[Row] = read_json(file)["runs"] if file.is_file() else []
    made = {(row["dataset"], row["case"], row["engine"]) for row in rows}
    return [row for row in earlier if (row["dataset"], row["case"], row["engine"]) not in made] + rows


def options() -> argparse.ArgumentParser:
    """Return the command line."""
    line = parser(__doc__)
    line.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(all; --quick: without the pipeline)")
    line.add_argument("--cohort", type=Path, help="folder of the preprocessed cohort (OUT/cohort)")
    line.add_argument("--checkpoints", type=Path, help="folder of public checkpoints; without it no network is imported")
    line.add_argument("--engines", nargs="+", help="of pairs and contrast, only these")
    line.add_argument("--pairs", type=int, help=f"how many, at most 16 ({PAIRS}; quick: {QUICK_PAIRS})")
    text = f"CPU seconds of each training of the part systems ({BUDGET:g}; quick: {QUICK_BUDGET:g})"
    line.add_argument("--budget", type=float, help=text)
    line.add_argument("--steps", type=int, help=f"of each training of the part pediatric ({STEPS}; quick: {QUICK_STEPS})")
    return line


def main() -> None:
    """Run what is missing, then print, draw and write everything."""
    line = options()
    args = line.parse_args()
    if args.out is None or args.data is None:
        line.error("give --data and --out")
    args.out = args.out.resolve()
    args.cohort = (args.cohort or args.out / "cohort").resolve()
    args.pairs = args.pairs or (QUICK_PAIRS if args.quick else PAIRS)
    args.budget = args.budget or (QUICK_BUDGET if args.quick else BUDGET)
    args.steps = args.steps or (QUICK_STEPS if args.quick else STEPS)
    if args.quick:
        args.parts = [part for part in args.parts if part != "pipeline"]
    prepare(args.data, args.cohort)
    with weights_of(args.checkpoints) as digests:
        tables, bars, rows = tables_of(args, digests)
    runs = all_runs(rows)
    add_to_results(report("deep", tables, bars, args, DATA, TITLES), runs=runs)
    if not args.quick:
        draw_committed()


def draw_committed() -> None:
    """Draw the picture of the committed result, whose tables a run of other parts has left as they were."""
    rows = read_json(RESULTS / "deep.json")["rows"]
    pairs, contrast = (pd.DataFrame(rows[title]) if title in rows else None for title in (PAIRS_TITLE, CONTRAST_TITLE))
    draw(pairs, contrast)


if __name__ == "__main__":
    main()
