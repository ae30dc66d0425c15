"""Consensus from data parameters: how much each candidate counts, by what the network learned about it.

Three kinds of votes:

``softmax``
    the paper's: candidate m counts ``softmax(DP)_m``, and for one label against background the consensus is where the
    weighted sum is above 0.5. With gaps of 3 and more it follows the best candidate.
``label``
    the same with a parameter for each label: at a voxel a candidate counts by its parameter for the label that it has there.
``joint``
    joint label fusion whose weights are multiplied by ``sigmoid(DP)``: the images tell where a candidate is right, the data
    parameters which candidates to believe at all.

To each of them the network's own opinion can be added: the probabilities of the vote, to the power ``1 - network_weight``,
times those of the network to the power ``network_weight``, among the labels that were voted for. What measures better and
where stands in docs/benchmarks.md (`benchmarks.fusion`).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from popatlas.fusion.candidates import Candidates
from popatlas.fusion.joint import joint_label_fusion
from popatlas.fusion.result import Fusion
from popatlas.fusion.vote import NO_LABEL, Ties, decide, normalised, vote

Votes = Literal["softmax", "label", "joint"]
FloatTable = npt.NDArray[np.floating[Any]]
# a label that was not voted for, or that the network excludes, is improbable but not impossible
SMALLEST = 1e-6


def trust_vote(
    candidates: Candidates,
    ties: Ties = "nearest",
    *,
    parameters: FloatTable,
    label_parameters: FloatTable | None = None,
    labels: npt.NDArray[np.int64] | None = None,
    network: FloatTable | None = None,
    network_weight: float = 0.5,
    quality: FloatTable | None = None,
    votes: Votes = "joint",
    **joint: Any,
) -> Fusion:
    """Fuse candidates by their data parameters.

    Parameters
    ----------
    candidates : Candidates
        With images for ``joint``.
    ties : {"nearest", "lowest"}
        Rule at ties, see :mod:`popatlas.fusion.vote`.
    parameters : (n_candidates,) float ndarray
        Data parameters, not through the sigmoid.
    label_parameters : (n_candidates, n_labels) float ndarray, optional
        Data parameters of each label, for ``label``.
    labels : (n_labels,) int64 ndarray, optional
        Label values of the columns of `label_parameters` and the rows of `network`.
    network : (n_labels, n_disputed) float ndarray, optional
        Log-probabilities of the network at the disputed voxels.
    network_weight : float
        0: votes alone, 1: the network alone among the labels voted for.
    quality : (n_candidates,) float ndarray, optional
        Quality of each registration, 0 to 1; multiplies the weights.
    votes : {"softmax", "label", "joint"}
        See the module.
    **joint
        Options of :func:`popatlas.fusion.joint.joint_label_fusion`.

    Returns
    -------
    Fusion
        Its trust is softmax(parameters), times the quality where it is given.
    """
    parameters = np.asarray(parameters, dtype=np.float64)
    factor = np.ones(len(parameters)) if quality is None else np.asarray(quality, dtype=np.float64)
    trust = normalised(factor * softmax(parameters))
    if votes == "joint":
        found = joint_label_fusion(candidates, prior=factor * sigmoid(parameters), ties=ties, **joint)
    elif votes == "label" and label_parameters is not None and labels is not None:
        table = np.searchsorted(labels, candidates.labels[:, candidates.disputed])
        weights = factor[:, None] * softmax(np.take_along_axis(np.asarray(label_parameters), table, axis=1))
        found = vote(candidates.labels, candidates.disputed, weights, ties, candidates.spacing, trust)
    else:
        found = vote(candidates.labels, candidates.disputed, trust, ties, candidates.spacing, trust)
    if network is None or labels is None or network_weight == 0:
        return Fusion(
            found.dseg, found.disputed, found.options, found.shares, trust.astype(float), found.candidates, found.notes
        )
    options, shares = pooled(found, np.asarray(network), labels, network_weight)
    return decide(candidates.labels[0], found.disputed, options, shares, trust, found.candidates, ties, candidates.spacing)


def pooled(
    found: Fusion, network: FloatTable, labels: npt.NDArray[np.int64], weight: float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return options and shares of a fusion, pooled with the network's log-probabilities (n_labels, n_disputed)."""
    known = found.options != NO_LABEL
    rows = np.where(known, np.searchsorted(labels, found.options), 0)
    opinion = np.maximum(np.take_along_axis(network, rows, axis=0), np.log(SMALLEST))
    score = (1 - weight) * np.log(np.maximum(found.shares, SMALLEST)) + weight * opinion
    shares = softmax(np.where(known, score, -np.inf)).astype(np.float32)
    order = np.argsort(-shares, axis=0, kind="stable")
    return np.take_along_axis(found.options, order, axis=0), np.take_along_axis(shares, order, axis=0)


def softmax(values: FloatTable) -> FloatTable:
    """Return the softmax over the first axis."""
    share = np.exp(values - values.max(axis=0))
    return np.asarray(share / share.sum(axis=0))


def sigmoid(values: FloatTable) -> FloatTable:
    """Return 1 / (1 + exp(-values))."""
    return np.asarray(1 / (1 + np.exp(-np.asarray(values, dtype=np.float64))))
