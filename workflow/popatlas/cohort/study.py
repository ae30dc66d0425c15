"""A study as the Snakefile sees it: the indexed cohort, what is frozen, and the rules' input functions.

Opening a study is the only place where the cohort's tables are read for the DAG. The main process indexes and freezes;
the jobs that Snakemake starts read what it wrote.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popatlas.cohort.batches import BRAINS, MEMBERS, PREDICTIONS, Batches, batches, read_batches
from popatlas.cohort.fusion_study import FusionStudy
from popatlas.cohort.register_study import BRAIN, prediction_folder
from popatlas.cohort.targets import Training, read_trainings
from popatlas.cohort.train_study import TrainStudy
from popatlas.cohort.training import NetworkTraining, read_network
from popatlas.config import Config, default_config, iteration_preset, load_config, make_absolute, registration_settings
from popatlas.fusion.names import METHODS
from popatlas.images.io import mask_beside, read_table, write_if_changed

Wildcards = Any
# A scan key as a wildcard: sub-01/anat/sub-01 or sub-01/ses-1/anat/sub-01_ses-1, external atlases under atlases/
SCAN_PATTERN = r"(?:atlases/)?sub-[0-9A-Za-z]+(?:/ses-[0-9A-Za-z]+)?/anat/sub-[0-9A-Za-z]+(?:_ses-[0-9A-Za-z]+)?"
WILDCARDS = {
    "scan": SCAN_PATTERN,
    "atlas": SCAN_PATTERN,
    "iteration": r"[0-9]+",
    "batch": r"[0-9]+",
    "channel": r"[0-9A-Za-z]+",
    "method": "|".join(METHODS),
}


def growing(amount: int, most: int | None = None) -> Callable[[Wildcards, int], int]:
    """Return the function of a resource (megabytes, minutes): `amount` at the first attempt, twice at the second, ...

    `most` times at most, for jobs that are tried again because their time was over.
    """

    def resource(wildcards: Wildcards, attempt: int) -> int:
        return amount * (attempt if most is None else min(attempt, most))

    return resource


def conformed(scan: str) -> str:
    """Return the conformed image of a scan."""
    return f"{scan}_desc-preproc_T1w.nii.gz"


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
    config = load_config(source)
    make_absolute(config)
    out_dir = Path(config["out_dir"])
    if main:
        prepare(config, out_dir)
    study = Study.read(config, out_dir)
    if main:
        study.write_lists()
        study.write_network_lists()
    return study


def prepare(config: Config, out_dir: Path) -> None:
    """Bring the cohort's tables up to date: demo cohort, index, frozen members, label atlases, training targets, batches."""
    import yaml

    from popatlas.cohort.freeze import freeze_atlas_members, freeze_label_atlases
    from popatlas.cohort.index import index_cohort
    from popatlas.cohort.ledger import failed_scans
    from popatlas.cohort.names import freeze_label_names
    from popatlas.cohort.targets import freeze_targets
    from popatlas.cohort.training import freeze_network

    simulate_if_missing(config)
    index = index_cohort(config, out_dir)
    write_if_changed(out_dir / "cohort" / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    failed = failed_scans(out_dir)[""]
    usable = [scan for scan in index.loc[index["state"] == "ok", "scan"] if scan not in failed]
    own = set(index.loc[index["role"] == "cohort", "scan"])
    if config["atlas"]["template"] is None:
        freeze_atlas_members(config, index, [scan for scan in usable if scan in own], out_dir)
    atlases = freeze_label_atlases(config, index, usable, out_dir)
    freeze_label_names(config, atlases["dseg"], sorted(own), out_dir)
    freeze_targets(config, index, usable, atlases, out_dir)
    freeze_network(config, index, usable, atlases, out_dir)
    batches(usable, config["preprocess"]["brain"]["batch"], out_dir, brain_folder(config))
    if config["register"]["engine"] == "network":
        through = set(atlases["atlas"]) if config["fuse"]["through"] == "template" else set()
        form_predictions(config, [scan for scan in usable if scan in own | through], out_dir)


def form_predictions(config: Config, usable: Sequence[str], out_dir: Path) -> None:
    """Bring the batches of predictions up to date; what the ladder has registered is not predicted again."""
    from popatlas.cohort.freeze import read_members, template_version
    from popatlas.cohort.outputs import stage_outputs

    members = read_members(config, out_dir)
    size, receipts = config["register"]["network"]["batch"], prediction_folder(config, template_version(members, config))
    patterns = stage_outputs(config, labelled=False)["register"]
    done = {scan for scan in usable if all((out_dir / pattern.format(scan=scan)).is_file() for pattern in patterns)}
    batches(usable, size, out_dir, receipts, table=PREDICTIONS, settled=done)
    batches(list(members["scan"]), size, out_dir, table=MEMBERS)


def brain_folder(config: Config) -> str:
    """Return the folder of the raw brain masks: one for each method, so that none is taken for another's."""
    return f"work/brain/{config['preprocess']['brain']['method']}"


def simulate_if_missing(config: Config) -> None:
    """Draw the demo cohort when the configuration points at its default place and nothing is there."""
    demo = Path(default_config()["bids_dir"]).resolve()
    bids_dir = Path(config["bids_dir"])
    if config["simulate"]["enabled"] and bids_dir == demo and not bids_dir.exists():
        from popatlas.images.simulate import simulate_cohort

        simulate_cohort(bids_dir, subjects=config["simulate"]["subjects"], seed=config["simulate"]["seed"])


@dataclass(frozen=True)
class Study(FusionStudy, TrainStudy):
    """Everything that the rules ask about the cohort; paths are relative to `out_dir` unless they are inputs."""

    config: Config
    out_dir: Path
    images: dict[str, str]
    channels: dict[str, dict[str, str]]
    unaligned: frozenset[str]
    undrawn: frozenset[str]
    own: tuple[str, ...]
    members: tuple[str, ...]
    version: str
    atlases: dict[str, str]
    trainings: dict[str, Training]
    network: NetworkTraining | None
    unbenched: frozenset[str]
    brain_batches: Batches
    rungs: dict[str, str]
    predictions: str
    prediction_batches: Batches
    member_batches: dict[str, int]

    @classmethod
    def read(cls, config: Config, out_dir: Path) -> Study:
        """Read the tables that `prepare` wrote; scans in the list of failures are left out."""
        from popatlas.cohort.freeze import (
            read_label_atlases,
            read_members,
            template_version,
        )
        from popatlas.cohort.ledger import failed_scans

        index = read_table(out_dir / "cohort" / "index.parquet")
        failed = failed_scans(out_dir)
        usable = index[(index["state"] == "ok") & ~index["scan"].isin(failed[""])]
        members = read_members(config, out_dir)
        version = template_version(members, config)
        presets = {config["register"]["preset"], *config["atlas"]["presets"]}
        alive = set(usable["scan"])
        labelled = {row["atlas"]: row["dseg"] for row in read_label_atlases(out_dir).to_dict("records")}
        atlases = {atlas: dseg for atlas, dseg in labelled.items() if atlas in alive}
        return cls(
            config=config,
            out_dir=out_dir,
            images=dict(zip(usable["scan"], usable["t1w"], strict=True)),
            channels={row["scan"]: json.loads(row["channels"] or "{}") for row in usable.to_dict("records")},
            unaligned=frozenset(failed["channel"]),
            undrawn=frozenset(failed["page"]),
            own=tuple(usable.loc[usable["role"] == "cohort", "scan"]),
            members=tuple(members["scan"]),
            version=version,
            atlases=atlases,
            trainings=read_trainings(config, out_dir) if atlases else {},
            network=read_network(config, out_dir),
            unbenched=frozenset(failed["bench"]),
            brain_batches=Batches.read(out_dir, BRAINS, conformed("{scan}"), alive),
            rungs={preset: json.dumps(registration_settings(config, preset)) for preset in presets},
            predictions=prediction_folder(config, version),
            prediction_batches=Batches.read(out_dir, PREDICTIONS, BRAIN, alive),
            member_batches=read_batches(out_dir, MEMBERS),
        )

    # Names and options

    def as_json(self, *keys: str) -> str:
        """Return a section of the configuration as JSON, for a step's dict input."""
        section: Any = self.config
        for key in keys:
            section = section[key]
        return json.dumps(section)

    def iteration_preset(self, iteration: int) -> str:
        """Return the name of the preset of a template iteration."""
        return iteration_preset(self.config, iteration)

    # Index and preprocessing

    def raw_image(self, wildcards: Wildcards) -> str:
        """Return the T1w image of a scan."""
        return self.images[wildcards.scan]

    def channel_image(self, wildcards: Wildcards) -> str:
        """Return an extra channel of a scan."""
        return self.channels[wildcards.scan][wildcards.channel]

    @property
    def brain_folder(self) -> str:
        """Folder of the raw brain masks."""
        return brain_folder(self.config)

    def batch_scans(self, wildcards: Wildcards) -> list[str]:
        """Return the scans of a batch of brain extraction."""
        return self.brain_batches.scans(int(wildcards.batch))

    def batch_images(self, wildcards: Wildcards) -> list[str]:
        """Return the conformed images of a batch."""
        return self.brain_batches.files(int(wildcards.batch), conformed("{scan}"))

    def batch_masks(self, wildcards: Wildcards) -> list[str]:
        """Return the raw masks that a batch writes."""
        return [f"{self.brain_folder}/{scan}_mask.nii.gz" for scan in self.batch_scans(wildcards)]

    def brain_evidence(self, wildcards: Wildcards) -> str:
        """Return the file that tells that the raw mask of a scan has been made."""
        if self.config["preprocess"]["brain"]["method"] == "template":
            return f"{self.brain_folder}/{wildcards.scan}_mask.nii.gz"
        return f"{self.brain_folder}/batch-{self.brain_batches.of[wildcards.scan]}.json"

    # Atlas

    def member_files(self, pattern: str) -> list[str]:
        """Return one path per member from a pattern with `{scan}`."""
        return [pattern.format(scan=scan) for scan in self.members]

    def previous_template(self, wildcards: Wildcards) -> str:
        """Return the template that an iteration registers to."""
        return f"{self.build_folder}/iter-{int(wildcards.iteration) - 1}/template_T1w.nii.gz"

    def previous_mask(self, wildcards: Wildcards) -> str:
        """Return the mask of the template that an iteration registers to."""
        return f"{self.build_folder}/iter-{int(wildcards.iteration) - 1}/template_mask.nii.gz"

    def iteration_rung(self, wildcards: Wildcards) -> str:
        """Return how a registration of an iteration is tried first, as JSON."""
        return self.rung(self.iteration_preset(int(wildcards.iteration)))

    def template_sources(self) -> dict[str, Any]:
        """Return the inputs of the published template: the last iteration, or an existing template."""
        existing = self.config["atlas"]["template"]
        if existing is not None:
            given, mask = Path(existing).resolve(), mask_beside(existing)
            return {"template": str(given)} | ({"mask": str(mask)} if mask else {})
        last = self.config["atlas"]["iterations"]
        return {
            "template": f"{self.build_folder}/iter-{last}/template_T1w.nii.gz",
            "mask": f"{self.build_folder}/iter-{last}/template_mask.nii.gz",
            "rows": [f"{self.build_folder}/iter-{number}/convergence.json" for number in range(1, last + 1)],
            "members": f"cohort/atlas-{self.label}.tsv",
        }

    def template_options(self, wildcards: Wildcards, input: Any) -> str:
        """Return DescribeTemplate's options: an existing template has no members, and a mask only where one is given."""
        name = f"--label {self.label} --version {self.version}"
        given = f"{name} --in_mask {shlex.quote(input.mask)}" if hasattr(input, "mask") else name
        if self.config["atlas"]["template"] is not None:
            return given
        return f"{given} --in_rows {shlex.join(input.rows)} --in_members {shlex.quote(input.members)}"

    # Measures and targets

    def input_file(self, section: str, key: str, scan: str) -> str | None:
        """Return the file that a pattern of the configuration names for a scan, None when it does not exist."""
        from popatlas.cohort.freeze import resolve_pattern

        pattern = self.config[section][key]
        path = resolve_pattern(pattern, scan, Path(self.config["bids_dir"])) if pattern else None
        return str(path) if path is not None and path.is_file() else None

    def reference_files(self, wildcards: Wildcards) -> list[str]:
        """Return the reference labels and landmarks of a scan that exist."""
        found = (self.input_file("measure", key, wildcards.scan) for key in ("reference", "landmarks"))
        return [path for path in found if path]

    def reference_options(self, wildcards: Wildcards) -> str:
        """Return MeasureScan's options for reference labels and landmarks that exist."""
        named = {
            "--in_reference": self.input_file("measure", "reference", wildcards.scan),
            "--in_landmarks": self.input_file("measure", "landmarks", wildcards.scan),
        }
        return " ".join(f"{option} {shlex.quote(path)}" for option, path in named.items() if path)

    @staticmethod
    def option(name: str, values: list[str]) -> str:
        """Return an option with quoted values, nothing when there are none."""
        return f"{name} {shlex.join(values)}" if values else ""

    def template_column(self) -> str:
        """Return the tables' template column, name and version."""
        return f"{self.label}@{self.version}"

    def measured_tables(self) -> list[str]:
        """Return the metrics table of every scan of the cohort that is not failed."""
        return [f"{scan}_desc-metrics_table.tsv" for scan in self.own]

    def preprocess_targets(self) -> list[str]:
        """Return the brains of every scan, external atlases too."""
        return [f"{scan}_desc-brain_T1w.nii.gz" for scan in self.images]

    def thumbnails(self) -> list[str]:
        """Return the montage picture of every scan of the cohort that is not failed; the report does without some."""
        return [f"report/thumbnails/{scan}.png" for scan in self.own if scan not in self.undrawn]

    def subject_page(self, scan: str) -> str:
        """Return the QC page of a scan."""
        return f"report/subjects/{scan.rsplit('/', 1)[-1]}.html"

    def scan_targets(self) -> list[str]:
        """Return the last per-scan results."""
        aligned = [scan for scan in self.own if scan not in self.unaligned]
        extra = [f"{scan}_space-T1w_desc-preproc_{channel}.nii.gz" for scan in aligned for channel in self.channels[scan]]
        return [*self.measured_tables(), *self.thumbnails(), *extra]

    def parts(self) -> dict[str, list[str]]:
        """Return the parts of the pipeline that can be asked for by name.

        preprocess: brains of every scan, before the members of the template are frozen. subjects: per-scan results of every
        scan that is not failed, excluded or unavailable. segmentations: labels by the trained network. networks: the
        registration network that is trained on the cohort. fusion_bench: the comparison of the fusion methods.
        """
        return {
            "preprocess": self.preprocess_targets(),
            "segmentations": self.segmentations(),
            "subjects": self.scan_targets(),
            "networks": self.network_targets(),
            "fusion_bench": self.bench_targets(),
        }

    def group_targets(self) -> list[str]:
        """Return the group tables and the report."""
        return ["group/metrics.parquet", *self.truth_tables(), *self.fusion_targets(), "report/index.html"]

    def truth_tables(self) -> list[str]:
        """Return the table of truth scores when the cohort is a simulated one."""
        return ["group/truth.tsv"] if self.truth_folder() else []

    def truth_folder(self) -> Path | None:
        """Return the folder with a simulated cohort's truth, None when there is none."""
        name = self.config["measure"]["truth"]
        folder = Path(self.config["bids_dir"]) / name if name else None
        return folder if folder is not None and (folder / "simulation.json").is_file() else None
