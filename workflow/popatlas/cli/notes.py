"""What a run says before it begins and when it has ended: what changed, what is there, and what is missing."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.stages import SIDE_STAGES

if TYPE_CHECKING:
    import pandas as pd

    from popatlas.config.sections import Config
    from popatlas.study.inventory import Inventory

FINISHED, FINISHED_WITH_FAILURES = 0, 3
NAMED = 5
NOT_AGAIN = ("--no-retry", "--force-unlock")  # options that the next run does not need
REASONS = 3  # of failures at a stage that are told
SHOWN = 60  # characters of a value
# keys that say where something lies or how fast it is computed; those of networks that are trained (`batch`) change results
NOT_SAID = (
    "out_dir", "preprocess.brain.gpu", "preprocess.brain.batch", "register.gpu", "register.network.batch",
    "fuse.dataparams.gpu", "fuse.segmenter.gpu", "train.gpus", "train.minutes",
)  # fmt: skip
MEASURED_WITH = ("reference", "landmarks")  # keys of `measure` that are patterns of files
COARSER = 1.3  # a grid whose voxels are so much wider than those of the images is said aloud


def opening_notes(config: Config, config_file: Path) -> list[str]:
    """Say which settings are others than at the last run in this folder, and return it for the end of the run."""
    import yaml

    from popatlas.config.beside import located

    try:
        before = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        before = located(before, [config_file]) if isinstance(before, dict) else before
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return []
    found = list(changes(before, config.content)) if isinstance(before, dict) else []
    if not found:
        return []
    lines = [f"{len(found)} setting(s) changed since the last run in this folder:", *(f"  {line}" for line in found[:20])]
    if len(found) > 20:
        lines.append(f"  ... and {len(found) - 20} more")
    lines.append(f"  the last run's are those of {config_file}, which this run replaces; --config gives a file of yours")
    print("\n".join([f"popatlas: {lines[0]}", *lines[1:]]), file=sys.stderr, flush=True)
    return lines


def plugin_note(executor: str | None) -> None:
    """Say when jobs go to Slurm by a plugin that submits them slowly, or that is not there, and what to do."""
    from popatlas.cluster.site import plugin_finding

    if executor == "slurm" and not (found := plugin_finding()).good:
        print(f"popatlas: {found.what}. Remedy: {found.remedy}", file=sys.stderr, flush=True)


def changes(before: Mapping[str, object], after: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Yield a line for each setting that two configurations do not share."""
    for key in dict.fromkeys([*before, *after]):
        one, other = before.get(key), after.get(key)
        if one == other or f"{prefix}{key}" in NOT_SAID:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from changes(one, other, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}: {_short(one)} -> {_short(other)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def closing_notes(
    config: Config,
    results: Sequence[tuple[str, str]],
    failed: Mapping[tuple[str, str], str],
    said: Sequence[str],
    inventory: Inventory | None = None,
) -> int:
    """Print where the results are and what is missing; return the exit code.

    Parameters
    ----------
    config : dict
        Complete configuration.
    results : sequence of (str, str)
        Name, and file in OUT_DIR.
    failed : mapping
        Scan and stage of each failure to its reason.
    said : sequence of str
        What was said when the run began and is worth repeating.
    inventory : Inventory, optional
        Stock of the study as it is now: results that are not of this study, as it is, are not named as such.
    """
    from popatlas.cohort.remarks import remark_lines
    from popatlas.images.io import read_table

    out_dir = Path(config.out_dir)
    there = [(name, path) for name, path in results if (out_dir / path).exists()]
    stale = inventory.stale(path for _, path in there) if inventory else set()
    index = read_table(out_dir / "cohort" / "index.parquet")
    print(f"  {came_through(index, failed)}")
    for name, path in there:
        if path not in stale:
            print(f"  {name:8} {out_dir / path}")
    if inventory:
        print(*out_of_date(inventory, [name for name, path in there if path in stale]), sep="", end="")
    for line in failures_by_stage(failed):
        print(f"  {line}")
    unreadable, lines = missing_images(index)
    unlabelled, labels = missing_labels(config, index, out_dir)
    alone, without = unserved(config, index, out_dir)
    remarks = remark_lines(out_dir, NAMED)
    for line in [*lines, *excluded(index), *labels, *without, *resolution(config, index), *remarks, *said]:
        print(f"  {line}")
    return FINISHED_WITH_FAILURES if failed or unreadable or unlabelled or alone else FINISHED


def came_through(index: pd.DataFrame, failed: Mapping[tuple[str, str], str]) -> str:
    """Return how many of the scans that were asked for are in the results."""
    asked = index[(index["role"] == "cohort") & (index["state"] != "excluded")]
    out = {scan for scan, stage in failed if stage not in SIDE_STAGES}
    good = int(((asked["state"] == "ok") & ~asked["scan"].isin(out)).sum())
    return f"{good} of {len(asked)} scan(s) came through"


def failures_by_stage(failed: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """Yield who failed at each stage, and below it the first reasons."""
    for stage in sorted({stage for _, stage in failed}):
        reasons: dict[str, list[str]] = {}
        for (scan, where), reason in failed.items():
            if where == stage:
                reasons.setdefault(reason, []).append(scan)
        yield f"failed at {stage}: {_names(scan for scans in reasons.values() for scan in scans)}"
        for reason, scans in list(reasons.items())[:REASONS]:
            yield f"  {_names(scans)}: {reason}"
        if len(reasons) > REASONS:
            yield f"  and {len(reasons) - REASONS} more reasons"


def next_commands(out_dir: Path, line: Sequence[str], code: int, goal: str) -> Iterator[str]:
    """Yield what to do next, as commands; nothing where there is nothing to do.

    Parameters
    ----------
    out_dir : Path
        Output folder.
    line : sequence of str
        Arguments of this run.
    code : int
        Exit code of the run.
    goal : str
        Its last pass.
    """
    page, folder = out_dir / "report" / "index.html", shlex.quote(str(out_dir))
    if page.is_file() and goal == "all":
        yield f"  look at the scans, the most unusual first:  xdg-open {shlex.quote(str(page))}"
    if code:
        yield f"  who is out, why, what to do, the logs:      popatlas status {folder}"
        again = [word for word in line if word not in NOT_AGAIN]
        yield f"  when that is mended, the same command:      {shlex.join(['popatlas', *again])}"
    elif goal != "all":
        yield f"  the state of each scan:                     popatlas status {folder}"


def out_of_date(inventory: Inventory, names: Sequence[str]) -> Iterator[str]:
    """Yield a line of what lies there and is not of the study as it is now, since the run was to end before it."""
    scans = {job.scan for job in inventory.left_behind() if job.scan}
    parts = [*names, *([f"results of {len(scans)} scan(s)"] if scans else [])]
    if parts:
        found = ", ".join(parts)
        yield f"  out of date, made with other settings or inputs: {found} (a run without --until makes them anew)\n"


def mixed_versions(counts: Mapping[str, int]) -> list[str]:
    """Return a line when results of several versions of popatlas lie side by side; they are not made again for that."""
    if len(counts) < 2:
        return []
    shown = ", ".join(f"{count} by {version}" for version, count in sorted(counts.items()))
    return [f"results were made by several versions of popatlas: {shown} (--forceall makes all of them again)"]


def missing_images(index: pd.DataFrame) -> tuple[int, list[str]]:
    """Return how many scans could not be used, and lines that name them and those of which there is no image at all.

    A folder without an image is no fault. Whatever comes close to an image is one: a folder that may not be read or is a
    link to nothing, an image in a wrong place or with another name.
    """
    from popatlas.cohort.inspect import Inspection

    out = index[index["state"] == "unavailable"]
    is_absent = (out["t1w"] == "") & (out["reason"] == Inspection("missing").reason)
    broken, absent = out[~is_absent], out[is_absent]
    reasons = list(broken.groupby("reason", sort=False)["scan"])
    lines = [f"could not be used: {_names(scans)}: {reason}" for reason, scans in reasons[:NAMED]]
    if reasons[NAMED:]:
        lines.append(
            f"could not be used: {_names(scan for _, scans in reasons[NAMED:] for scan in scans)}, for other reasons"
        )
    if len(absent):
        lines.append(f"without a T1w image: {_names(absent['scan'])}")
    return len(broken), lines


def excluded(index: pd.DataFrame) -> Iterator[str]:
    """Yield how many scans were left out on purpose, which the group results do not hold."""
    out = index[index["state"] == "excluded"]
    if len(out):
        yield f"left out of {len(index)} scans: {_names(out['scan'])}; {out.iloc[0]['reason']}"


def missing_labels(config: Config, index: pd.DataFrame, out_dir: Path) -> tuple[int, list[str]]:
    """Return how much of the labels that were asked for is missing, and lines that name it.

    What counts are label files that cannot be used, and labels, reference labels and landmarks for which a file pattern of
    the user finds none; the shipped pattern is no request.
    """
    from popatlas.cohort.freeze import read_label_atlases
    from popatlas.cohort.labelfiles import ATLAS, read_label_files, used_as, wants_atlases
    from popatlas.cohort.labelsummary import labels_summary, unmatched_patterns
    from popatlas.config.load import default_config

    shipped = default_config().measure
    table = read_label_files(out_dir)
    lines = [line.strip() for line in labels_summary(config, index, out_dir)[1:]]
    missing = int((table["state"] != "ok").sum())
    silent = unmatched_patterns(config, index, out_dir)
    missing += sum(
        f"measure.{key}" in silent and getattr(config.measure, key) != getattr(shipped, key) for key in MEASURED_WITH
    )
    if wants_atlases(config) and read_label_atlases(out_dir).empty:
        lines.append("no labels were made: there is no labelled atlas that can be used")
        is_asked = isinstance(config.fuse.atlases, str) or config.fuse.labels != default_config().fuse.labels
        missing += is_asked and used_as(table, ATLAS).empty
    return missing, lines


def unserved(config: Config, index: pd.DataFrame, out_dir: Path) -> tuple[int, list[str]]:
    """Return how many scans got no labels since no atlas is of another subject, and a line that names them.

    They do not count where that is how the atlases were chosen: a single subject with labels has nobody to take some from.
    """
    from popatlas.cohort.freeze import atlases_for, read_label_atlases

    atlases = list(read_label_atlases(out_dir)["atlas"])
    used = index[(index["state"] == "ok") & (index["role"] == "cohort")]
    alone = [scan for scan in used["scan"] if atlases and not atlases_for(scan, atlases)]
    if not alone:
        return 0, []
    wanted = config.fuse.atlases
    subjects = set(index.loc[index["scan"].isin(atlases), "subject"].str.removeprefix("sub-"))
    listed = wanted if isinstance(wanted, tuple) else ()
    lost = [name for name in listed if name.removeprefix("sub-") not in subjects]
    fewer = bool(lost) or (isinstance(wanted, int) and len(atlases) < wanted)
    why = f"; of fuse.atlases, {', '.join(lost)} cannot be used" if lost else ""
    line = f"no labels for {_names(alone)}: there is no atlas of another subject ({_names(atlases)}){why}"
    return len(alone) if fewer else 0, [line]


def resolution(config: Config, index: pd.DataFrame) -> Iterator[str]:
    """Yield a line when the images are much finer than the grid that they were brought to."""
    good = index[(index["state"] == "ok") & (index["role"] == "cohort")]
    spacings = [float(part) for text in good["spacing_mm"] for part in text.split("x")]
    if not spacings:
        return
    spacings.sort()
    usual, grid = spacings[len(spacings) // 2], config.preprocess.resolution_mm
    if grid > COARSER * usual:
        yield f"images of {usual:g} mm were brought to voxels of {grid:g} mm (preprocess.resolution_mm)"


def _names(scans: Iterable[object]) -> str:
    names = sorted(str(scan).rsplit("/", 1)[-1] for scan in scans)
    return f"{', '.join(names[:NAMED])}{f' ... ({len(names)})' if len(names) > NAMED else ''}"
