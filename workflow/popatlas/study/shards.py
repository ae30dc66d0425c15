"""Shards of a pass: parts that need nothing of each other, each for a Snakemake of its own.

Snakemake keeps several kilobytes and milliseconds for each job of its graph, so that the graph of ten thousand scans takes
gigabytes and many minutes before the first job starts. The inventory knows all jobs without a graph. It tells which are
needed by others than their own scan (the template, the labelled atlases): they come first, and all others are dealt out by
scans. A shard holds some hundred scans.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.images.io import write_text
from popatlas.study.joblist import BATCHES, neighbours

if TYPE_CHECKING:
    from popatlas.study.inventory import Inventory
    from popatlas.study.joblist import Job

VARIABLE = "POPATLAS_SHARD"  # environment of Snakemake: a `Request`
FILE = ".snakemake/popatlas-shards.json"  # names of the jobs of each shard, written by the first one
PARTED = ("preprocess", "segmentations", "subjects")  # passes of scans; the others are of the whole cohort
LIMIT = 1000  # scans that one graph may hold, where nobody says otherwise
FEWEST = 500  # scans of a shard
ROUNDS = 8  # jobs of a shard that follow each other in a slot, so that its end, when slots fall idle, counts little


@dataclass(frozen=True)
class Request:
    """What a run asks of its Snakemake.

    Attributes
    ----------
    number : int
        Shard, from 0. The first one finds out which there are.
    size : int
        Scans of a shard.
    parts : int, optional
        As many shards as the user asks for, whatever their size.
    """

    number: int
    size: int
    parts: int | None = None

    def variable(self) -> dict[str, str]:
        """Return the environment that carries it."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def given(cls, environment: Mapping[str, str] | None = None) -> Request | None:
        """Return what the environment asks for; None where nobody asks."""
        text = (os.environ if environment is None else environment).get(VARIABLE)
        return cls(**json.loads(text)) if text else None


def request(slots: int, parts: int | None) -> Request:
    """Return what a run asks of the first shard, by the number of jobs that run at a time and the user's wish."""
    return Request(0, max(FEWEST, ROUNDS * slots), parts)


def split(inventory: Inventory, target: str, asked: Request) -> list[list[str]]:
    """Return the names of the jobs that each shard of a pass has to make, in the order in which they run.

    Parameters
    ----------
    inventory : Inventory
        Of the study.
    target : str
        Part of the pipeline.
    asked : Request
        How large shards are.

    Returns
    -------
    list of list of str
        One list where the pass is not parted. No job of a shard needs one of another, but for those of the first.
    """
    names, jobs = inventory.needed(target), inventory.jobs.jobs
    scans = len({jobs[name].scan for name in names} - {""})
    if target not in PARTED or (asked.parts is None and scans <= max(LIMIT, asked.size)) or scans < 2 or asked.parts == 1:
        return [names]
    size = asked.size if asked.parts is None else -(-scans // asked.parts)
    common = _common([jobs[name] for name in names])
    shards: list[list[str]] = [[name for name in names if name in common]] if common else []
    filled = 0
    for unit in _units([jobs[name] for name in names if name not in common]):
        if not filled or filled >= size:
            shards.append([])
            filled = 0
        shards[-1] += unit
        filled += max(1, len({jobs[name].scan for name in unit} - {""}))
    return shards or [names]


def _common(listed: Sequence[Job]) -> set[str]:
    """Return the jobs of no scan or batch, those that the jobs of another scan need, and all that these need."""
    left = {job.name: job for job in listed}
    stack = [job.name for job in listed if not job.scan and job.rule not in BATCHES]
    for job in listed:
        needs = [left[need] for need in job.needs if need in left] if job.scan else []
        stack += [need.name for need in needs if need.scan and need.scan != job.scan]
    found: set[str] = set()
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack += [need for need in left[name].needs if need in left]
    return found


def _units(listed: Sequence[Job]) -> list[list[str]]:
    """Return the jobs in groups that hang together: those of a scan, or of the scans of a batch."""
    parent = {job.name: job.name for job in listed}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first: dict[str, str] = {}
    for job in listed:
        linked = [need for need in job.needs if need in parent]
        if job.scan:
            linked.append(first.setdefault(job.scan, job.name))
        for name in linked:
            parent[root(name)] = root(job.name)
    units: dict[str, list[str]] = {}
    for job in listed:
        units.setdefault(root(job.name), []).append(job.name)
    return list(units.values())


def write_shards(out_dir: Path, shards: Iterable[Sequence[str]]) -> None:
    """Write the names of the jobs of each shard, where the run and the Snakemakes that follow find them."""
    write_text(out_dir / FILE, json.dumps(list(shards)))


def read_shards(out_dir: Path) -> list[list[str]]:
    """Return what `write_shards` wrote; nothing where it wrote nothing."""
    path = out_dir / FILE
    return [list(map(str, names)) for names in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []


def forget_shards(out_dir: Path) -> None:
    """Remove what an earlier pass wrote."""
    (out_dir / FILE).unlink(missing_ok=True)


def targets(inventory: Inventory, target: str, names: Sequence[str]) -> list[str]:
    """Return those of the jobs of a shard whose results are asked for, or that nothing in the shard reads.

    Jobs are left out that need what is neither made nor of the shard: what failed in the first shard is not tried again in
    each of the others. What is temporary, and was removed after its use there, is made again where it is needed.
    """
    jobs, able = inventory.jobs.jobs, set(names)
    for name in neighbours(jobs, names) - able - inventory.made:
        able |= {name} if name in jobs and jobs[name].scan and not jobs[name].is_kept else set()
    ready = able | inventory.made
    while stuck := {name for name in able if any(need in jobs and need not in ready for need in jobs[name].needs)}:
        able -= stuck
        ready -= stuck
    read = {need for name in able for need in jobs[name].needs}
    wanted = set(inventory.jobs.wanted(target))
    return [name for name in names if name in able and (name in wanted or name not in read)]
