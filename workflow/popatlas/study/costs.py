"""What jobs will cost: core-hours, GPU-hours and disk, from the records of the study or, at first, from measured rates.

A record says how long its job took, a receipt how much it left. Of a rule that has not run yet, the seconds are those of
`RATES`, brought to the voxels of the grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from popatlas.cohort.space import megavoxels
from popatlas.config.load import changed
from popatlas.config.sections import Config
from popatlas.errors import InputError
from popatlas.images.io import read_json
from popatlas.study.inventory import Inventory
from popatlas.study.joblist import Job
from popatlas.study.progress import STAGES

# CPU seconds of a job on real heads with a grid of 2 mm, start-up of the program not counted (benchmarks/results/cohort_ixi,
# and for what is not in it the engine's or the network's own benchmark); those of `PER_ATLAS` are for each atlas
RATES: dict[str, float] = {
    "conform_image": 5.4, "extract_brain": 3.9, "extract_brains": 3.9, "normalise_brain": 0.1,
    "align_channel": 6.0, "predict_deformations": 6.0, "predict_members": 6.0, "register_to_template": 9.4,
    "register_atlas_to_target": 9.4, "make_reference": 1.0, "align_to_reference": 3.7, "initialise_template": 0.2,
    "register_member": 7.4, "average_template": 3.2, "publish_template": 0.3, "propagate_labels": 1.0, "fuse_labels": 1.8,
    "coregister_members": 120.0, "classify_template": 20.0, "segment_tissues": 1.5,
    "labels_to_native": 1.0, "segment_scan": 3.0, "train_trust": 1800.0, "train_segmenter": 1800.0,
    "train_registration": 36000.0, "measure_scan": 3.8, "draw_subject": 2.2, "write_report": 1.3,
}  # fmt: skip
PER_ATLAS = ("propagate_labels", "fuse_labels")
BY_TEMPLATE = 40.0  # of `extract_brain`, where a template finds the brain
OTHERS = 0.5  # CPU seconds of a rule that is not in the table
UNRECORDED = ("settle_ledger",)  # rules without a record of their own
START = 0.9  # CPU seconds until a job begins (benchmarks/startup.py)
HEAD = 1.3  # millions of voxels of a real head on a grid of 2 mm
# part of the seconds that grows with the voxels: a subject takes 58 s at 2 mm and 214 at 1 mm (benchmarks/results/cost)
GROWING = 0.39
# of a scan at 2 mm by level of `retention` (benchmarks/results/retention); they grow with the voxels
RESULTS_MB = {"minimal": 17.3, "standard": 29.6, "full": 29.6}
SAMPLE = 20  # records of a rule that are read
GPU_KEYS = {
    "extract_brains": "preprocess.brain.gpu",
    **dict.fromkeys(("register_to_template", "register_atlas_to_target", "register_member"), "register.gpu"),
    **dict.fromkeys(("predict_deformations", "predict_members"), "register.gpu"),
    "train_trust": "fuse.dataparams.gpu",
    **dict.fromkeys(("train_segmenter", "segment_scan"), "fuse.segmenter.gpu"),
    "train_registration": "train.gpus",
}  # rules that may use GPUs, and the keys that say how many
HOUR, GIGA, MEGA = 3600.0, 1e9, 1e6


@dataclass(frozen=True)
class Rate:
    """What a step of a rule takes, once its program has started.

    Attributes
    ----------
    cpu, wall : float
        Seconds.
    is_own : bool
        From the records of the study.
    """

    cpu: float
    wall: float
    is_own: bool


@dataclass(frozen=True)
class Cost:
    """What jobs take.

    Attributes
    ----------
    stages : dict
        Stage to jobs, core-hours and GPU-hours.
    before, after : float
        Bytes of the results, now and when the jobs have run.
    is_own : bool
        All from the records of the study.
    """

    stages: dict[str, tuple[int, float, float]]
    before: float
    after: float
    is_own: bool

    @property
    def total(self) -> tuple[int, float, float]:
        """Jobs, core-hours and GPU-hours of all stages."""
        jobs, cores, gpus = zip(*self.stages.values(), strict=True) if self.stages else ((), (), ())
        return sum(jobs), sum(cores), sum(gpus)


def cost(inventory: Inventory, names: Iterable[str], index: pd.DataFrame, before: Config | None = None) -> Cost:
    """Return what jobs of a study will take.

    Parameters
    ----------
    inventory : Inventory
        Of the study.
    names : iterable of str
        Jobs that will run.
    index : DataFrame
        Cohort index.
    before : Config, optional
        Settings of the last run, in whose grid the records were made.
    """
    jobs, config = inventory.jobs.jobs, inventory.study.config
    needed = list(names)
    voxels = mean_megavoxels(index, config)
    then = voxels if before is None else mean_megavoxels(index, changed(config, resolution_of(before)))
    factors = _factor(voxels), _factor(voxels) / _factor(then)
    rates = _rates(inventory, {jobs[name].rule for name in needed}, factors)
    stage_of = {rule: stage for stage, rules in STAGES.items() for rule in rules}
    found: dict[str, tuple[int, float, float]] = {}
    begun: set[tuple[str, ...]] = set()
    for name in needed:
        job = jobs[name]
        rule, wildcards = inventory.rule_of(job)
        is_first = not begun >= {run := (rule, *wildcards.values())}  # of the steps that one job runs
        begun.add(run)
        rate, stage = rates[job.rule], stage_of[job.rule]
        count, cores, gpus = found.get(stage, (0, 0.0, 0.0))
        share = 1.0 if rate.is_own else _units(inventory, job)
        cpu, wall = ((START * is_first + seconds * share) / HOUR for seconds in (rate.cpu, rate.wall))
        found[stage] = (count + is_first, cores + cpu, gpus + wall * _gpus(config, job.rule))
    stages = {stage: found[stage] for stage in STAGES if stage in found}
    own = all(rate.is_own for rule, rate in rates.items() if rule not in UNRECORDED)
    return Cost(stages, *_bytes(inventory, needed, voxels, voxels / then), own)


def mean_megavoxels(index: pd.DataFrame, config: Config) -> float:
    """Return the size of the usable scans on the grid of a study, millions of voxels on average; `HEAD` without any."""
    usable = index[(index["state"] == "ok") & (index["shape"] != "")]
    return fmean(megavoxels(row, config) for row in usable.to_dict("records")) if len(usable) else HEAD


def resolution_of(config: Config) -> dict[str, dict[str, float]]:
    """Return the setting of the grid."""
    return {"preprocess": {"resolution_mm": config.preprocess.resolution_mm}}


def _factor(voxels: float) -> float:
    """Return how much longer a job takes than on a head of `HEAD` millions of voxels."""
    return 1.0 - GROWING + GROWING * voxels / HEAD


def _rates(inventory: Inventory, rules: set[str], factors: tuple[float, float]) -> dict[str, Rate]:
    shipped, recorded = factors
    names: dict[str, list[str]] = {rule: [] for rule in rules}
    for name, job in inventory.jobs.jobs.items():
        if job.rule in names:
            names[job.rule].append(name)
    found = {}
    for rule in rules:
        records = [record for name in _spread(names[rule]) if (record := _record(inventory, name))]
        if records:
            cpu, wall = (fmean(float(record[key]) for record in records) for key in ("cpu_seconds", "seconds"))
            found[rule] = Rate(cpu * recorded, wall * recorded, is_own=True)
        else:
            by_template = rule == "extract_brain" and inventory.study.config.preprocess.brain.method == "template"
            seconds = (BY_TEMPLATE if by_template else RATES.get(rule, OTHERS)) * shipped
            found[rule] = Rate(seconds, seconds, is_own=False)
    return found


def _spread(names: list[str]) -> list[str]:
    return names[:: max(len(names) // SAMPLE, 1)][:SAMPLE]


def _record(inventory: Inventory, name: str) -> Mapping[str, Any]:
    """Return the record of a job that ended well; an empty one where there is none."""
    path = inventory.study.out_dir / f"{inventory.log(inventory.jobs.jobs[name])}.json"
    try:
        record = read_json(path)
    except InputError:
        return {}
    good = isinstance(record, dict) and record.get("state") == "ok" and {"cpu_seconds", "seconds"} <= set(record)
    return record if good else {}


def _units(inventory: Inventory, job: Job) -> float:
    """Return for how many atlases, or scans of a batch, a job works."""
    if job.rule in PER_ATLAS:
        return float(max(len(inventory.study.fuse.atlases_for(job.scan)), 1))
    return float(max(len(job.needs), 1)) if "batch" in job.wildcards else 1.0


def _gpus(config: Config, rule: str) -> int:
    content: Any = config.content
    for part in GPU_KEYS.get(rule, "").split(".") if rule in GPU_KEYS else ():
        content = content[part]
    return int(content) if rule in GPU_KEYS else 0


def _bytes(inventory: Inventory, needed: list[str], voxels: float, grown: float) -> tuple[float, float]:
    """Return the bytes of the results now, and when some jobs have run."""
    jobs, sizes = inventory.jobs.jobs, dict[str, float]()
    for name, receipt in inventory.receipts.items():
        if receipt is not None and jobs[name].is_kept:
            sizes[name] = float(sum(size for size, _ in receipt.outputs.values()))
    by_rule: dict[str, list[float]] = {}
    for name in sizes:
        outputs, unasked = inventory.receipts[name].outputs, inventory.unasked(jobs[name])  # type: ignore[union-attr]
        by_rule.setdefault(jobs[name].rule, []).append(
            sum(size for path, (size, _) in outputs.items() if path not in unasked)
        )
    usual = {rule: fmean(found) * grown for rule, found in by_rule.items()}
    kept = [name for name in needed if jobs[name].is_kept]
    new = [name for name in kept if jobs[name].rule not in usual and jobs[name].scan]
    counts, megabytes = Counter(jobs[name].scan for name in new), RESULTS_MB[inventory.study.config.retention]
    whole = Counter(job.scan for job in jobs.values() if job.is_kept and job.scan)
    shipped = sum(count / whole[scan] for scan, count in counts.items()) * megabytes * MEGA * voxels / HEAD
    now = sum(sizes.values())
    replaced = sum(sizes.get(name, 0.0) for name in kept)
    return now, now - replaced + sum(usual.get(jobs[name].rule, 0.0) for name in kept) + shipped
