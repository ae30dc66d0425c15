"""The jobs of a study: what each needs, and what is asked for by the parts of the pipeline.

Snakemake's own graph holds the same jobs (a test compares them) but only those that are left to do: what is made is cut
off (`Jobs.asks`). Here all of them are listed, without opening a file, so that it can be told which are; those of scans
that have failed too, for the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from popatlas.cohort.outputs import RULES, fill
from popatlas.cohort.training import NetworkTraining
from popatlas.fusion.methods import METHODS, SEGMENTER
from popatlas.study.study import Study
from popatlas.study.together import NOT_OF_ALL, jobs_of, prepares_together

# rules of batches: their scans have receipts of their own, so that only what has to be is made again
BATCHES = ("extract_brains", "predict_deformations", "predict_members")
PUBLISHED = ("publish_template", "classify_template")  # of the template
GROUP = ("tabulate_cohort", "score_truth", "tabulate_trust", "publish_along", "write_report")


Listed = tuple[str, dict[str, str], list[str]]  # rule, wildcards, and the names of the jobs that are needed


@dataclass(frozen=True, slots=True)
class Job:
    """One job.

    Attributes
    ----------
    name : str
        Unique; its receipt is called so.
    rule : str
        Its rule.
    wildcards : dict
        Of the rule.
    scan : str
        Scan that it belongs to; empty for what is of several or none.
    needs : tuple of str
        Names of the jobs whose results it reads.
    """

    name: str
    rule: str
    wildcards: dict[str, str]
    scan: str
    needs: tuple[str, ...]

    @property
    def stage(self) -> str:
        """Stage of the ledger."""
        return RULES[self.rule].stage

    @property
    def is_kept(self) -> bool:
        """Tell whether it makes results of its own."""
        return RULES[self.rule].kept


def neighbours(jobs: Mapping[str, Job], names: Iterable[str]) -> set[str]:
    """Return some jobs, what they need at first hand and, where that is temporary, what it needs in turn.

    So it is with what is made by the job of Snakemake that reads it: what it needs, that job is given.
    """
    found, stack = set(names), list(names)
    while stack:
        name = stack.pop()
        for need in jobs[name].needs if name in jobs else ():
            if need not in found:
                found.add(need)
                stack += [need] * (need in jobs and (not jobs[need].is_kept or jobs[need].rule in NOT_OF_ALL))
    return found


class JobList:
    """All jobs of a study by name."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.scans = (*study.scans.own, *study.scans.dead)
        self.jobs: dict[str, Job] = {}
        for rule, wildcards, needs in self._listed():
            name = self.name(rule, **wildcards)
            self.jobs[name] = Job(name, rule, wildcards, wildcards.get("scan", ""), tuple(needs))

    def name(self, rule: str, **wildcards: str) -> str:
        """Return the name of a job."""
        return self.study.jobs.name(rule, wildcards)

    def run_by(self, rule: str, wildcards: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
        """Return rule and wildcards of the jobs that a job of Snakemake runs."""
        found = jobs_of(self.study.config, rule, wildcards)
        return [(one, of) for one, of in found if one not in NOT_OF_ALL or self.name(one, **of) in self.jobs]

    @staticmethod
    def log(rule: str, wildcards: Mapping[str, str]) -> str:
        """Return the log of a job."""
        return fill(RULES[rule].log, wildcards)

    def wanted(self, target: str) -> list[str]:
        """Return the names of the jobs that a part of the pipeline (`popatlas.study.rules.PARTS`) asks for."""
        scans, own = self.study.scans, set(self.study.scans.own)
        stages = {
            "preprocess": ("preprocess",),
            "subjects": ("preprocess", "register", "fuse", "measure", "channel", "tissues", "page"),
        }
        if target in ("segmentations", "networks", "fusion_bench"):
            rules = {"segmentations": "segment_scan", "networks": "train_registration", "fusion_bench": "bench_fusion"}
            return [name for name, job in self.jobs.items() if job.rule == rules[target] and job.scan not in scans.dead]
        wanted = stages.get(target, stages["subjects"])
        failed = {"page": scans.undrawn, "channel": scans.unaligned, "tissues": scans.undivided}
        left_out = {(stage, scan) for stage, who in failed.items() for scan in who}
        found = [
            name
            for name, job in self.jobs.items()
            if job.is_kept
            and job.stage in wanted
            and (job.stage, job.scan) not in left_out
            and job.scan in (scans.alive if job.stage in ("preprocess", "register") else own)
        ]
        if target == "preprocess":
            return found
        found += [name for name, job in self.jobs.items() if job.rule in PUBLISHED]
        if target == "subjects":
            return found
        bench = ("bench_fusion",) if self.study.config.fuse.bench else ()
        return [*found, *(name for name, job in self.jobs.items() if job.rule in (*GROUP, *bench))]

    def needed(self, names: Iterable[str], made: frozenset[str] | set[str]) -> list[str]:
        """Return the jobs that have to run for some to be made: they and, of what they need, all that is not made."""
        found: dict[str, None] = {}
        stack = [name for name in names if name not in made]
        while stack:
            name = stack.pop()
            if name not in found and name in self.jobs:
                found[name] = None
                stack += [need for need in self.jobs[name].needs if need not in made]
        return [name for name in self.jobs if name in found]

    def downstream(self, names: Iterable[str]) -> set[str]:
        """Return the jobs that read, at first or second hand, what some jobs make.

        A batch that is repeated for one of its scans tells nothing of the others.
        """
        stack, found = list(names), set[str]()
        if not stack:
            return found
        readers: dict[str, list[str]] = {}
        for name, job in self.jobs.items():
            for need in job.needs:
                if need in self.jobs and self.jobs[need].rule not in BATCHES:
                    readers.setdefault(need, []).append(name)
        while stack:
            for reader in readers.get(stack.pop(), ()):
                if reader not in found:
                    found.add(reader)
                    stack.append(reader)
        return found

    # The list, in the order of the pipeline

    def _listed(self) -> Iterator[Listed]:
        yield from self._preprocessing()
        yield from self._template()
        yield from self._registrations()
        yield from self._tissues()
        yield from self._fusion()
        yield from self._networks()
        yield from self._native()
        yield from self._measures()
        yield from self._group()

    def _brain(self, scan: str) -> str:
        return self.name("normalise_brain", scan=scan)

    def _preprocessing(self) -> Iterator[Listed]:
        study, alone = self.study, prepares_together(self.study.config)
        for scan in study.scans.images:
            conformed = self.name("conform_image", scan=scan)
            yield "conform_image", {"scan": scan}, []
            if alone:
                yield "extract_brain", {"scan": scan}, [conformed]
                mask = self.name("extract_brain", scan=scan)
            else:
                mask = self.name("extract_brains", batch=str(study.preprocess.batches.of.get(scan, 0)))
            yield "normalise_brain", {"scan": scan}, [conformed, mask]
        batches = study.preprocess.batches
        for number in () if alone else sorted({batches.of[scan] for scan in study.scans.images if scan in batches.of}):
            scans = [scan for scan in batches.scans(number) if scan in batches.alive]
            yield "extract_brains", {"batch": str(number)}, [self.name("conform_image", scan=scan) for scan in scans]
        for scan in self.scans:
            for channel in study.scans.channels[scan]:
                needs = [self.name("conform_image", scan=scan), self._brain(scan)]
                yield "align_channel", {"scan": scan, "channel": channel}, needs

    def _template(self) -> Iterator[Listed]:
        study, members = self.study, self.study.atlas.members
        if study.config.atlas.template is not None:
            yield "publish_template", {}, []
            return
        yield "make_reference", {}, []
        for scan in members:
            yield "align_to_reference", {"scan": scan}, [self.name("make_reference"), self._brain(scan)]
        aligned = [self.name("align_to_reference", scan=scan) for scan in members]
        first, grouped = "initialise_template", study.config.atlas.is_grouped
        if grouped:
            first, aligned = "coregister_members", [*aligned, *(self._brain(scan) for scan in members)]
        yield first, {}, aligned
        before = self.name(first)
        count = study.config.atlas.passes
        for iteration in map(str, range(1, count + 1)):
            is_predicted = study.atlas.batches and not grouped
            batches = {scan: str(study.atlas.batches[scan]) for scan in members} if is_predicted else {}
            for batch in dict.fromkeys(batches.values()):
                brains = [self._brain(scan) for scan in members if batches[scan] == batch]
                yield "predict_members", {"iteration": iteration, "batch": batch}, [before, *brains]
            for scan in members:
                needs = [before, self._brain(scan)]
                if batches:
                    needs.append(self.name("predict_members", iteration=iteration, batch=batches[scan]))
                yield "register_member", {"iteration": iteration, "scan": scan}, needs
            moved = [self.name("register_member", iteration=iteration, scan=scan) for scan in members]
            yield "average_template", {"iteration": iteration}, [before, *moved]
            before = self.name("average_template", iteration=iteration)
        averages = [self.name("average_template", iteration=str(number)) for number in range(1, count + 1)]
        yield "publish_template", {}, averages

    def _registrations(self) -> Iterator[Listed]:
        study, template = self.study, self.name("publish_template")
        through = study.fuse.atlases if study.config.fuse.through == "template" else {}
        scans = list(dict.fromkeys([*self.scans, *through]))
        batches = {scan: str(study.register.batches.of.get(scan, 0)) for scan in scans} if study.register.predictions else {}
        for batch in dict.fromkeys(batches.values()):
            brains = [self._brain(scan) for scan in study.register.batches.scans(int(batch)) if scan in study.scans.images]
            yield "predict_deformations", {"batch": batch}, [template, *brains]
        for scan in scans:
            predicted = [self.name("predict_deformations", batch=batches[scan])] if batches else []
            yield "register_to_template", {"scan": scan}, [template, self._brain(scan), *predicted]

    def _tissues(self) -> Iterator[Listed]:
        study, template = self.study, self.name("publish_template")
        if not study.config.tissues.enabled:
            return
        yield "classify_template", {}, [template, *(self._registered(scan) for scan in study.tissues.seen)]
        maps = self.name("classify_template")
        for scan in filter(study.tissues.can_have, self.scans):
            channels = [self.name("align_channel", scan=scan, channel=one) for one in study.config.tissues.channels]
            yield "segment_tissues", {"scan": scan}, [self._brain(scan), self._registered(scan), maps, *channels]

    def _registered(self, scan: str) -> str:
        return self.name("register_to_template", scan=scan)

    def _divided(self, scan: str) -> list[str]:
        return [self.name("segment_tissues", scan=scan)] if self.study.tissues.has(scan) else []

    def _fusion(self) -> Iterator[Listed]:
        study, direct = self.study, self.study.config.fuse.through == "direct"
        bench = study.bench.scans if study.config.fuse.bench else []
        for scan in dict.fromkeys([*self.scans, *bench]):
            atlases = study.fuse.atlases_for(scan) if study.fuse.methods else []
            if not atlases:
                continue
            needs = [self._brain(scan), *(self._brain(atlas) for atlas in atlases)]
            learned = any(METHODS[method].trained for method in study.fuse.methods)
            for atlas in atlases if direct else ():
                yield "register_atlas_to_target", {"scan": scan, "atlas": atlas}, [self._brain(scan), self._brain(atlas)]
                needs.append(self.name("register_atlas_to_target", scan=scan, atlas=atlas))
            if not direct:
                needs += [self.name("register_to_template", scan=one) for one in (scan, *atlases)]
            if learned:
                yield "propagate_labels", {"scan": scan}, needs
            for method in study.fuse.methods:
                if METHODS[method].trained:
                    needs_learned = [self.name("propagate_labels", scan=scan), self.name("train_trust")]
                    yield "fuse_labels", {"scan": scan, "method": method}, needs_learned
                else:
                    yield "fuse_labels", {"scan": scan, "method": method}, needs

    def _networks(self) -> Iterator[Listed]:
        study = self.study
        for name, training in study.fuse.trainings.items():
            brains = [self._brain(scan) for scan in training.scans]
            if name == SEGMENTER:
                method = study.config.fuse.segmenter.labels
                labels = [self.name("fuse_labels", scan=scan, method=method) for scan in training.scans]
            else:
                labels = [self.name("propagate_labels", scan=scan) for scan in training.scans]
            yield f"train_{name}", {}, [*brains, *labels]
        for scan in self.scans if study.fuse.has_segmenter else ():
            yield "segment_scan", {"scan": scan}, [self._brain(scan), self.name("train_segmenter")]
        if study.network is not None:
            plan = study.network.plan
            if plan.scans:
                yield "write_training_table", {}, list(self._training_needs(plan))
            table = [self.name("write_training_table")] if plan.scans else []
            yield "train_registration", {}, table

    def _training_needs(self, plan: NetworkTraining) -> Iterator[str]:
        grid, method = plan.recipe.grid, self.study.config.train.labels
        for scan in plan.scans:
            yield from (self.name("conform_image", scan=scan), self._brain(scan))
            if grid.affine_first:
                yield self.name("register_to_template", scan=scan)
            if method in self.study.fuse.methods:
                yield self.name("fuse_labels", scan=scan, method=method)

    def _labels(self, scan: str) -> list[str]:
        return [self._labelled(scan, method) for method in self.study.fuse.scan_methods(scan)]

    def _labelled(self, scan: str, method: str) -> str:
        if method == SEGMENTER:
            return self.name("segment_scan", scan=scan)
        return self.name("fuse_labels", scan=scan, method=method)

    def _native(self) -> Iterator[Listed]:
        fuse, bench = self.study.fuse, self.study.bench.scans if self.study.config.fuse.bench else []
        if fuse.config.fuse.space != "native":
            return
        wanted = [(scan, method) for scan in self.scans for method in fuse.scan_methods(scan)]
        # the job of a labelled atlas is the one of all scans
        others = [scan for scan in bench if scan not in set(self.scans) and fuse.atlases_for(scan)]
        wanted += [(scan, method) for scan in others for method in fuse.untrained_methods]
        for scan, method in wanted:
            yield "labels_to_native", {"scan": scan, "method": method}, [self._labelled(scan, method)]

    def _measures(self) -> Iterator[Listed]:
        for scan in self.scans:
            basis = [self._brain(scan), self.name("publish_template"), self.name("register_to_template", scan=scan)]
            yield "measure_scan", {"scan": scan}, [*basis, *self._labels(scan), *self._divided(scan)]
            yield "draw_subject", {"scan": scan}, [self.name("measure_scan", scan=scan), *basis, *self._labels(scan)]

    def _group(self) -> Iterator[Listed]:
        study = self.study
        measured = [self.name("measure_scan", scan=scan) for scan in study.scans.own]
        yield "settle_ledger", {}, measured
        settled, joined = self.name("settle_ledger"), [self.name("settle_ledger")]
        if study.measure.truth_tables:
            yield "score_truth", {}, [settled]
            joined.append(self.name("score_truth"))
        yield "tabulate_cohort", {}, joined
        shown = [settled, self.name("tabulate_cohort"), self.name("publish_template")]
        if study.fuse.atlas_weights_tables():
            fused = [name for scan in study.scans.own for name in self._labels(scan)]
            yield "tabulate_trust", {}, [*fused, *measured]  # the gates of all scans are behind their measures
            shown.append(self.name("tabulate_trust"))
        if study.bench.files:
            fused = [
                self.name("fuse_labels", scan=scan, method=method)
                for scan in study.bench.scans
                for method in study.fuse.methods
            ]
            yield "bench_fusion", {}, fused
            if study.config.fuse.bench:
                shown.append(self.name("bench_fusion"))
        yield from self._along()
        if study.along.places:
            shown.append(self.name("publish_along"))
        drawn = [self.name("draw_subject", scan=scan) for scan in study.scans.own if scan not in study.scans.undrawn]
        yield "write_report", {}, [*shown, *drawn]

    def _along(self) -> Iterator[Listed]:
        along = self.study.along
        for place in along.places:
            needs = [self.name("publish_template")]
            for scan in along.members(place):
                needs += [self._brain(scan), self.name("register_to_template", scan=scan)]
                needs += [self._labelled(scan, along.method)] if along.method in self.study.fuse.all_methods else []
            yield "make_along", {"place": place}, needs
        if along.places:
            yield "publish_along", {}, [self.name("make_along", place=place) for place in along.places]
