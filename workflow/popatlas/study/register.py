"""The registration stage as the Snakefile sees it: what is tried first, batches of the network engine, resources."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from popatlas.cohort.batches import Batches
from popatlas.cohort.targets import digest_of
from popatlas.config import Config, engine_weights, registration_settings
from popatlas.registration.engines.registry import ENGINES
from popatlas.study.jobs import JobStudy

Wildcards = Any
BRAIN, MASK = "{scan}_desc-brain_T1w.nii.gz", "{scan}_desc-brain_mask.nii.gz"
REFERENCE_MM = (177, 213, 187)  # extent of a template that is built here, see `groupwise.template.reference_brain`
# Megabytes of a registration at 2 mm, refinement included; bytes for each voxel of a pair that is held: images, masks and
# their copies in the voxels of the template, images and fields in those of the network.
REGISTRATION, HELD = 3000, 32


def prediction_folder(config: Config, version: str) -> str:
    """Return the folder of the predictions to a version of the template, relative to the output folder.

    Its name tells weights and preset, and a digest of all that a prediction depends on beside its images. It is empty when
    the engine is none that predicts.
    """
    register = config["register"]
    if register["engine"] != "network":
        return ""
    from popatlas.zoo.store import find_weights

    name, preset = find_weights(register["weights"]).name, register["preset"]
    return f"work/network/{name}-{preset}-{digest_of(registration_settings(config, preset))}/{version}"


def registration_memory(config: Config, pairs: int = 1) -> int:
    """Return the memory that a registration needs, or a batch of predictions, megabytes.

    Parameters
    ----------
    config : dict
        Complete configuration.
    pairs : int
        Pairs whose images are held at the same time. On the CPU they go through the network one by one.
    """
    weights = engine_weights(config["register"], config["register"]["engine"])
    if weights is None:
        return REGISTRATION
    from popatlas.zoo.memory import estimate_from_lock
    from popatlas.zoo.store import find_weights

    entry = find_weights(weights)
    own, spacing = _template(config)
    shape = [math.ceil(n * mm / size) for n, mm, size in zip(own, spacing, entry.input.spacing_mm, strict=True)]
    held = pairs * HELD * (math.prod(own) + math.prod(shape))
    return REGISTRATION + math.ceil((estimate_from_lock(entry, shape) + held) / 1e6)


def _template(config: Config) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the voxels of the template along each axis, and their size, mm."""
    import nibabel as nib

    existing = config["atlas"]["template"]
    if existing is None or not Path(existing).is_file():
        size = float(config["preprocess"]["resolution_mm"])
        return tuple(math.ceil(mm / size) for mm in REFERENCE_MM), (size,) * len(REFERENCE_MM)
    header = nib.load(existing).header
    return tuple(header.get_data_shape()[:3]), tuple(float(size) for size in header.get_zooms()[:3])


class RegisterStudy(JobStudy):
    """Input functions of the rules of registration; `Study` holds what they read."""

    config: Config
    out_dir: Path
    rungs: Mapping[str, str]
    predictions: str
    prediction_batches: Batches
    members: tuple[str, ...]
    member_batches: dict[str, int]
    version: str

    @property
    def label(self) -> str:
        """Name of the template."""
        return str(self.config["atlas"]["label"])

    @property
    def build_folder(self) -> str:
        """Folder of the template's iterations; its name holds the version."""
        return f"work/tpl-{self.label}/{self.version}"

    def gate(self, scan: str) -> str:
        """Return what the gate said of the registration of a scan."""
        return f"{scan}_space-{self.label}_desc-gate_registration.json"

    def step_config(self) -> str:
        """Return the path of the resolved configuration."""
        return "cohort/config.yaml"

    @staticmethod
    def moving_brain(wildcards: Wildcards) -> dict[str, str]:
        """Return the brain of a scan and its mask, which are moved."""
        return {"moving": BRAIN.format(scan=wildcards.scan), "moving_mask": MASK.format(scan=wildcards.scan)}

    def fixed_template(self, wildcards: Wildcards) -> dict[str, str]:
        """Return the final template and its mask."""
        template = f"tpl-{self.label}/tpl-{self.label}"
        return {"fixed": f"{template}_T1w.nii.gz", "fixed_mask": f"{template}_desc-brain_mask.nii.gz"}

    def rung(self, preset: str) -> str:
        """Return how a registration with a preset is tried first, as JSON."""
        return self.rungs[preset]

    @property
    def register_gpu(self) -> int:
        """GPUs of a registration that computes itself what it needs."""
        register = self.config["register"]
        return int(register["gpu"]) if ENGINES[register["engine"]].gpu else 0

    @property
    def predicted_gpu(self) -> int:
        """GPUs of a registration to the template, or while it is built: none when a batch has predicted it."""
        return 0 if self.predictions else self.register_gpu

    def register_memory(self) -> int:
        """Return the memory of a registration, megabytes."""
        return registration_memory(self.config)

    # Predictions

    def prediction_memory(self) -> int:
        """Return the memory of a batch of predictions, megabytes."""
        return registration_memory(self.config, self.config["register"]["network"]["batch"])

    def prediction_scans(self, wildcards: Wildcards) -> list[str]:
        """Return the scans of a batch of predictions."""
        return self.prediction_batches.scans(int(wildcards.batch))

    def prediction_brains(self, wildcards: Wildcards) -> list[str]:
        """Return the brains of a batch of predictions."""
        return self.prediction_batches.files(int(wildcards.batch), BRAIN)

    def prediction_masks(self, wildcards: Wildcards) -> list[str]:
        """Return the brain masks of a batch of predictions."""
        return self.prediction_batches.files(int(wildcards.batch), MASK)

    def prediction_inputs(self, wildcards: Wildcards) -> dict[str, str]:
        """Return the receipt of the batch that predicts the registration of a scan, nothing when none does."""
        if not self.predictions:
            return {}
        return {"receipt": f"{self.predictions}/batch-{self.prediction_batches.of[wildcards.scan]}.json"}

    def prediction_options(self, wildcards: Wildcards, input: Any) -> str:
        """Return RegisterImages' options for what `prediction_inputs` lists."""
        return self._taken(f"{self.predictions}/{wildcards.scan}", input)

    # Predictions while the template is built: members are frozen, and other members make another folder

    def iteration_folder(self, wildcards: Wildcards) -> str:
        """Return the folder of the predictions to the template of the iteration before."""
        return f"{self.build_folder}/iter-{wildcards.iteration}/predictions"

    def iteration_scans(self, wildcards: Wildcards) -> list[str]:
        """Return the members of a batch."""
        return [scan for scan in self.members if self.member_batches[scan] == int(wildcards.batch)]

    def iteration_brains(self, wildcards: Wildcards) -> list[str]:
        """Return the brains of the members of a batch."""
        return [BRAIN.format(scan=scan) for scan in self.iteration_scans(wildcards)]

    def iteration_masks(self, wildcards: Wildcards) -> list[str]:
        """Return the brain masks of the members of a batch."""
        return [MASK.format(scan=scan) for scan in self.iteration_scans(wildcards)]

    def iteration_inputs(self, wildcards: Wildcards) -> dict[str, str]:
        """Return the receipt of the batch that predicts the registration of a member, nothing when none does."""
        if not self.predictions:
            return {}
        return {"receipt": f"{self.iteration_folder(wildcards)}/batch-{self.member_batches[wildcards.scan]}.json"}

    def iteration_options(self, wildcards: Wildcards, input: Any) -> str:
        """Return RegisterImages' options: the configuration, and what `iteration_inputs` lists."""
        taken = self._taken(f"{self.iteration_folder(wildcards)}/{wildcards.scan}", input)
        return f"--settings {shlex.quote(self.step_config())} {taken}"

    def _taken(self, folder: str, input: Any) -> str:
        if not hasattr(input, "receipt"):
            return ""
        return f"--in_prediction {shlex.quote(folder)} --in_receipt {shlex.quote(str(input.receipt))}"
