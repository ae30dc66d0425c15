"""How the Snakefile opens a study: to run it, to look ahead, or, in the jobs, to read it."""

from __future__ import annotations

import atexit
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from popatlas.cohort.inventory import Inventory
from popatlas.cohort.lock import take_over
from popatlas.cohort.study import PARTS, Study, open_study
from popatlas.cohort.view import hide, view_of
from popatlas.config import load_config, make_absolute

# options of Snakemake with which it runs no job
LOOKS = re.compile(
    "--(?:dry-?run|lint|dag|rulegraph|filegraph|d3dag|summary|detailed-summary|list|list-.*|report|archive|unlock|print-.*"
    "|cleanup-.*|conda-.*|containerize|generate-unit-tests)(?:=.*)?|-[FfknpqS]*[nSlD][FfknpqS]*"
)


def only_looks(arguments: Sequence[str]) -> bool:
    """Tell whether a command line of Snakemake asks for something else than to run jobs."""
    return any(LOOKS.fullmatch(argument) for argument in arguments)


def begin(source: Mapping[str, Any], arguments: Sequence[str], *, main: bool) -> Study:
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

    Returns
    -------
    Study
        With what is made and what is left to make.
    """
    if not main:
        return open_study(source, main=False)
    config = load_config(source)
    make_absolute(config)
    if not only_looks(arguments):
        take_over(Path(config["out_dir"]))
        study = open_study(config, main=True)
        inventory = Inventory(study)
        target = next((part for part in (*PARTS, "all") if part in arguments), "all")
        for line in inventory.explain(target):
            print(f"popatlas: {line}", file=sys.stderr)
        inventory.clear(target)
        study.digests.write()
        return with_inventory(study, inventory)
    view = view_of(Path(config["out_dir"]))
    folder = view.__enter__()
    atexit.register(view.__exit__, None, None, None)
    study = open_study(config | {"out_dir": str(folder)}, main=True)
    inventory = Inventory(study)
    for name in inventory.needed("all"):
        for path in inventory.files(inventory.jobs.jobs[name]):
            hide(folder, path)
    return with_inventory(study, inventory)


def with_inventory(study: Study, inventory: Inventory) -> Study:
    """Return a study that knows what is made and what each part of the pipeline still has to make."""
    made, jobs = inventory.made, inventory.jobs
    to_make = {
        part: [path for name in jobs.wanted(part) if name not in made for path in inventory.files(jobs.jobs[name])]
        for part in (*PARTS, "all")
    }
    return replace(study, made=made, to_make=to_make)
