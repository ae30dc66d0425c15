"""What the rules and the study exchange: wildcards, resources, names of parts of the pipeline, options of steps."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from popatlas.fusion.methods import METHODS, SEGMENTER

# A scan key as a wildcard: sub-01/anat/sub-01 or sub-01/ses-1/anat/sub-01_ses-1, external atlases under atlases/
SCAN_PATTERN = r"(?:atlases/)?sub-[0-9A-Za-z]+(?:/ses-[0-9A-Za-z]+)?/anat/sub-[0-9A-Za-z]+(?:_ses-[0-9A-Za-z]+)?"
WILDCARDS = {
    "scan": SCAN_PATTERN,
    "atlas": SCAN_PATTERN,
    "iteration": r"[1-9][0-9]*",  # what iteration 0 makes has rules of its own
    "batch": r"[0-9]+",
    "channel": r"[0-9A-Za-z]+",
    "place": r"[1-9][0-9]*",
    "method": "|".join(METHODS),
}
TRAINED_METHODS = "|".join(name for name, method in METHODS.items() if method.trained)
# the wildcard `method` of a rule that takes labels of networks, those of the segmenter too
LABELLED_BY = "|".join((*(name for name, method in METHODS.items() if method.trained), SEGMENTER))
# Parts of the pipeline that can be asked for by name. preprocess: brains of every scan, before the members of the template
# are frozen. subjects: per-scan results of every scan that is not failed, excluded or unavailable. segmentations: labels by
# the trained network. networks: the registration network that is trained on the cohort. fusion_bench: the comparison of the
# fusion methods.
PARTS = ("preprocess", "segmentations", "subjects", "networks", "fusion_bench")
SETTINGS = "cohort/config.yaml"  # the resolved configuration, which steps read beside their parameters

Files = str | list[str]  # of one input or output of a job


class Wildcards(Protocol):
    """The wildcards of a job, as Snakemake gives them to the functions of a rule; a rule has some of them."""

    scan: str
    atlas: str
    iteration: str
    batch: str
    channel: str
    method: str
    place: str

    def items(self) -> Iterable[tuple[str, str]]:
        """Return name and value of each."""


class Given(Protocol):
    """The inputs or outputs of a job, as Snakemake gives them to the functions of a rule; a job that is made has none."""

    def __getattr__(self, name: str) -> Any:
        """Return the file of a name, or the files."""


class Resources(Protocol):
    """The resources of a job, as Snakemake gives them to the functions of a rule."""

    runtime: float


class Together(Protocol):
    """What a part of the study asks about the steps that one job of Snakemake runs (`popatlas.study.jobs.Jobs`)."""

    def run_by(self, rule: str, wildcards: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
        """Return rule and wildcards of the jobs that a job of Snakemake runs."""

    def outputs(self, rule: str) -> dict[str, str]:
        """Return output name to pattern of a rule."""

    def proof_of(self, rule: str, wildcards: Mapping[str, str]) -> str:
        """Return the options that make a step leave its receipt and its record."""


Named = Callable[[Wildcards], Mapping[str, Files]]  # returns files by the names of the inputs of a rule


def growing(amount: int | Callable[[Wildcards], int], most: int | None = None) -> Callable[[Wildcards, int], int]:
    """Return the function of a resource (megabytes, minutes): an amount at the first attempt, twice at the second, ...

    The amount may follow from the wildcards. `most` times at most, for jobs that are tried again because their time was
    over.
    """

    def resource(wildcards: Wildcards, attempt: int) -> int:
        first = amount(wildcards) if callable(amount) else amount
        return first * (attempt if most is None else min(attempt, most))

    return resource


def option(name: str, values: Sequence[str]) -> str:
    """Return an option with quoted values, nothing when there are none."""
    return f"{name} {shlex.join(values)}" if values else ""
