"""`popatlas`: thin verbs over Snakemake. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from popatlas import __version__
from popatlas.failures import foreseen, unforeseen
from popatlas.surroundings import settled

VERBS = ("simulate", "check", "plan", "run", "fuse", "train", "weights", "status", "step")
TO_SNAKEMAKE = ("plan", "run", "fuse")
LOOKS = ("status", "weights")  # verbs that need no folder for temporary files
LEVELS = ("participant", "group")
CLOSED_PIPE = 141  # exit code of a program that SIGPIPE ends


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="popatlas",
        description="From a BIDS cohort to an unbiased atlas, fused labels, tables and a QC page.",
        epilog="As a BIDS App: popatlas BIDS_DIR OUT_DIR participant|group [options of `popatlas run`]",
    )
    parser.add_argument("--version", action="version", version=f"popatlas {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="|".join(VERBS), required=True)
    for verb in VERBS:
        import_module(f"popatlas.cli.{verb}").add_parser(subparsers)
    return parser


def translate_bids_app(argv: list[str]) -> list[str]:
    """Rewrite ``BIDS_DIR OUT_DIR participant|group ...`` into the `run` verb.

    `participant` stops before the group tables, `group` runs everything (finished work is kept).
    """
    if len(argv) >= 3 and argv[0] not in VERBS and argv[2] in LEVELS:
        until = ["--until", "subjects"] if argv[2] == "participant" else []
        return ["run", argv[0], argv[1], *until, *argv[3:]]
    return argv


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line; a step parses its own options, verbs in `TO_SNAKEMAKE` hand unknown ones on."""
    if arguments[:1] == ["step"]:
        return argparse.Namespace(verb="step", name=next(iter(arguments[1:]), None), options=arguments[2:])
    parser = build_parser()
    args, extra = parser.parse_known_args(arguments)
    args.snakemake = extra
    if args.snakemake and args.verb not in TO_SNAKEMAKE:
        parser.error(f"unrecognized arguments: {' '.join(args.snakemake)}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run a verb; errors are said in a line, those that nobody foresaw with a file of the traceback."""
    arguments = translate_bids_app(sys.argv[1:] if argv is None else argv)
    args = parse(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be in the language of the terminal
    try:
        with settled(places(args), required=args.verb not in LOOKS):
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
        print("popatlas: interrupted; finished work is kept, run the same command to go on", file=sys.stderr)
        return 130
    except Exception as error:
        told = foreseen(error)
        if told is None and args.verb == "step":  # the log of a job is the place for a traceback
            raise
        print(f"popatlas {args.verb}: {told or unforeseen(error, arguments)}", file=sys.stderr)
        return 1


def places(args: argparse.Namespace) -> list[Path]:
    """Return where a verb may put temporary files when no usual folder can be written: OUT_DIR, where jobs run."""
    if args.verb == "step":
        return [Path()]
    return [args.out_dir] if isinstance(getattr(args, "out_dir", None), Path) else []


if __name__ == "__main__":
    sys.exit(main())
