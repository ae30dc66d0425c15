"""`popatlas apply`: bring images, labels and points from one space to another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from popatlas.cli.arguments import Subparsers, given_path, not_empty, positive


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `apply`."""
    parser = subparsers.add_parser(
        "apply",
        help="apply transforms to images, labels and points",
        description="Bring INPUT from the space of the moving image to that of the fixed one, or back with --inverse: an "
        "image, labels (--labels; 4D: one structure per volume) or landmarks (.tsv: name, x, y, z in RAS mm). However many "
        "transforms there are, an image is interpolated once.",
    )
    parser.add_argument("input", type=given_path, metavar="INPUT", help="image, labels or .tsv of landmarks")
    parser.add_argument("--out", required=True, type=given_path, metavar="FILE", help="result")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--from",
        dest="prefixes",
        nargs="+",
        metavar="PREFIX",
        type=not_empty,
        help="--out of `popatlas register`; of several, the fixed image of each next one is the moving one of that before",
    )
    way.add_argument(
        "--transforms",
        nargs="+",
        type=not_empty,
        metavar="FILE",
        help="ITK/ANTs files in ANTs' order (warp, then affine); inverse:FILE for the inverse of one",
    )
    parser.add_argument("--inverse", action="store_true", help="from the fixed space to the moving one")
    parser.add_argument("--reference", type=given_path, metavar="IMAGE", help="its grid is that of the result")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--labels", action="store_true", default=None, help="INPUT holds labels")
    kind.add_argument("--image", action="store_false", dest="labels", help="INPUT holds values that can be interpolated")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (1)")


def main(args: argparse.Namespace) -> int:
    """Apply; 0."""
    from popatlas.interfaces.base import limit_threads

    limit_threads(args.threads)
    from popatlas.pairwise.apply import INVERSE, apply_file, way_of_files, way_of_registrations

    way = way_of_registrations(args.prefixes) if args.prefixes else way_of_files(args.transforms)
    if way.is_forced:
        print("popatlas apply: the gate has refused the registration (--force)", file=sys.stderr)
    others = [Path(text.removeprefix(INVERSE)) for text in args.transforms or ()]
    way = way.turned() if args.inverse else way
    apply_file(args.input, args.out, way, args.reference, labels=args.labels, others=others)
    print(f"written: {args.out}")
    return 0
