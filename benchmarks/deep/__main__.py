"""Deep registration against optimisation, on subjects that no network of ours has seen.

    python -m benchmarks.deep --data IXI_BIDS --out FOLDER [--cohort FOLDER] [--checkpoints FOLDER]
        [--parts pairs contrast slices pediatric pipeline] [--quick] [--json FILE]

* pairs: 8 ordered pairs of the 8 held-out subjects, each with the next one (`--pairs 16`: and the one after). One affine
  for each pair, shared by all engines; the parcellation scores them. Networks of the zoo, alone and with steps of the
  instance engine from their field; public checkpoints of `--checkpoints`, imported on the way (at 1 mm); the instance
  engine, SyN and greedy. Each run is a fresh process of one thread, one after another.
* contrast: the same pairs, the fixed image as it is, inverted, and like T2 (`benchmarks.deep.contrast`): the networks,
  and the instance engine with LNCC (squared, and signed) and with MIND-SSC.
* slices: the 2D network on axial slices at the same five heights of MNI152.
* pediatric: what to align before training, and at which resolution; six trainings of `--steps` steps.
* pipeline: `popatlas run` with the network engine on all 32 scans, against the results of `benchmarks.cohort_ixi`.

Seconds of a network are without loading; they hold conforming, prediction, refinement, inverse, and the way back to the grid
of the pair. Finished rows are kept in the folder, while weights and settings are the same. The preprocessed cohort lies in
`--cohort` (made by `benchmarks.deep.cohort` where it is missing). Data from the IXI dataset, brain-development.org, CC BY-SA
3.0.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from benchmarks.common import Bar, add_to_results, parser, report
from benchmarks.deep.bars import contrast_bars, contrast_table, network_rows, pair_bars, pairs_table
from benchmarks.deep.cohort import prepare
from benchmarks.deep.contrast import CONTRASTS
from benchmarks.deep.engines import OTHER_CONTRAST, SAME_CONTRAST, SLICES, T1W
from benchmarks.deep.pairs import cases
from benchmarks.deep.pediatric import pediatric_table, pediatric_tests, run_pediatric
from benchmarks.deep.pipeline import pipeline_table, run_pipeline
from benchmarks.deep.plot import draw
from benchmarks.deep.rows import Row
from benchmarks.deep.runs import available, run_rows, weights_of
from benchmarks.deep.scores import CONTRAST_TITLE, PAIRS_TITLE, SLICES_TITLE
from benchmarks.deep.slices import run_slices, slice_table

PARTS = ("pairs", "contrast", "slices", "pediatric", "pipeline")
PAIRS, QUICK_PAIRS = 8, 2
STEPS, QUICK_STEPS = 600, 20
DATA = "IXI Hammersmith at 2 mm, 8 subjects held out of all trainings (brain-development.org, CC BY-SA 3.0)"


def run_pairs(args: argparse.Namespace, digests: dict[str, str]) -> list[Row]:
    """Run everything on T1w pairs."""
    prepared = cases(args.cohort, args.out / "cases", args.pairs, CONTRASTS[:1])
    return run_rows(args.out, prepared, chosen(SAME_CONTRAST, args, digests), digests)


def run_contrast(args: argparse.Namespace, digests: dict[str, str]) -> list[Row]:
    """Run the engines of the other contrasts on all of them."""
    prepared = cases(args.cohort, args.out / "cases", args.pairs, CONTRASTS)
    return run_rows(args.out, prepared, chosen(OTHER_CONTRAST, args, digests), digests)


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
        tables["Networks on the pairs that all of them ran on"] = pairs_table(network_rows(rows))
        bars, kept = pair_bars(rows), rows
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
        tables["Alignment before training, and resolution"] = pediatric_table(trained)
        tables["Alignment and resolution: one-sided Wilcoxon tests"] = pediatric_tests(trained)
    if "pipeline" in args.parts and T1W in digests:
        name = "Whole pipeline, 32 scans (24 of them seen in training)"
        tables[name] = pipeline_table(run_pipeline(args.data, args.out, args.cores, digests[T1W]))
    elif "pipeline" in args.parts:
        print(f"skipped the pipeline: there are no weights {T1W}", flush=True)
    draw(pairs, contrast, args.out / "deep.png")
    if not args.quick:
        draw(pairs, contrast)
    return tables, bars, kept


def options() -> argparse.ArgumentParser:
    """Return the command line."""
    line = parser(__doc__)
    line.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(all; --quick: without the pipeline)")
    line.add_argument("--cohort", type=Path, help="folder of the preprocessed cohort (OUT/cohort)")
    line.add_argument("--checkpoints", type=Path, help="folder of public checkpoints; without it no network is imported")
    line.add_argument("--engines", nargs="+", help="of pairs and contrast, only these")
    line.add_argument("--pairs", type=int, help=f"how many, at most 16 ({PAIRS}; quick: {QUICK_PAIRS})")
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
    args.steps = args.steps or (QUICK_STEPS if args.quick else STEPS)
    if args.quick:
        args.parts = [part for part in args.parts if part != "pipeline"]
    prepare(args.data, args.cohort)
    with weights_of(args.checkpoints) as digests:
        tables, bars, rows = tables_of(args, digests)
    add_to_results(report("deep", tables, bars, args, DATA), runs=rows)


if __name__ == "__main__":
    main()
