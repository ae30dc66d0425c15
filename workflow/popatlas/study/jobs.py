"""Jobs as the Snakefile sees them: what they are called, what they leave, what proves them, and what they ask for."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, cast

from popatlas.cohort.outputs import RULES, fill, made_files
from popatlas.config.sections import Config
from popatlas.receipts import FOLDER
from popatlas.study.madeof import MadeOf
from popatlas.study.rules import Files, Named, Wildcards

if TYPE_CHECKING:
    from popatlas.study.study import Study


class JobStudy:
    """What all rules ask about their jobs; `Study` holds what they read."""

    config: Config
    made: frozenset[str]

    def names(self, rule: str) -> dict[str, str]:
        """Return the names that the patterns of a rule are filled in with (`popatlas.cohort.outputs`)."""
        study = cast("Study", self)
        names = {"label": study.template.label, "brains": study.preprocess.brain_folder, "version": study.template.version}
        if rule in ("train_trust", "train_segmenter"):
            return names | {"version": study.trainings[rule.removeprefix("train_")].version}
        if rule in ("write_training_table", "train_registration"):
            return names | {"name": study.plan.name, "version": study.plan.version}
        return names | {"predictions": study.register.predictions}

    def outputs(self, rule: str) -> dict[str, str]:
        """Return output name to pattern of a rule."""
        return {name: fill(pattern, self.names(rule)) for name, pattern in made_files(self.config, rule).items()}

    @staticmethod
    def log(rule: str) -> str:
        """Return the pattern of the log of a rule."""
        return RULES[rule].log

    def job_name(self, rule: str, wildcards: Mapping[str, str]) -> str:
        """Return the name of a job, which its receipt has too."""
        return fill(RULES[rule].job, self.names(rule) | dict(wildcards))

    @cached_property
    def made_of(self) -> MadeOf:
        """Fingerprints of the jobs."""
        return MadeOf(cast("Study", self))

    def proof(self, rule: str) -> Callable[[Wildcards], str]:
        """Return the function of a job's options that make it leave a receipt."""

        def options(wildcards: Wildcards) -> str:
            found = {str(key): str(value) for key, value in wildcards.items()}
            receipt = f"{FOLDER}/{self.job_name(rule, found)}.json"
            return f"--made_of {self.made_of(rule, **found)} --receipt {shlex.quote(receipt)}"

        return options

    def asks(
        self, rule: str, *functions: Named, **inputs: Files | Callable[[Wildcards], Files]
    ) -> Callable[[Wildcards], dict[str, Files]]:
        """Return the input function of a rule: what a job reads, and nothing once it is made.

        Parameters
        ----------
        rule : str
            The rule.
        *functions : callable
            Return more inputs by name.
        **inputs
            Input name to a pattern, a list of files, or a function that returns one or the other.
        """

        def asked(wildcards: Wildcards) -> dict[str, Files]:
            names = {str(key): str(value) for key, value in wildcards.items()}
            if self.job_name(rule, names) in self.made:
                return {}
            found = {key: value(wildcards) if callable(value) else value for key, value in inputs.items()}
            found = {key: fill(value, names) if isinstance(value, str) else value for key, value in found.items()}
            for function in functions:
                found |= function(wildcards)
            return found

        return asked
