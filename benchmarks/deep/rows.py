"""Rows of the results: of an engine on a pair, of an engine on a pair of slices, and of a training on a pair."""

from __future__ import annotations

from typing import Any, TypedDict

from benchmarks.registration import rows

Tables = dict[str, list[dict[str, Any]]]  # by title, from the JSON of a result


class Row(rows.Row, total=False):
    """One engine on one pair, with what makes the row: settings and digest of the weights, as JSON."""

    settings: str


class SliceScores(TypedDict):
    """Scores and seconds of an engine on two slices."""

    dice: float
    folded: float
    sdlogj: float
    cpu_s: float
    wall_s: float


class SliceRow(SliceScores):
    """One engine on one height of a pair."""

    case: str
    height_mm: float
    engine: str


class TissueScores(TypedDict):
    """Dice of each tissue before and after registration, seconds (None without a network), and folded voxels in percent."""

    case: str
    seconds: float | None
    before: dict[str, float]
    after: dict[str, float]
    folded_percent: float


class TrainingRow(TissueScores):
    """The network of a start and a resolution on one pair; `learnt` is False where there is none."""

    start: str
    mm: int
    steps: int
    learnt: bool


class SystemRow(TypedDict):
    """A training of a paper's network: steps, CPU seconds of one and of all, whether it beat no registration, its file."""

    steps: int
    step_s: float
    train_cpu_s: float
    learnt: bool
    parameters: int
    weights: str
