"""A study as the Snakefile sees it: the indexed cohort, what is frozen, and the rules' input functions.

Opening a study is the only place where the cohort's tables are read for the DAG. The main process indexes and freezes;
the jobs that Snakemake starts read what it wrote.

Snakemake runs what is asked for; what that is follows from the inventory (`popatlas.study.inventory`). A job that is made
asks for no input (`Study.asks`), so that neither times nor lost notes of Snakemake start it again.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popatlas.cohort.batches import BRAINS, MEMBERS, PREDICTIONS, Batches, read_batches
from popatlas.cohort.digests import Digests
from popatlas.cohort.targets import Training, read_trainings
from popatlas.cohort.training import NetworkTraining, read_network
from popatlas.config.attempts import registration_settings
from popatlas.config.load import load_config, make_absolute
from popatlas.config.sections import Config
from popatlas.study.atlas import Atlas
from popatlas.study.fuse import FusionStudy
from popatlas.study.network import TrainStudy
from popatlas.study.prepare import prepare
from popatlas.study.preprocess import BRAIN, CONFORMED, Preprocess
from popatlas.study.register import Register, prediction_folder
from popatlas.study.rules import Wildcards
from popatlas.study.scans import Scans
from popatlas.study.template import Template


def open_study(source: Mapping[str, Any] | Config, *, main: bool) -> Study:
    """Open the study that a configuration describes.

    Parameters
    ----------
    source : mapping
        Configuration, complete or not.
    main : bool
        True in the process that the user started: it simulates the demo cohort when that is asked for, indexes the
        dataset, and freezes members, atlases and training targets. False in the jobs, which only read.

    Returns
    -------
    Study
    """
    config = make_absolute(load_config(source))
    out_dir = Path(config.out_dir)
    if main:
        prepare(config, out_dir)
    study = Study.read(config, out_dir)
    if main:
        study.write_lists()
        study.write_network_lists()
    return study


@dataclass(frozen=True)
class Study(FusionStudy, TrainStudy):
    """Everything that the rules ask about the cohort; paths are relative to `out_dir` unless they are inputs.

    `made` are the names of the jobs that are made, `to_make` the files that each part of the pipeline still has to make; the
    jobs that Snakemake starts know of none.
    """

    config: Config
    out_dir: Path
    scans: Scans
    template: Template
    preprocess: Preprocess
    atlas: Atlas
    register: Register
    atlases: dict[str, str]
    trainings: dict[str, Training]
    network: NetworkTraining | None
    digests: Digests = field(repr=False)
    made: frozenset[str] = field(default=frozenset(), repr=False)
    to_make: Mapping[str, list[str]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, config: Config, out_dir: Path) -> Study:
        """Read the tables that `prepare` wrote; scans in the list of failures are left out."""
        from popatlas.cohort.freeze import read_label_atlases, read_members, template_version

        scans, members = Scans.read(out_dir), read_members(config, out_dir)
        template = Template(config.atlas.label, template_version(members, config))
        presets = {config.register.preset, *config.atlas.presets}
        attempts = {preset: json.dumps(registration_settings(config, preset)) for preset in presets}
        predictions = prediction_folder(config, template.version)
        member_batches = read_batches(out_dir, MEMBERS) if predictions else {}
        labelled = {row["atlas"]: row["dseg"] for row in read_label_atlases(out_dir).to_dict("records")}
        atlases = {atlas: dseg for atlas, dseg in labelled.items() if atlas in scans.serving}
        brain_batches = Batches.read(out_dir, BRAINS, CONFORMED, scans.serving)
        prediction_batches = Batches.read(out_dir, PREDICTIONS, BRAIN, scans.serving)
        return cls(
            config=config,
            out_dir=out_dir,
            scans=scans,
            template=template,
            preprocess=Preprocess(config, scans.images, scans.channels, brain_batches),
            atlas=Atlas(config, template, tuple(members["scan"]), member_batches, attempts),
            register=Register(config, template, attempts, predictions, prediction_batches),
            atlases=atlases,
            trainings=read_trainings(config, out_dir) if atlases else {},
            network=read_network(config, out_dir),
            digests=Digests(out_dir),
        )

    # Measures and targets

    def registered(self, wildcards: Wildcards) -> dict[str, str]:
        """Return what is measured of the registration of a scan, and the template."""
        made, template = self.outputs("register_to_template"), self.outputs("publish_template")
        names = ("warped", "logjacobian", "affine", "inverse_warp", "gate")
        found = {name: made[name].replace("{scan}", wildcards.scan) for name in names}
        return found | {"template": template["template"], "template_mask": template["mask"]}

    def input_file(self, section: str, key: str, scan: str) -> str | None:
        """Return the file that a pattern of the configuration names for a scan, None when it is not there or left out."""
        from popatlas.cohort.labelfiles import left_out, resolve_pattern

        pattern = getattr(getattr(self.config, section), key)
        path = resolve_pattern(pattern, scan, Path(self.config.bids_dir)) if pattern else None
        if path is None or not path.is_file() or left_out(self.out_dir, scan, path):
            return None
        return str(path)

    def reference_options(self, wildcards: Wildcards) -> str:
        """Return MeasureScan's options for reference labels and landmarks that exist."""
        named = {
            "--in_reference": self.input_file("measure", "reference", wildcards.scan),
            "--in_landmarks": self.input_file("measure", "landmarks", wildcards.scan),
        }
        return " ".join(f"{option} {shlex.quote(path)}" for option, path in named.items() if path)

    def measured_tables(self) -> list[str]:
        """Return the metrics table of every scan of the cohort that is not failed."""
        return [f"{scan}_desc-metrics_table.tsv" for scan in self.scans.own]

    def thumbnails(self) -> list[str]:
        """Return the montage picture of every scan of the cohort that is not failed; the report does without some."""
        return [f"report/thumbnails/{scan}.png" for scan in self.scans.own if scan not in self.scans.undrawn]

    def subject_page(self, scan: str) -> str:
        """Return the QC page of a scan."""
        return f"report/subjects/{scan.rsplit('/', 1)[-1]}.html"

    def targets(self, part: str) -> list[str]:
        """Return the files that a part of the pipeline (`PARTS`) still has to make, and the index, which is there."""
        return ["cohort/index.parquet", *self.to_make.get(part, [])]

    def truth_tables(self) -> list[str]:
        """Return the table of truth scores when the cohort is a simulated one."""
        return ["group/truth.tsv"] if self.truth_folder() else []

    def truth_folder(self) -> Path | None:
        """Return the folder with a simulated cohort's truth, None when there is none."""
        name = self.config.measure.truth
        folder = Path(self.config.bids_dir) / name if name else None
        return folder if folder is not None and (folder / "simulation.json").is_file() else None
