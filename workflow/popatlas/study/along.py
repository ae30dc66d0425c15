"""Templates along a covariate as the rules ask for them: where they are made, of whom, and what each job needs."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from popatlas.cohort.along import Covariate, covariate_of
from popatlas.cohort.outputs import ALONG, RULES, fill
from popatlas.cohort.participants import read_people
from popatlas.config.sections import Config
from popatlas.errors import InputError
from popatlas.manyvalues import FOLDER, values_in
from popatlas.measures.dictionary import REFERENCE
from popatlas.settings import Content, as_content
from popatlas.study.fuse import Fuse
from popatlas.study.measure import Measure
from popatlas.study.needs import MARGIN
from popatlas.study.preprocess import BRAIN, MASK
from popatlas.study.register import template_voxels
from popatlas.study.rules import Files, Wildcards
from popatlas.study.template import Template

AFFINE = RULES["register_to_template"].files["affine"]
# Megabytes of the program, bytes for each voxel of the template, and for each of them and each scan that takes part: image,
# labels, mask, map, and shares of the structures (benchmarks/cost.py has the engine's own)
PROGRAM, VOXEL, OF_SCAN = 720, 275, 48
MINUTES = 0.3  # for each scan and iteration and million of voxels of the template, many times what was measured


@dataclass(frozen=True)
class Along:
    """What the rules of templates along a covariate ask.

    Attributes
    ----------
    config : dict
        Complete configuration.
    template : Template
        Whose pose and grid they have.
    covariate : Covariate
        Who takes part, and where templates are made.
    method : str
        Whose labels have their volumes told: the last one that labels the scans, else reference; empty where none are there.
    labels : dict
        Scan that may take part to its labels.
    """

    config: Config
    template: Template
    covariate: Covariate
    method: str
    labels: Mapping[str, str]

    @classmethod
    def read(cls, config: Config, out_dir: Path, template: Template, fuse: Fuse, measure: Measure) -> Along:
        """Find out who takes part of the scans that are alive; nobody where they are too few."""
        if config.atlas.along is None:
            return cls(config, template, Covariate(), "", {})
        method, labels = _labels(fuse, measure)
        try:
            covariate = covariate_of(config, read_people(out_dir), labels if method else fuse.own)
        except InputError:  # there were enough in the cohort as a whole, or the main process would have refused it
            covariate = Covariate()
        return cls(config, template, covariate, method, labels)

    @cached_property
    def places(self) -> dict[str, float]:
        """Wildcard `place` to the value of each template; a value that is left out takes no other one's place."""
        numbered = enumerate(self.covariate.wanted, start=1)
        return {str(number): value for number, value in numbered if value not in self.covariate.thin}

    @cached_property
    def _near(self) -> dict[str, list[str]]:
        return {place: list(self.covariate.near(value)) for place, value in self.places.items()}

    def members(self, place: str) -> list[str]:
        """Return the scans that a template is made of, in the order of their values."""
        return self._near[place]

    def _table(self, place: str) -> str:
        return f"{FOLDER}/along-{self.template.label}-{place}.tsv"

    def _list(self, place: str, of: str = "scans") -> str:
        return f"{FOLDER}/along-{self.template.label}-{place}-{of}.txt"

    def listed(self) -> dict[str, list[str]]:
        """Return the lines of the list and the table of the scans of each template."""
        of, found = self.covariate.of or {}, {}
        for place in self.places:
            scans = self.members(place)
            found[self._list(place)] = scans
            if self.method:
                found[self._list(place, "labels")] = [self.labels[scan] for scan in scans]
            found[self._table(place)] = ["scan\tvalue", *(f"{scan}\t{of[scan]!r}" for scan in scans)]
        return found

    def request(self, place: str) -> list[object]:
        """Return what else than images a template follows from: the covariate, the value, and how it is made."""
        of = self.covariate.of or {}
        values = {scan: of[scan] for scan in self.members(place)}
        return [self.covariate.column, self.places[place], self._options(), values, self.method]

    def _options(self) -> Content:
        """Return the settings with the width of the kernel that they lead to."""
        content: Content = as_content(self.config.atlas.conditional)
        return content | {"width": self.covariate.width}

    def _patterns(self) -> dict[str, str]:
        """Return what is read of each scan besides its labels, by the option of BuildTemplateAlong."""
        affine = fill(AFFINE, {"label": self.template.label})
        return {"--in_brains": BRAIN, "--in_masks": MASK, "--in_affines": affine}

    def inputs(self, wildcards: Wildcards) -> dict[str, Files]:
        """Return what a template is made of."""
        scans, files = self.members(wildcards.place), self.template.files
        found: dict[str, Files] = {"template": files["fixed"], "template_mask": files["fixed_mask"]}
        for name, pattern in self._patterns().items():
            found[name.removeprefix("--in_")] = [fill(pattern, {"scan": scan}) for scan in scans]
        return found | ({"labels": [self.labels[scan] for scan in scans]} if self.method else {})

    def options(self, wildcards: Wildcards) -> str:
        """Return BuildTemplateAlong's options for a value."""
        place = wildcards.place
        lists = [
            f"{name} {values_in(self._list(place), pattern.replace('{scan}', '{}'))}"
            for name, pattern in self._patterns().items()
        ]
        lists += [f"--in_labels {values_in(self._list(place, 'labels'))}"] if self.method else []
        return (
            f"{' '.join(lists)} --in_covariates {shlex.quote(self._table(place))} --value {self.places[place]!r}"
            f" --options {shlex.quote(json.dumps(self._options()))}"
        )

    def memory(self, wildcards: Wildcards) -> int:
        """Return the memory of a template, megabytes: it grows with the scans that take part."""
        scans = len(self.members(wildcards.place))
        return math.ceil(MARGIN * (PROGRAM + (VOXEL + OF_SCAN * scans) * self._voxels()))

    def minutes(self, wildcards: Wildcards) -> int:
        """Return the minutes of a template."""
        plan, scans = self.config.atlas.conditional, len(self.members(wildcards.place))
        return math.ceil(30 + MINUTES * scans * plan.iterations * self._voxels())

    def _voxels(self) -> float:
        return template_voxels(self.config)

    # The series

    def series_inputs(self, wildcards: Wildcards) -> dict[str, Files]:
        """Return what the series is made of: what the job of each value has left."""
        names = {"label": self.template.label, "version": self.template.version}
        found = {name: [fill(pattern, names | {"place": place}) for place in self.places] for name, pattern in ALONG.items()}
        return {**found, "names": "cohort/label-names.tsv"}

    @property
    def series_options(self) -> str:
        """PublishAlong's options besides its files: how the covariate and the labels are called."""
        method = f" --method {shlex.quote(self.method)}" if self.method else ""
        options = shlex.quote(json.dumps(self._options()))
        return f"--along {shlex.quote(self.covariate.column)} --options {options}{method}"


def _labels(fuse: Fuse, measure: Measure) -> tuple[str, dict[str, str]]:
    """Return what labels the scans, and the labels of each that has some: fused ones, else those of reference."""
    if fuse.all_methods:
        method = fuse.all_methods[-1]
        return method, {scan: f"{scan}_desc-{method}_dseg.nii.gz" for scan in fuse.own if method in fuse.scan_methods(scan)}
    known = {scan: path for scan in fuse.own if (path := measure.given(scan).get(REFERENCE))}
    return (REFERENCE, known) if known else ("", {})
