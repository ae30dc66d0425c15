"""Registration as the rules ask for it: what is tried first, batches of the network engine, resources."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from popatlas.cohort.batches import Batches
from popatlas.cohort.outputs import DERIVED, fill, made_files
from popatlas.cohort.targets import digest_of
from popatlas.config.attempts import engine_weights, registration_settings
from popatlas.config.sections import Config
from popatlas.registration.engines.registry import ENGINES
from popatlas.study.needs import MARGIN
from popatlas.study.preprocess import BRAIN, MASK
from popatlas.study.rules import Given, Wildcards
from popatlas.study.template import Template
from popatlas.zoo.find import find_weights
from popatlas.zoo.lock import estimate_from_lock

REGISTRATION_RULE = "register_to_template"
REFERENCE_MM = (177, 213, 187)  # extent of a template that is built here, see `groupwise.template.reference_brain`
# Megabytes of a registration at 2 mm by an engine of which no peak was measured; bytes for each voxel of a pair that is
# held: images, masks and their copies in the voxels of the template, images and fields in those of the network.
REGISTRATION, HELD = 3000, 32
# Megabytes of the program and bytes for each voxel of the template, of the engine instance (benchmarks/cost.py)
PROGRAM, VOXEL = 720, 275
QUICK = ("instance", "network")  # engines that take a minute at 1 mm; the others take many


def prediction_folder(config: Config, version: str) -> str:
    """Return the folder of the predictions to a version of the template, relative to the output folder.

    Its name tells weights and preset, and a digest of all that a prediction depends on beside its images. It is empty when
    the engine is none that predicts.
    """
    register = config.register
    if register.engine != "network":
        return ""
    name, preset = find_weights(register.weights).name, register.preset
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
    weights = engine_weights(config.register, config.register.engine)
    own, spacing = _template(config)
    measured = math.ceil(MARGIN * (PROGRAM + VOXEL * math.prod(own) / 1e6))
    if config.register.engine == "instance":
        return measured
    if weights is None:
        return max(REGISTRATION, measured)
    entry = find_weights(weights)
    shape = [math.ceil(n * mm / size) for n, mm, size in zip(own, spacing, entry.input.spacing_mm, strict=True)]
    held = pairs * HELD * (math.prod(own) + math.prod(shape))
    return max(REGISTRATION, measured) + math.ceil((estimate_from_lock(entry, shape) + held) / 1e6)


def _template(config: Config) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the voxels of the template along each axis, and their size, mm."""
    import nibabel as nib

    existing = config.atlas.template
    if existing is None or not Path(existing).is_file():
        size = float(config.preprocess.resolution_mm)
        return tuple(math.ceil(mm / size) for mm in REFERENCE_MM), (size,) * len(REFERENCE_MM)
    header = nib.load(existing).header
    return tuple(header.get_data_shape()[:3]), tuple(float(size) for size in header.get_zooms()[:3])


def template_voxels(config: Config) -> float:
    """Return the millions of voxels of the template."""
    return math.prod(_template(config)[0]) / 1e6


def prediction_list(number: int, named: Callable[[int, str], str]) -> str:
    """Return PredictDeformations' options for the scans of a batch.

    Parameters
    ----------
    number : int
        Batch.
    named : callable
        Returns what stands in a command for a file of each of its scans, by its pattern.
    """
    return f"--scans {named(number, '')} --in_brains {named(number, BRAIN)} --in_masks {named(number, MASK)}"


def prediction_option(folder: str, input: Given) -> str:
    """Return RegisterImages' options for what a batch has left in a folder; nothing where the job has no batch record."""
    if not hasattr(input, "batch_record"):
        return ""
    return f"--in_prediction {shlex.quote(folder)} --in_batch_record {shlex.quote(str(input.batch_record))}"


@dataclass(frozen=True)
class Register:
    """What the rules of registration ask.

    Attributes
    ----------
    config : dict
        Complete configuration.
    template : Template
        What the scans are registered to.
    attempts : dict
        Preset to how a registration with it is tried first, as JSON.
    predictions : str
        Folder of the predictions to the template; empty where nothing is predicted.
    batches : Batches
        Of predictions.
    """

    config: Config
    template: Template
    attempts: Mapping[str, str]
    predictions: str
    batches: Batches

    @staticmethod
    def moving_brain(wildcards: Wildcards) -> dict[str, str]:
        """Return the brain of a scan and its mask, which are moved."""
        return {"moving": BRAIN.format(scan=wildcards.scan), "moving_mask": MASK.format(scan=wildcards.scan)}

    def fixed_template(self, wildcards: Wildcards) -> dict[str, str]:
        """Return the final template and its mask."""
        return self.template.files

    @property
    def attempt(self) -> str:
        """How a registration is tried first, as JSON."""
        return self.attempts[self.config.register.preset]

    @property
    def gpu(self) -> int:
        """GPUs of a registration that computes itself what it needs."""
        register = self.config.register
        return int(register.gpu) if ENGINES[register.engine].gpu else 0

    @property
    def predicted_gpu(self) -> int:
        """GPUs of a registration to the template, or while it is built: none when a batch has predicted it."""
        return 0 if self.predictions else self.gpu

    def composed_options(self, wildcards: Wildcards) -> str:
        """Return RegisterImages' options for the fields that follow from others, where they are kept."""
        made = made_files(self.config, REGISTRATION_RULE)
        names = {"label": self.template.label, "scan": wildcards.scan}
        return " ".join(
            f"--out_{name} {shlex.quote(fill(made[name], names))}" for name in DERIVED[REGISTRATION_RULE] if name in made
        )

    def memory(self) -> int:
        """Return the memory of a registration, megabytes."""
        return registration_memory(self.config)

    def minutes(self) -> int:
        """Return the minutes that are asked for a registration with all its fallbacks, many times what was measured."""
        voxels = math.prod(_template(self.config)[0]) / 1e6
        return math.ceil((1 if self.config.register.engine in QUICK else 4) * (30 + 8 * voxels))

    def template_voxels(self) -> float:
        """Return the millions of voxels of the template."""
        return template_voxels(self.config)

    # Predictions

    def prediction_memory(self) -> int:
        """Return the memory of a batch of predictions, megabytes."""
        return registration_memory(self.config, self.config.register.network.batch)

    def prediction_list(self, wildcards: Wildcards) -> str:
        """Return PredictDeformations' options for the scans of a batch."""
        return prediction_list(int(wildcards.batch), self.batches.named)

    def prediction_brains(self, wildcards: Wildcards) -> dict[str, list[str]]:
        """Return the brains of a batch of predictions, and their masks."""
        number = int(wildcards.batch)
        return {"brains": self.batches.files(number, BRAIN), "masks": self.batches.files(number, MASK)}

    def prediction_inputs(self, wildcards: Wildcards) -> dict[str, str]:
        """Return the record of the batch that predicts the registration of a scan, nothing when none does."""
        if not self.predictions:
            return {}
        return {"batch_record": f"{self.predictions}/batch-{self.batches.of[wildcards.scan]}.json"}

    def prediction_options(self, wildcards: Wildcards, input: Given) -> str:
        """Return RegisterImages' options for what `prediction_inputs` lists."""
        return prediction_option(f"{self.predictions}/{wildcards.scan}", input)
