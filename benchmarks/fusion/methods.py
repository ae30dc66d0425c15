"""All ways to fuse one case, with their CPU seconds and scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from popatlas.fusion.candidates import Candidates
from popatlas.fusion.dataparams.data import trust_target
from popatlas.fusion.dataparams.train import TrustResult, network_opinion
from popatlas.fusion.fuse import fuse
from popatlas.measures.overlap import overlap

PEER = "jlfants"
STAPLE, PAPER, OURS = "staple", "data parameters (paper)", "data parameters"


@dataclass(frozen=True)
class Trusted:
    """What training says about one target."""

    parameters: np.ndarray
    label_parameters: np.ndarray
    labels: np.ndarray
    network: np.ndarray

    @classmethod
    def of(cls, candidates: Candidates, result: TrustResult) -> Trusted:
        """Return parameters and the network's opinion on the disputed voxels."""
        name = candidates.subject or ""
        target = trust_target(candidates, result.labels)
        opinion = network_opinion(result.network, target, candidates.disputed)
        return cls(result.trust[name], result.label_trust[name], result.labels, opinion)

    def options(self, votes: str, weight: float) -> dict[str, Any]:
        """Return the options of the consensus."""
        own = {"parameters": self.parameters, "label_parameters": self.label_parameters, "labels": self.labels}
        return own | {"votes": votes, "network_weight": weight, "network": self.network}


def ways(radius: int, weight: float, trusted: Trusted | None, *, peer: bool) -> Mapping[str, dict[str, Any]]:
    """Return name and options of `fuse` of each way."""
    joint = {"radius": radius}
    found: dict[str, dict[str, Any]] = {
        "majority": {"method": "majority"},
        "global similarity": {"method": "global"},
        "local similarity": {"method": "local"},
        STAPLE: {"method": "staple"},
        "jlf": {"method": "jlf", **joint},
    }
    if peer:
        found[PEER] = {"method": PEER, **joint}
    if trusted is not None:
        consensus = {
            PAPER: trusted.options("softmax", 0.0),
            "data parameters (paper) + network": trusted.options("softmax", weight),
            "data parameters (labels)": trusted.options("label", 0.0),
            "data parameters (joint)": trusted.options("joint", 0.0) | joint,
            OURS: trusted.options("auto", weight) | joint,
        }
        found |= {name: {"method": "dataparams"} | options for name, options in consensus.items()}
        half = max(len(trusted.parameters) // 2, 1)
        found["jlf of the half most similar"] = {"method": "jlf", "select": half, **joint}
        found["jlf of the half most trusted"] = found["jlf of the half most similar"] | {"select_by": trusted.parameters}
    return found


def mean_dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean Dice over the labels of the truth."""
    table = overlap(truth, found)
    return float(table.loc[table["n_reference"] > 0, "dice"].mean())


def fused(
    candidates: Candidates, options: Mapping[str, dict[str, Any]], clock: Callable[[], float] = time.process_time
) -> Iterator[tuple[str, np.ndarray, float]]:
    """Yield name, fused labels and CPU seconds of each way."""
    for name, chosen in options.items():
        started = clock()
        result = fuse(candidates, **chosen)
        yield name, result.dseg, clock() - started
