"""Asked for against used: memory, time and processors of the jobs of a study by rule, and what to ask for instead."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from popatlas.cohort.jobbook import KILLED, OK, Entry, Step
from popatlas.reasons import OOM, TIME, UNKNOWN

Range = tuple[float, float]  # smallest and largest, or middle and largest
ENOUGH = 3  # jobs of a rule, before less is advised for it
TIGHT, LOOSE = 0.9, 0.5  # share of the memory that is asked for
SPARE_MB = 500  # less than that is not worth a word
LATE, EARLY = 0.7, 0.1  # share of the time
LONG = 60.0  # minutes: what asks for less starts soon enough
MARGIN_MB, MARGIN_TIME = 1.3, 4.0  # above what was used at most
IDLE, CROWDED = 0.5, 1.3  # share of the cores
TELLING = 60.0  # seconds of work, below which shares of the cores tell nothing
FEW = 10  # scans of a job on a GPU
BATCHES = {
    "extract_brains": "preprocess.brain.batch",
    **dict.fromkeys(("predict_deformations", "predict_members"), "register.network.batch"),
}  # keys of the scans that share a job


@dataclass(frozen=True)
class StepUse:
    """What a step that shares its job with others used; its memory is that of the process until its end.

    Attributes
    ----------
    rule : str
        That it stands for.
    count : int
        How many ran.
    used_mb, used_minutes : (float, float)
        In the middle and at most.
    cores : float
        That were busy, on average.
    """

    rule: str
    count: int
    used_mb: Range
    used_minutes: Range
    cores: float


@dataclass(frozen=True)
class Use:
    """What the jobs of a rule asked for and used, of those that ended well.

    Attributes
    ----------
    rule : str
        Of Snakemake.
    jobs, scans : int
        Jobs, and scans that they served.
    failed : dict
        Reason to the number of attempts that did not end well.
    asked_mb, asked_minutes : (float, float) or None
        Least and most; None where nothing was asked.
    used_mb, used_minutes : (float, float) or None
        In the middle and at most; None without a record.
    share_mb, share_minutes : float or None
        Of what a job had asked for, at most.
    cores : int
        Asked for, at most.
    busy : float or None
        Share of them that worked, on average.
    gpus : int
        Asked for, at most.
    without_gpu : int
        Jobs that asked for GPUs and used none.
    steps : tuple of StepUse
        Where a job runs several.
    """

    rule: str
    jobs: int
    scans: int
    failed: dict[str, int]
    asked_mb: Range | None
    asked_minutes: Range | None
    used_mb: Range | None
    used_minutes: Range | None
    share_mb: float | None
    share_minutes: float | None
    cores: int
    busy: float | None
    gpus: int
    without_gpu: int
    steps: tuple[StepUse, ...] = ()


@dataclass(frozen=True)
class Advice:
    """What to ask for instead.

    Attributes
    ----------
    rule : str
        Of Snakemake, or all.
    about : str
        memory, time, cores, GPU or batch.
    why : str
        In words.
    change : str
        Option of a run, or key of the configuration; empty where it is neither.
    """

    rule: str
    about: str
    why: str
    change: str


@dataclass(frozen=True)
class Efficiency:
    """What all jobs asked for and used.

    Attributes
    ----------
    uses : list of Use
        By rule, in the order in which they came.
    advice : list of Advice
        What to change.
    core_hours, gb_hours : (float, float)
        Used, and asked for while the steps worked; of jobs that asked for no GPU.
    """

    uses: list[Use]
    advice: list[Advice]
    core_hours: Range
    gb_hours: Range
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def jobs(self) -> int:
        """Jobs that ended well."""
        return sum(use.jobs for use in self.uses)


def efficiency(entries: Sequence[Entry]) -> Efficiency:
    """Return what jobs asked for and used (`popatlas.cohort.jobbook.read_book`)."""
    by_rule: dict[str, list[Entry]] = {}
    for entry in entries:
        by_rule.setdefault(entry.rule, []).append(entry)
    uses = [_use(rule, found) for rule, found in by_rule.items()]
    advice = [one for use in uses for one in _advice(use, by_rule[use.rule])]
    good = [entry for entry in entries if entry.state == OK and entry.steps and not entry.gpus]
    cores = sum(one.cpu_seconds for one in good), sum(one.seconds * one.cores for one in good)
    if sum(one.seconds for one in good) >= TELLING and cores[0] < IDLE * cores[1]:
        idle = 100 * (1 - cores[0] / cores[1])
        why = f"cores were idle for {idle:.0f} % of the time: a slow disk, a machine with other work, or too many cores"
        advice.append(Advice("all", "cores", why, ""))
    asking = [one for one in good if one.mem_mb]
    memory = sum(one.peak_mb * one.seconds for one in asking), sum((one.mem_mb or 0) * one.seconds for one in asking)
    failed = sum((Counter(use.failed) for use in uses), Counter[str]())
    hours, giga = (cores[0] / 3600, cores[1] / 3600), (memory[0] / 3.6e6, memory[1] / 3.6e6)
    return Efficiency(uses, advice, hours, giga, failed)


def _use(rule: str, entries: Sequence[Entry]) -> Use:
    good = [entry for entry in entries if entry.state == OK]
    told = [entry for entry in good if entry.steps]
    spent = sum(entry.seconds * entry.cores for entry in told)
    memory, minutes = [one.mem_mb for one in good if one.mem_mb], [one.minutes for one in good if one.minutes]
    return Use(
        rule=rule,
        jobs=len(good),
        scans=sum(entry.scans for entry in good),
        failed=_failed(entries),
        asked_mb=(min(memory), max(memory)) if memory else None,
        asked_minutes=(min(minutes), max(minutes)) if minutes else None,
        used_mb=_spread([entry.peak_mb for entry in told]),
        used_minutes=_spread([entry.seconds / 60 for entry in told]),
        share_mb=max((one.peak_mb / one.mem_mb for one in told if one.mem_mb), default=None),
        share_minutes=max((one.seconds / 60 / one.minutes for one in told if one.minutes), default=None),
        cores=max((entry.cores for entry in entries), default=1),
        busy=sum(entry.cpu_seconds for entry in told) / spent if spent else None,
        gpus=max((entry.gpus for entry in entries), default=0),
        without_gpu=sum(bool(entry.gpus) and entry.device == "cpu" for entry in good),
        steps=tuple(_steps(told)) if any(len(entry.steps) > 1 for entry in told) else (),
    )


def _failed(entries: Sequence[Entry]) -> dict[str, int]:
    """Return how many attempts did not end well by their codes; what only the next attempt showed counts as that."""
    found = Counter(entry.code or UNKNOWN for entry in entries if entry.state != OK)
    for code in (entry.before for entry in entries if entry.before):
        if found[UNKNOWN]:
            found += Counter({code: 1})
            found[UNKNOWN] -= 1
    return {code: count for code, count in found.items() if count}


def _steps(entries: Iterable[Entry]) -> Iterator[StepUse]:
    found: dict[str, list[Step]] = {}
    for entry in entries:
        for step in entry.steps:
            found.setdefault(step.rule, []).append(step)
    for rule, steps in found.items():
        seconds, cpu = sum(step.seconds for step in steps), sum(step.cpu_seconds for step in steps)
        memory, minutes = _spread([one.peak_mb for one in steps]), _spread([one.seconds / 60 for one in steps])
        assert memory and minutes
        yield StepUse(rule, len(steps), memory, minutes, cpu / seconds if seconds else 0.0)


def _spread(values: Sequence[float]) -> Range | None:
    return (median(values), max(values)) if values else None


# What to change


def _advice(use: Use, entries: Sequence[Entry]) -> Iterator[Advice]:
    yield from _on_memory(use, entries)
    yield from _on_time(use, entries)
    yield from _on_cores(use, entries)
    yield from _on_gpus(use)


def _on_memory(use: Use, entries: Sequence[Entry]) -> Iterator[Advice]:
    most, killed = use.used_mb[1] if use.used_mb else 0.0, use.failed.get(OOM, 0)
    of_them = [entry for entry in entries if entry.state != OK and entry.code in (OOM, UNKNOWN, "")]
    had = max((entry.mem_mb or 0 for entry in of_them if entry.code == OOM or entry.state == KILLED), default=0)
    if killed:
        wanted = _rounded(max(MARGIN_MB * most, 1.5 * had), 100)
        at = f" at {had} MB" if had else ""
        came = f"; {most:.0f} MB were used at most where it came through" if most else ""
        yield Advice(
            use.rule, "memory", f"{killed} attempt(s) ended for want of memory{at}{came}", _memory(use.rule, wanted)
        )
    elif use.share_mb is None or use.asked_mb is None:
        return
    elif use.share_mb > TIGHT:
        more = "more than that" if use.share_mb > 1 else "nearly all of it"
        why = f"{_between(use.asked_mb)} MB were asked for, and {more} was used, {most:.0f} MB at most"
        yield Advice(use.rule, "memory", why, _memory(use.rule, _rounded(max(MARGIN_MB * most, use.asked_mb[1]), 100)))
    elif use.jobs >= ENOUGH and use.share_mb < LOOSE:
        wanted = _rounded(MARGIN_MB * most, 100)
        if use.asked_mb[0] - wanted >= SPARE_MB:
            why = f"at most {most:.0f} MB of {_between(use.asked_mb)} MB were used"
            yield Advice(use.rule, "memory", why, _memory(use.rule, wanted))


def _on_time(use: Use, entries: Sequence[Entry]) -> Iterator[Advice]:
    if use.asked_minutes is None:
        return
    most = use.used_minutes[1] if use.used_minutes else 0.0
    if ended := use.failed.get(TIME, 0):
        had = max(entry.minutes or 0 for entry in entries if entry.code == TIME)
        yield Advice(
            use.rule, "time", f"{ended} attempt(s) ran out of {had} minutes", _time(use.rule, _rounded(2 * had, 10))
        )
    elif use.share_minutes is not None and use.share_minutes > LATE:
        why = f"{100 * use.share_minutes:.0f} % of the time was used at most: a slower node would end it"
        yield Advice(use.rule, "time", why, _time(use.rule, _rounded(2 * use.asked_minutes[1], 10)))
    elif use.jobs >= ENOUGH and use.share_minutes is not None and use.share_minutes < EARLY:
        wanted = _rounded(max(MARGIN_TIME * most, 10.0), 5)
        if use.asked_minutes[0] >= LONG and wanted < use.asked_minutes[0]:
            why = f"at most {most:.1f} of {_between(use.asked_minutes)} minutes were used: shorter jobs start sooner"
            yield Advice(use.rule, "time", why, _time(use.rule, wanted))


def _on_cores(use: Use, entries: Sequence[Entry]) -> Iterator[Advice]:
    if use.busy is None or sum(entry.seconds for entry in entries if entry.state == OK) < TELLING:
        return
    busy = use.busy * use.cores
    if use.busy > CROWDED:
        why = f"{busy:.1f} cores were busy where {use.cores} were asked for"
        yield Advice(use.rule, "cores", why, f"--set-threads {use.rule}={math.ceil(busy)}")
    elif use.busy < IDLE and use.cores > 1:
        why = f"{busy:.1f} of {use.cores} cores were busy"
        yield Advice(use.rule, "cores", why, f"--set-threads {use.rule}={max(math.ceil(busy), 1)}")


def _on_gpus(use: Use) -> Iterator[Advice]:
    if not use.gpus:
        return
    if use.without_gpu:
        why = f"{use.without_gpu} of {use.jobs} jobs asked for a GPU and ran on the CPU: torch found none"
        yield Advice(use.rule, "GPU", why, "")
    key = BATCHES.get(use.rule)
    if key and use.jobs >= ENOUGH and use.scans < FEW * use.jobs:
        why = f"a job on a GPU served {use.scans / use.jobs:.1f} scans: the network is loaded for so few"
        yield Advice(use.rule, "batch", why, f"--set {key}=50")


def _memory(rule: str, megabytes: int) -> str:
    return f"--set-resources '{rule}:mem_mb={megabytes}*attempt'"


def _time(rule: str, minutes: int) -> str:
    return f"--set-resources '{rule}:runtime={minutes}'"


def _rounded(value: float, step: int) -> int:
    return math.ceil(value / step) * step


def _between(found: Range) -> str:
    return f"{found[0]:.0f}" if found[0] == found[1] else f"{found[0]:.0f} to {found[1]:.0f}"
