"""`popatlas register`: two files, without a study."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from popatlas.cli.arguments import Subparsers, count, given_path, not_empty, positive

if TYPE_CHECKING:
    from popatlas.pairwise.register import Outcome
    from popatlas.settings import Content

REFUSED = 3  # exit code when the gate refuses the result
# those of popatlas.pairwise.plan and popatlas.registration, which are slow to import; a test compares them
REFINEMENTS = ("none", "rigid", "affine", "deformable")
STARTS = ("mass", "moments", "global", "search")
LINEAR = ("affine", "ants")
ENGINES = ("instance", "network", "ants", "greedy", "ffd", "lddmm", "unigradicon")


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `register`."""
    parser = subparsers.add_parser(
        "register",
        help="register two images, no study needed",
        description="Register MOVING to FIXED: two NIfTI files of 2 or 3 axes, brains or heads, CT or MR, of any contrasts. "
        "Writes PREFIX_affine.mat, PREFIX_warp.nii.gz and PREFIX_inverse_warp.nii.gz (ITK, as ANTs reads them), the moving "
        "image and its labels on the grid of the fixed one, the log Jacobian, a record and a page. Exit code 0: it passed "
        "the gate. 3: the gate refuses it; record and page tell why, and there are no transforms.",
        epilog="Then: popatlas apply FILE --from PREFIX --out RESULT",
    )
    parser.add_argument("fixed", type=given_path, metavar="FIXED", help="image whose space is wanted")
    parser.add_argument("moving", type=given_path, metavar="MOVING", help="image that is brought there")
    parser.add_argument(
        "--out", required=True, type=not_empty, metavar="PREFIX", help="beginning of the names of all results, or a folder/"
    )
    sides = parser.add_argument_group("more of the images")
    for side in ("fixed", "moving"):
        sides.add_argument(
            f"--{side}-mask", type=given_path, metavar="FILE", help=f"the {side} image is cut out to it before"
        )
    sides.add_argument(
        "--brain", action="store_true", help="they are brains without skull (or the masks are those of brains)"
    )
    sides.add_argument(
        "--extract-brain", action="store_true", help="heads in 3D: find and cut out the brains first (deepbet)"
    )
    sides.add_argument("--labels", type=given_path, metavar="FILE", help="labels of the moving image to bring along")
    sides.add_argument("--fixed-labels", type=given_path, metavar="FILE", help="labels of the fixed image: Dice, HD95")
    for side in ("fixed", "moving"):
        sides.add_argument(
            f"--{side}-points", type=given_path, metavar="TSV", help="landmarks (name, x, y, z in RAS mm): their distances"
        )
    how = parser.add_argument_group("how")
    how.add_argument("--engine", choices=ENGINES, metavar="NAME", help=f"{', '.join(ENGINES)} (default: instance)")
    how.add_argument("--preset", metavar="NAME", help="schedule of the engine: quick, fast, default, accurate")
    how.add_argument("--weights", metavar="NAME", help="network: its weights, see `popatlas weights list`")
    how.add_argument(
        "--similarity", metavar="NAME", help="instead of that of the preset, for example mindssc for other contrasts"
    )
    how.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the preset: fluid=2 options.radius=3")
    how.add_argument("--start", choices=STARTS, default="mass", help="where the linear stage starts (default: mass)")
    how.add_argument("--linear", choices=LINEAR, default="affine", help="engine of the linear stage (default: affine)")
    how.add_argument(
        "--refine", choices=REFINEMENTS, default="deformable", help="what follows the start (default: deformable)"
    )
    how.add_argument("--no-fallback", action="store_true", help="do not try other starts and engines when the gate refuses")
    how.add_argument(
        "--resolution", type=_millimetres, metavar="MM", help="voxels to work with (default: as many as FIXED has)"
    )
    how.add_argument("--force", action="store_true", help="write transforms also of what the gate refuses")
    how.add_argument("--gpu", type=count, nargs="?", const=1, default=0, help="use a GPU; refused where there is none")
    how.add_argument("--threads", type=positive, default=1, help="CPU threads (1)")


def _millimetres(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no voxel size in millimetres")
    return value


def main(args: argparse.Namespace) -> int:
    """Register; 0 when the gate lets it pass, 3 when not."""
    from popatlas.images.antspy import spare_ants
    from popatlas.interfaces.base import limit_threads

    if args.gpu:
        from popatlas.cli.gpu import require_cuda

        require_cuda()
    limit_threads(args.threads)
    spare_ants()
    from popatlas.pairwise.extract import with_brains
    from popatlas.pairwise.plan import Wanted
    from popatlas.pairwise.prepare import Given
    from popatlas.pairwise.register import register_files
    from popatlas.training.recipe import parse_changes

    fixed = Given(args.fixed, args.fixed_mask, args.fixed_labels, args.fixed_points)
    moving = Given(args.moving, args.moving_mask, args.labels, args.moving_points)
    wanted = Wanted(
        engine=args.engine or "",
        preset=args.preset or "",
        weights=args.weights or "",
        similarity=args.similarity or "",
        options=parse_changes(args.set),
        linear=args.linear,
        start=args.start,
        refine=args.refine,
        fallback=not args.no_fallback,
        brains=args.brain or args.extract_brain,
        gpu=args.gpu,
        threads=args.threads,
    )
    with with_brains(fixed, moving, extract=args.extract_brain, gpu=bool(args.gpu)) as (one, other):
        outcome = register_files(one, other, args.out, wanted, args.resolution, force=args.force)
    print("\n".join(told(outcome)))
    return 0 if outcome.passed else REFUSED


def told(outcome: Outcome) -> list[str]:
    """Return what is said at the end, line by line."""
    record, scores = outcome.record, outcome.scores
    metrics = record["metrics"]
    lines = [f"gate: {record['verdict']} ({record['engine']} from {record['start']})"]
    lines += [f"  {reason}" for reason in (*record["reasons"], *record["notes"])]
    lines.append("  " + ", ".join(_numbers(metrics)))
    lines += [f"  {title}: {before:.{digits}f} -> {after:.{digits}f}" for title, before, after, digits in scores.summary()]
    written = [str(outcome.outputs.path(name)) for name in (*record["files"], "registration.json")]
    lines += ["written: " + ", ".join(written), f"page: {outcome.outputs.path('page.html')}"]
    if not outcome.passed:
        remedy = "look at the page; try --start global, another --engine or --similarity"
        lines.append(f"the gate refuses the result: {remedy}" + ("" if record["files"] else ", or --force"))
    return lines


def _numbers(metrics: Content) -> list[str]:
    words = {
        "ncc_before": "correlation before {:.3f}",
        "ncc_affine": "after the affine {:.3f}",
        "ncc": "at the end {:.3f}",
        "edges": "edges agree by {:.3f}",
        "log_jacobian_sd": "log-Jacobian SD {:.2f}",
        "nonpositive_jacobian": "Jacobian <= 0 {:.5f}",
    }
    return [text.format(metrics[name]) for name, text in words.items() if metrics.get(name) is not None]
