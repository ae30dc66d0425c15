"""The trainings of the fusion stage as the rules ask for them: their files, settings and memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from popatlas.cohort.targets import Training, training_settings
from popatlas.config.sections import Config
from popatlas.study.rules import Named, Wildcards

# Memory of a training: mm^3 of a brain's box, MB of the process itself, MB of a step for each target and million voxels
BRAIN_BOX, PROCESS, STEP = 3.5e6, 3000, 400
# bytes for each voxel of the box: of each target (the segmenter also holds image and labels uncropped), of each of its
# candidates, and of each candidate of the target that is read, uncropped
HELD, CANDIDATE_HELD, CANDIDATE_READ = {"trust": 12, "segmenter": 42}, 2, 40

# CPU seconds of a target in an epoch, and more for each million voxels of its box (phantoms of 0.3 and 1 million, one core);
# what is asked for is many times that, above an hour
SECONDS, SECONDS_VOXELS, MANY, HOUR, LONG, USUAL_VOXELS = 0.4, 1.2, 10, 60, 720, 40_000


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


def training_minutes(targets: int, epochs: int, resolution: float, voxels: int) -> int:
    """Return the minutes that are asked for the training of a network: ten times what it takes on one core of a CPU.

    Parameters
    ----------
    targets, epochs : int
        Training targets, and how often each is seen.
    resolution : float
        Voxel size, mm.
    voxels : int
        Voxels of a target that are looked at in a step; no time was measured for many more than the default.
    """
    millions = BRAIN_BOX / resolution**3 / 1e6
    found = math.ceil(HOUR + MANY * targets * epochs * (SECONDS + SECONDS_VOXELS * millions) / 60)
    return found if voxels <= USUAL_VOXELS else max(found, LONG)


@dataclass(frozen=True)
class Train:
    """What the rules ask that train data parameters (``trust``) and the network that labels scans (``segmenter``).

    Attributes
    ----------
    config : dict
        Complete configuration.
    trainings : dict
        Network to what it is trained on, of those that are wanted.
    atlases : dict
        Labelled atlas to its labels.
    """

    config: Config
    trainings: Mapping[str, Training]
    atlases: Mapping[str, str]

    def file(self, name: str, file: str) -> str:
        """Return a file of a network."""
        return self.trainings[name].file(file)

    def files(self, name: str) -> Named:
        """Return the input function of the training of a network: the files that the workflow makes."""

        def files(wildcards: Wildcards) -> dict[str, list[str]]:
            return {key: found for key, found in self.inputs(name).items() if (name, key) != ("trust", "dsegs")}

        return files

    def inputs(self, name: str) -> dict[str, list[str]]:
        """Return the lists of files that the training of a network reads."""
        targets = self._of_targets(name, "{scan}_desc-brain_T1w.nii.gz")
        if name == "trust":
            labels = self._of_targets(name, "work/fuse/{scan}_candidates_dseg.nii.gz")
            # the atlases' own labels too: a small structure may be lost on the way to all training targets
            return {"labels": labels, "targets": targets, "dsegs": list(dict.fromkeys(self.atlases.values()))}
        method = self.config.fuse.segmenter.labels
        return {"targets": targets, "dsegs": self._of_targets(name, f"{{scan}}_desc-{method}_dseg.nii.gz")}

    def _of_targets(self, name: str, pattern: str) -> list[str]:
        return [pattern.format(scan=scan) for scan in self.trainings[name].scans]

    def lists(self, name: str) -> dict[str, str]:
        """Return the files that list the scans and the inputs of a training."""
        return {key: f"cohort/{name}-training-{key}.txt" for key in ("scans", *self.inputs(name))}

    def listed(self) -> dict[str, list[str]]:
        """Return the lines of those files for all networks."""
        found: dict[str, list[str]] = {}
        for name, training in self.trainings.items():
            inputs = {"scans": list(training.scans), **self.inputs(name)}
            found |= {path: inputs[key] for key, path in self.lists(name).items()}
        return {path: lines for path, lines in found.items() if lines}

    def settings(self, name: str) -> str:
        """Return the settings that the training of a network depends on, as JSON."""
        return json.dumps(training_settings(self.config, name))

    def memory(self, name: str) -> int:
        """Return the memory that the training of a network needs, megabytes."""
        batch = training_settings(self.config, name).get("batch", 1)
        resolution = self.config.preprocess.resolution_mm
        return training_memory(name, len(self.trainings[name].scans), len(self.atlases), resolution, batch)

    def minutes(self, name: str) -> int:
        """Return the minutes that are asked for the training of a network."""
        settings, targets = training_settings(self.config, name), len(self.trainings[name].scans)
        resolution = self.config.preprocess.resolution_mm
        return training_minutes(targets, settings["epochs"], resolution, settings["voxels"])
