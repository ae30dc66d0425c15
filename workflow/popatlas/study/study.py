"""A study as the Snakefile sees it: the indexed cohort, what is frozen, and a part for each stage that its rules ask.

Opening a study is the only place where the cohort's tables are read for the DAG. The main process indexes and freezes;
the jobs that Snakemake starts read what it wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popatlas.cohort.batches import BRAINS, MEMBERS, PREDICTIONS, Batches, read_batches
from popatlas.cohort.digests import Digests
from popatlas.cohort.freeze import read_label_atlases, read_members, template_version
from popatlas.cohort.targets import Training, read_trainings
from popatlas.cohort.training import NetworkTraining, read_network
from popatlas.config.attempts import registration_settings
from popatlas.config.load import load_config, make_absolute
from popatlas.config.sections import Config
from popatlas.images.io import write_if_changed
from popatlas.study.along import Along
from popatlas.study.atlas import Atlas
from popatlas.study.bench import Bench
from popatlas.study.fuse import Fuse
from popatlas.study.jobs import Jobs
from popatlas.study.madeof import MadeOf
from popatlas.study.measure import Measure
from popatlas.study.needs import Needs
from popatlas.study.network import Network
from popatlas.study.prepare import prepare
from popatlas.study.preprocess import BRAIN, CONFORMED, Preprocess
from popatlas.study.register import Register, prediction_folder
from popatlas.study.report import Report
from popatlas.study.scans import Scans
from popatlas.study.template import Template
from popatlas.study.tissues import Tissues
from popatlas.study.train import Train


def open_study(source: Mapping[str, Any], *, main: bool) -> Study:
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
    return study


@dataclass(frozen=True)
class Study:
    """Everything that the rules ask about the cohort, in parts; paths are relative to `out_dir` unless they are inputs.

    Attributes
    ----------
    config : dict
        Complete configuration.
    out_dir : Path
        Output folder.
    scans : Scans
        What is known of the scans.
    template : Template
        What they are registered to.
    preprocess, atlas, register, tissues, fuse, train, network, measure, bench, along, report
        What the rules of a stage ask; `network` is None where no registration network is trained.
    digests : Digests
        Checksums of files.
    jobs : Jobs
        What all rules ask about their jobs.
    needs : Needs
        What they ask about memory and minutes.
    """

    config: Config
    out_dir: Path
    scans: Scans
    template: Template
    preprocess: Preprocess
    atlas: Atlas
    register: Register
    tissues: Tissues
    fuse: Fuse
    train: Train
    network: Network | None
    measure: Measure
    bench: Bench
    along: Along
    report: Report
    digests: Digests = field(repr=False)
    jobs: Jobs = field(repr=False)
    needs: Needs = field(repr=False)

    @classmethod
    def read(cls, config: Config, out_dir: Path) -> Study:
        """Read the tables that `prepare` wrote; scans in the list of failures are left out."""
        scans, members, digests = Scans.read(out_dir), read_members(config, out_dir), Digests(out_dir)
        template = Template(str(config.atlas.label), template_version(members, config))
        labelled = {row["atlas"]: row["dseg"] for row in read_label_atlases(out_dir).to_dict("records")}
        atlases = {atlas: dseg for atlas, dseg in labelled.items() if atlas in scans.serving}
        trainings = read_trainings(config, out_dir) if atlases else {}
        plan = read_network(config, out_dir)
        predictions = prediction_folder(config, template.version)
        predicted = read_batches(out_dir, MEMBERS) if predictions else {}
        presets = {config.register.preset, *config.atlas.presets}
        attempts = {preset: json.dumps(registration_settings(config, preset)) for preset in presets}
        extraction = Batches.read(out_dir, BRAINS, CONFORMED, scans.serving)
        prediction = Batches.read(out_dir, PREDICTIONS, BRAIN, scans.serving)

        preprocess = Preprocess(config, scans.images, scans.channels, extraction)
        atlas = Atlas(config, template, tuple(members["scan"]), predicted, attempts)
        register = Register(config, template, attempts, predictions, prediction)
        usable = tuple(scan for scan in members["scan"] if scan in scans.serving)
        tissues = Tissues(config, template, usable, scans.channels, scans.unaligned, scans.undivided)
        fuse = Fuse(config, template, scans.own, atlases, trainings)
        train = Train(config, trainings, atlases)
        network = Network(config, plan) if plan else None
        measure = Measure(config, out_dir, template, scans.own)
        bench = Bench(config, fuse, scans.unbenched)
        along = Along.read(config, out_dir, template, fuse, measure)
        report = Report(scans.own, scans.undrawn, tuple(fuse.all_methods))
        made_of = MadeOf(
            config,
            out_dir,
            scans,
            template,
            preprocess,
            register,
            tissues,
            fuse,
            bench,
            along,
            network,
            measure,
            report,
            digests,
        )
        filled = {
            "label": template.label,
            "version": template.version,
            "brains": preprocess.brain_folder,
            "predictions": predictions,
        }
        jobs = Jobs(config, filled, _trained(trainings, plan), made_of)
        edge = float(config.preprocess.resolution_mm)
        voxels = {scan: (raw, volume / edge**3) for scan, (raw, volume) in scans.voxels.items()}
        needs = Needs(
            voxels, register.template_voxels(), lambda scan: len(fuse.atlases_for(scan)), len(members), jobs.run_by
        )
        return cls(
            config, out_dir, scans, template, preprocess, atlas, register, tissues, fuse, train, network, measure, bench,
            along, report, digests, jobs, needs,
        )  # fmt: skip

    def write_lists(self) -> None:
        """Write the lists of files that jobs read: those of a large cohort are too many for a command line."""
        lists = (
            self.preprocess.batches.listed()
            | self.register.batches.listed()
            | self.fuse.listed()
            | self.atlas.listed()
            | self.tissues.listed()
            | self.bench.listed()
            | self.along.listed()
            | self.train.listed()
            | (self.network.listed() if self.network else {})
        )
        for path, lines in lists.items():
            write_if_changed(self.out_dir / path, "".join(f"{line}\n" for line in lines))


def _trained(trainings: Mapping[str, Training], plan: NetworkTraining | None) -> dict[str, dict[str, str]]:
    """Return the rules that train something to what their patterns are filled in with."""
    found = {f"train_{name}": {"version": training.version} for name, training in trainings.items()}
    named = {"name": plan.name, "version": plan.version} if plan else {}
    return found | ({"write_training_table": named, "train_registration": named} if plan else {})
