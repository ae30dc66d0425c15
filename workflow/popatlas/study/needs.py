"""What a job asks of a machine: memory by the voxels of its images, and minutes.

`NEEDS` is the one table of rates. They are peaks of real heads on grids of 2 and of 1 mm (benchmarks/cost.py; of the bias
correction those of raw images of 11 and of 23 million voxels; of the steps with a network, and of labels on the raw grid,
those of phantoms of 1 and 4 million voxels with 3 and 9 atlases), one thread each, fitted by a line; of fusion with the
kernels that the first job on a machine compiles. What is asked for is a margin above it, with room for Snakemake itself, and
grows with each attempt (`popatlas.study.rules.growing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from popatlas.fusion.methods import METHODS
from popatlas.study.rules import Wildcards

MARGIN = 1.3  # of memory, above what was measured
SNAKEMAKE = 250  # megabytes of what runs the step in a job of a cluster, within the same limit
STEP = 100  # megabytes that are asked for are a multiple of it
HEAD = (10.0, 10.0)  # millions of voxels of a scan that is not in the index: raw, and on the grid


@dataclass(frozen=True)
class Need:
    """What a step needs.

    Attributes
    ----------
    base : float
        Megabytes of the program and its libraries.
    raw, grid, template : float
        Bytes for each voxel of the raw image, of the scan on the grid of the study, and of the template.
    atlas : float
        Bytes for each voxel of the scan on that grid and each atlas of it.
    member : float
        Bytes for each voxel of the template and each member of it.
    minutes : float
        That are asked for whatever the images; many times what was measured, for slow nodes and disks.
    minutes_raw, minutes_grid, minutes_atlas : float
        More for each million of voxels, raw and on the grid, and there for each atlas.
    """

    base: float
    raw: float = 0.0
    grid: float = 0.0
    template: float = 0.0
    atlas: float = 0.0
    member: float = 0.0
    minutes: float = 10.0
    minutes_raw: float = 0.0
    minutes_grid: float = 0.0
    minutes_atlas: float = 0.0


TRAINED = "fuse_labels by a network"

# by rule; a job that runs several steps needs the memory of the largest and the minutes of all
NEEDS: Mapping[str, Need] = {
    "conform_image": Need(400, raw=110, minutes_raw=2.0),
    "extract_brain": Need(1150, grid=20, minutes_grid=0.5),
    "extract_brains": Need(1150, grid=20, minutes=60),
    "normalise_brain": Need(150, grid=32),
    "align_to_reference": Need(720, template=95, minutes=20, minutes_grid=1.0),
    "average_template": Need(200, template=160, minutes=120),
    "coregister_members": Need(330, member=235, minutes=240),
    "classify_template": Need(300, template=150, minutes=60),
    "segment_tissues": Need(300, grid=220, minutes_grid=1.0),
    "propagate_labels": Need(280, grid=95, atlas=8, minutes_atlas=0.1),
    "fuse_labels": Need(420, grid=95, atlas=12, minutes_atlas=0.5),
    TRAINED: Need(540, grid=190, atlas=12, minutes=20, minutes_grid=1.0, minutes_atlas=0.5),
    "segment_scan": Need(480, grid=180, minutes_grid=1.0),
    "labels_to_native": Need(140, raw=60, grid=60, minutes=5, minutes_raw=0.2, minutes_grid=0.2),
    "measure_scan": Need(260, grid=75, minutes_grid=1.0),
    "draw_subject": Need(320, grid=90),
}


@dataclass(frozen=True)
class Needs:
    """What the rules ask about memory and minutes.

    Attributes
    ----------
    voxels : mapping
        Scan to the millions of voxels of its raw image, and of it on the grid of the study.
    template : float
        Millions of voxels of the template.
    atlases : callable
        Returns the number of labelled atlases of a scan.
    members : int
        Members of the template.
    run_by : callable
        Returns rule and wildcards of the jobs that a rule of Snakemake runs.
    """

    voxels: Mapping[str, tuple[float, float]]
    template: float
    atlases: Callable[[str], int]
    members: int
    run_by: Callable[[str, Mapping[str, str]], list[tuple[str, dict[str, str]]]] = field(repr=False)

    def memory(self, rule: str) -> Callable[[Wildcards], int]:
        """Return the function of the megabytes that a rule of Snakemake asks for."""

        def megabytes(wildcards: Wildcards) -> int:
            needs, scan = self._needs(rule, wildcards)
            return max(self.megabytes(need, scan) for need in needs)

        return megabytes

    def minutes(self, rule: str) -> Callable[[Wildcards], int]:
        """Return the function of the minutes that a rule of Snakemake asks for."""

        def minutes(wildcards: Wildcards) -> int:
            needs, scan = self._needs(rule, wildcards)
            return math.ceil(sum(self._minutes(need, scan) for need in needs))

        return minutes

    def megabytes(self, need: Need, scan: str) -> int:
        """Return the memory that is asked for a step of a scan."""
        raw, grid = self.voxels.get(scan, HEAD)
        found = need.base + need.raw * raw + need.grid * grid + need.template * self.template
        found += need.atlas * grid * self.atlases(scan) + need.member * self.template * self.members
        return math.ceil(max(MARGIN * found, found + SNAKEMAKE) / STEP) * STEP

    def _minutes(self, need: Need, scan: str) -> float:
        raw, grid = self.voxels.get(scan, HEAD)
        return need.minutes + need.minutes_raw * raw + (need.minutes_grid + need.minutes_atlas * self.atlases(scan)) * grid

    def _needs(self, rule: str, wildcards: Wildcards) -> tuple[list[Need], str]:
        names = {str(key): str(value) for key, value in wildcards.items()}
        return [NEEDS[_entry(step, of)] for step, of in self.run_by(rule, names)], names.get("scan", "")


def _entry(rule: str, wildcards: Mapping[str, str]) -> str:
    """Return the entry of `NEEDS` for a job: fusion by a method that is trained loads a network."""
    method = METHODS.get(wildcards.get("method", ""))
    return TRAINED if rule == "fuse_labels" and method is not None and method.trained else rule
