"""`popatlas retain`: bring what an output folder keeps of each scan to another level of `retention`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.cli.arguments import Subparsers, given_path, positive

if TYPE_CHECKING:
    from popatlas.config.sections import Config
    from popatlas.study.inventory import Inventory

LEVELS = ("minimal", "standard", "full")
REFUSED, KEPT = 1, 3  # exit codes: without --yes, and when something could not be done
SHOWN = 10


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `retain`."""
    parser = subparsers.add_parser(
        "retain",
        help="keep less, or more, of each scan: remove fields that follow from others, or make them again",
        description="Bring the results in OUT_DIR to a level of the key `retention`. Going down, the composed fields "
        "of each registration are removed, each after it has been made a second time from affine and warp and compared "
        "(less than 0.01 voxels apart); so are the images and fields of the template's members, once the template is made. "
        "Going up, composed fields are made again, without a registration. Nothing else changes, and no job runs again. "
        "Without --yes, what would be removed is shown, nothing is changed, and the exit code is 1. Exit code 3: of some "
        "scans the fields stay, for they could not be made again; they are named.",
    )
    parser.add_argument("out_dir", type=given_path, help="output folder of a run")
    parser.add_argument("level", choices=LEVELS, help="what is kept")
    parser.add_argument("--yes", action="store_true", help="do it")
    parser.add_argument("--cores", type=positive, default=1, help="processes, of about 1 GB each at 1 mm (1)")
    parser.add_argument("--force-unlock", action="store_true", help="as in `popatlas run`")


def main(args: argparse.Namespace) -> int:
    """Show what would be removed or made and, when that is confirmed, do it."""
    from popatlas.cohort.lock import acquire

    config = _config(args.out_dir, args.level)
    if not args.yes:
        return _show(_stock(config), args.level)
    lock = acquire(args.out_dir, force=args.force_unlock)
    try:
        return _carry_out(_stock(config), args)
    finally:
        lock.release()


def _config(out_dir: Path, level: str) -> Config:
    """Return the settings of the last run in a folder, at another level."""
    from popatlas.config.load import load_config
    from popatlas.errors import InputError

    file = out_dir / "config.yaml"
    if not (out_dir / "cohort" / "index.parquet").is_file() or not file.is_file():
        raise InputError("nothing has been run here", file=out_dir, remedy="give the OUT_DIR of a run")
    return load_config(file, out_dir=str(out_dir.resolve()), retention=level)


def _stock(config: Config) -> Inventory:
    from popatlas.study.inventory import Inventory
    from popatlas.study.study import Study

    return Inventory(Study.read(config, Path(config.out_dir)))


def _show(inventory: Inventory, level: str) -> int:
    from popatlas.study.retention import bytes_of, in_words, missing, passed, size_of, surplus

    out_dir, scans = inventory.study.out_dir, surplus(inventory)
    members, more = passed(inventory), missing(inventory)
    if not (scans or members or more):
        print(f"what is kept is that of '{level}': there is nothing to do")
        return 0
    if scans:
        print(f"composed fields of {len(scans)} scan(s) follow from others and would be removed: {in_words(size_of(scans))}")
    if members:
        print(f"{len(members)} images and fields of the template's members would be removed: "
              f"{in_words(bytes_of(out_dir, members))}")  # fmt: skip
    if more:
        print(f"composed fields of {len(more)} scan(s) would be made, about {in_words(size_of(more))}; no registration")
    print("nothing has been changed; with --yes it is")
    return REFUSED


def _carry_out(inventory: Inventory, args: argparse.Namespace) -> int:
    from popatlas.study.retention import bytes_of, in_words, make_again, missing, passed, surplus, take_away, write_sizes

    out_dir, members = inventory.study.out_dir, passed(inventory)
    removed, made = take_away(surplus(inventory), args.cores), make_again(missing(inventory), args.cores)
    size = removed.size + bytes_of(out_dir, members)
    for path in members:
        (out_dir / path).unlink()
    if removed.scans:
        print(f"composed fields of {removed.scans} scan(s) are removed")
        print(f"made again they differ by {removed.worst:.2g} voxels at most")
    if members:
        print(f"{len(members)} images and fields of the template's members are removed")
    if size:
        print(f"{in_words(size)} are free")
    if made.scans:
        print(f"composed fields of {made.scans} scan(s) are made, {in_words(made.size)}")
    write_sizes(_stock(inventory.study.config))
    faults = removed.faults | made.faults
    for scan in sorted(faults)[:SHOWN]:
        print(f"{scan}: left as it is, {faults[scan]}")
    if len(faults) > SHOWN:
        print(f"... and {len(faults) - SHOWN} more")
    print(f"set `retention: {args.level}` in your configuration: the next run goes by that")
    return KEPT if faults else 0
