"""A study as the Snakefile sees it: the indexed cohort, what is frozen, and the rules' input functions.

Opening a study is the only place where the cohort's tables are read for the DAG. The main process indexes and freezes;
the jobs that Snakemake starts read what it wrote.

Snakemake runs what is asked for; what that is follows from the inventory (`popatlas.study.inventory`). A job that is made
asks for no input (`Study.asks`), so that neither times nor lost notes of Snakemake start it again.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from popatlas.cohort.batches import BRAINS, MEMBERS, PREDICTIONS, Batches, read_batches
from popatlas.cohort.digests import Digests
from popatlas.cohort.opened import inspected_digests
from popatlas.cohort.targets import Training, read_trainings
from popatlas.cohort.training import NetworkTraining, read_network
from popatlas.config import Config, iteration_preset, load_config, make_absolute, registration_settings
from popatlas.fusion.methods import METHODS
from popatlas.images.io import mask_beside, read_table
from popatlas.study.fuse import FusionStudy
from popatlas.study.network import TrainStudy
from popatlas.study.prepare import brain_folder, prepare
from popatlas.study.register import BRAIN, prediction_folder

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


# Parts of the pipeline that can be asked for by name. preprocess: brains of every scan, before the members of the template
# are frozen. subjects: per-scan results of every scan that is not failed, excluded or unavailable. segmentations: labels by
# the trained network. networks: the registration network that is trained on the cohort. fusion_bench: the comparison of the
# fusion methods.
PARTS = ("preprocess", "segmentations", "subjects", "networks", "fusion_bench")


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


@dataclass(frozen=True)
class Study(FusionStudy, TrainStudy):
    """Everything that the rules ask about the cohort; paths are relative to `out_dir` unless they are inputs.

    `images` are of all scans that can be read; those that have not failed are `alive`, those of the cohort that have are
    `dead`: nothing is made for them, but what others need of them as atlases. `made` are the names of the jobs that are
    made, `to_make` the files that each part of the pipeline still has to make; the jobs that Snakemake starts know of none.
    """

    config: Config
    out_dir: Path
    images: dict[str, str]
    alive: frozenset[str]
    raw_digests: dict[str, str]
    channels: dict[str, dict[str, str]]
    channel_digests: dict[str, dict[str, str]]
    outside: list[list[str]]
    dead: tuple[str, ...]
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
    digests: Digests = field(repr=False)
    made: frozenset[str] = field(default=frozenset(), repr=False)
    to_make: Mapping[str, list[str]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, config: Config, out_dir: Path) -> Study:
        """Read the tables that `prepare` wrote; scans in the list of failures are left out."""
        from popatlas.cohort.freeze import (
            read_label_atlases,
            read_members,
            template_version,
        )
        from popatlas.cohort.ledger import failed_atlases, failed_scans

        index = read_table(out_dir / "cohort" / "index.parquet")
        failed = failed_scans(out_dir)
        good = index[index["state"] == "ok"]
        usable = good[~good["scan"].isin(failed[""])]
        members = read_members(config, out_dir)
        version = template_version(members, config)
        presets = {config["register"]["preset"], *config["atlas"]["presets"]}
        alive, serving = set(usable["scan"]), set(good["scan"]) - failed_atlases(out_dir)
        channels = {row["scan"]: json.loads(row["channels"] or "{}") for row in good.to_dict("records")}
        cohort = index[index["role"] == "cohort"]
        labelled = {row["atlas"]: row["dseg"] for row in read_label_atlases(out_dir).to_dict("records")}
        atlases = {atlas: dseg for atlas, dseg in labelled.items() if atlas in serving}
        return cls(
            config=config,
            out_dir=out_dir,
            images=dict(zip(good["scan"], good["t1w"], strict=True)),
            alive=frozenset(alive),
            raw_digests=dict(zip(good["scan"], good["sha256"], strict=True)),
            channels=channels,
            channel_digests=_channel_digests(channels, good),
            outside=cohort.loc[~cohort["scan"].isin(alive), ["scan", "state", "reason"]].to_numpy().tolist(),
            dead=tuple(good.loc[~good["scan"].isin(alive) & (good["role"] == "cohort"), "scan"]),
            unaligned=frozenset(failed["channel"]),
            undrawn=frozenset(failed["page"]),
            own=tuple(usable.loc[usable["role"] == "cohort", "scan"]),
            members=tuple(members["scan"]),
            version=version,
            atlases=atlases,
            trainings=read_trainings(config, out_dir) if atlases else {},
            network=read_network(config, out_dir),
            unbenched=frozenset(failed["bench"]),
            brain_batches=Batches.read(out_dir, BRAINS, conformed("{scan}"), serving),
            rungs={preset: json.dumps(registration_settings(config, preset)) for preset in presets},
            predictions=prediction_folder(config, version),
            prediction_batches=Batches.read(out_dir, PREDICTIONS, BRAIN, serving),
            member_batches=read_batches(out_dir, MEMBERS),
            digests=Digests(out_dir),
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

    @cached_property
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

    def averaged(self, wildcards: Wildcards) -> dict[str, list[str]]:
        """Return what the average of an iteration reads of each member."""
        folder = f"{self.build_folder}/iter-{wildcards.iteration}"
        ends = {"images": "T1w.nii.gz", "masks": "mask.nii.gz", "affines": "xfm.mat", "warps": "xfm.nii.gz"}
        return {name: self.member_files(f"{folder}/{{scan}}_{end}") for name, end in ends.items()}

    def template_sources(self, wildcards: Wildcards) -> dict[str, Any]:
        """Return the inputs of the published template: the last iteration; nothing for an existing one."""
        if self.config["atlas"]["template"] is not None:
            return {}
        last = self.config["atlas"]["iterations"]
        return {
            "template": f"{self.build_folder}/iter-{last}/template_T1w.nii.gz",
            "mask": f"{self.build_folder}/iter-{last}/template_mask.nii.gz",
            "rows": [f"{self.build_folder}/iter-{number}/convergence.json" for number in range(1, last + 1)],
            "members": f"cohort/atlas-{self.label}.tsv",
        }

    def template_options(self, wildcards: Wildcards, input: Any) -> str:
        """Return DescribeTemplate's options: an existing template has no members, and a mask only where one is given."""
        name, existing = f"--label {self.label} --version {self.version}", self.config["atlas"]["template"]
        if existing is not None:
            mask = mask_beside(existing)
            given = f"{name} --in_template {shlex.quote(str(Path(existing).resolve()))}"
            return given if mask is None else f"{given} --in_mask {shlex.quote(str(mask))}"
        if not hasattr(input, "template"):  # it is made
            return name
        given = f"{name} --in_template {shlex.quote(input.template)} --in_mask {shlex.quote(input.mask)}"
        return f"{given} --in_rows {shlex.join(input.rows)} --in_members {shlex.quote(input.members)}"

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

        pattern = self.config[section][key]
        path = resolve_pattern(pattern, scan, Path(self.config["bids_dir"])) if pattern else None
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

    def thumbnails(self) -> list[str]:
        """Return the montage picture of every scan of the cohort that is not failed; the report does without some."""
        return [f"report/thumbnails/{scan}.png" for scan in self.own if scan not in self.undrawn]

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
        name = self.config["measure"]["truth"]
        folder = Path(self.config["bids_dir"]) / name if name else None
        return folder if folder is not None and (folder / "simulation.json").is_file() else None


def _channel_digests(channels: Mapping[str, Mapping[str, str]], index: Any) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of the image of each channel of each scan."""
    found = {row["scan"]: inspected_digests(row) for row in index.to_dict("records")}
    return {scan: {channel: found[scan][path] for channel, path in named.items()} for scan, named in channels.items()}
