"""`popatlas`: thin verbs over Snakemake. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

from popatlas import __version__
from popatlas.cli.arguments import UsageError
from popatlas.cli.completion import SHELLS, PrintCompletion
from popatlas.cli.options import options_of, settle_arguments, unknown_option
from popatlas.failures import foreseen, unforeseen
from popatlas.scratch import scratch
from popatlas.surroundings import settled

VERBS = (
    "simulate",
    "check",
    "plan",
    "run",
    "register",
    "apply",
    "fuse",
    "train",
    "weights",
    "status",
    "efficiency",
    "doctor",
    "logs",
    "retry",
    "withdraw",
    "retain",
    "crate",
    "step",
)
TO_SNAKEMAKE = ("plan", "run", "fuse")
LOOKS = ("status", "efficiency", "doctor", "logs", "weights")  # verbs that need no folder for temporary files
GOES_ON = ("run", "fuse", "train", "retry")  # verbs that continue what was interrupted
LEVELS = ("participant", "group")
MISUSED = 2  # exit code of a command line that is not understood
CLOSED_PIPE = 141  # exit code of a program that SIGPIPE ends


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="popatlas",
        description="From a BIDS cohort to an unbiased atlas, fused labels, tables and a QC page.",
        epilog="As a BIDS App: popatlas BIDS_DIR OUT_DIR participant|group [options of `popatlas run`]",
    )
    parser.add_argument("--version", action="version", version=f"popatlas {__version__}")
    parser.add_argument(
        "--completion", action=PrintCompletion, choices=SHELLS, metavar="SHELL",
        help=f"print what makes a shell ({', '.join(SHELLS)}) complete commands",
    )  # fmt: skip
    subparsers = parser.add_subparsers(dest="verb", metavar="|".join(VERBS), required=True)
    for verb in VERBS:
        import_module(f"popatlas.cli.{verb}").add_parser(subparsers)
    return parser


def verb_parser(verb: str) -> argparse.ArgumentParser:
    """Return the parser of one verb."""
    subparsers = argparse.ArgumentParser(prog="popatlas").add_subparsers()
    import_module(f"popatlas.cli.{verb}").add_parser(subparsers)
    return subparsers.choices[verb]


def translate_bids_app(argv: list[str]) -> list[str]:
    """Rewrite ``BIDS_DIR OUT_DIR participant|group ...``, with the level in any place, into the `run` verb.

    `participant` stops before the group tables, `group` runs everything (finished work is kept).
    """
    place = next((number for number, word in enumerate(argv) if word in LEVELS), 0)
    if not place or argv[0] in VERBS:
        return argv
    until = ["--until", "subjects"] if argv[place] == "participant" else []
    return ["run", *argv[:place], *until, *argv[place + 1 :]]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line; a step parses its own options, verbs in `TO_SNAKEMAKE` hand unknown ones on."""
    if arguments[:1] == ["step"]:
        return argparse.Namespace(verb="step", name=next(iter(arguments[1:]), None), options=arguments[2:])
    args, extra = build_parser().parse_known_args(arguments)
    args.snakemake, args.line = extra, arguments
    if args.verb in TO_SNAKEMAKE:
        settle_arguments(args)
    elif extra:
        raise UsageError(unknown_option(extra[0], options_of(verb_parser(args.verb))))
    return args


def main(argv: list[str] | None = None) -> int:
    """Run a verb; errors are said in a line, those that nobody foresaw with a file of the traceback."""
    arguments = translate_bids_app(sys.argv[1:] if argv is None else argv)
    try:
        args = parse(arguments)
    except UsageError as error:
        print(f"popatlas {arguments[0]}: {error}", file=sys.stderr)
        return MISUSED
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be in the language of the terminal
    try:
        is_step = args.verb == "step"
        with settled(places(args), required=args.verb not in LOOKS), scratch(Path()) if is_step else nullcontext():
            code = int(import_module(f"popatlas.cli.{args.verb}").main(args))
            if sys.stdout is not None:  # closed by whoever started this
                sys.stdout.flush()
            return code
    except BrokenPipeError:  # whoever read this, such as `head`, has seen enough
        if args.verb == "step":  # in a job it is an error like others
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
        return CLOSED_PIPE
    except KeyboardInterrupt:
        more = "; finished work is kept, run the same command to go on" if args.verb in GOES_ON else ""
        print(f"popatlas: interrupted{more}", file=sys.stderr)
        return 130
    except Exception as error:
        told = foreseen(error)
        if told is None and args.verb == "step":  # the log of a job is the place for a traceback
            raise
        print(f"popatlas {args.verb}: {told or unforeseen(error, arguments)}", file=sys.stderr)
        return MISUSED if isinstance(error, UsageError) else 1


def places(args: argparse.Namespace) -> list[Path]:
    """Return where a verb may put temporary files when no usual folder can be written: OUT_DIR, where jobs run."""
    if args.verb == "step":
        return [Path()]
    return [args.out_dir] if isinstance(getattr(args, "out_dir", None), Path) else []


if __name__ == "__main__":
    sys.exit(main())
