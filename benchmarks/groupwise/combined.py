"""DeepCC beside optimised registration: groups of three contrasts from slices that the network never saw.

The network learns from axial slices of the wheel's tissue maps, each a group of T1w, T2w and PDw with bias and noise,
deformed anew in each step, and is tried on slices between them (of the same head, 2 mm away, with new deformations). Labels:
of no contrast, of none but with an atlas in the common space (the mean tissue maps of the training slices), of the T1w only,
of all. Without labels and atlas a class has no name: each is called what fits it best, which favours that row.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.common import Bar, Record, at_least
from benchmarks.groupwise.cases import CONTRASTS, TISSUES, Case, make_case
from benchmarks.groupwise.peers import AGREEMENTS, Agreement
from popatlas.groupwise.deepcc.group import predict_group, scaled
from popatlas.groupwise.deepcc.network import CombinedNet
from popatlas.groupwise.deepcc.settings import CombinedSettings
from popatlas.groupwise.xcoreg.core import coregister
from popatlas.groupwise.xcoreg.settings import XCoRegSettings
from popatlas.images.phantom import head_model
from popatlas.training.combined import CombinedTrainer
from popatlas.training.groups import Groups, TrainingGroup
from popatlas.transforms.fieldops import block_mean
from popatlas.transforms.fields import coordinates, sample

SPACING, LEVEL_MM, MARGIN = 5, 12.0, 3
SEEN, HELD_OUT = range(-10, 41, 4), range(-8, 40, 4)  # mm of the slices
DRAWS = 2  # groups of each slice that the network learns from
GROUPS = 12  # that it is tried on
PLAN = CombinedSettings(features=(16, 32, 64), steps=800, bending=0.05, registration_rate=2e-3, checkpoint_every=300)
SUPERVISION: dict[str, tuple[bool, bool, bool]] = {
    "none": (False, False, False),
    "atlas": (False, False, False),
    "some": (True, False, False),
    "all": (True, True, True),
}
FREE_FORM = XCoRegSettings(
    motion="ffd", step=0.3, shrink=(2, 1), iterations=(80, 60), spacing=(4.0, 5.0), bending=0.001, classes=4
)


def tissues_of(level_mm: float) -> Tensor:
    """Return the shares of the tissues (1, 4, *shape) in an axial slice."""
    head = head_model()
    level = round((level_mm - head.affine[2, 3]) / head.affine[2, 2])
    maps = np.stack([head.brain[name][..., level] for name in TISSUES[1:]]).astype(np.float32) / 255
    found = torch.nn.functional.pad(block_mean(torch.from_numpy(maps)[None], [SPACING] * 2), [MARGIN] * 4)
    return torch.cat([1 - found.sum(1, keepdim=True), found], 1)


def group_of(case: Case) -> TrainingGroup:
    """Return a case as a group to learn from."""
    return TrainingGroup([scaled(image) for image in case.images], [label[0, 0].long() for label in case.labels])


def dice(one: Tensor, other: Tensor) -> float:
    """Return the mean Dice of the three tissues."""
    pairs = [(one == k, other == k) for k in range(1, len(TISSUES))]
    return float(np.mean([2 * int((a & b).sum()) / max(int(a.sum() + b.sum()), 1) for a, b in pairs]))


def registration_dice(labels: Sequence[Tensor], fields: Sequence[Tensor] | None) -> float:
    """Return the mean Dice over all pairs of images in the common space."""
    moved = [
        one if fields is None else sample(one[None, None].float(), coordinates(one.shape) + fields[j], "nearest")[0, 0]
        for j, one in enumerate(labels)
    ]
    return float(np.mean([dice(moved[i], moved[j]) for j in range(len(moved)) for i in range(j)]))


def trained(name: str, groups: Sequence[TrainingGroup], steps: int) -> tuple[CombinedNet, CombinedSettings, Tensor | None]:
    """Return the network of a kind of supervision, its settings and its atlas."""
    from dataclasses import replace

    plan = replace(PLAN, steps=steps)
    prior = torch.cat([tissues_of(level) for level in SEEN]).mean(0) if name == "atlas" else None
    torch.manual_seed(plan.seed)
    net = CombinedNet(2, len(CONTRASTS), plan.classes, plan.features)
    known = [group.with_labels(SUPERVISION[name]) for group in groups]
    with tempfile.TemporaryDirectory() as folder:
        CombinedTrainer(net, Groups(known, plan, prior), plan, Path(folder), name).run()
    return net, plan, prior


def best_names(maps: Sequence[Sequence[Tensor]], cases: Sequence[TrainingGroup]) -> tuple[int, ...]:
    """Return the names of unnamed classes that fit best over all groups."""

    def fit(names: tuple[int, ...]) -> float:
        order = torch.tensor(names)
        return sum(
            dice(order[one.argmax(0)], known)
            for found, case in zip(maps, cases, strict=True)
            for one, known in zip(found, case.labels, strict=True)
            if known is not None
        )

    return max(permutations(range(len(TISSUES))), key=fit)


def network_rows(name: str, groups: Sequence[TrainingGroup], cases: Sequence[TrainingGroup], steps: int) -> Record:
    """Return the scores of a network on groups that it never saw."""
    started = time.process_time()
    net, plan, prior = trained(name, groups, steps)
    spent, started = time.process_time() - started, time.process_time()
    found = [predict_group(net, case.images, (0, 1, 2), plan, prior=prior) for case in cases]
    each = (time.process_time() - started) / len(cases)
    names = torch.tensor(best_names([maps for _, maps in found], cases) if name == "none" else range(len(TISSUES)))
    row: Record = {"method": f"deepcc, labels: {name}", "cpu_s": each, "training_cpu_s": spent}
    labels = [[one for one in case.labels if one is not None] for case in cases]
    pairs = list(zip(found, labels, strict=True))
    row["reg_dice"] = float(np.mean([registration_dice(known, result.displacements) for (result, _), known in pairs]))
    for number, contrast in enumerate(CONTRASTS):
        values = [dice(names[maps[number].argmax(0)], known[number]) for (_, maps), known in pairs]
        row[f"seg_{contrast}"] = float(np.mean(values))
    return row


def combined_table(quick: bool = False) -> pd.DataFrame:
    """Return registration and segmentation Dice of each method, means over the groups."""
    numbers = range(2 if quick else GROUPS)
    groups = [
        group_of(make_case(100 * number + draw, 2, LEVEL_MM, spacing=SPACING, tissues=tissues_of(level)))
        for number, level in enumerate(SEEN)
        for draw in range(DRAWS)
    ]
    levels = [HELD_OUT[number % len(HELD_OUT)] for number in numbers]
    cases = [
        group_of(make_case(9000 + number, 2, LEVEL_MM, spacing=SPACING, tissues=tissues_of(level)))
        for number, level in zip(numbers, levels, strict=True)
    ]
    labels = [[one for one in case.labels if one is not None] for case in cases]
    rows: list[Record] = [
        {"method": "unregistered", "reg_dice": float(np.mean([registration_dice(known, None) for known in labels]))}
    ]
    for name in ("mi-reference", "mi-pairs", "xcoreg-ffd"):
        metric = Agreement(AGREEMENTS[name]) if name in AGREEMENTS else None
        started = time.process_time()
        results = [coregister(case.images, FREE_FORM, metric=metric) for case in cases]
        spent = (time.process_time() - started) / len(cases)
        pairs = zip(labels, results, strict=True)
        score = float(np.mean([registration_dice(known, result.displacements) for known, result in pairs]))
        rows.append({"method": name, "reg_dice": score, "cpu_s": spent})
    for name in SUPERVISION:
        rows.append(network_rows(name, groups, cases, 20 if quick else PLAN.steps))
        print(rows[-1], flush=True)
    columns = ["method", "reg_dice", *(f"seg_{contrast}" for contrast in CONTRASTS), "cpu_s", "training_cpu_s"]
    table = pd.DataFrame(rows).reindex(columns=columns)
    return table.assign(groups=len(cases))


def combined_bars(table: pd.DataFrame) -> list[Bar]:
    """Return what has to hold."""
    rows = table.set_index("method")
    registered = dict(zip(map(str, rows.index), rows["reg_dice"].astype(float).tolist(), strict=True))
    unlabelled = [name for name in rows.columns if name.startswith("seg_") and name != "seg_t1w"]
    mean = {
        name: float(rows.loc[[f"deepcc, labels: {name}"], unlabelled].to_numpy(dtype=float).mean())
        for name in ("none", "some")
    }
    ours, start, peer = (registered[name] for name in ("deepcc, labels: all", "unregistered", "mi-reference"))
    return [
        at_least("deepcc: Dice after registration against the start", ours, start),
        at_least("deepcc: Dice after registration against pairwise mutual information", ours, peer),
        at_least("deepcc: Dice of contrasts without labels, labels of another against none", mean["some"], mean["none"]),
    ]
