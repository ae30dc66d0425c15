"""What is made and what is left to do: every job of a study judged by its receipt, its files and what it was made of.

The inventory is taken by the main process when it opens a study. Snakemake is then asked for what is not made, and the old
files of that are taken away before it starts, so that nothing that lies there can be taken for a result of this run.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from pathlib import Path

from popatlas.cohort.garbage import set_aside, take_away
from popatlas.cohort.outputs import DERIVED, RULES, fill, made_files
from popatlas.errors import ConfigError, InputError, first_few
from popatlas.images.io import read_json
from popatlas.receipts import FOLDER, Receipt
from popatlas.registration.gate import judge_again
from popatlas.study.joblist import BATCHES, Job, JobList, neighbours
from popatlas.study.jobs import TRAINED
from popatlas.study.study import Study
from popatlas.study.together import NOT_OF_ALL, rule_of

MADE, NEVER, LOST, BROKEN, OUTDATED, SUPERSEDED = "made", "never made", "lost", "broken", "outdated", "superseded"
REPLACED, REFUSED, FORCED = "replaced", "refused", "forced"
WORDS = {
    LOST: "was made and is gone",
    BROKEN: "is not what was made",
    OUTDATED: "was made with other settings or inputs",
    SUPERSEDED: "was made from a file that is another one now",
    REPLACED: "was made from another file of the dataset than the one that is there",
    REFUSED: "does not pass the gate as it is now",
    FORCED: "is asked for",
}
# rules whose results have passed a gate, and are judged again when its limits are others. Not those of the template's
# members: what was averaged stays as it is until the template is another one
GATED = ("register_to_template", "register_atlas_to_target")
OF_MEMBERS = ("align_to_reference", "register_member")
# written by the main process too, whenever a scan has failed: its content is no job's alone
SHARED = ("settle_ledger",)
NAMED = 5


class Inventory:
    """The jobs of a study and what became of each.

    Parameters
    ----------
    study : Study
        The study; its `digests` remember what has been read.
    only : collection of str, optional
        Names of the jobs that are judged, with what they need (`neighbours`); the others count as not made. All when left
        out.

    Attributes
    ----------
    jobs : JobList
        All jobs.
    verdicts : dict
        Job name to one of the words above.
    made : frozenset of str
        Names of the jobs whose results are as they should be.
    thin : dict
        Those of them that lack outputs which follow from the others, to the paths of these: they were left out when
        `retention` asked for less than it does today.
    """

    def __init__(self, study: Study, only: Collection[str] | None = None) -> None:
        self.study, self.jobs = study, JobList(study)
        folder, judged = f"{study.out_dir / FOLDER}/", self._judged(only)
        self.receipts = {name: Receipt.read(f"{folder}{name}.json") if name in judged else None for name in self.jobs.jobs}
        self._patterns: dict[str, list[str]] = {}
        self.bad_files: dict[str, list[str]] = {}
        self.thin: dict[str, list[str]] = {}
        self.ahead: list[
            str
        ] = []  # files dated in the future, which Snakemake would take for newer than what is made of them
        self._now = time.time_ns()
        self._content = {
            path: digest
            for name, receipt in self.receipts.items()
            if receipt is not None and self.jobs.jobs[name].rule not in SHARED
            for path, (_, digest) in receipt.outputs.items()
        }
        self.verdicts = {name: self._judge(job) for name, job in self.jobs.jobs.items()}
        superseded = [name for name, verdict in self.verdicts.items() if verdict in (SUPERSEDED, REFUSED)]
        for name in self.jobs.downstream(superseded):
            if self.verdicts[name] == MADE:
                self.verdicts[name] = SUPERSEDED
        self._judge_together()
        for name, job in self.jobs.jobs.items():
            if job.rule in SHARED:
                self.verdicts[name] = self._judge_shared(job)
        self.made = frozenset(name for name, verdict in self.verdicts.items() if verdict == MADE)

    def _judge_together(self) -> None:
        """Have what reads a result in the job that makes it made again with it: Snakemake knows of the former alone."""
        for name, job in self.jobs.jobs.items():
            lost = [need for need in job.needs if need in self.verdicts and self.jobs.jobs[need].rule in NOT_OF_ALL]
            if self.verdicts[name] == MADE and any(self.verdicts[need] != MADE for need in lost):
                self.verdicts[name] = SUPERSEDED

    def _judged(self, only: Collection[str] | None) -> Collection[str]:
        jobs = self.jobs.jobs
        if only is None:
            return jobs
        trained = (name for name, job in jobs.items() if job.rule in TRAINED)
        return {*neighbours(jobs, only), *trained}

    def force(self, names: set[str]) -> None:
        """Have jobs, and what is made from them, made again though they are made."""
        for name in names | (self.jobs.downstream(names) if names else set()):
            if self.verdicts[name] == MADE:
                self.verdicts[name] = FORCED
        self.made = frozenset(name for name, verdict in self.verdicts.items() if verdict == MADE)

    def spoil(self, names: Iterable[str]) -> None:
        """Have jobs made again whose results turned out to be of no use."""
        for name in names:
            self.verdicts[name] = LOST
        self.made = frozenset(name for name, verdict in self.verdicts.items() if verdict == MADE)

    def receipt_path(self, name: str) -> Path:
        """Return the file of a receipt."""
        return self.study.out_dir / FOLDER / f"{name}.json"

    def needed(self, target: str) -> list[str]:
        """Return the names of the jobs that a part of the pipeline needs to run."""
        return self.jobs.needed(self.jobs.wanted(target), self.made)

    def require_members(self, target: str) -> None:
        """Refuse to build a template again when some of its frozen members cannot be used any more.

        Raises
        ------
        ConfigError
            With their names and what can be done.
        """
        study, label = self.study, self.study.template.label
        gone = [scan for scan in study.atlas.members if scan not in study.scans.images]
        jobs = [self.jobs.jobs[name] for name in self.needed(target)] if gone else []
        lost = sorted({job.wildcards["scan"] for job in jobs if job.rule in OF_MEMBERS} & set(gone))
        if lost:
            raise ConfigError(
                f"the template {label} has to be built again, and {len(lost)} of its frozen members are not used any "
                f"more: {first_few(scan.rsplit('/', 1)[-1] for scan in lost)}. Remedy: select these scans again, put the "
                f"files of tpl-{label}/ back, or set atlas.label to a new name, so that a new template is built"
            )

    def count(self, target: str) -> dict[str, int]:
        """Return the number of jobs of each rule that a part of the pipeline needs to run, in the order of the pipeline."""
        order = {rule: number for number, rule in enumerate(RULES)}
        needed = sorted((self.jobs.jobs[name] for name in self.needed(target)), key=lambda job: order[job.rule])
        run = dict.fromkeys((rule, tuple(names.items())) for rule, names in map(self.rule_of, needed))
        return dict(Counter(rule for rule, _ in run))

    def rule_of(self, job: Job) -> tuple[str, dict[str, str]]:
        """Return the rule of Snakemake that runs a job, and its wildcards."""
        return rule_of(self.study.config, job.rule, job.wildcards)

    def files(self, job: Job) -> list[str]:
        """Return the files that the rule of a job declares."""
        if job.rule not in self._patterns:
            self._patterns[job.rule] = list(self.study.jobs.outputs(job.rule).values())
        return [fill(pattern, job.wildcards) for pattern in self._patterns[job.rule]]

    def derived(self, job: Job) -> dict[str, str]:
        """Return the files of a job that follow from its others, by output name, whether the settings want them or not."""
        names = self.study.jobs.names(job.rule) | job.wildcards if job.rule in DERIVED else {}
        return {name: fill(RULES[job.rule].files[name], names) for name in DERIVED.get(job.rule, ())}

    def unasked(self, job: Job) -> set[str]:
        """Return those of them that the settings leave out."""
        derived = set(self.derived(job).values())
        return derived - set(self.files(job)) if derived else derived

    def log(self, job: Job) -> str:
        """Return the log of a job."""
        return fill(RULES[job.rule].log, job.wildcards)

    def snake_log(self, job: Job) -> str:
        """Return the log of the job of Snakemake that runs a job."""
        rule, wildcards = self.rule_of(job)
        return fill(self.study.jobs.log(rule), wildcards)

    def is_done(self, scan: str, stage: str) -> bool:
        """Tell whether all results of a scan at a stage of the ledger are made."""
        rules = {"bench": "fuse"}
        wanted = self._of_scan.get((scan, rules.get(stage, stage)), ())
        return all(name in self.made for name in wanted)

    def stale(self, paths: Iterable[str]) -> set[str]:
        """Return those of some group results that are not what the study would make today, though they may lie there."""
        wanted, found = set(paths), set[str]()
        for name, job in self.jobs.jobs.items():
            if not job.scan and name not in self.made:
                found |= wanted & set(self.files(job))
        return found

    def left_behind(self) -> list[Job]:
        """Return the jobs whose kept results are of other settings or inputs, and were not asked for in this run."""
        old = (OUTDATED, REPLACED, SUPERSEDED, REFUSED)
        return [job for name, job in self.jobs.jobs.items() if job.is_kept and self.verdicts[name] in old]

    def replaced(self, target: str) -> str:
        """Return the files of the dataset that jobs of a part of the pipeline found to be others than the study knows."""
        found = [self.jobs.jobs[name] for name in self.needed(target) if self.verdicts[name] == REPLACED]
        return first_few(path for job in found for path in self.study.jobs.made_of.given(job.rule, **job.wildcards))

    def said(self, scan: str, stage: str) -> list[str]:
        """Return what the steps of a scan at a stage had to say although they ended well."""
        found = [self.receipts[name] for name in self._of_scan.get((scan, stage), ()) if name in self.made]
        return [str(line) for receipt in found if receipt is not None for line in receipt.facts.get("said", [])]

    @cached_property
    def _of_scan(self) -> dict[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], list[str]] = {}
        for name, job in self.jobs.jobs.items():
            if job.is_kept and job.scan:
                found.setdefault((job.scan, job.stage), []).append(name)
        return found

    def _judge_shared(self, job: Job) -> str:
        """Judge what the main process brings up to date after each pass: it is when what it follows from is made."""
        there = all((self.study.out_dir / path).is_file() for path in self.files(job))
        return MADE if there and all(self.verdicts.get(need) == MADE for need in job.needs) else NEVER

    def _judge(self, job: Job) -> str:
        receipt = self.receipts[job.name]
        if receipt is None:
            return NEVER
        derived = self.derived(job)
        missing = [path for path in self.files(job) if path not in receipt.outputs]
        if not set(missing) <= set(derived.values()):
            return NEVER
        if receipt.made_of != self.study.jobs.made_of(job.rule, **job.wildcards):
            return OUTDATED
        if self._read_another(job, receipt):
            return REPLACED
        lost, broken = self._compare(receipt, self.unasked(job))
        if broken:
            self.bad_files[job.name] = broken
            return BROKEN
        if lost:
            return LOST
        if any(self._content.get(path, digest) != digest for path, digest in receipt.inputs.items()):
            return SUPERSEDED
        if missing:
            self.thin[job.name] = missing
        return REFUSED if job.rule in GATED and self._gate_reasons(job) else MADE

    def _read_another(self, job: Job, receipt: Receipt) -> bool:
        """Tell whether a job read other files of the dataset than the study knows: they were replaced before it did.

        A dataset may have been moved: what was read at another place has to be one of the files that the job reads today.
        """
        inside, known = f"{self.study.out_dir}/", self.study.jobs.made_of.given(job.rule, **job.wildcards)
        given = {path.removeprefix(inside): digest for path, digest in known.items()}
        read = {path: digest for path, digest in receipt.inputs.items() if path in given or (given and path.startswith("/"))}
        return any(given.get(path, digest) != digest or digest not in given.values() for path, digest in read.items())

    def _gate_reasons(self, job: Job) -> list[str]:
        """Return why the numbers of a registration do not pass the gate as it is now."""
        names = self.study.jobs.names(job.rule) | job.wildcards
        try:
            gate = read_json(self.study.out_dir / fill(made_files(self.study.config, job.rule)["gate"], names))
        except InputError:  # it is what the job left, so there is nothing to tell
            return []
        return judge_again(gate, self.study.config.content["register"]["gate"]) if isinstance(gate, dict) else []

    def _compare(self, receipt: Receipt, unasked: Collection[str]) -> tuple[list[str], list[str]]:
        """Return the files of a receipt that are gone, but for those that nobody asks for, and those that are others now."""
        digests, lost, broken = self.study.digests, [], []
        for path, (size, digest) in receipt.outputs.items():
            stamp = digests.stamp(path)
            if stamp is not None and stamp[1] > self._now:
                self.ahead.append(path)
            if stamp is None:
                lost += [path] * (path not in unasked)
            elif stamp[0] != size or digests.of(path, stamp) != digest:
                broken.append(path)
        return lost, broken

    # Before a run

    def clear(self, target: str) -> None:
        """Take away what a part of the pipeline makes anew, say why, and what killed jobs left half written.

        Files that are not what was made are set aside below ``broken/``: somebody may have changed them on purpose.
        """
        for path in self.ahead:
            os.utime(self.study.out_dir / path)
        needed = self.needed(target)
        self._set_aside([name for name in needed if name in self.bad_files])
        stale, dead = (OUTDATED, REPLACED, SUPERSEDED, REFUSED), self.study.scans.dead
        needed += [name for name, job in self.jobs.jobs.items() if job.scan in dead and self.verdicts[name] in stale]
        folders: set[Path] = set()
        for name in needed:
            job, receipt = self.jobs.jobs[name], self.receipts[name]
            files = dict.fromkeys([*self.files(job), *self.derived(job).values()])
            if receipt is not None and job.rule not in BATCHES:
                files |= dict.fromkeys(receipt.outputs)
            for path in (f"{FOLDER}/{name}.json", *(files if job.rule not in SHARED else ())):
                take_away(self.study.out_dir, path)
            folders |= {(self.study.out_dir / path).parent for path in files}
        for folder in folders:
            for left in folder.glob(".tmp-*"):
                left.unlink(missing_ok=True)

    def clear_unfinished(self, names: Iterable[str]) -> None:
        """Take away what jobs that were not made have left: they were killed, and it may not be whole."""
        for name in names:
            if self.verdicts[name] == NEVER and self.jobs.jobs[name].rule not in (*SHARED, *BATCHES):
                for path in self.files(self.jobs.jobs[name]):
                    (self.study.out_dir / path).unlink(missing_ok=True)

    def explain(self, target: str) -> Iterator[str]:
        """Yield a line for each kind of reason why finished results are made again."""
        needed = [job for name in self.needed(target) if (job := self.jobs.jobs[name]).is_kept]
        for verdict, words in WORDS.items():
            found = [job for job in needed if self.verdicts[job.name] == verdict]
            counts = Counter(job.rule for job in found)
            scans = list(dict.fromkeys(job.scan.rsplit("/", 1)[-1] for job in found if job.scan))
            shown = f" ({', '.join(scans[:NAMED])}{', ...' if len(scans) > NAMED else ''})" if scans else ""
            if found:
                yield f"made again, for it {words}: {', '.join(f'{count} {rule}' for rule, count in counts.items())}{shown}"

    def versions(self) -> dict[str, int]:
        """Return the number of kept results by the version of popatlas that made them."""
        kept = [self.receipts[name] for name in self.made if self.jobs.jobs[name].is_kept]
        return dict(Counter(str(receipt.facts.get("popatlas", "unknown")) for receipt in kept if receipt is not None))

    def _set_aside(self, names: Iterable[str]) -> None:
        for path in [path for name in names for path in self.bad_files[name]]:
            set_aside(self.study.out_dir, path, "was changed or damaged since it was made")
