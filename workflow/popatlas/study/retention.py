"""What an output folder keeps of each scan (`retention`), and how it comes from one level to another.

Two of the four fields of a registration follow from its affine and the other two (`popatlas.cohort.outputs.DERIVED`). Where
they are left out the receipt of the registration does not name them, and nothing is lost. They are made again from what is
kept, without a registration, when the settings ask for them again (`make_again`). They are removed only by a command
(`take_away`), each after it has been made a second time and compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from popatlas.cohort.ledger import KEPT
from popatlas.cohort.outputs import DERIVED, PASSING, RULES, fill
from popatlas.failures import describe
from popatlas.images.io import sha256, write_json
from popatlas.receipts import Receipt
from popatlas.study.inventory import MADE, Inventory

LOSS = 0.01  # voxels by which a field may differ from what would be made instead of it
MOST_WORKERS = 8  # processes: each holds some fields
GIGA, MEGA = 1e9, 1e6
MEMBER, AVERAGE, PUBLISHED = "register_member", "average_template", "publish_template"


@dataclass(frozen=True)
class Fields:
    """Fields of a scan that follow from others.

    Attributes
    ----------
    out_dir : Path
        Output folder; all other paths are relative to it.
    scan : str
        The scan.
    receipt : str
        Receipt of its registration.
    kept : dict
        Files of the registration by output name.
    fixed, moving : str
        Template and brain, whose grids the fields are on.
    wanted : dict
        Fields that are to be made or removed, by output name.
    """

    out_dir: Path
    scan: str
    receipt: str
    kept: Mapping[str, str]
    fixed: str
    moving: str
    wanted: Mapping[str, str]

    def compose(self, name: str, target: Path) -> None:
        """Make one of them from what is kept."""
        from popatlas.transforms.composed import compose_forward, compose_inverse

        affine, warp, back = (self.out_dir / self.kept[key] for key in ("affine", "warp", "inverse_warp"))
        if name == "composed":
            compose_forward(affine, warp, self.out_dir / self.fixed, target)
        else:
            compose_inverse(affine, back, self.out_dir / self.moving, target)


@dataclass(frozen=True)
class Outcome:
    """What became of the fields of a scan: bytes that were made or removed, largest difference in voxels, and why not."""

    scan: str
    size: int = 0
    worst: float = 0.0
    fault: str = ""


@dataclass
class Summary:
    """What became of the fields of all scans."""

    scans: int = 0
    size: int = 0
    worst: float = 0.0
    faults: dict[str, str] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Count one scan."""
        if outcome.fault:
            self.faults[outcome.scan] = outcome.fault
        else:
            self.scans += 1
        self.size += outcome.size
        self.worst = max(self.worst, outcome.worst)


def missing(inventory: Inventory) -> list[Fields]:
    """Return the fields that the settings want and that were left out."""
    return [_fields(inventory, name, paths) for name, paths in inventory.thin.items() if name in inventory.made]


def surplus(inventory: Inventory) -> list[Fields]:
    """Return the fields that lie there though the settings leave them out."""
    out_dir, found = inventory.study.out_dir, []
    for name, job in inventory.jobs.jobs.items():
        unasked = inventory.unasked(job) if name in inventory.made else ()
        if there := [path for path in unasked if (out_dir / path).is_file()]:
            found.append(_fields(inventory, name, there))
    return found


def passed(inventory: Inventory) -> list[str]:
    """Return files of the template's members that the settings leave out, where the template itself is made."""
    study, jobs = inventory.study, inventory.jobs
    names, levels = PASSING[MEMBER]
    if study.config.retention not in levels or any(
        inventory.verdicts[name] != MADE for name, job in jobs.jobs.items() if job.rule in (AVERAGE, PUBLISHED)
    ):
        return []
    outputs = study.jobs.outputs(MEMBER)
    paths = [fill(outputs[name], job.wildcards) for job in jobs.jobs.values() if job.rule == MEMBER for name in names]
    return [path for path in paths if (study.out_dir / path).is_file()]


def bytes_of(out_dir: Path, paths: Iterable[str]) -> int:
    """Return the bytes of files."""
    return sum((out_dir / path).stat().st_size for path in paths)


def size_of(found: Sequence[Fields]) -> int:
    """Return the bytes that fields take, or would: a composed field is about as large as the warp that it is made from."""
    size = 0
    for fields in found:
        for name, path in fields.wanted.items():
            file = fields.out_dir / path
            like = fields.out_dir / fields.kept["warp" if name == "composed" else "inverse_warp"]
            size += (file if file.is_file() else like).stat().st_size
    return size


def make_again(found: Sequence[Fields], workers: int = 1) -> Summary:
    """Make fields from what is kept, and note them in the receipts."""
    return _each(_make_again, found, workers)


def take_away(found: Sequence[Fields], workers: int = 1) -> Summary:
    """Remove fields that follow from what is kept: each is made again first and compared; what differs stays."""
    return _each(_take_away, found, workers)


def sizes(inventory: Inventory) -> dict[str, object]:
    """Return the bytes of the results, those of them that are fields which follow from others, and the level."""
    jobs, out_dir = inventory.jobs.jobs, inventory.study.out_dir
    total = derived = 0
    for name, receipt in inventory.receipts.items():
        if receipt is None or not jobs[name].is_kept:
            continue
        follows = set(inventory.derived(jobs[name]).values())
        for path, (size, _) in receipt.outputs.items():
            if path not in follows:
                total += size
            elif (out_dir / path).is_file():
                derived += size
    return {"retention": inventory.study.config.retention, "bytes": total + derived, "derived_bytes": derived}


def write_sizes(inventory: Inventory) -> None:
    """Write `sizes` where `popatlas status` finds them."""
    write_json(inventory.study.out_dir / KEPT, sizes(inventory))


def notes(inventory: Inventory) -> list[str]:
    """Return what `plan` and the end of a run have to say of fields that lie there, or are missing, by the settings."""
    out_dir, found = inventory.study.out_dir, []
    if left_out := missing(inventory):
        size = in_words(size_of(left_out))
        found.append(f"composed fields of {len(left_out)} scan(s) are made again, {size}, without a registration")
    extra, members = surplus(inventory), passed(inventory)
    if extra or members:
        size = in_words(size_of(extra) + bytes_of(out_dir, members))
        level = inventory.study.config.retention
        found.append(f"{size} can be removed by `popatlas retain OUT_DIR {level} --yes`: they follow from what is kept")
    return found


def in_words(size: float) -> str:
    """Return bytes in words."""
    return f"{size / GIGA:.1f} GB" if size >= GIGA else f"{size / MEGA:.1f} MB"


def _fields(inventory: Inventory, name: str, paths: Iterable[str]) -> Fields:
    study, job = inventory.study, inventory.jobs.jobs[name]
    names, wanted = study.jobs.names(job.rule) | job.wildcards, set(paths)
    kept = {key: fill(pattern, names) for key, pattern in RULES[job.rule].files.items() if key not in DERIVED[job.rule]}
    return Fields(
        study.out_dir,
        job.scan,
        str(inventory.receipt_path(name)),
        kept,
        fill(RULES[PUBLISHED].files["template"], names),
        fill(RULES["normalise_brain"].files["brain"], names),
        {key: path for key, path in inventory.derived(job).items() if path in wanted},
    )


def _each(work: Callable[[Fields], Outcome], found: Sequence[Fields], workers: int) -> Summary:
    summary = Summary()
    for outcome in _outcomes(work, found, min(workers, len(found), MOST_WORKERS)):
        summary.add(outcome)
    return summary


def _outcomes(work: Callable[[Fields], Outcome], found: Sequence[Fields], workers: int) -> Iterator[Outcome]:
    if workers < 2:
        yield from map(work, found)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        for future in as_completed([pool.submit(work, fields) for fields in found]):
            yield future.result()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _make_again(fields: Fields) -> Outcome:
    made: dict[str, Any] = {}
    try:
        for name, path in fields.wanted.items():
            target = fields.out_dir / path
            fields.compose(name, target)
            made[path] = (target.stat().st_size, sha256(target))
    except Exception as error:  # of any kind: the scan is registered again, and the others go on
        return Outcome(fields.scan, fault=describe(error))
    receipt = _receipt(fields)
    replace(receipt, outputs={**receipt.outputs, **made}).write(fields.receipt)
    return Outcome(fields.scan, sum(size for size, _ in made.values()))


def _take_away(fields: Fields) -> Outcome:
    worst = 0.0
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, path in fields.wanted.items():
                again = Path(folder) / f"{name}.nii.gz"
                fields.compose(name, again)
                worst = max(worst, _difference(fields.out_dir / path, again))
    except Exception as error:  # of any kind: what cannot be made again stays
        return Outcome(fields.scan, fault=describe(error))
    if not worst < LOSS:
        return Outcome(fields.scan, fault=f"what would be made instead differs by {worst:.3g} voxels")
    receipt, gone = _receipt(fields), set(fields.wanted.values())
    replace(receipt, outputs={path: made for path, made in receipt.outputs.items() if path not in gone}).write(
        fields.receipt
    )
    size = bytes_of(fields.out_dir, gone)
    for path in gone:
        (fields.out_dir / path).unlink()
    return Outcome(fields.scan, size, worst)


def _difference(one: Path, other: Path) -> float:
    """Return the largest distance between the vectors of two fields, voxels."""
    import numpy as np

    from popatlas.transforms.itk import read_displacement

    if sha256(one) == sha256(other):
        return 0.0
    (values, _), (others, _) = read_displacement(one), read_displacement(other)
    if values.shape != others.shape:
        return float("inf")
    return float(np.linalg.norm(values - others, axis=0).max())


def _receipt(fields: Fields) -> Receipt:
    receipt = Receipt.read(fields.receipt)
    if receipt is None:
        raise RuntimeError(f"{fields.receipt} is gone while its fields were looked at")
    return receipt
