"""`popatlas retry`: try again what failed for some reasons, and nothing else that failed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from popatlas.cli.arguments import Subparsers, UsageError, given_path, positive

CONFIG = "config.yaml"


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `retry`."""
    from popatlas.cli.run import add_until

    parser = subparsers.add_parser(
        "retry",
        help="try again the scans that failed for some reasons",
        description="Try again the scans that failed for the given reasons (column code of `popatlas status`), with the "
        "settings of the last run in OUT_DIR; all others that failed are left out as before. (`popatlas run` tries again "
        "everything that failed.) Exit codes as in `popatlas run`; 0 also when nothing failed for such a reason.",
    )
    parser.add_argument("out_dir", type=given_path, help="output folder of a run")
    parser.add_argument(
        "--reason", action="append", required=True, metavar="CODE",
        help="oom, time, signal, disk, gate, input, setup, bug or unknown; several with commas or | between them",
    )  # fmt: skip
    parser.add_argument(
        "--later", action="store_true", help="start nothing: the next `popatlas run --no-retry` takes them up"
    )
    parser.add_argument("--profile", default="default", help="as in `popatlas run`")
    parser.add_argument("--cores", type=positive, help="as in `popatlas run`")
    add_until(parser)
    parser.add_argument("--verbose", action="store_true", help="as in `popatlas run`")
    parser.add_argument("--force-unlock", action="store_true", help="as in `popatlas run`")


def main(args: argparse.Namespace) -> int:
    """Forget the failures and start a run that leaves out the others."""
    from popatlas.cohort.ledger import forget_some
    from popatlas.cohort.lock import acquire
    from popatlas.reasons import parse_codes

    try:
        codes = parse_codes(args.reason)
    except ValueError as error:
        raise UsageError(f"--reason: {error}") from error
    config = last_config(args.out_dir)
    lock = acquire(args.out_dir, force=args.force_unlock)
    try:
        found = forget_some(args.out_dir, codes)
    finally:
        lock.release()
    if found.empty:
        print(f"no scan failed for: {', '.join(codes)}")
        return 0
    names = sorted({str(scan).rsplit("/", 1)[-1] for scan in found["scan"]})
    print(
        f"to be tried again: {len(names)} scan(s): {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}", flush=True
    )
    if args.later:
        print("`popatlas run ... --no-retry` takes them up and leaves out the others that failed")
        return 0
    return _run(args, config)


def last_config(out_dir: Path) -> Path:
    """Return the configuration of the last run in a folder.

    Raises
    ------
    InputError
        When nothing has been run there.
    """
    from popatlas.errors import InputError

    path = out_dir / CONFIG
    if not path.is_file():
        raise InputError("nothing has been run here", file=path, remedy="start with `popatlas run BIDS_DIR OUT_DIR`")
    return path


def _run(args: argparse.Namespace, config: Path) -> int:
    """Run with the settings of the last run, which may have been in a folder that was moved since."""
    import yaml

    from popatlas.cli.main import main as popatlas
    from popatlas.config.beside import located

    content = located(yaml.safe_load(config.read_text(encoding="utf-8")), [config])
    options = [
        "--profile",
        args.profile,
        "--until",
        args.until,
        *([] if args.cores is None else ["--cores", str(args.cores)]),
    ]
    line = [
        "run",
        str(dataset_of(content, args.out_dir)),
        str(args.out_dir),
        "--config",
        str(config),
        "--no-retry",
        *options,
    ]
    return popatlas([*line, *(["--verbose"] if args.verbose else [])])


def dataset_of(content: Mapping[str, Any], out_dir: Path) -> Path:
    """Return the dataset of the last run or, when that was moved together with the results, where it lies now.

    Parameters
    ----------
    content : mapping
        Settings of the last run, with the paths of then.
    out_dir : Path
        Output folder, where it is now.
    """
    given = Path(content["bids_dir"])
    beside = Path(os.path.normpath(out_dir.absolute() / os.path.relpath(given, content["out_dir"])))
    return beside if beside.exists() and not given.exists() else given
