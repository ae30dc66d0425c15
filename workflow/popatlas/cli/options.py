"""What users write on a command line: spellings of BIDS Apps, folders behind options, options that nobody knows."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from popatlas.cli.arguments import UsageError, positive

LABELS_OF = re.compile("[-, 0-9A-Za-z]+")  # one label or several
# spellings of BIDS Apps and of well-known ones for options that popatlas calls otherwise
CORES = ("-c", "--n_cpus", "--n-cpus", "--ncpus", "--nprocs", "--n_procs", "--n-procs", "--nthreads", "--n-threads")
LABELS = ("--participant_label",)
NO_VALIDATION = ("--skip-bids-validation", "--skip_bids_validation", "--skip-bids-validator", "--skip_bids_validator")
WORK_DIR = ("--work-dir", "--work_dir")
FIRST = "BIDS_DIR and OUT_DIR go before the options"
WAIT = "--latency-wait"  # of Snakemake, which calls it -w as well
# flags of Snakemake, without values, that are common: its parser takes a second to load
FLAGS = frozenset({"-n", "--dry-run", "--dryrun", "-p", "--printshellcmds"})
# what BIDS Apps have and popatlas does otherwise
INSTEAD = {
    "session-label": "choose sessions by --query \"session == 'ses-1'\"",
    "session-id": "choose sessions by --query \"session == 'ses-1'\"",
    "bids-filter-file": "choose images by cohort.filter in the configuration",
    "output-spaces": "the spaces are the scan's own and that of the template: atlas in the configuration",
    "mem-mb": "the profile says how much memory a job gets; --resources mem_mb=N bounds their sum",
    "fs-license-file": "FreeSurfer is not used, and no licence is needed",
}


def add_bids_app_options(parser: argparse.ArgumentParser) -> None:
    """Add spellings of BIDS Apps for options that are there, and options of theirs that change nothing here."""
    hidden: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    parser.add_argument(*CORES, type=positive, dest="cores", **hidden)
    parser.add_argument(*LABELS, nargs="+", action="extend", dest="participant_label", **hidden)
    parser.add_argument(*NO_VALIDATION, action="store_true", dest="skip_validation", help=argparse.SUPPRESS)
    parser.add_argument(*WORK_DIR, dest="work_dir", help=argparse.SUPPRESS)
    parser.add_argument("-w", dest="wait", help=argparse.SUPPRESS)


def settle_arguments(args: argparse.Namespace) -> None:
    """Put right what argparse cannot know: folders that stand behind an option of several values, what ``-w`` means.

    Raises
    ------
    UsageError
        When it is in doubt which words are folders.
    """
    if args.wait is not None and args.wait.isdecimal():
        args.snakemake = [*args.snakemake, WAIT, args.wait]
    elif args.wait is not None or args.work_dir is not None:
        print("popatlas: --work-dir is not needed: what is temporary goes to TMPDIR, all else to OUT_DIR", file=sys.stderr)
    if args.out_dir is not None:
        return
    for values, count in ((args.set, _no_settings(args.set)), (args.participant_label, _no_labels(args.participant_label))):
        if count > 2 or (count == 2 and args.bids_dir is not None):
            raise UsageError(f"which of {' '.join(values[-count:])} are folders? Remedy: put -- before BIDS_DIR and OUT_DIR")
        if count:
            _take(args, values[-count:])
            del values[-count:]
    if args.bids_dir is not None and args.snakemake and not args.snakemake[0].startswith("-"):
        _take(args, [args.snakemake.pop(0)])


def _take(args: argparse.Namespace, places: Sequence[str]) -> None:
    given = [*([] if args.bids_dir is None else [args.bids_dir]), *map(Path, places)]
    args.bids_dir, args.out_dir = (*given, None)[:2]


def _no_settings(values: Sequence[str]) -> int:
    """Return how many words at the end of ``--set`` are not of it."""
    return len(values) - max((place + 1 for place, value in enumerate(values) if "=" in value), default=0)


def _no_labels(labels: Sequence[str]) -> int:
    """Return how many words at the end of ``--participant-label`` are a dataset and an output folder."""
    for count in (2, 1):
        if len(labels) > count and (not LABELS_OF.fullmatch(labels[-count]) or is_dataset(labels[-count])):
            return count
    return 0


def is_dataset(text: str) -> bool:
    """Tell whether a text is the path of what looks like a dataset: a BIDS folder, or a table of paths."""
    path = Path(text)
    if path.suffix in (".tsv", ".csv"):
        return path.is_file()
    return path.is_dir() and ((path / "dataset_description.json").is_file() or any(path.glob("sub-*")))


def check_known(options: Sequence[str], known: Iterable[str]) -> None:
    """Refuse options that neither popatlas nor Snakemake knows.

    Parameters
    ----------
    options : sequence of str
        What popatlas does not know and would hand on.
    known : iterable of str
        Options of popatlas, which may be meant.

    Raises
    ------
    UsageError
        In one line, with the nearest option that there is.
    """
    if FLAGS.issuperset(options):
        return
    from snakemake.cli import get_argument_parser

    parser = get_argument_parser()
    parser.error = _refuse
    found, unknown = parser.parse_known_args(list(options))
    names = [option for option in unknown if option.startswith("-")]
    theirs = [name for action in parser._actions for name in action.option_strings]
    if names:
        raise UsageError(unknown_option(names[0], [*known, *theirs]))
    if found.targets:
        raise UsageError(f"what is {' '.join(found.targets)}? Remedy: {FIRST}")


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"Snakemake's {message}. Remedy: correct the option; {FIRST}")


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return the options of a parser and of those below it."""
    found: list[str] = []
    for action in parser._actions:
        found += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            found += [name for below in action.choices.values() for name in options_of(below)]
    return found


def unknown_option(option: str, known: Iterable[str]) -> str:
    """Return what is said of an option that nobody knows."""
    name = option.split("=", 1)[0]
    plain = name.strip("-").replace("_", "-")
    if plain in INSTEAD:
        return f"there is no option {name}. Remedy: {INSTEAD[plain]}"
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"unrecognized arguments: {name}{f'. Did you mean {close[0]}?' if close else '; see --help'}"
