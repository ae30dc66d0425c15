"""The atlas as the rules ask for it: iterations of the template, their predictions, and what is published."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from popatlas.cohort.batches import MEMBERS, batch_list
from popatlas.cohort.outputs import CLASSES, fill
from popatlas.config.attempts import iteration_preset
from popatlas.config.sections import Config
from popatlas.images.io import mask_beside
from popatlas.manyvalues import values_in
from popatlas.settings import as_content
from popatlas.study.preprocess import BRAIN, MASK
from popatlas.study.register import prediction_list, prediction_option
from popatlas.study.rules import SETTINGS, Files, Given, Wildcards
from popatlas.study.template import Template

# what an average reads of each member, and how these files end
AVERAGED = {"images": "T1w.nii.gz", "masks": "mask.nii.gz", "affines": "xfm.mat", "warps": "xfm.nii.gz"}


class Iteration(NamedTuple):
    """The wildcard of a job that is of an iteration alone."""

    iteration: str


@dataclass(frozen=True)
class Atlas:
    """What the rules that build or publish the template ask.

    Attributes
    ----------
    config : dict
        Complete configuration.
    template : Template
        Its name and version.
    members : tuple of str
        Frozen members; other members make another version.
    batches : dict
        Member to its batch of predictions; empty where nothing is predicted.
    attempts : dict
        Preset to how a registration with it is tried first, as JSON.
    """

    config: Config
    template: Template
    members: tuple[str, ...]
    batches: Mapping[str, int]
    attempts: Mapping[str, str]

    def attempt(self, iteration: int) -> str:
        """Return how a registration of an iteration is tried first, as JSON."""
        return self.attempts[iteration_preset(self.config, iteration)]

    def iteration_attempt(self, wildcards: Wildcards) -> str:
        """Return how a registration of the iteration of a job is tried first, as JSON."""
        return self.attempt(int(wildcards.iteration))

    def member_files(self, pattern: str) -> list[str]:
        """Return one path per member from a pattern with `{scan}`."""
        return [pattern.format(scan=scan) for scan in self.members]

    def _folder(self, iteration: int) -> str:
        return f"{self.template.build_folder}/iter-{iteration}"

    def _made(self, iteration: int) -> tuple[str, str]:
        """Return the template that an iteration makes, and its mask."""
        return f"{self._folder(iteration)}/template_T1w.nii.gz", f"{self._folder(iteration)}/template_mask.nii.gz"

    def fixed(self, wildcards: Wildcards) -> dict[str, str]:
        """Return the template that an iteration registers to, which is that of the iteration before, and its mask."""
        template, mask = self._made(int(wildcards.iteration) - 1)
        return {"fixed": template, "fixed_mask": mask}

    def averaged(self, wildcards: Wildcards | Iteration) -> dict[str, Files]:
        """Return what the average of an iteration reads: the template before, and what there is of each member."""
        template, mask = self._made(int(wildcards.iteration) - 1)
        folder = self._folder(int(wildcards.iteration))
        moved = {name: self.member_files(f"{folder}/{{scan}}_{end}") for name, end in AVERAGED.items()}
        return {"template": template, "mask": mask, **moved}

    def _listed_files(self) -> dict[str, list[str]]:
        """Return the lists of files of all members that an average reads, by the name of the list."""
        if self.config.atlas.template is not None:
            return {}
        found = {self._list(0, "images"): self.member_files(f"{self._folder(0)}/{{scan}}_T1w.nii.gz")}
        for number in range(1, self.config.atlas.passes + 1):
            files = self.averaged(Iteration(str(number)))
            found |= {self._list(number, name): list(files[name]) for name in AVERAGED}
        if self.config.atlas.is_grouped:
            found |= {self._list(0, name): lines for name, lines in self._group().items()}
        return found

    # The group that is registered at once

    def _group(self) -> dict[str, list[str]]:
        """Return what there is of each member before the group is registered, and the members."""
        aligned = self.member_files(f"{self._folder(0)}/{{scan}}_xfm.mat")
        brains = {"brains": self.member_files(BRAIN), "masks": self.member_files(MASK)}
        return {**brains, "affines": aligned, "scans": list(self.members)}

    def grouped(self, wildcards: Wildcards) -> dict[str, Files]:
        """Return what the registration of the group reads."""
        reference = f"{self.template.build_folder}/reference_T1w.nii.gz"
        files = {name: files for name, files in self._group().items() if name != "scans"}
        return {"reference": reference, **files}

    @property
    def group_options(self) -> str:
        """CoRegisterMembers' options: the members, and how they are registered."""
        lists = {"in_brains": "brains", "in_masks": "masks", "in_affines": "affines", "scans": "scans"}
        options = " ".join(f"--{option} @{self._list(0, name)}" for option, name in lists.items())
        way = json.dumps(as_content(self.config.atlas.xcoreg))
        return f"{options} --options {shlex.quote(way)} --out_folder {self._folder(1)}/predictions"

    def _list(self, iteration: int, name: str) -> str:
        return f"cohort/members-{self.template.label}-{self.template.version}-{iteration}-{name}.txt"

    def listed(self) -> dict[str, list[str]]:
        """Return the lines of these lists: the files of many members are too many for a command line."""
        numbers = {self.batches[scan] for scan in self.members} if self.batches else set()
        found = self._listed_files() | {batch_list(MEMBERS, number): self._batch(number) for number in numbers}
        return {path: lines for path, lines in found.items() if lines}

    @property
    def first_list(self) -> str:
        """List of the members in the pose of the reference."""
        return self._list(0, "images")

    def average_options(self, wildcards: Wildcards) -> str:
        """Return AverageTemplate's options for the members of an iteration."""
        number = int(wildcards.iteration)
        return " ".join(f"--in_{name} @{self._list(number, name)}" for name in AVERAGED)

    # Predictions while the template is built

    def iteration_folder(self, wildcards: Wildcards) -> str:
        """Return the folder of the predictions to the template of the iteration before."""
        return f"{self._folder(int(wildcards.iteration))}/predictions"

    def _batch(self, number: int) -> list[str]:
        return [scan for scan in self.members if self.batches[scan] == number]

    def iteration_list(self, wildcards: Wildcards) -> str:
        """Return PredictDeformations' options for the members of a batch."""
        named = lambda number, pattern: values_in(batch_list(MEMBERS, number), pattern.replace("{scan}", "{}"))  # noqa: E731
        return prediction_list(int(wildcards.batch), named)

    def iteration_brains(self, wildcards: Wildcards) -> dict[str, list[str]]:
        """Return the brains of the members of a batch, and their masks."""
        scans = self._batch(int(wildcards.batch))
        return {
            "brains": [BRAIN.format(scan=scan) for scan in scans],
            "masks": [MASK.format(scan=scan) for scan in scans],
        }

    def iteration_inputs(self, wildcards: Wildcards) -> dict[str, str]:
        """Return the record of the batch that predicts the registration of a member, nothing when none does."""
        if self.config.atlas.is_grouped:
            return {"batch_record": f"{self.iteration_folder(wildcards)}/group.json"}
        if not self.batches:
            return {}
        return {"batch_record": f"{self.iteration_folder(wildcards)}/batch-{self.batches[wildcards.scan]}.json"}

    def iteration_options(self, wildcards: Wildcards, input: Given) -> str:
        """Return RegisterImages' options: the configuration, and what `iteration_inputs` lists."""
        taken = prediction_option(f"{self.iteration_folder(wildcards)}/{wildcards.scan}", input)
        return f"--settings {shlex.quote(SETTINGS)} {taken}"

    # The published template

    def sources(self, wildcards: Wildcards) -> dict[str, Files]:
        """Return the inputs of the published template: the last iteration; nothing for an existing one."""
        if self.config.atlas.template is not None:
            return {}
        last = self.config.atlas.passes
        template, mask = self._made(last)
        return {
            "template": template,
            "mask": mask,
            "rows": [f"{self._folder(number)}/convergence.json" for number in range(1, last + 1)],
            "members": f"cohort/atlas-{self.template.label}.tsv",
            **({"classes": f"{self._folder(0)}/template_probseg.nii.gz"} if self.config.atlas.is_grouped else {}),
        }

    def options(self, wildcards: Wildcards, input: Given) -> str:
        """Return DescribeTemplate's options: an existing template has no members, and a mask only where one is given."""
        name, existing = f"--label {self.template.label} --version {self.template.version}", self.config.atlas.template
        if existing is not None:
            mask = mask_beside(existing)
            given = f"{name} --in_template {shlex.quote(str(Path(existing).resolve()))}"
            return given if mask is None else f"{given} --in_mask {shlex.quote(str(mask))}"
        if not hasattr(input, "template"):  # it is made
            return name
        given = f"{name} --in_template {shlex.quote(input.template)} --in_mask {shlex.quote(input.mask)}"
        given += f" --in_rows {shlex.join(input.rows)} --in_members {shlex.quote(input.members)}"
        if not self.config.atlas.is_grouped:
            return given
        return f"{given} --in_classes {shlex.quote(input.classes)} --out_classes {shlex.quote(self._classes)}"

    @property
    def _classes(self) -> str:
        return fill(CLASSES["classes"], {"label": self.template.label})
