"""`popatlas check`: look before the run. Every image is opened, nothing is written to the output folder."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.cli.arguments import Subparsers, given_path

if TYPE_CHECKING:
    import pandas as pd

    from popatlas.cohort.along import Covariate
    from popatlas.config.sections import Config

MOST_COLUMNS, MOST_CELLS = 30, 10  # that are described
FEWEST_MEMBERS = 2  # of a template
MOST_CHOICES = 20  # reasons of choices that are shown
# measured on the demo cohort (one core): preprocessing, template, registration, fusion and measures per scan and megavoxel
MINUTES_PER_MEGAVOXEL = 2.0


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `check`."""
    from popatlas.cli.snake import add_settings

    parser = subparsers.add_parser(
        "check",
        help="check a dataset, the configuration and this machine before a run",
        description="Validate the configuration, open every image, and look at disk, cores, weights and scheduler. "
        "Exit code 1 when no scan can be used.",
    )
    parser.add_argument(
        "bids_dir", nargs="?", type=given_path, help="BIDS dataset, or a TSV of paths (default: the config's)"
    )
    parser.add_argument("--config", type=given_path, metavar="FILE", help="your settings")
    add_settings(parser)


def main(args: argparse.Namespace) -> int:
    """Print a report; 0 when at least one scan can be used."""
    from popatlas.cli.snake import with_settings
    from popatlas.cohort.along import check_covariate
    from popatlas.cohort.index import index_cohort
    from popatlas.cohort.labelfiles import inspect_label_files
    from popatlas.cohort.labelsummary import labels_summary
    from popatlas.cohort.participants import read_people
    from popatlas.cohort.places import check_dataset, check_files
    from popatlas.config.load import load_config

    config = with_settings(
        load_config(args.config, bids_dir=None if args.bids_dir is None else str(args.bids_dir)), args.set
    )
    check_dataset(Path(config.bids_dir))
    check_files(config)
    print(f"configuration  ok ({args.config or 'defaults'})")
    with tempfile.TemporaryDirectory() as folder:
        index = index_cohort(config, Path(folder))
        people = read_people(Path(folder))
        usable = index[index["state"] == "ok"]
        found = inspect_label_files(config, index, list(usable["scan"]), Path(folder))
        along = check_covariate(config, people, list(usable.loc[usable["role"] == "cohort", "scan"]))
        labels = labels_summary(config, index, Path(folder), named=len(found))
    atlas = (*describe_template(config), *describe_members(config, usable), *describe_along(along))
    given = (*labels, *atlas, *describe_machine(config, usable))
    for line in (*describe_participants(people), *describe_cohort(index), *given):
        print(line)
    return 0 if len(usable) else 1


def describe_participants(people: pd.DataFrame) -> list[str]:
    """Return the lines about what is known of the scans: a column each, and its cells that are no numbers."""
    from popatlas.cohort.select import NAMES
    from popatlas.errors import first_few

    columns = [str(name) for name in people if name not in NAMES]
    lines = [f"participants   columns {first_few(['participant_id', *columns], MOST_COLUMNS)}"]
    for name in columns[:MOST_COLUMNS]:
        lines += _column_lines(name, people)
    if len(columns) > MOST_COLUMNS:
        lines.append(f"  and {len(columns) - MOST_COLUMNS} more columns")
    return lines


def _column_lines(name: str, people: pd.DataFrame) -> list[str]:
    from popatlas.errors import first_few
    from popatlas.images.tables import column_of, shown

    column = column_of(people[name])
    present = int(column.text.count())
    if column.kind == "numbers" or column.bad:
        holds = f"{column.numbers.count()} number(s) from {column.numbers.min():g} to {column.numbers.max():g}"
    else:
        counts = column.text.value_counts()
        holds = first_few(f"{shown(str(text))} ({number})" for text, number in counts.items())
    lines = [f"  {name:12} {column.kind}, {present} value(s), {len(people) - present} missing{': ' if holds else ''}{holds}"]
    for place in column.bad[:MOST_CELLS]:
        scan = people["scan"].iloc[place].rsplit("/", 1)[-1]
        lines.append(f"    no number  {scan}: {shown(people[name].iloc[place])}")
    if len(column.bad) > MOST_CELLS:
        lines.append(f"    no number  and {len(column.bad) - MOST_CELLS} more")
    return lines


def describe_cohort(index: pd.DataFrame) -> list[str]:
    """Return the lines about the images."""
    usable = index[index["state"] == "ok"]
    counts = ", ".join(f"{number} {state}" for state, number in index["state"].value_counts().items())
    lines = [f"scans          {len(index)}: {counts}; {index['subject'].nunique()} subjects"]
    for name in ("spacing_mm", "orientation", "shape"):
        values = usable[name].value_counts()
        shown = ", ".join(f"{value} ({number})" for value, number in values.head(4).items())
        lines.append(f"{name:14} {shown}{', ...' if len(values) > 4 else ''}")
    channels = Counter(name for text in usable["channels"] for name in json.loads(text))
    lines.append(f"channels       {', '.join(f'{name} ({number})' for name, number in channels.items()) or 'T1w only'}")
    lines += _describe_choices(usable)
    for row in index[(index["reason"] != "") & (index["state"] != "excluded")].to_dict("records"):
        lines.append(f"  {row['state']:11} {row['scan']}: {row['reason']}")
    return lines


def describe_template(config: Config) -> list[str]:
    """Return the line about an existing template, none where one is built."""
    from popatlas.errors import InputError
    from popatlas.images.header import check_header
    from popatlas.images.io import mask_beside
    from popatlas.images.place import read_mask_on

    existing = config.atlas.template
    if existing is None:
        return []
    mask = mask_beside(existing)
    try:
        check_header(existing, "template")
        if mask is not None:
            read_mask_on(mask, existing, names=("template", "its mask"))
    except InputError as error:
        return [f"template       CANNOT BE USED: {error}"]
    return [f"template       ok, {'no mask beside it' if mask is None else f'with {mask.name}'}"]


def describe_members(config: Config, usable: pd.DataFrame) -> list[str]:
    """Return the line about who a template would be built from; none where an existing one is used."""
    atlas, count = config.atlas, int((usable["role"] == "cohort").sum())
    if atlas.template is not None:
        return []
    if isinstance(atlas.members, tuple):
        return [f"template       built from the {len(atlas.members)} subjects of atlas.members"]
    if count < FEWEST_MEMBERS:
        return [f"template       CANNOT BE BUILT from fewer than {FEWEST_MEMBERS} scans: give one (atlas.template)"]
    wanted = atlas.most_members if atlas.members == "all" else atlas.members
    if wanted >= count:
        return [f"template       built from all {count} scans"]
    how = "atlas.most_members" if atlas.members == "all" else "atlas.members"
    return [
        f"template       built from {wanted} of {count} scans ({how}), drawn evenly over age; by name where most have none",
        "  for others   --set atlas.members=NUMBER, or atlas.members='[sub-01, sub-02, ...]'",
    ]


def describe_along(along: Covariate) -> list[str]:
    """Return the line about templates along a covariate, none where none are asked for."""
    return [f"along          {along.describe()}"] if along.values else []


def _describe_choices(usable: pd.DataFrame) -> list[str]:
    """Return which images were taken where there were several, and why: one line for each reason."""
    chosen = usable[usable["choice"] != ""]
    if chosen.empty:
        return []
    lines = [f"choices        {len(chosen)} scans with several images (column choice of cohort/index.tsv)"]
    reasons = chosen.groupby("choice", sort=False)["scan"].agg(["first", "size"]).sort_values("size", ascending=False)
    for reason, row in reasons.head(MOST_CHOICES).iterrows():
        others = f" and {row['size'] - 1} more" if row["size"] > 1 else ""
        lines.append(f"  taken       {row['first']}{others}: {reason}")
    if len(reasons) > MOST_CHOICES:
        lines.append(f"  taken       and {len(reasons) - MOST_CHOICES} more reasons")
    return lines


def describe_machine(config: Config, usable: pd.DataFrame) -> list[str]:
    """Return the lines about disk, cores, network weights and scheduler."""
    from popatlas.cohort.space import megavoxels, needed_bytes
    from popatlas.diskspace import free_bytes, temporary_folder

    total = sum(megavoxels(row, config) for row in usable.to_dict("records"))
    need, free = needed_bytes(usable, config), free_bytes(Path(config.out_dir))
    verdict = "ok" if free > need else "TOO LITTLE"
    temporary = temporary_folder() or Path()
    schedulers = [name for name in ("sbatch", "qsub", "bsub") if shutil.which(name)]
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cores = len(os.sched_getaffinity(0))
    return [
        f"disk           about {need / 1e9:.1f} GB needed, {free / 1e9:.0f} GB free: {verdict}",
        f"temporary      {temporary} ({free_bytes(temporary) / 1e9:.1f} GB free)",
        f"cores          {cores}; roughly {total * MINUTES_PER_MEGAVOXEL / cores:.0f} minutes here",
        f"memory         {memory_gb:.0f} GB",
        f"network        {_weights(config)}",
        f"scheduler      {', '.join(schedulers) or 'none found (use the default profile)'}",
    ]


def _weights(config: Config) -> str:
    if config.preprocess.brain.method != "deepbet":
        return "not needed"
    from popatlas.preprocess.brain import cuda_visible, deepbet_weights

    found = deepbet_weights()
    device = "CUDA" if config.preprocess.brain.gpu > 0 and cuda_visible() else "CPU"
    return f"deepbet weights {'present' if found else 'MISSING (install deepbet again)'}; {device} will be used"
