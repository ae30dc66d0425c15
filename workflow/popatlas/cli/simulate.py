"""`popatlas simulate`: draw a demo cohort with known truth."""

from __future__ import annotations

import argparse

from popatlas.cli.arguments import Subparsers, given_path, positive


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `simulate`."""
    parser = subparsers.add_parser(
        "simulate",
        help="draw a demo cohort (BIDS) with known truth",
        description="Write a BIDS dataset of simulated heads, with labels, masks, landmarks and transforms in "
        "derivatives/truth. Run it again with --first or more --subjects to add subjects; present ones are kept.",
    )
    parser.add_argument("out_dir", metavar="OUT_DIR", type=given_path, help="new or empty folder, or a simulated dataset")
    parser.add_argument("--subjects", type=int, default=8, help="number of subjects (default: 8)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the cohort (default: 1)")
    parser.add_argument("--first", type=int, default=1, help="number of the first subject (default: 1)")
    parser.add_argument("--sessions", type=int, default=1, help="sessions of each subject (default: 1)")
    parser.add_argument("--t2w", action="store_true", help="write a T2w image too")
    parser.add_argument("--voxel-size", type=float, help="isotropic voxels, mm (default: drawn, about 2 mm)")
    parser.add_argument("--jobs", type=positive, default=1, help="processes (default: 1)")


def main(args: argparse.Namespace) -> int:
    """Draw the cohort."""
    from popatlas.images.simulate import simulate_cohort

    participants = simulate_cohort(
        args.out_dir,
        args.subjects,
        args.seed,
        args.first,
        sessions=args.sessions,
        t2w=args.t2w,
        voxel_size=args.voxel_size,
        jobs=args.jobs,
    )
    print(f"{len(participants)} subjects in {args.out_dir}")
    return 0
