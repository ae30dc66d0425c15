"""A study as the Snakefile sees it: the indexed cohort, the frozen atlas members, and the rules' input functions.

Opening a study is the only place where the cohort's tables are read for the DAG. The main process indexes and freezes;
the jobs that Snakemake starts read what it wrote.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popatlas.config import Config, default_config, iteration_preset, load_config, make_absolute
from popatlas.images.io import read_table, write_if_changed

Wildcards = Any
# A scan key as a wildcard: sub-01/anat/sub-01 or sub-01/ses-1/anat/sub-01_ses-1, external atlases under atlases/
SCAN_PATTERN = r"(?:atlases/)?sub-[0-9A-Za-z]+(?:/ses-[0-9A-Za-z]+)?/anat/sub-[0-9A-Za-z]+(?:_ses-[0-9A-Za-z]+)?"


def growing(megabytes: int) -> Callable[[Wildcards, int], int]:
    """Return a `mem_mb` function: `megabytes` at the first attempt, twice at the second, and so on."""

    def memory(wildcards: Wildcards, attempt: int) -> int:
        return megabytes * attempt

    return memory


def open_study(source: Mapping[str, Any], *, main: bool) -> Study:
    """Open the study that a configuration describes.

    Parameters
    ----------
    source : mapping
        Configuration, complete or not.
    main : bool
        True in the process that the user started: it simulates the demo cohort when that is asked for, indexes the
        dataset, and freezes atlas members. False in the jobs, which only read.

    Returns
    -------
    Study
    """
    config = load_config(source)
    make_absolute(config)
    out_dir = Path(config["out_dir"])
    if main:
        prepare(config, out_dir)
    return Study.read(config, out_dir)


def prepare(config: Config, out_dir: Path) -> None:
    """Bring the cohort's tables up to date: demo cohort, index, frozen atlas members, label atlases, batches."""
    import yaml

    from popatlas.cohort.freeze import batches, freeze_atlas_members, freeze_label_atlases
    from popatlas.cohort.index import index_cohort
    from popatlas.cohort.ledger import read_failures

    simulate_if_missing(config)
    index = index_cohort(config, out_dir)
    write_if_changed(out_dir / "cohort" / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    failed = {row["scan"] for row in read_failures(out_dir).to_dict("records")}
    usable = [scan for scan in index.loc[index["state"] == "ok", "scan"] if scan not in failed]
    own = set(index.loc[index["role"] == "cohort", "scan"])
    if config["atlas"]["template"] is None:
        freeze_atlas_members(config, index, [scan for scan in usable if scan in own], out_dir)
    freeze_label_atlases(config, index, usable, out_dir)
    batches(usable, config["preprocess"]["brain"]["batch"], out_dir)


def simulate_if_missing(config: Config) -> None:
    """Draw the demo cohort when the configuration points at its default place and nothing is there."""
    demo = Path(default_config()["bids_dir"]).resolve()
    bids_dir = Path(config["bids_dir"])
    if config["simulate"]["enabled"] and bids_dir == demo and not bids_dir.exists():
        from popatlas.images.simulate import simulate_cohort

        simulate_cohort(bids_dir, subjects=config["simulate"]["subjects"], seed=config["simulate"]["seed"])


@dataclass(frozen=True)
class Study:
    """Everything that the rules ask about the cohort; paths are relative to `out_dir` unless they are inputs."""

    config: Config
    out_dir: Path
    images: dict[str, str]
    channels: dict[str, dict[str, str]]
    own: tuple[str, ...]
    members: tuple[str, ...]
    version: str
    atlases: dict[str, str]
    batch_of: dict[str, int] = field(repr=False)

    @classmethod
    def read(cls, config: Config, out_dir: Path) -> Study:
        """Read the tables that `prepare` wrote; scans in the list of failures are left out."""
        from popatlas.cohort.freeze import read_batches, read_label_atlases, read_members, template_version
        from popatlas.cohort.ledger import read_failures

        index = read_table(out_dir / "cohort" / "index.parquet")
        failed = {row["scan"] for row in read_failures(out_dir).to_dict("records")}
        usable = index[(index["state"] == "ok") & ~index["scan"].isin(failed)]
        members = read_members(config, out_dir)
        atlases = read_label_atlases(out_dir)
        alive = set(usable["scan"])
        return cls(
            config=config,
            out_dir=out_dir,
            images=dict(zip(usable["scan"], usable["t1w"], strict=True)),
            channels={row["scan"]: json.loads(row["channels"] or "{}") for row in usable.to_dict("records")},
            own=tuple(usable.loc[usable["role"] == "cohort", "scan"]),
            members=tuple(members["scan"]),
            version=template_version(members, config),
            atlases={row["atlas"]: row["dseg"] for row in atlases.to_dict("records") if row["atlas"] in alive},
            batch_of=read_batches(out_dir),
        )

    # Names and options

    @property
    def label(self) -> str:
        """Name of the template."""
        return str(self.config["atlas"]["label"])

    @property
    def build_folder(self) -> str:
        """Folder of the template's iterations; its name holds the version."""
        return f"work/tpl-{self.label}/{self.version}"

    def as_json(self, *keys: str) -> str:
        """Return a section of the configuration as JSON, for a step's dict input."""
        section: Any = self.config
        for key in keys:
            section = section[key]
        return json.dumps(section)

    def schedule(self, preset: str) -> str:
        """Return a registration preset as JSON."""
        return self.as_json("register", "presets", preset)

    def iteration_preset(self, iteration: int) -> str:
        """Return the name of the preset of a template iteration."""
        return iteration_preset(self.config, iteration)

    def step_config(self) -> str:
        """Return the path of the resolved configuration."""
        return str(self.out_dir / "cohort" / "config.yaml")

    # Index and preprocessing

    def raw_image(self, wildcards: Wildcards) -> str:
        """Return the T1w image of a scan."""
        return self.images[wildcards.scan]

    def channel_image(self, wildcards: Wildcards) -> str:
        """Return an extra channel of a scan."""
        return self.channels[wildcards.scan][wildcards.channel]

    def batch_scans(self, wildcards: Wildcards) -> list[str]:
        """Return the scans of a batch."""
        number = int(wildcards.batch)
        return [scan for scan, batch in self.batch_of.items() if batch == number and scan in self.images]

    def batch_images(self, wildcards: Wildcards) -> list[str]:
        """Return the conformed images of a batch."""
        return [f"{scan}_desc-preproc_T1w.nii.gz" for scan in self.batch_scans(wildcards)]

    def batch_masks(self, wildcards: Wildcards) -> list[str]:
        """Return the raw masks that a batch writes."""
        return [f"work/brain/{scan}_mask.nii.gz" for scan in self.batch_scans(wildcards)]

    def brain_evidence(self, wildcards: Wildcards) -> str:
        """Return the file that tells that the raw mask of a scan has been made."""
        if self.config["preprocess"]["brain"]["method"] == "template":
            return f"work/brain/{wildcards.scan}_mask.nii.gz"
        return f"work/brain/batch-{self.batch_of[wildcards.scan]}.json"

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

    def iteration_schedule(self, wildcards: Wildcards) -> str:
        """Return the preset of an iteration as JSON."""
        return self.schedule(self.iteration_preset(int(wildcards.iteration)))

    def template_sources(self) -> dict[str, Any]:
        """Return the inputs of the published template: the last iteration, or an existing template."""
        existing = self.config["atlas"]["template"]
        if existing is not None:
            return {"template": str(Path(existing).resolve())}
        last = self.config["atlas"]["iterations"]
        return {
            "template": f"{self.build_folder}/iter-{last}/template_T1w.nii.gz",
            "mask": f"{self.build_folder}/iter-{last}/template_mask.nii.gz",
            "rows": [f"{self.build_folder}/iter-{number}/convergence.json" for number in range(1, last + 1)],
            "members": f"cohort/atlas-{self.label}.tsv",
        }

    def template_options(self, wildcards: Wildcards, input: Any) -> str:
        """Return the options of DescribeTemplate that a built template has and an existing one lacks."""
        if self.config["atlas"]["template"] is not None:
            return ""
        return (
            f"--in_mask {shlex.quote(input.mask)} --in_rows {shlex.join(input.rows)}"
            f" --in_members {shlex.quote(input.members)}"
        )

    # Fusion

    @property
    def methods(self) -> list[str]:
        """Fusion methods, none when there are no labelled atlases."""
        return list(self.config["fuse"]["methods"]) if self.atlases else []

    def atlases_for(self, scan: str) -> list[str]:
        """Return the labelled atlases of a target: all but those of its own subject."""
        from popatlas.cohort.freeze import atlases_for

        return atlases_for(scan, list(self.atlases))

    def atlas_labels(self, wildcards: Wildcards) -> list[str]:
        """Return the label images of a target's atlases."""
        return [self.atlases[atlas] for atlas in self.atlases_for(wildcards.scan)]

    def atlas_brains(self, wildcards: Wildcards) -> list[str]:
        """Return the brain images of a target's atlases."""
        return [f"{atlas}_desc-brain_T1w.nii.gz" for atlas in self.atlases_for(wildcards.scan)]

    def atlas_warps(self, wildcards: Wildcards) -> list[str]:
        """Return the forward warps of a target's atlases, to the template or straight to the target."""
        return [f"{stem}-warp_xfm.nii.gz" for stem in self._atlas_stems(wildcards.scan)]

    def atlas_affines(self, wildcards: Wildcards) -> list[str]:
        """Return the forward affines of a target's atlases."""
        return [f"{stem}-affine_xfm.mat" for stem in self._atlas_stems(wildcards.scan)]

    def _atlas_stems(self, scan: str) -> list[str]:
        if self.config["fuse"]["through"] == "direct":
            return [f"work/pairs/{scan}/from/{atlas}_desc" for atlas in self.atlases_for(scan)]
        return [f"{atlas}_from-T1w_to-{self.label}_mode-image_desc" for atlas in self.atlases_for(scan)]

    def target_transforms(self, wildcards: Wildcards) -> dict[str, str]:
        """Return the target's own transforms when labels go through the template, nothing when they go directly."""
        if self.config["fuse"]["through"] == "direct":
            return {}
        scan, label = wildcards.scan, self.label
        return {
            "target_affine": f"{scan}_from-T1w_to-{label}_mode-image_desc-affine_xfm.mat",
            "target_inverse_warp": f"{scan}_from-{label}_to-T1w_mode-image_desc-warp_xfm.nii.gz",
        }

    def target_options(self, wildcards: Wildcards) -> str:
        """Return PropagateLabels' options for the target's own transforms."""
        return " ".join(f"--in_{name} {shlex.quote(path)}" for name, path in self.target_transforms(wildcards).items())

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

    def fused_labels(self, wildcards: Wildcards) -> list[str]:
        """Return the fused labels of a scan; none when all atlases are of its own subject."""
        methods = self.methods if self.atlases_for(wildcards.scan) else []
        return [f"{wildcards.scan}_desc-{method}_dseg.nii.gz" for method in methods]

    def label_options(self, wildcards: Wildcards) -> str:
        """Return MeasureScan's options for the fused labels of a scan."""
        files = self.fused_labels(wildcards)
        names = self.methods if files else []
        return f"{self.option('--in_labels', files)} {self.option('--methods', names)}".strip()

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
        """Return the montage picture of every scan of the cohort that is not failed."""
        return [f"report/thumbnails/{scan}.png" for scan in self.own]

    def subject_page(self, scan: str) -> str:
        """Return the QC page of a scan."""
        return f"report/subjects/{scan.rsplit('/', 1)[-1]}.html"

    def scan_targets(self) -> list[str]:
        """Return the last per-scan results."""
        extra = [f"{scan}_space-T1w_desc-preproc_{channel}.nii.gz" for scan in self.own for channel in self.channels[scan]]
        return [*self.measured_tables(), *self.thumbnails(), *extra]

    def group_targets(self) -> list[str]:
        """Return the group tables and the report."""
        return ["group/metrics.parquet", *self.truth_tables(), "report/index.html"]

    def truth_tables(self) -> list[str]:
        """Return the table of truth scores when the cohort is a simulated one."""
        return ["group/truth.tsv"] if self.truth_folder() else []

    def truth_folder(self) -> Path | None:
        """Return the folder with a simulated cohort's truth, None when there is none."""
        name = self.config["measure"]["truth"]
        folder = Path(self.config["bids_dir"]) / name if name else None
        return folder if folder is not None and (folder / "simulation.json").is_file() else None
