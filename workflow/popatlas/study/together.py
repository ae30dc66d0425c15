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
    "fuse_scan": ("fuse_labels", "labels_to_native"),
    "measure_and_draw": ("segment_tissues", "measure_scan", "draw_subject"),
}
# Steps of these rows that not every scan has: Snakemake does not know their files, and what reads them in the same job
# stands for them
NOT_OF_ALL = ("segment_tissues",)
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
        if rule in rules and is_fused_together(wildcards.get("method")):
            return row, {"scan": wildcards["scan"]}
    return rule, dict(wildcards)


def jobs_of(config: Config, rule: str, wildcards: Mapping[str, str]) -> list[tuple[str, Wildcards]]:
    """Return rule and wildcards of the jobs that a job of Snakemake runs."""
    members = tuple(one for one in rows(config).get(rule, ()) if one != "segment_tissues" or config.tissues.enabled)
    if rule == "fuse_scan":
        members = members if config.fuse.space == "native" else members[:1]
        methods = [method for method in config.fuse.methods if is_fused_together(method)]
        return [(member, {**wildcards, "method": method}) for method in methods for member in members]
    return [(member, dict(wildcards)) for member in members] or [(rule, dict(wildcards))]


def is_fused_together(method: str | None) -> bool:
    """Tell whether what labels a scan does so in the job of all; what waits for a training, or needs a GPU, has its own."""
    return method is None or (method in METHODS and not METHODS[method].trained)
