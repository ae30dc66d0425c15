"""`popatlas withdraw`: remove all that was derived from a subject who has withdrawn the consent."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from popatlas.cli.arguments import Subparsers, UsageError, given_path

if TYPE_CHECKING:
    from popatlas.cohort.withdraw import Withdrawal

MEGABYTE = 1_000_000
SHOWN = 10
REFUSED = 1  # exit code without --yes
FUSED = "label images of other scans (*_dseg.nii.gz) that were fused from its labels"
AGAIN = "the next run makes those that your settings ask for"


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `withdraw`."""
    parser = subparsers.add_parser(
        "withdraw",
        help="remove all that was derived from a subject",
        description="Remove all files in OUT_DIR that were derived from a subject who has withdrawn the consent, and its "
        "name from tables, pages, logs and records. Labels of other scans that were fused from its labels, by whatever "
        "method, are removed too. Tables and pages of the cohort are removed: the next run makes them again. Templates "
        "and networks that were made of it and others are named and stay. The subject is not taken in "
        "again, though its raw data, which are not touched, may still lie in the dataset: only its id and the date are "
        "kept, in cohort/withdrawn.tsv. Without --yes, nothing is changed, what would be is shown, and the exit code is 1.",
    )
    parser.add_argument("out_dir", type=given_path, help="output folder of a run")
    parser.add_argument("subject", help="subject, with or without sub-")
    parser.add_argument("--yes", action="store_true", help="do it: it cannot be undone")
    parser.add_argument("--force-unlock", action="store_true", help="as in `popatlas run`")


def main(args: argparse.Namespace) -> int:
    """Show what is there of a subject and, when that is confirmed, remove it."""
    from popatlas.cohort.lock import acquire
    from popatlas.cohort.seen import forget
    from popatlas.cohort.select import read_withdrawn
    from popatlas.cohort.withdraw import Withdrawal
    from popatlas.errors import InputError

    label = args.subject.removeprefix("sub-")
    if not re.fullmatch("[0-9A-Za-z]+", label):
        raise UsageError(f"'{args.subject}' is no subject: its label has letters and digits only")
    if not (args.out_dir / "cohort").is_dir():
        raise InputError("nothing has been run here", file=args.out_dir, remedy="give the OUT_DIR of a run")
    subject = f"sub-{label}"
    if not args.yes:
        return _show(Withdrawal.of(args.out_dir, subject))
    lock = acquire(args.out_dir, force=args.force_unlock)
    try:
        found = Withdrawal.of(args.out_dir, subject)
        if not found.is_anywhere and subject not in read_withdrawn(args.out_dir):
            raise _nothing(subject)
        found.carry_out()
        forget()
        left = Withdrawal.of(args.out_dir, subject)
    finally:
        lock.release()
    if left.is_anywhere:
        names = ", ".join(str(path) for path in [*left.own, *left.texts][:SHOWN])
        raise InputError(f"{subject} is still named in {names}", remedy="look at these files, and run the same again")
    print(
        f"{subject} is withdrawn: {len(found.own)} files and folders of it are removed, {len(found.texts)} name it no more"
    )
    if found.labels:
        print(f"  {found.labels} {FUSED} are removed; {AGAIN}")
    for what in found.still_in:
        print(f"  it is still in: {what}")
    print("the next run makes the tables and pages of the cohort again, and takes the subject not in again")
    if any("template" in what for what in found.still_in):
        print("to replace the template by one without it: set atlas.label to a new name, and run")
    return 0


def _show(found: Withdrawal) -> int:
    if not found.is_anywhere:
        raise _nothing(found.subject)
    print(f"of {found.subject} there are {len(found.own)} files and folders ({found.size / MEGABYTE:.1f} MB):")
    for path in found.own[:SHOWN]:
        print(f"  {path}")
    if len(found.own) > SHOWN:
        print(f"  ... and {len(found.own) - SHOWN} more")
    print(f"and {len(found.texts)} files name it, beside the tables and pages of the cohort")
    if found.labels:
        print(f"{found.labels} {FUSED} would be removed too; {AGAIN}")
    for what in found.still_in:
        print(f"it is also in: {what}")
    print("nothing has been changed; with --yes all that is removed, which cannot be undone")
    return REFUSED


def _nothing(subject: str) -> Exception:
    from popatlas.errors import InputError

    return InputError(f"there is nothing of {subject} here", remedy="popatlas status names the subjects")
