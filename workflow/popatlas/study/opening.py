"""How the Snakefile opens a study: to run it, to look ahead, or, in the jobs, to read it."""

from __future__ import annotations

import atexit
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from popatlas.cohort.garbage import hide_garbage, set_aside_garbage
from popatlas.cohort.lock import take_over
from popatlas.cohort.places import check_places
from popatlas.cohort.plan import describe_changes, read_index
from popatlas.cohort.space import check_space
from popatlas.cohort.view import hide, silent_view_of, speaking_of
from popatlas.config.load import load_config, make_absolute
from popatlas.config.sections import Config
from popatlas.errors import ConfigError
from popatlas.study.inventory import Inventory
from popatlas.study.orphans import take_away_orphans
from popatlas.study.prepare import simulate_if_missing
from popatlas.study.progress import listen, tell_progress
from popatlas.study.retention import make_again, missing
from popatlas.study.rules import PARTS
from popatlas.study.shards import Request, read_shards, split, targets, write_shards
from popatlas.study.study import Study, open_study
from popatlas.study.together import NOT_OF_ALL

MEGA = 1e6
# options of Snakemake with which it runs no job
LOOKS = re.compile(
    "--(?:dry-?run|lint|dag|rulegraph|filegraph|d3dag|summary|detailed-summary|list|list-.*|report|archive|unlock|print-.*"
    "|cleanup-.*|conda-.*|containerize|generate-unit-tests)(?:=.*)?|-[FfknpqS]*[nSlD][FfknpqS]*"
)


def only_looks(arguments: Sequence[str]) -> bool:
    """Tell whether a command line of Snakemake asks for something else than to run jobs."""
    return any(LOOKS.fullmatch(argument) for argument in arguments)


def forced(arguments: Sequence[str], inventory: Inventory) -> set[str]:
    """Return the names of the jobs that a command line of Snakemake asks for in spite of their receipts.

    They are all jobs with ``--forceall``, and those of the rules or files that follow ``--forcerun``.

    Raises
    ------
    ConfigError
        For ``--touch``: a file is not made by touching it.
    """
    if {"--touch", "-t"} & set(arguments):
        raise ConfigError("--touch: what is done is told by receipts. Remedy: leave it out")
    if {"--forceall", "-F"} & set(arguments):
        return set(inventory.made)
    named: set[str] = set()
    for place in (number for number, argument in enumerate(arguments) if argument in ("--forcerun", "-R")):
        named |= set(takewhile(lambda argument: not argument.startswith("-"), arguments[place + 1 :]))
    jobs = inventory.jobs.jobs
    return {
        name
        for name in inventory.made
        if {jobs[name].rule, inventory.rule_of(jobs[name])[0]} & named or named & set(inventory.files(jobs[name]))
    }


def begin(
    source: Mapping[str, Any],
    arguments: Sequence[str],
    *,
    main: bool,
    jobs: Callable[[], Iterable[Any]] = tuple,
) -> Study:
    """Open the study that a configuration describes.

    Parameters
    ----------
    source : mapping
        Configuration, complete or not.
    arguments : sequence of str
        Command line of Snakemake, which tells whether it runs anything and which part of the pipeline is asked for.
    main : bool
        True in the process that the user started, or that `popatlas run` did. It indexes the dataset, freezes what is
        drawn, takes the inventory and, to run, takes away the old files of what is made anew. A look ahead does all that in
        a view of OUT_DIR. False in the jobs, which only read.
    jobs : callable
        Returns the jobs of Snakemake's graph, once there is one.

    Returns
    -------
    Study
        With what is made and what is left to make.
    """
    if not main:
        return open_study(source, main=False)
    target = next((part for part in (*PARTS, "all") if part in arguments), "all")
    config = make_absolute(load_config(source))
    looks, asked = only_looks(arguments), Request.given()
    if asked is not None and asked.number and not looks:
        return begin_shard(config, target, asked.number, jobs)
    if not looks:
        simulate_if_missing(config)
    check_places(config, make=not looks)
    if not looks:
        out_dir = Path(config.out_dir)
        take_over(out_dir)
        set_aside_garbage(out_dir)
        before = read_index(out_dir)
        study = open_study(config.content, main=True)
        after = read_index(out_dir)
        for line in describe_changes(before, after):
            print(f"popatlas: {line}", file=sys.stderr)
        if after is not None:
            check_space(config, after, out_dir)
        inventory = Inventory(study)
        complete(inventory, arguments)
        inventory.force(forced(arguments, inventory))
        inventory.require_members(target)
        for line in inventory.explain(target):
            print(f"popatlas: {line}", file=sys.stderr)
        clear(inventory, target)
        study.digests.write()
        tell_progress(inventory, jobs, target)
        shards = split(inventory, target, asked) if asked is not None else []
        if len(shards) < 2:
            return with_inventory(study, inventory)
        write_shards(out_dir, shards)
        return with_inventory(study, inventory, {target: targets(inventory, target, shards[0])})
    view = silent_view_of(Path(config.out_dir))
    folder = view.__enter__()
    atexit.register(view.__exit__, None, None, None)
    with speaking_of(folder, Path(config.out_dir)):
        for line in hide_garbage(folder):
            print(f"popatlas: {line}", file=sys.stderr)
        study = open_study(config.content | {"out_dir": str(folder)}, main=True)
        inventory = Inventory(study)
        inventory.force(forced(arguments, inventory))
        inventory.require_members(target)
    for name in inventory.needed(target):
        for path in inventory.files(inventory.jobs.jobs[name]):
            hide(folder, path)
    return with_inventory(study, inventory)


def begin_shard(config: Config, target: str, number: int, jobs: Callable[[], Iterable[Any]]) -> Study:
    """Open the study for a shard of a pass that has begun: the tables are up to date, and what is old is taken away."""
    out_dir = Path(config.out_dir)
    take_over(out_dir)
    names = read_shards(out_dir)[number]
    study = Study.read(config, out_dir)
    inventory = Inventory(study, names)
    listen(inventory, jobs)
    return with_inventory(study, inventory, {target: targets(inventory, target, names)}, names)


def complete(inventory: Inventory, arguments: Sequence[str]) -> None:
    """Make the fields that an earlier level of `retention` left out; where that fails, the scan is registered again."""
    left_out = missing(inventory)
    if not left_out:
        return
    print(f"popatlas: {len(left_out)} scan(s) get fields that were left out: they follow from others", file=sys.stderr)
    summary = make_again(left_out, cores_of(arguments))
    print(f"popatlas: fields of {summary.scans} scan(s) are made, {summary.size / MEGA:.0f} MB", file=sys.stderr)
    for scan, fault in summary.faults.items():
        print(f"popatlas: {scan} is registered again, its fields cannot be made: {fault}", file=sys.stderr)
    inventory.spoil(name for name in inventory.thin if inventory.jobs.jobs[name].scan in summary.faults)


def cores_of(arguments: Sequence[str]) -> int:
    """Return the cores that a command line of Snakemake names; one where it names none."""
    for option, value in pairwise([*arguments, ""]):
        text = value if option in ("--cores", "-c") else option.partition("=")[2] if option.startswith("--cores=") else ""
        if text.isdecimal():
            return max(int(text), 1)
    return 1


def clear(inventory: Inventory, target: str) -> None:
    """Take away what a part of the pipeline makes anew and, before the group results, what nothing asks for any more."""
    inventory.clear(target)
    if target == "all":
        take_away_orphans(inventory)


def with_inventory(
    study: Study,
    inventory: Inventory,
    shards: Mapping[str, Sequence[str]] | None = None,
    names: Iterable[str] | None = None,
) -> Study:
    """Return a study that knows what is made and what each part of the pipeline still has to make.

    Parameters
    ----------
    study : Study
        The study.
    inventory : Inventory
        Its jobs.
    shards : mapping, optional
        Part of the pipeline to the names of the jobs that it has to make, where they are not all that are left.
    names : iterable of str, optional
        Jobs that are looked at; all when left out.
    """
    made, jobs, given = inventory.made, inventory.jobs, shards or {}
    looked = jobs.jobs if names is None else [name for name in names if name in jobs.jobs]
    known = (name for name in looked if jobs.jobs[name].rule not in NOT_OF_ALL)
    left = {name: inventory.files(jobs.jobs[name]) for name in known if name not in made}
    to_make = {
        part: [path for name in (given[part] if part in given else jobs.wanted(part)) for path in left.get(name, ())]
        for part in (*PARTS, "all")
    }
    unmade = frozenset(path for paths in left.values() for path in paths)
    wanted = {name for part in (*PARTS, "all") for name in (given[part] if part in given else jobs.wanted(part))}
    needed = frozenset(jobs.needed(wanted, made))
    return replace(study, jobs=replace(study.jobs, made=made, to_make=to_make, unmade=unmade, left=needed))
