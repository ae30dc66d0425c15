"""Steps that one job of Snakemake runs in one process, so that a scan costs few starts of Python and its libraries.

The study keeps its books for each step: a fingerprint, a receipt, a record, a log. Snakemake sees one job for all steps of
a row of `TOGETHER`; the process (``popatlas step A ... --then B ...``) makes those that have no receipt of today and leaves
the others as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from popatlas.config.sections import Config
from popatlas.fusion.methods import METHODS

# rule of Snakemake to the rules whose jobs of one scan it runs, and the pattern of what it prints itself; each step has a
# log of its own
TOGETHER: Mapping[str, tuple[str, ...]] = {
    "prepare_scan": ("conform_image", "extract_brain", "normalise_brain"),
    "fuse_scan": ("fuse_labels",),
    "measure_and_draw": ("measure_scan", "draw_subject"),
}
LOG = "logs/jobs/{scan}_{rule}.log"
Wildcards = dict[str, str]


def prepares_together(config: Config) -> bool:
    """Tell whether a scan is prepared in one job, or in three: brains are found on a GPU, or several by one job."""
    brain = config.preprocess.brain
    return brain.method == "template" or (brain.batch == 1 and not brain.gpu)


def rows(config: Config) -> dict[str, tuple[str, ...]]:
    """Return the rows of `TOGETHER` that hold for a configuration."""
    return {row: rules for row, rules in TOGETHER.items() if row != "prepare_scan" or prepares_together(config)}


def rule_of(config: Config, rule: str, wildcards: Mapping[str, str]) -> tuple[str, Wildcards]:
    """Return the rule of Snakemake that runs a job, and its wildcards."""
    for row, rules in rows(config).items():
        if rule in rules and not _alone(wildcards.get("method", "")):
            return row, {"scan": wildcards["scan"]}
    return rule, dict(wildcards)


def jobs_of(config: Config, rule: str, wildcards: Mapping[str, str]) -> list[tuple[str, Wildcards]]:
    """Return rule and wildcards of the jobs that a job of Snakemake runs."""
    found = []
    for member in rows(config).get(rule, ()):
        if member == "fuse_labels":
            methods = [method for method in config.fuse.methods if not _alone(method)]
            found += [(member, {**wildcards, "method": method}) for method in methods]
        else:
            found.append((member, dict(wildcards)))
    return found or [(rule, dict(wildcards))]


def _alone(method: str) -> bool:
    """Tell whether a fusion method has jobs of its own, for it waits for a training and may need a GPU."""
    return method in METHODS and METHODS[method].trained
