"""Measures as the rules ask for them: what is measured of a scan, what it is compared with, and the group tables."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from popatlas.cohort.labelfiles import left_out, resolve_pattern
from popatlas.cohort.outputs import RULES, fill
from popatlas.config.sections import Config
from popatlas.study.rules import Wildcards, option
from popatlas.study.template import Template

REGISTERED = ("warped", "logjacobian", "affine", "inverse_warp", "gate")


@dataclass(frozen=True)
class Measure:
    """What the rules of measures and group tables ask.

    Attributes
    ----------
    config : dict
        Complete configuration.
    out_dir : Path
        Output folder.
    template : Template
        What the scans are registered to.
    own : tuple of str
        Scans of the cohort that have not failed.
    """

    config: Config
    out_dir: Path
    template: Template
    own: tuple[str, ...]

    def registered(self, wildcards: Wildcards) -> dict[str, str]:
        """Return what is measured of the registration of a scan, and the template."""
        made, template = RULES["register_to_template"].files, RULES["publish_template"].files
        patterns = {name: made[name] for name in REGISTERED}
        patterns |= {"template": template["template"], "template_mask": template["mask"]}
        names = {"label": self.template.label, "scan": wildcards.scan}
        return {name: fill(pattern, names) for name, pattern in patterns.items()}

    def given(self, scan: str) -> dict[str, str]:
        """Return reference labels and landmarks of a scan by these names, those that are there and not left out."""
        section, root = self.config.measure, Path(self.config.bids_dir)
        patterns = {"reference": section.reference, "landmarks": section.landmarks}
        files = {name: resolve_pattern(pattern, scan, root) for name, pattern in patterns.items() if pattern}
        return {name: str(path) for name, path in files.items() if path.is_file() and not left_out(self.out_dir, scan, path)}

    def reference_options(self, wildcards: Wildcards) -> str:
        """Return MeasureScan's options for reference labels and landmarks that exist."""
        options = {"reference": "--in_reference", "landmarks": "--in_landmarks"}
        return " ".join(f"{options[name]} {shlex.quote(path)}" for name, path in self.given(wildcards.scan).items())

    @property
    def tables(self) -> list[str]:
        """The metrics table of every scan of the cohort that is not failed."""
        return [f"{scan}_desc-metrics_table.tsv" for scan in self.own]

    @property
    def truth_tables(self) -> list[str]:
        """The table of truth scores when the cohort is a simulated one."""
        return ["group/truth.tsv"] if self.truth_folder else []

    @property
    def truth_option(self) -> str:
        """TabulateCohort's option for it."""
        return option("--in_extra", self.truth_tables)

    @property
    def truth_folder(self) -> Path | None:
        """Folder with a simulated cohort's truth, None when there is none."""
        name = self.config.measure.truth
        folder = Path(self.config.bids_dir) / name if name else None
        return folder if folder is not None and (folder / "simulation.json").is_file() else None
