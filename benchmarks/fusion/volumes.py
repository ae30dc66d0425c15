"""Experiments III and IV in 3D: data parameters of many atlases, consensus of all methods, networks trained on them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from benchmarks.common import Record
from benchmarks.fusion.cases import candidates
from benchmarks.fusion.methods import OURS, PUBLISHED, STAPLE, Learned, Options, fused, mean_dice, ways
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.dataparams.data import label_values, training_target
from popatlas.fusion.dataparams.files import training_json
from popatlas.fusion.dataparams.train import DataParametersResult, train_data_parameters
from popatlas.fusion.fuse import fuse
from popatlas.fusion.segmenter import segment, train_segmenter
from popatlas.fusion.settings import DataParametersSettings
from popatlas.measures.overlap import overlap

# quality of the registrations of a target's candidates, in turn
SETTINGS = {
    "clean": ("deformable",),
    "linear": ("affine",),
    "noisy": ("deformable", "displaced", "affine", "displaced", "displaced"),
}
CONTRAST = "noisy, other contrast"
ARMS = ("random atlas", "all atlases", "majority", STAPLE, OURS, "manual")


@dataclass(frozen=True)
class Setting:
    """Targets of one setting with all that was found about them.

    Attributes
    ----------
    cases : list of (Candidates, ndarray)
        Candidates and true labels.
    result : DataParametersResult
        Of the training.
    seconds : float
        CPU seconds of the training.
    """

    name: str
    cases: list[tuple[Candidates, np.ndarray]]
    result: DataParametersResult
    seconds: float

    def other_contrast(self) -> Setting:
        """Return the same with atlas images whose dark and bright tissues are exchanged; training never saw them."""
        cases = []
        for stack, truth in self.cases:
            images = np.asarray(stack.images)
            inverted = np.where(images > 0, images.max() - images, 0)
            cases.append((replace(stack, images=inverted), truth))
        return replace(self, name=CONTRAST, cases=cases)

    def quality(self, candidates: Candidates, truth: np.ndarray) -> np.ndarray:
        """Return the true mean Dice of each candidate."""
        return np.array([mean_dice(one, truth) for one in candidates.labels])


def trained(name: str, files: Sequence[Path], plan: DataParametersSettings) -> Setting:
    """Train network and data parameters on all targets of a setting."""
    cases = [candidates(file, SETTINGS[name]) for file in files]
    labels = label_values([stack for stack, _ in cases])
    targets = [training_target(stack, labels) for stack, _ in cases]
    started = time.process_time()
    result = train_data_parameters(targets, labels, plan, progress=lambda line: print(f"{name}: {line}", flush=True))
    return Setting(name, cases, result, time.process_time() - started)


def parameters_row(setting: Setting, update: str) -> Record:
    """Return how data parameters follow the true quality of the candidates: over all, and within each target."""
    quality = [setting.quality(*case) for case in setting.cases]
    parameters = [setting.result.parameters[stack.subject or ""] for stack, _ in setting.cases]
    within = [float(spearmanr(a, b).statistic) for a, b in zip(parameters, quality, strict=True)]
    return {
        "setting": setting.name,
        "update": update,
        "targets": len(parameters),
        "atlases": len(parameters[0]),
        "mean Dice of a candidate": float(np.mean(np.concatenate(quality))),
        "Spearman, all": float(spearmanr(np.concatenate(parameters), np.concatenate(quality)).statistic),
        "Spearman within a target": float(np.nanmean(within)),
        "CPU s of training": setting.seconds,
    }


def paper_rows(files: Sequence[Path], quick: bool) -> list[Record]:
    """Train with each preset on noisy registrations; return how trust follows quality, and the Dice of the consensus."""
    few = {"epochs": 2} if quick else {}
    plans = {
        "default": DataParametersSettings.of_preset("default", **few),
        "default, votes of the paper": DataParametersSettings.of_preset(
            "default", votes="softmax", network_weight=0.0, **few
        ),
        "paper, light network": DataParametersSettings.of_preset("paper", network="light", **few),
        "paper": DataParametersSettings.of_preset("paper", **few),
    }
    rows: list[Record] = []
    found: dict[str, Setting] = {}
    for name, plan in plans.items():
        setting = found.get(training_json(plan)) or trained("noisy", files, plan)
        found[training_json(plan)] = setting
        scores = []
        for stack, truth in setting.cases:
            learned = Learned.of(stack, setting.result)
            chosen: Options = {**learned.options(plan.votes, plan.network_weight), "radius": 2}
            scores.append(mean_dice(fuse(stack, **chosen).dseg, truth))
        row = parameters_row(setting, plan.update) | {"setting": name, "Dice of the consensus": float(np.mean(scores))}
        rows.append({"preset": row.pop("setting"), "network": plan.network, "epochs": float(plan.epochs), **row})
    for name, options in (
        ("majority", Options(method="majority")),
        (STAPLE, PUBLISHED),
        ("staple", Options(method="staple")),
    ):
        scores = [mean_dice(fuse(stack, **options).dseg, truth) for stack, truth in setting.cases]
        rows.append({"preset": f"none: {name}", "Dice of the consensus": float(np.mean(scores))})
    return rows


def consensus_rows(
    setting: Setting, radius: int, weight: float, peers: int
) -> tuple[pd.DataFrame, dict[str, list[np.ndarray]]]:
    """Fuse every target in every way.

    Parameters
    ----------
    setting : Setting
        Trained.
    radius : int
        Patch radius of joint label fusion, voxels.
    weight : float
        Of the network in the consensus.
    peers : int
        Number of targets that ANTs' joint label fusion is run on: it is slow.

    Returns
    -------
    table : DataFrame
        Columns setting, target, method, label, dice, seconds.
    found : dict
        Method to the fused labels of each target.
    """
    rows: list[pd.DataFrame] = []
    found: dict[str, list[np.ndarray]] = {}
    for number, (stack, truth) in enumerate(setting.cases):
        learned = Learned.of(stack, setting.result)
        for name, dseg, seconds in fused(stack, ways(radius, weight, learned, peer=number < peers)):
            found.setdefault(name, []).append(dseg)
            table = overlap(truth, dseg).query("n_reference > 0")[["label", "dice"]]
            rows.append(table.assign(setting=setting.name, target=stack.subject, method=name, seconds=seconds))
        print(f"{setting.name}: {stack.subject} fused", flush=True)
    return pd.concat(rows, ignore_index=True), found


def network_rows(setting: Setting, found: dict[str, list[np.ndarray]], plan: DataParametersSettings) -> list[Record]:
    """Experiment IV: train a network on the labels of each arm for two thirds of the targets, score it on the others."""
    train = [number for number in range(len(setting.cases)) if number % 3]
    held = [number for number in range(len(setting.cases)) if number % 3 == 0]
    rng = np.random.default_rng(0)
    rows: list[Record] = []
    for arm in ARMS:
        images: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for number in train:
            stack, truth = setting.cases[number]
            if arm == "all atlases":  # each candidate is a training image of its own
                chosen = list(stack.labels[:: max(len(stack.labels) // 4, 1)])
            elif arm == "random atlas":
                chosen = [stack.labels[rng.integers(len(stack.labels))]]
            else:
                chosen = [truth if arm == "manual" else found[arm][number]]
            images += [np.asarray(stack.target)] * len(chosen)
            labels += chosen
        epochs = plan.epochs if arm != "all atlases" else max(plan.epochs * len(train) // len(images), 1)
        settings = replace(plan, epochs=epochs)
        network, values, _ = train_segmenter(images, labels, [str(i) for i in range(len(images))], settings)
        scores = []
        for number in held:
            stack, truth = setting.cases[number]
            scores.append(mean_dice(segment(network, values, np.asarray(stack.target))[0], truth))
        row: Record = {"setting": setting.name, "trained on": arm, "images": len(images), "held out": len(held)}
        rows.append(row | {"Dice": float(np.mean(scores)), "SD": float(np.std(scores))})
        print(rows[-1], flush=True)
    return rows
