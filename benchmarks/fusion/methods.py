"""All ways to fuse one case, with their CPU seconds and scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from popatlas.fusion.candidates import Candidates
from popatlas.fusion.dataparams.data import training_target
from popatlas.fusion.dataparams.train import DataParametersResult, network_opinion
from popatlas.fusion.fuse import fuse
from popatlas.measures.overlap import overlap

PEER = "jlfants"
STAPLE, PAPER, OURS = "staple, published", "data parameters (paper)", "data parameters"


class Options(TypedDict, total=False):
    """Options of `popatlas.fusion.fuse.fuse`."""

    method: str
    region: str
    prior: str
    radius: int
    select: int
    select_by: np.ndarray
    parameters: np.ndarray
    label_parameters: np.ndarray | None
    labels: np.ndarray
    votes: str
    network_weight: float
    network: np.ndarray


PUBLISHED: Options = {"method": "staple", "region": "all", "prior": "frequency"}


@dataclass(frozen=True)
class Learned:
    """What training says about one target."""

    parameters: np.ndarray
    label_parameters: np.ndarray | None
    labels: np.ndarray
    network: np.ndarray

    @classmethod
    def of(cls, candidates: Candidates, result: DataParametersResult) -> Learned:
        """Return parameters and the network's opinion on the disputed voxels."""
        name = candidates.subject or ""
        target = training_target(candidates, result.labels)
        opinion = network_opinion(result.network, target, candidates.disputed)
        return cls(result.parameters[name], result.label_parameters.get(name), result.labels, opinion)

    def options(self, votes: str, weight: float) -> Options:
        """Return the options of the consensus."""
        return {
            "method": "dataparams",
            "parameters": self.parameters,
            "label_parameters": self.label_parameters,
            "labels": self.labels,
            "votes": votes,
            "network_weight": weight,
            "network": self.network,
        }


def ways(radius: int, weight: float, learned: Learned | None, *, peer: bool) -> Mapping[str, Options]:
    """Return name and options of `fuse` of each way."""
    found: dict[str, Options] = {
        "majority": {"method": "majority"},
        "global similarity": {"method": "global"},
        "local similarity": {"method": "local"},
        STAPLE: PUBLISHED,
        "staple": {"method": "staple"},
        "jlf": {"method": "jlf", "radius": radius},
    }
    if peer:
        found[PEER] = {"method": PEER, "radius": radius}
    if learned is not None:
        found[PAPER] = learned.options("softmax", 0.0)
        found["data parameters (paper) + network"] = learned.options("softmax", weight)
        found["data parameters (labels)"] = learned.options("label", 0.0)
        found["data parameters (joint)"] = {**learned.options("joint", 0.0), "radius": radius}
        found[OURS] = {**learned.options("auto", weight), "radius": radius}
        half: Options = {"method": "jlf", "radius": radius, "select": max(len(learned.parameters) // 2, 1)}
        found["jlf of the half most similar"] = half
        found["jlf of the half most trusted"] = {**half, "select_by": learned.parameters}
    return found


def mean_dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean Dice over the labels of the truth."""
    table = overlap(truth, found)
    return float(table.loc[table["n_reference"] > 0, "dice"].mean())


def fused(
    candidates: Candidates, options: Mapping[str, Options], clock: Callable[[], float] = time.process_time
) -> Iterator[tuple[str, np.ndarray, float]]:
    """Yield name, fused labels and CPU seconds of each way."""
    for name, chosen in options.items():
        started = clock()
        result = fuse(candidates, **chosen)
        yield name, result.dseg, clock() - started
