"""Jobs as the rules see them: what they are called, what they leave, what proves them, and what they ask for."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from popatlas.cohort.outputs import PASSING, RULES, fill, made_files
from popatlas.config.sections import Config
from popatlas.receipts import FOLDER
from popatlas.study.madeof import MadeOf
from popatlas.study.rules import Files, Named, Wildcards
from popatlas.study.together import LOG, NOT_OF_ALL, TOGETHER, jobs_of

# rules that are there only where something is trained, and fill in names of their own
TRAINED = ("train_trust", "train_segmenter", "write_training_table", "train_registration")


@dataclass(frozen=True)
class Jobs:
    """What all rules ask about their jobs.

    Snakemake runs what is asked for; what that is follows from the inventory (`popatlas.study.inventory`). A job that is
    made asks for no input (`asks`), so that neither times nor lost notes of Snakemake start it again.

    Attributes
    ----------
    config : dict
        Complete configuration.
    filled : dict
        What the patterns of most rules are filled in with (`popatlas.cohort.outputs`).
    trained : dict
        Rule of `TRAINED` that is wanted to what its patterns are filled in with besides.
    made_of : MadeOf
        Fingerprints of the jobs.
    made : frozenset of str
        Names of the jobs that are made; the jobs that Snakemake starts know of none.
    to_make : dict
        Files that each part of the pipeline still has to make.
    unmade : frozenset of str
        Files of all jobs that are not made.
    left : frozenset of str, optional
        Names of the jobs that are needed and not made; the jobs that Snakemake starts know of none.
    """

    config: Config
    filled: Mapping[str, str]
    trained: Mapping[str, Mapping[str, str]]
    made_of: MadeOf = field(repr=False)
    made: frozenset[str] = field(default=frozenset(), repr=False)
    to_make: Mapping[str, list[str]] = field(default_factory=dict, repr=False)
    unmade: frozenset[str] = field(default=frozenset(), repr=False)
    left: frozenset[str] | None = field(default=None, repr=False)
    _patterns: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def names(self, rule: str) -> dict[str, str]:
        """Return the names that the patterns of a rule are filled in with."""
        return {**self.filled, **(self.trained[rule] if rule in TRAINED else {})}

    def outputs(self, rule: str) -> dict[str, str]:
        """Return output name to pattern of a rule."""
        return {name: fill(pattern, self.names(rule)) for name, pattern in made_files(self.config, rule).items()}

    def passing_outputs(self, rule: str) -> dict[str, str]:
        """Return the outputs of a rule for Snakemake, which removes those that are not kept once they are used."""
        from snakemake.io import temp

        names, levels = PASSING[rule]
        goes = names if self.config.retention in levels else ()
        return {name: temp(path) if name in goes else path for name, path in self.outputs(rule).items()}

    def outputs_together(self, row: str) -> dict[str, object]:
        """Return the kept outputs of the steps of a row of `TOGETHER`; none is removed before its job, which may keep it."""
        from snakemake.ioflags import update

        found: dict[str, object] = {}
        for rule, wildcards in jobs_of(self.config, row, {}):
            if RULES[rule].kept and rule not in NOT_OF_ALL:
                ending = f"_{wildcards['method']}_{rule}" if "method" in wildcards else ""
                names = {key: f"{key}{ending}" for key in self.outputs(rule)}
                found |= {names[key]: update(fill(path, wildcards)) for key, path in self.outputs(rule).items()}
        return found

    @staticmethod
    def log(rule: str) -> str:
        """Return the pattern of the log of a rule of Snakemake."""
        return LOG.replace("{rule}", rule) if rule in TOGETHER else RULES[rule].log

    def name(self, rule: str, wildcards: Mapping[str, str]) -> str:
        """Return the name of a job, which its receipt has too."""
        pattern = self._patterns.get(rule)
        if pattern is None:
            pattern = self._patterns.setdefault(rule, fill(RULES[rule].job, self.names(rule)))
        return sys.intern(fill(pattern, wildcards))  # each name is there for the job and for all that need it

    def is_left(self, rule: str) -> bool:
        """Tell whether a training is wanted and not made; once it is, its network is an input and no rule makes it."""
        return rule in self.trained and self.name(rule, {}) not in self.made

    def targets(self, part: str) -> list[str]:
        """Return the files that a part of the pipeline still has to make, and the index, which is there."""
        return ["cohort/index.parquet", *self.to_make.get(part, [])]

    def waits_for(self, files: Iterable[str]) -> Callable[[Wildcards], list[str]]:
        """Return the input function of files that a job waits for and finds by itself: those that are still to be made.

        The others would only make the graph larger, by tens of thousands for a group table.
        """
        return lambda wildcards: [path for path in files if path in self.unmade]

    def proof(self, rule: str) -> Callable[[Wildcards], str]:
        """Return the function of a job's options that make it leave a receipt."""

        def options(wildcards: Wildcards) -> str:
            found = {str(key): str(value) for key, value in wildcards.items()}
            receipt = f"{FOLDER}/{self.name(rule, found)}.json"
            return f"--made_of {self.made_of(rule, **found)} --receipt {shlex.quote(receipt)}"

        return options

    def proof_together(self, rule: str) -> Callable[[Wildcards], str]:
        """Return the function of the options that make a step of a row of `TOGETHER` leave its receipt and its record."""

        def options(wildcards: Wildcards) -> str:
            return self.proof_of(rule, {str(key): str(value) for key, value in wildcards.items()})

        return options

    def proof_of(self, rule: str, wildcards: Mapping[str, str]) -> str:
        """Return these options of a job."""
        receipt, record = f"{FOLDER}/{self.name(rule, wildcards)}.json", f"{fill(RULES[rule].log, wildcards)}.json"
        made_of = self.made_of(rule, **wildcards)
        return f"--made_of {made_of} --receipt {shlex.quote(receipt)} --record {shlex.quote(record)}"

    def run_by(self, rule: str, wildcards: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
        """Return rule and wildcards of the jobs that a job of Snakemake runs."""
        return jobs_of(self.config, rule, wildcards)

    def is_asked(self, rule: str, wildcards: Mapping[str, str]) -> bool:
        """Tell whether a job of Snakemake has something to make."""
        jobs = [self.name(one, names) for one, names in jobs_of(self.config, rule, wildcards)]
        if rule in TOGETHER:
            return self.left is None or any(name in self.left for name in jobs)
        return jobs[0] not in self.made

    def asks(
        self, rule: str, *functions: Named, **inputs: Files | Callable[[Wildcards], Files]
    ) -> Callable[[Wildcards], dict[str, Files]]:
        """Return the input function of a rule: what a job reads, and nothing once it is made.

        Parameters
        ----------
        rule : str
            The rule of Snakemake.
        *functions : callable
            Return more inputs by name.
        **inputs
            Input name to a pattern, a list of files, or a function that returns one or the other.
        """

        def asked(wildcards: Wildcards) -> dict[str, Files]:
            names = {str(key): str(value) for key, value in wildcards.items()}
            if not self.is_asked(rule, names):
                return {}
            found = {key: value(wildcards) if callable(value) else value for key, value in inputs.items()}
            found = {key: fill(value, names) if isinstance(value, str) else value for key, value in found.items()}
            for function in functions:
                found |= function(wildcards)
            return found

        return asked
