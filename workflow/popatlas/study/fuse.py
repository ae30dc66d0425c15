"""Fusion as the rules ask for it: candidates of a target, methods, and the weight of each atlas."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from popatlas.cohort.outputs import ATLAS_WEIGHTS, fill
from popatlas.cohort.targets import Training, fusion_settings
from popatlas.config.sections import Config
from popatlas.fusion.methods import MAPS, METHODS, SEGMENTER
from popatlas.manyvalues import FOLDER, values_in
from popatlas.study.rules import Files, Given, Together, Wildcards
from popatlas.study.template import Template

ATLAS_LISTS = f"{FOLDER}/fuse"  # how the names of the lists of labelled atlases begin


@dataclass(frozen=True)
class Fuse:
    """What the rules of fusion ask.

    Attributes
    ----------
    config : dict
        Complete configuration.
    template : Template
        What labels go through.
    own : tuple of str
        Scans of the cohort that have not failed.
    atlases : dict
        Labelled atlas to its labels.
    trainings : dict
        Network to what it is trained on, of those that are wanted.
    """

    config: Config
    template: Template
    own: tuple[str, ...]
    atlases: Mapping[str, str]
    trainings: Mapping[str, Training]

    @property
    def methods(self) -> list[str]:
        """Fusion methods, none when there are no labelled atlases."""
        return list(self.config.fuse.methods) if self.atlases else []

    @property
    def trained_methods(self) -> list[str]:
        """Those for which something is trained first."""
        return [method for method in self.methods if METHODS[method].trained]

    @property
    def untrained_methods(self) -> list[str]:
        """The others."""
        return [method for method in self.methods if not METHODS[method].trained]

    @property
    def all_methods(self) -> list[str]:
        """Everything that labels a scan: the segmenter where there is one, and the fusion methods."""
        # the report draws the last one
        return [*([SEGMENTER] if self.has_segmenter else []), *self.methods]

    @property
    def has_segmenter(self) -> bool:
        """Tell whether a network labels the scans."""
        return SEGMENTER in self.trainings

    # Candidates

    def atlases_for(self, scan: str) -> list[str]:
        """Return the labelled atlases of a target: all but those of its own subject."""
        from popatlas.cohort.freeze import atlases_for

        return atlases_for(scan, list(self.atlases))

    def fused_inputs(self, wildcards: Wildcards) -> dict[str, Files]:
        """Return what the fusion of a target reads: its transforms, and brains and transforms of its atlases."""
        return {
            **self.target_transforms(wildcards),
            "brains": self.atlas_brains(wildcards),
            "warps": self.atlas_warps(wildcards),
            "affines": self.atlas_affines(wildcards),
        }

    def _atlas_patterns(self, scan: str) -> dict[str, str]:
        """Return what the steps read of each atlas of a target, beside its labels, as patterns with `{}` for the atlas."""
        direct = self.config.fuse.through == "direct"
        pair = f"work/pairs/{scan}/from/{{}}"
        stem = f"{pair}_desc" if direct else f"{{}}_from-T1w_to-{self.template.label}_mode-image_desc"
        return {
            "in_brains": "{}_desc-brain_T1w.nii.gz",
            "in_warps": f"{stem}-warp_xfm.nii.gz",
            "in_affines": f"{stem}-affine_xfm.mat",
            "in_gates": f"{pair}_gate.json" if direct else self.template.gate("{}"),
        }

    def _atlas_list(self, scan: str, name: str) -> str:
        """Return the list of a target's atlases, or of their labels: of all, or all but those of one owner."""
        from popatlas.cohort.freeze import owner_of

        is_all = len(self.atlases_for(scan)) == len(self.atlases)
        group = "all" if is_all else f"without-{owner_of(scan).replace('/', '-')}"
        return f"{ATLAS_LISTS}-{group}-{name}.txt"

    def _atlas_option(self, scan: str, name: str) -> str:
        return values_in(self._atlas_list(scan, "names"), self._atlas_patterns(scan)[name])

    def names(self, wildcards: Wildcards) -> str:
        """Return FuseLabels' option for the names of a target's candidates, in their order."""
        return f"--names {values_in(self._atlas_list(wildcards.scan, 'names'))}"

    def atlas_options(self, wildcards: Wildcards) -> str:
        """Return the options of the steps that read the atlases of a target; they stand in lists, for they are many."""
        scan = wildcards.scan
        brains, warps, affines = (self._atlas_option(scan, name) for name in ("in_brains", "in_warps", "in_affines"))
        dsegs, target = values_in(self._atlas_list(scan, "dsegs")), self.target_options(wildcards)
        return f"--in_dsegs {dsegs} --in_brains {brains} --in_warps {warps} --in_affines {affines} {target}"

    def _atlas_lists(self) -> dict[str, list[str]]:
        """Return the lines of the lists of atlases."""
        found: dict[str, list[str]] = {}
        for scan in (*self.own, *self.atlases) if self.methods else ():
            if self._atlas_list(scan, "names") not in found:
                atlases = self.atlases_for(scan)
                found[self._atlas_list(scan, "names")] = atlases
                found[self._atlas_list(scan, "dsegs")] = [self.atlases[atlas] for atlas in atlases]
        return found

    def _atlas_files(self, scan: str, name: str) -> list[str]:
        return [self._atlas_patterns(scan)[name].replace("{}", atlas) for atlas in self.atlases_for(scan)]

    def atlas_brains(self, wildcards: Wildcards) -> list[str]:
        """Return the brain images of a target's atlases."""
        return self._atlas_files(wildcards.scan, "in_brains")

    def atlas_warps(self, wildcards: Wildcards) -> list[str]:
        """Return the forward warps of a target's atlases, to the template or straight to the target."""
        return self._atlas_files(wildcards.scan, "in_warps")

    def atlas_affines(self, wildcards: Wildcards) -> list[str]:
        """Return the forward affines of a target's atlases."""
        return self._atlas_files(wildcards.scan, "in_affines")

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

    def data_parameters_inputs(self, wildcards: Wildcards) -> dict[str, Files]:
        """Return what the method dataparams reads beside the candidates: network, parameters, gates of the atlases."""
        if wildcards.method != "dataparams":
            return {}
        trained = self.trainings["trust"]
        found = {"network": trained.file("network.safetensors"), "parameters": trained.file("parameters.parquet")}
        gates = self._atlas_files(wildcards.scan, "in_gates") if self.config.fuse.dataparams.gate_quality else []
        return found | ({"gates": gates} if gates else {})

    def data_parameters_options(self, wildcards: Wildcards, input: Given) -> str:
        """Return FuseLabels' options for what `data_parameters_inputs` lists."""
        if not hasattr(input, "network"):
            return ""
        options = f"--in_network {shlex.quote(input.network)} --in_parameters {shlex.quote(input.parameters)}"
        gates = f" --in_gates {self._atlas_option(wildcards.scan, 'in_gates')}" if hasattr(input, "gates") else ""
        return f"{options}{gates}"

    def steps(self, jobs: Together, raw_image: Callable[[Wildcards], str]) -> Callable[[Wildcards, int], str]:
        """Return the function of the steps of a job that fuses the labels of a scan by each method that is not trained.

        Parameters
        ----------
        jobs : Together
            The jobs of the study.
        raw_image : callable
            Returns the raw image of a scan, for labels on its grid.
        """

        def options(wildcards: Wildcards, threads: int) -> str:
            scan, line = wildcards.scan, ""
            for rule, names in jobs.run_by("fuse_scan", {"scan": scan}):
                made = {name: fill(path, names) for name, path in jobs.outputs(rule).items()}
                common = f"--subject {shlex.quote(scan)} --threads {threads} {jobs.proof_of(rule, names)}"
                if rule == "labels_to_native":
                    raw = shlex.quote(raw_image(wildcards))
                    line += f" --then LabelsToNative {common} {self._native_options(names, made)} --in_raw {raw}"
                else:
                    line += f" --also FuseLabels {common} {self._fusion_options(wildcards, names['method'], made)}"
            return line.removeprefix(" --also ")

        return options

    def _fusion_options(self, wildcards: Wildcards, method: str, made: Mapping[str, str]) -> str:
        """Return FuseLabels' options for a method that is not trained."""
        called = {"dseg": "file", "trust": "atlas_weights"}
        outputs = " ".join(f"--out_{called.get(name, name)} {shlex.quote(path)}" for name, path in made.items())
        settings, target = json.dumps(fusion_settings(self.config, method)), f"{wildcards.scan}_desc-brain_T1w.nii.gz"
        return (
            f"--method {method} --in_target {shlex.quote(target)} {self.names(wildcards)} {self.atlas_options(wildcards)}"
            f" --settings {shlex.quote(settings)} {outputs}"
        )

    def _native_options(self, names: Mapping[str, str], made: Mapping[str, str]) -> str:
        """Return LabelsToNative's options, but for the raw image."""
        labels = f"{names['scan']}_desc-{names['method']}_dseg.nii.gz"
        return (
            f"--in_labels {shlex.quote(labels)} --out_file {shlex.quote(made['dseg'])}"
            f" --out_description {shlex.quote(made['description'])}"
        )

    def settings(self, wildcards: Wildcards) -> str:
        """Return the settings that a method depends on, as JSON."""
        return json.dumps(fusion_settings(self.config, wildcards.method))

    def gpu(self, wildcards: Wildcards) -> int:
        """Return the GPUs that a method asks for."""
        return int(self.config.fuse.dataparams.gpu) if wildcards.method == "dataparams" else 0

    @staticmethod
    def map_options(wildcards: Wildcards, output: Given) -> str:
        """Return the options for the maps among a job's outputs."""
        # taken from the outputs, so that it is no parameter of the job: without maps nothing is redone
        files = {name: getattr(output, name) for name in MAPS if hasattr(output, name)}
        return " ".join(f"--out_{name} {shlex.quote(str(path))}" for name, path in files.items())

    # Results

    def scan_methods(self, scan: str) -> list[str]:
        """Return what labels a scan; nothing is fused when all atlases are of its own subject."""
        return [method for method in self.all_methods if method == SEGMENTER or self.atlases_for(scan)]

    def labels(self, wildcards: Wildcards) -> list[str]:
        """Return the labels of a scan by all methods."""
        return [f"{wildcards.scan}_desc-{method}_dseg.nii.gz" for method in self.scan_methods(wildcards.scan)]

    def label_options(self, wildcards: Wildcards) -> str:
        """Return MeasureScan's options for the labels of a scan."""
        files, methods = self.labels(wildcards), self.scan_methods(wildcards.scan)
        return f"--in_labels {shlex.join(files)} --methods {shlex.join(methods)}" if files else ""

    def scan_atlas_weights(self) -> list[str]:
        """Return the table of atlas weights of every scan and fusion method."""
        served = [scan for scan in self.own if self.atlases_for(scan)]
        return [f"{scan}_desc-{method}_trust.tsv" for scan in served for method in self.methods]

    def atlas_weights_gates(self) -> list[str]:
        """Return the gates of all scans and of the atlases that are registered to the template."""
        atlases = self.atlases if self.config.fuse.through == "template" else ()
        scans = dict.fromkeys([*self.own, *atlases]) if self.scan_atlas_weights() else ()
        return [self.template.gate(scan) for scan in scans]

    def atlas_weights_tables(self) -> list[str]:
        """Return the cohort's table of atlas weights, where something is fused."""
        return list(ATLAS_WEIGHTS.values()) if self.scan_atlas_weights() else []

    @staticmethod
    def atlas_weights_lists() -> tuple[str, str]:
        """Return the lists of these tables and gates: the files of a large cohort are too many for a command line."""
        return "cohort/trust-tables.txt", "cohort/trust-gates.txt"

    def listed(self) -> dict[str, list[str]]:
        """Return the lines of those lists, of those that have any."""
        found = dict(zip(self.atlas_weights_lists(), (self.scan_atlas_weights(), self.atlas_weights_gates()), strict=True))
        return {path: lines for path, lines in (found | self._atlas_lists()).items() if lines}
