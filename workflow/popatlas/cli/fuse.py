"""`popatlas fuse bench`: which fusion method is best on the labelled atlases at hand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.cli.arguments import Subparsers
from popatlas.fusion.methods import METHODS

if TYPE_CHECKING:
    from popatlas.config.sections import Config

SLOW = "jlfants"  # the same method as jlf, by ANTs: for comparison
RESULTS = (("scores", "group/fusion-bench.tsv"), ("page", "report/fusion.html"))


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `fuse` and what it does."""
    from popatlas.cli.run import add_run_arguments
    from popatlas.cli.snake import add_study_arguments

    parser = subparsers.add_parser(
        "fuse",
        help="compare label fusion methods on the labelled atlases",
        description="Labels are fused by `popatlas run` (fuse.methods). `popatlas fuse bench BIDS_DIR OUT_DIR` tells which "
        "method is best with the labelled atlases of a study, see `popatlas fuse bench --help`.",
    )
    actions = parser.add_subparsers(dest="action", metavar="bench", required=True)
    bench = actions.add_parser(
        "bench",
        help="label each labelled atlas by the others, score all methods, recommend one",
        description="Every labelled atlas is labelled by the atlases of other subjects with every method, and compared with "
        "its own labels: Dice, surface distances, volumes, time. Only what the atlases need is computed; finished work of "
        "`popatlas run` in OUT_DIR is used and kept. Options that popatlas does not know go to Snakemake. Exit codes as in "
        "`popatlas run`.",
    )
    add_study_arguments(bench)
    add_run_arguments(bench)
    bench.add_argument(
        "--methods", nargs="+", choices=METHODS, metavar="METHOD", default=[name for name in METHODS if name != SLOW],
        help=f"methods to compare, of {', '.join(METHODS)} (default: all but {SLOW})",
    )  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Run the bench and print its recommendation; exit codes as in `popatlas run`."""
    from popatlas.cli.run import run_passes
    from popatlas.cli.snake import study_config
    from popatlas.images.io import read_json
    from popatlas.study.benchstudy import CONFIG, bench_config
    from popatlas.study.opening import only_looks

    settled = study_config(args)
    config = bench_config(settled, args.methods)
    code = run_passes(args, config, ("preprocess", "fusion_bench"), RESULTS, CONFIG, settled)
    if code in (0, 3) and not only_looks(args.snakemake):
        out_dir = Path(config.out_dir)
        check_atlases(config, out_dir)
        print(f"\n{read_json(out_dir / 'group' / 'fusion-bench.json')['sentence']}")
    return code


def check_atlases(config: Config, out_dir: Path) -> None:
    """Raise InputError when no labelled atlas could be labelled by another one."""
    from popatlas.errors import InputError
    from popatlas.study.study import Study

    study = Study.read(config, out_dir)
    if not study.bench.scans:
        raise InputError(
            f"the bench needs labelled atlases of at least 2 subjects, {len(study.fuse.atlases)} atlas(es) can be used",
            file=out_dir / "cohort" / "label-atlases.tsv",
            remedy=f"set fuse.atlases and fuse.labels, and look at what failed: popatlas status {out_dir}",
        )
