"""The bench of the fusion methods as the rules ask for it: labelled atlases, each labelled by the others."""

from __future__ import annotations

from dataclasses import dataclass

from popatlas.cohort.outputs import BENCH
from popatlas.config.sections import Config
from popatlas.study.fuse import Fuse


@dataclass(frozen=True)
class Bench:
    """What the rule that compares the fusion methods asks.

    Attributes
    ----------
    config : dict
        Complete configuration.
    fuse : Fuse
        Methods and atlases.
    failed : frozenset of str
        Atlases that failed to be labelled by the others.
    """

    config: Config
    fuse: Fuse
    failed: frozenset[str]

    @property
    def scans(self) -> list[str]:
        """Labelled atlases that others can label."""
        return [atlas for atlas in self.fuse.atlases if atlas not in self.failed and self.fuse.atlases_for(atlas)]

    @property
    def references(self) -> list[str]:
        """Own labels of these atlases."""
        return [self.fuse.atlases[atlas] for atlas in self.scans]

    @property
    def files(self) -> list[str]:
        """What is scored: labels, and agreement maps where they are written."""
        kinds = ["dseg", *(["agreement"] if self.config.fuse.maps else [])]
        stems = [f"{scan}_desc-{method}" for scan in self.scans for method in self.fuse.methods]
        return [f"{stem}_{kind}.nii.gz" for stem in stems for kind in kinds]

    def listed(self) -> dict[str, list[str]]:
        """Return the lines of the lists of these atlases and their labels, where there are any."""
        found = dict(zip(self.lists, (self.references, self.scans), strict=True)) if self.files else {}
        return {path: lines for path, lines in found.items() if lines}

    @property
    def lists(self) -> tuple[str, str]:
        """Lists of the own labels of the atlases, and of their names: many are too many for a command line."""
        return "cohort/bench-references.txt", "cohort/bench-scans.txt"

    @property
    def shown(self) -> list[str]:
        """Results that the report shows: none when no run asks for the bench, or there are no two subjects or no methods."""
        return list(BENCH.values()) if self.config.fuse.bench and self.files else []
