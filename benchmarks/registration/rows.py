"""Rows of the results: whether an engine ran, what that cost, and how good its field is."""

from __future__ import annotations

from typing import TypedDict


class Record(TypedDict, total=False):
    """What became of an engine: `state` is ok, absent or failed, the last two with a message.

    Seconds and MiB are of one run (see `worker`), or the medians of `repeats` runs; `cpu_spread` is the range of the CPU
    seconds as a share of their median.
    """

    state: str
    message: str
    cpu_s: float
    wall_s: float
    load_cpu_s: float
    collect_cpu_s: float
    peak_mb: float
    added_mb: float
    cpu_spread: float
    repeats: int


class Distances(TypedDict, total=False):
    """Distances to the true field in the brain, voxels."""

    error: float
    error_p95: float


class Regularity(TypedDict, total=False):
    """Folded share of the brain, by one-sided differences too, folded voxels of the grid, SD of the log-Jacobian."""

    folded: float
    folded_voxels: float
    folds: float
    sdlogj: float


class Scores(Distances, Regularity, total=False):
    """What `scores.score` returns."""

    dice: float
    hd95: float
    inverse_error: float
    volume_error: float


class Outcome(Record, Scores, total=False):
    """Costs and scores."""


class Row(Outcome, total=False):
    """One engine on one case."""

    dataset: str
    case: str
    engine: str
