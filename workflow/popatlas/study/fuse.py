"""The fusion stage as the Snakefile sees it: candidates, methods, trained networks, trust tables and the bench."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path

from popatlas.cohort.targets import Training, fusion_settings, training_settings
from popatlas.config.sections import Config
from popatlas.fusion.methods import MAPS, SEGMENTER
from popatlas.images.io import write_if_changed
from popatlas.study.jobs import JobStudy
from popatlas.study.rules import Files, Given, Wildcards
from popatlas.study.scans import Scans
from popatlas.study.template import Template

TRUST_TABLES = ("group/trust.parquet", "group/trust.tsv", "group/trust.json", "report/figures/trust.png")
# Memory of a training: mm^3 of a brain's box, MB of the process itself, MB of a step for each target and million voxels
BRAIN_BOX, PROCESS, STEP = 3.5e6, 3000, 400
# bytes for each voxel of the box: of each target (the segmenter also holds image and labels uncropped), of each of its
# candidates, and of each candidate of the target that is read, uncropped
HELD, CANDIDATE_HELD, CANDIDATE_READ = {"trust": 12, "segmenter": 42}, 2, 40
BENCH = ("group/fusion-bench.parquet", "group/fusion-bench.tsv", "group/fusion-bench.json", "report/fusion.html")


def training_memory(name: str, targets: int, atlases: int, resolution: float, batch: int = 1) -> int:
    """Return the memory that the training of a network needs, megabytes.

    Parameters
    ----------
    name : str
        ``trust``, which holds all candidates of all targets, or ``segmenter``, which holds one label image of each.
    targets : int
        Training targets.
    atlases : int
        Candidates of a target.
    resolution : float
        Voxel size, mm.
    batch : int
        Targets in a step.
    """
    millions = BRAIN_BOX / resolution**3 / 1e6
    candidates = atlases if name == "trust" else 0
    held = targets * (HELD[name] + CANDIDATE_HELD * candidates)
    return math.ceil(PROCESS + millions * (STEP * batch + CANDIDATE_READ * candidates + held))


class FusionStudy(JobStudy):
    """Input functions and targets of the rules of fusion; `Study` holds what they read."""

    config: Config
    out_dir: Path
    scans: Scans
    template: Template
    atlases: dict[str, str]
    trainings: dict[str, Training]

    @property
    def fusion_methods(self) -> list[str]:
        """Fusion methods, none when there are no labelled atlases."""
        return list(self.config.fuse.methods) if self.atlases else []

    @property
    def methods(self) -> list[str]:
        """Everything that labels a scan: the segmenter where there is one, and the fusion methods."""
        # the report draws the last one
        return [*([SEGMENTER] if self.has_segmenter else []), *self.fusion_methods]

    @property
    def has_segmenter(self) -> bool:
        """Tell whether a network labels the scans."""
        return SEGMENTER in self.trainings

    # Candidates

    def atlases_for(self, scan: str) -> list[str]:
        """Return the labelled atlases of a target: all but those of its own subject."""
        from popatlas.cohort.freeze import atlases_for

        return atlases_for(scan, list(self.atlases))

    def atlas_names(self, wildcards: Wildcards) -> list[str]:
        """Return the names of a target's candidates, in their order."""
        return self.atlases_for(wildcards.scan)

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
        if self.config.fuse.through == "direct":
            return [f"work/pairs/{scan}/from/{atlas}_desc" for atlas in self.atlases_for(scan)]
        return [f"{atlas}_from-T1w_to-{self.template.label}_mode-image_desc" for atlas in self.atlases_for(scan)]

    def target_transforms(self, wildcards: Wildcards) -> dict[str, str]:
        """Return the target's own transforms when labels go through the template, nothing when they go directly."""
        if self.config.fuse.through == "direct":
            return {}
        scan, label = wildcards.scan, self.template.label
        return {
            "target_affine": f"{scan}_from-T1w_to-{label}_mode-image_desc-affine_xfm.mat",
            "target_inverse_warp": f"{scan}_from-{label}_to-T1w_mode-image_desc-warp_xfm.nii.gz",
        }

    def target_options(self, wildcards: Wildcards) -> str:
        """Return PropagateLabels' options for the target's own transforms."""
        return " ".join(f"--in_{name} {shlex.quote(path)}" for name, path in self.target_transforms(wildcards).items())

    # Fusion

    def trust_inputs(self, wildcards: Wildcards) -> dict[str, Files]:
        """Return what the method dataparams reads beside the candidates: network, parameters, gates of the atlases."""
        if wildcards.method != "dataparams":
            return {}
        trust = self.trainings["trust"]
        found = {"network": trust.file("network.safetensors"), "parameters": trust.file("parameters.parquet")}
        gates = self._atlas_gates(wildcards.scan) if self.config.fuse.dataparams.gate_quality else []
        return found | ({"gates": gates} if gates else {})

    def _atlas_gates(self, scan: str) -> list[str]:
        if self.config.fuse.through == "direct":
            return [f"work/pairs/{scan}/from/{atlas}_gate.json" for atlas in self.atlases_for(scan)]
        return [self.template.gate(atlas) for atlas in self.atlases_for(scan)]

    def trust_options(self, wildcards: Wildcards, input: Given) -> str:
        """Return FuseLabels' options for what `trust_inputs` lists."""
        if not hasattr(input, "network"):
            return ""
        options = f"--in_network {shlex.quote(input.network)} --in_parameters {shlex.quote(input.parameters)}"
        return f"{options} --in_gates {shlex.join(input.gates)}" if hasattr(input, "gates") else options

    def fusion_settings(self, wildcards: Wildcards) -> str:
        """Return the settings that a method depends on, as JSON."""
        return json.dumps(fusion_settings(self.config, wildcards.method))

    def fusion_gpu(self, wildcards: Wildcards) -> int:
        """Return the GPUs that a method asks for."""
        return int(self.config.fuse.dataparams.gpu) if wildcards.method == "dataparams" else 0

    def map_outputs(self, method: str = "{method}", maps: tuple[str, ...] = MAPS) -> dict[str, str]:
        """Return the maps of a method by name, as patterns of a scan; none when they are not wanted."""
        wanted = maps if self.config.fuse.maps else ()
        return {name: f"{{scan}}_desc-{method}_{name}.nii.gz" for name in wanted}

    @staticmethod
    def map_options(wildcards: Wildcards, output: Given) -> str:
        """Return the options for the maps among a job's outputs."""
        # taken from the outputs, so that it is no parameter of the job: without maps nothing is redone
        files = {name: getattr(output, name) for name in MAPS if hasattr(output, name)}
        return " ".join(f"--out_{name} {shlex.quote(str(path))}" for name, path in files.items())

    # Training

    def needs_training(self, name: str) -> bool:
        """Tell whether a network is wanted and not made; once it is, it is an input and no rule makes it."""
        return name in self.trainings and self.job_name(f"train_{name}", {}) not in self.made

    def network_file(self, name: str, file: str) -> str:
        """Return a file of a network."""
        return self.trainings[name].file(file)

    def training_files(self, name: str) -> Callable[[Wildcards], dict[str, list[str]]]:
        """Return the input function of the training of a network: the files that the workflow makes."""

        def files(wildcards: Wildcards) -> dict[str, list[str]]:
            return {key: found for key, found in self.training_inputs(name).items() if (name, key) != ("trust", "dsegs")}

        return files

    def training_inputs(self, name: str) -> dict[str, list[str]]:
        """Return the lists of files that the training of a network reads."""
        targets = self._training_files(name, "{scan}_desc-brain_T1w.nii.gz")
        if name == "trust":
            labels = self._training_files(name, "work/fuse/{scan}_candidates_dseg.nii.gz")
            # the atlases' own labels too: a small structure may be lost on the way to all training targets
            return {"labels": labels, "targets": targets, "dsegs": list(dict.fromkeys(self.atlases.values()))}
        method = self.config.fuse.segmenter.labels
        return {"targets": targets, "dsegs": self._training_files(name, f"{{scan}}_desc-{method}_dseg.nii.gz")}

    def _training_files(self, name: str, pattern: str) -> list[str]:
        return [pattern.format(scan=scan) for scan in self.trainings[name].scans]

    def training_lists(self, name: str) -> dict[str, str]:
        """Return the files that list the scans and the inputs of a training."""
        return {key: f"cohort/{name}-training-{key}.txt" for key in ("scans", *self.training_inputs(name))}

    def training_settings(self, name: str) -> str:
        """Return the settings that the training of a network depends on, as JSON."""
        return json.dumps(training_settings(self.config, name))

    def training_memory(self, name: str) -> int:
        """Return the memory that the training of a network needs, megabytes."""
        batch = training_settings(self.config, name).get("batch", 1)
        resolution = self.config.preprocess.resolution_mm
        return training_memory(name, len(self.trainings[name].scans), len(self.atlases), resolution, batch)

    def segmentations(self) -> list[str]:
        """Return the labels of the segmenter for every scan of the cohort."""
        scans = self.scans.own if self.has_segmenter else ()
        return [f"{scan}_desc-{SEGMENTER}_dseg.nii.gz" for scan in scans]

    # Results

    def scan_methods(self, scan: str) -> list[str]:
        """Return what labels a scan; nothing is fused when all atlases are of its own subject."""
        return [method for method in self.methods if method == SEGMENTER or self.atlases_for(scan)]

    def fused_labels(self, wildcards: Wildcards) -> list[str]:
        """Return the labels of a scan by all methods."""
        return [f"{wildcards.scan}_desc-{method}_dseg.nii.gz" for method in self.scan_methods(wildcards.scan)]

    def label_options(self, wildcards: Wildcards) -> str:
        """Return MeasureScan's options for the labels of a scan."""
        files, methods = self.fused_labels(wildcards), self.scan_methods(wildcards.scan)
        return f"--in_labels {shlex.join(files)} --methods {shlex.join(methods)}" if files else ""

    def scan_trust(self) -> list[str]:
        """Return the trust table of every scan and fusion method."""
        served = [scan for scan in self.scans.own if self.atlases_for(scan)]
        return [f"{scan}_desc-{method}_trust.tsv" for scan in served for method in self.fusion_methods]

    def trust_gates(self) -> list[str]:
        """Return the gates of all scans and of the atlases that are registered to the template."""
        atlases = self.atlases if self.config.fuse.through == "template" else ()
        return [self.template.gate(scan) for scan in dict.fromkeys([*self.scans.own, *atlases])] if self.scan_trust() else []

    def trust_tables(self) -> list[str]:
        """Return the cohort's table of trust, where something is fused."""
        return list(TRUST_TABLES) if self.scan_trust() else []

    @staticmethod
    def trust_lists() -> tuple[str, str]:
        """Return the lists of trust tables and gates: the files of a large cohort are too many for a command line."""
        return "cohort/trust-tables.txt", "cohort/trust-gates.txt"

    def write_lists(self) -> None:
        """Write the lists of files that the jobs read."""
        lists = list(zip(self.trust_lists(), (self.scan_trust(), self.trust_gates()), strict=True))
        for name in filter(self.needs_training, self.trainings):
            inputs = {"scans": list(self.trainings[name].scans), **self.training_inputs(name)}
            lists += [(path, inputs[key]) for key, path in self.training_lists(name).items()]
        for path, lines in lists:
            if lines:
                write_if_changed(self.out_dir / path, "\n".join(lines) + "\n")

    # Bench

    @property
    def bench_scans(self) -> list[str]:
        """Return the labelled atlases that others can label, those that failed at it left out."""
        return [atlas for atlas in self.atlases if atlas not in self.scans.unbenched and self.atlases_for(atlas)]

    def bench_references(self) -> list[str]:
        """Return the own labels of the atlases of the bench."""
        return [self.atlases[atlas] for atlas in self.bench_scans]

    def bench_files(self) -> list[str]:
        """Return what the bench scores: labels, and agreement maps where they are written."""
        kinds = ["dseg", *(["agreement"] if self.config.fuse.maps else [])]
        stems = [f"{scan}_desc-{method}" for scan in self.bench_scans for method in self.fusion_methods]
        return [f"{stem}_{kind}.nii.gz" for stem in stems for kind in kinds]

    def bench_targets(self) -> list[str]:
        """Return the results of the bench, none when there are no two labelled subjects or no methods."""
        return list(BENCH) if self.bench_files() else []

    def fusion_targets(self) -> list[str]:
        """Return the group results of fusion."""
        return [*self.trust_tables(), *(self.bench_targets() if self.config.fuse.bench else [])]
