"""Experiment II: labels of the best registration mixed with a blurred sum of all, and why data parameters trust the sum.

The sum of all registered labels is consistently too large: a bias that a network learns as easily as the truth. The arms
change one thing each: data parameters on or off; class weights, which make a network say too much foreground and which the
published code has without data parameters only; the fixed weighting by size; sums that are too small instead of too large;
and more good labels than bad ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from benchmarks.common import Bar, Record, at_least
from benchmarks.fusion.cases import candidates
from benchmarks.fusion.slices import LABELS, auc, middle_slices, padded, settings, train, validate
from popatlas.fusion.segmenter import segment
from popatlas.measures.overlap import dice

LARGE, SMALL = "too large", "too small"
SEEDS = 1


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes
    ----------
    good : float
        Share of the labels that are the best ones; the others are sums.
    sums : {"too large", "too small"}
        Where the sum is cut: at half a vote (clipped to one and rounded, as in the paper), or at three quarters of them.
    parameters, weights, fixed : bool
        Data parameters, class weights, fixed weighting.
    """

    good: float
    sums: str = LARGE
    parameters: bool = True
    weights: bool = True
    fixed: bool = True


ARMS = (
    Arm(1, parameters=False),
    Arm(0, parameters=False),
    Arm(0.5, parameters=False),
    Arm(0.5),
    Arm(0.5, parameters=False, weights=False),
    Arm(0.5, weights=False),
    Arm(0.5, weights=False, fixed=False),
    Arm(0.7, parameters=False),
    Arm(0.7),
    Arm(0.5, SMALL, parameters=False),
    Arm(0.5, SMALL),
)


@dataclass(frozen=True)
class Slices:
    """Slices of all crops, (n, height, width), and the number of the crop of each, (n,)."""

    images: np.ndarray
    truths: np.ndarray
    best: np.ndarray
    sums: dict[str, np.ndarray]
    crop: np.ndarray


def load(files: Sequence[Path]) -> Slices:
    """Return the slices with the labels of the best registration, and the blurred sums of the linear ones."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("images", "truths", "best", LARGE, SMALL)}
    crop, shape = [], np.max([candidates(file, ("affine",))[1].shape[1:] for file in files], axis=0)
    for number, file in enumerate(files):
        stack, truth = candidates(file, ("deformable",))
        best = stack.labels[int(np.argmax([dice(one, truth) for one in stack.labels]))]
        rough = candidates(file, ("affine",))[0].labels > 0
        blurred = gaussian_filter(rough.sum(axis=0).astype(float), 1.0)
        volumes = {"images": np.asarray(stack.target), "truths": (truth > 0).astype(np.int32)}
        volumes |= {"best": (best > 0).astype(np.int32), LARGE: (blurred > 0.5).astype(np.int32)}
        volumes[SMALL] = (blurred > 0.75 * len(rough)).astype(np.int32)
        for place in middle_slices(truth):
            for name, volume in volumes.items():
                found[name].append(padded(volume[place], shape))
            crop.append(number)
    images, truths, best, large, small = (np.stack(values) for values in found.values())
    return Slices(images, truths, best, {LARGE: large, SMALL: small}, np.array(crop))


def mixed(files: Sequence[Path], epochs: int, seeds: int = SEEDS, arms: Sequence[Arm] = ARMS) -> pd.DataFrame:
    """Train each arm with some seeds, which also draw the labels, on two thirds of the crops; score it on the others."""
    data, rows = load(files), []
    for arm in arms:
        found = pd.DataFrame([run(data, arm, epochs, seed) for seed in range(seeds)])
        row: Record = {"good labels": f"{100 * arm.good:.0f} %", "others": arm.sums if arm.good < 1 else ""}
        row |= {"data parameters": said(arm.parameters), "class weights": said(arm.weights)}
        row["fixed weighting"] = said(arm.fixed and arm.parameters)
        row |= {str(name): float(value) for name, value in found.mean().items()}
        if seeds > 1:
            row["SD over seeds"] = float(found["network"].std(ddof=0))
        rows.append(row)
        print(row, flush=True)
    return pd.DataFrame(rows)


def said(switch: bool) -> str:
    """Return a switch as the table has it."""
    return "yes" if switch else "no"


def run(data: Slices, arm: Arm, epochs: int, seed: int) -> dict[str, float]:
    """Train one arm and return its scores."""
    good = np.random.default_rng(seed).random(len(data.crop)) < arm.good
    labels = np.where(good[:, None, None], data.best, data.sums[arm.sums])
    held, kept = np.flatnonzero(data.crop % 3 == 0), np.flatnonzero(data.crop % 3)
    plan = replace(settings(epochs, arm.parameters), class_weights=arm.weights, fixed_weighting=arm.fixed, seed=seed)
    result = train(list(data.images[kept]), list(labels[kept]), plan)
    said_size = sum(int(segment(result.network, LABELS, data.images[number])[0].sum()) for number in held)
    row = {
        "n": len(kept),
        "Dice of the labels": float(np.mean([dice(labels[number], data.truths[number]) for number in kept])),
        "size of the labels": float(labels[kept].sum() / data.truths[kept].sum()),
        "network": validate(result.network, list(data.images[held]), list(data.truths[held])),
        "size of its labels": float(said_size / data.truths[held].sum()),
        "AUC": np.nan,
    }
    if arm.parameters and 0 < good[kept].sum() < len(kept):
        row["AUC"] = auc(np.array([result.parameters[str(number)][0] for number in range(len(kept))]), good[kept])
    return row


def points(one: float, other: float) -> float:
    """Return the difference of two Dice scores in points."""
    return 100 * (one - other)


def mixed_bars(rows: Sequence[Record]) -> list[Bar]:
    """Return the bars: what the paper found, and what is behind it."""
    table = pd.DataFrame(rows).set_index(["good labels", "others", "data parameters", "class weights", "fixed weighting"])
    network, trust = table["network"], table["AUC"]
    large, small = (("50 %", sums) for sums in (LARGE, SMALL))
    without, published = network[(*large, "no", "yes", "no")], network[(*large, "yes", "no", "yes")]
    plain = network[(*large, "no", "no", "no")]
    return [
        at_least(
            "Experiment II, class weights as in the published code: with - without, Dice points",
            points(published, without),
            4.5,
        ),
        at_least("Experiment II, no class weights in either: with - without, Dice points", points(published, plain), 0.0),
        at_least("Experiment II: AUC of trust, bad labels too large", trust[(*large, "yes", "yes", "yes")], 0.5),
        at_least("Experiment II: AUC of trust, bad labels too small", trust[(*small, "yes", "yes", "yes")], 0.5),
    ]
