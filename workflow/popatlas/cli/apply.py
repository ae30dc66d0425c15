"""`popatlas apply`: bring images, labels and points from one space to another."""

from __future__ import annotations

import argparse

from popatlas.cli.arguments import Subparsers, given_path, positive


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
        help="--out of `popatlas register`; of several, the fixed image of each next one is the moving one of that before",
    )
    way.add_argument(
        "--transforms",
        nargs="+",
        metavar="FILE",
        help="ITK/ANTs files in ANTs' order (warp, then affine); inverse:FILE for the inverse of one",
    )
    parser.add_argument("--inverse", action="store_true", help="from the fixed space to the moving one")
    parser.add_argument("--reference", type=given_path, metavar="IMAGE", help="its grid is that of the result")
    parser.add_argument("--labels", action="store_true", help="INPUT holds labels")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (1)")


def main(args: argparse.Namespace) -> int:
    """Apply; 0."""
    from popatlas.interfaces.base import limit_threads

    limit_threads(args.threads)
    from popatlas.pairwise.apply import apply_file, way_of_files, way_of_registrations

    way = way_of_registrations(args.prefixes) if args.prefixes else way_of_files(args.transforms)
    apply_file(args.input, args.out, way.turned() if args.inverse else way, args.reference, labels=args.labels)
    print(f"written: {args.out}")
    return 0
