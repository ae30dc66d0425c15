"""Experiment I on 2D slices, labels shifted at random, and what Experiment II (`benchmarks.fusion.mixed`) shares with it.

Slices are sagittal, through the middle of the hippocampus of each crop and 3 mm to both sides; front and back are one label.
Two thirds of the crops train, one third tells how good the network is (mean Dice against the manual labels).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr

from benchmarks.common import Record
from benchmarks.fusion.cases import Labelled
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.dataparams.data import training_target
from popatlas.fusion.dataparams.train import DataParametersResult, train_data_parameters
from popatlas.fusion.segmenter import segment
from popatlas.fusion.settings import DataParametersSettings
from popatlas.measures.overlap import dice
from popatlas.networks.segmentation import SegmentationNet

LABELS = np.array([0, 1])
SHARE = 0.3
SHIFTS = (1.0, 3.0, 6.0)  # voxels of 1 mm


def middle_slices(labels: np.ndarray) -> list[int]:
    """Return the positions of the slices of a crop along its first axis."""
    middle = int(np.rint(np.argwhere(labels > 0)[:, 0].mean()))
    return [place for place in (middle - 3, middle, middle + 3) if labels[place].any()]


def padded(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return a slice in the middle of a larger one, its border repeated: a batch goes through the network at once."""
    missing = [wanted - count for wanted, count in zip(shape, image.shape, strict=True)]
    return np.pad(image, [(gap // 2, gap - gap // 2) for gap in missing], mode="edge")


def settings(epochs: int, parameters: bool = True) -> DataParametersSettings:
    """Return the settings of a 2D experiment: inline updates after a warm-up, as in the paper; or no data parameters."""
    warm_up = epochs // 4 if parameters else epochs
    return DataParametersSettings(
        epochs=epochs, warm_up=warm_up, batch=16, update="inline", per_label=False, positions=False
    )


def train(images: Sequence[np.ndarray], labels: Sequence[np.ndarray], plan: DataParametersSettings) -> DataParametersResult:
    """Train on slices with one label image each; the parameters are called by the number of the slice."""
    stacks = [
        Candidates(one[None], image, subject=str(i)) for i, (image, one) in enumerate(zip(images, labels, strict=True))
    ]
    return train_data_parameters([training_target(stack, LABELS) for stack in stacks], LABELS, plan)


def validate(network: SegmentationNet, images: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> float:
    """Return the mean Dice of what a network says about slices."""
    scores = [dice(segment(network, LABELS, image)[0], truth) for image, truth in zip(images, truths, strict=True)]
    return float(np.mean(scores))


def auc(score: np.ndarray, good: np.ndarray) -> float:
    """Return how often a good one has the higher score: 1 always, 0.5 by chance, 0 never."""
    ranks, count = rankdata(score), good.sum()
    return float((ranks[good].sum() - count * (count + 1) / 2) / (count * (~good).sum()))


def disturbed(crops: Sequence[Labelled], epochs: int) -> pd.DataFrame:
    """Experiment I: 30 % of the training labels shifted by a fixed length in a random direction."""
    shape = np.max([crop.image.shape[1:] for crop in crops], axis=0)
    pairs = [
        (number, padded(crop.image[place], shape), padded((crop.labels[place] > 0).astype(np.int32), shape))
        for number, crop in enumerate(crops)
        for place in middle_slices(crop.labels)
    ]
    learned = [(image, truth) for number, image, truth in pairs if number % 3]
    held = [(image, truth) for number, image, truth in pairs if number % 3 == 0]
    rows = []
    for shift in SHIFTS:
        rng = np.random.default_rng(0)
        bad = rng.random(len(learned)) < SHARE
        labels = []
        for (_, truth), wrong in zip(learned, bad, strict=True):
            angle = rng.uniform(0, 2 * np.pi)
            step = np.rint(shift * np.array([np.cos(angle), np.sin(angle)])).astype(int)
            labels.append(np.roll(truth, step, (0, 1)) if wrong else truth)
        quality = np.array([dice(label, truth) for label, (_, truth) in zip(labels, learned, strict=True)])
        row: Record = {"shift, voxels": shift, "n": len(learned), "mean Dice of the labels": float(quality.mean())}
        images = [image for image, _ in learned]
        for name, plan in (("without", settings(epochs, parameters=False)), ("with", settings(epochs))):
            result = train(images, labels, plan)
            row[f"network {name}"] = validate(result.network, *zip(*held, strict=True))
        parameters = np.array([result.parameters[str(number)][0] for number in range(len(learned))])
        row |= {"AUC": auc(parameters, ~bad), "Spearman": float(spearmanr(parameters, quality).statistic)}
        rows.append(row)
    return pd.DataFrame(rows)
