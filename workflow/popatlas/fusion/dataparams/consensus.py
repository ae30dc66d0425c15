"""Consensus from data parameters: how much each candidate counts, by what the network learned about it.

Kinds of votes:

``softmax``
    the paper's: candidate m counts ``softmax(DP)_m``, and for one label against background the consensus is where the
    weighted sum is above 0.5. With gaps of 3 and more it follows the best candidate.
``label``
    the same with a parameter for each label: at a voxel a candidate counts by its parameter for the label that it has there.
``joint``
    joint label fusion whose weights are multiplied by a prior: the images tell where a candidate is right, the data
    parameters which candidates to doubt.

``auto``
    ``joint`` where the atlases look like the target (correlation, weighted with the prior, of `ALIKE` and more), ``softmax``
    where they do not: images of another contrast tell nothing by their patches.

Data parameters rank candidates, but their size says little: the optimiser moves them as far for a small difference as for a
large one, so that among equally good candidates they are large, and noise. The prior of ``joint`` is therefore
``sigmoid(min(DP, 0) * d)``, where d grows from 0 to 1 while the cross-entropy of the candidate under the network, over the
disputed voxels, grows from that of the best candidate to `1 + MARGIN` times as much: candidates that the network cannot tell
apart are believed alike.

To each of them the network's own opinion can be added: the probabilities of the vote, to the power ``1 - w``, times those of
the network to the power ``w``, among the labels that were voted for; w is `network_weight`, and less for a network that
agrees with the consensus less often than the candidates do. What measures better and where stands in docs/benchmarks.md
(`benchmarks.fusion`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

import numpy as np
import numpy.typing as npt

from popatlas.errors import ConfigError
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.joint import JointOptions, joint_label_fusion
from popatlas.fusion.result import Fusion
from popatlas.fusion.settings import Ties, Votes
from popatlas.fusion.vote import NO_LABEL, decide, normalised, vote
from popatlas.fusion.weighted_global import global_similarity
from popatlas.images.arrays import FloatArray, RealArray

FloatTable = FloatArray
# a label that was not voted for, or that the network excludes, is improbable but not impossible
SMALLEST = 1e-6
# a candidate is doubted in full when its cross-entropy is by this share above that of the best one
MARGIN = 0.5
# correlation of atlases and target from which patches are compared
ALIKE = 0.3
# how fast a network that agrees less with the consensus than the candidates do loses its weight
STRICTNESS = 8


class VoteOptions(JointOptions, total=False):
    """Options of `data_parameters_vote` that are handed on."""

    ties: Ties


def data_parameters_vote(
    candidates: Candidates,
    ties: Ties = "nearest",
    *,
    parameters: FloatTable,
    label_parameters: FloatTable | None = None,
    labels: npt.NDArray[np.int64] | None = None,
    network: FloatTable | None = None,
    network_weight: float = 0.3,
    quality: FloatTable | None = None,
    votes: Votes = "auto",
    **joint: Unpack[JointOptions],
) -> Fusion:
    """Fuse candidates by their data parameters.

    Parameters
    ----------
    candidates : Candidates
        With images for ``auto`` and ``joint``.
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
    votes : {"auto", "softmax", "label", "joint"}
        See the module.
    **joint
        Options of :func:`popatlas.fusion.joint.joint_label_fusion`.

    Returns
    -------
    Fusion
        Its atlas weights are the mean weight of each candidate; they sum to 1.
    """
    parameters = np.asarray(parameters, dtype=np.float64)
    factor = np.ones(len(parameters)) if quality is None else np.asarray(quality, dtype=np.float64)
    if not factor.any():  # no registration is any good: no reason to prefer one
        factor = np.ones(len(parameters))
    table = candidates.labels[:, candidates.disputed]
    asked = network is not None and labels is not None and table.size > 0
    losses = -_opinion(np.asarray(network), table, np.asarray(labels)).mean(axis=1) if asked else None
    prior = factor * doubted(parameters, losses)
    if votes == "joint" or (votes == "auto" and look_alike(candidates, prior)):
        found = joint_label_fusion(candidates, prior=prior, ties=ties, **joint)
    else:
        weights = factor * softmax(parameters)
        if votes == "label":
            weights = factor[:, None] * _label_weights(label_parameters, table, labels)
        found = vote(candidates.labels, candidates.disputed, weights, ties, candidates.spacing)
    if network is None or labels is None or network_weight == 0 or not found.disputed.any():
        return found
    weight = network_weight * reliability(found, np.asarray(network), labels, found.atlas_weights)
    options, shares = pooled(found, np.asarray(network), labels, weight)
    where = candidates.labels[0], found.disputed
    fused = decide(*where, options, shares, found.atlas_weights, found.candidates, ties, candidates.spacing)
    return replace(fused, notes=found.notes | {"network_weight": round(weight, 3)})


def _label_weights(parameters: FloatTable | None, table: RealArray, labels: npt.NDArray[np.int64] | None) -> FloatTable:
    """Return the softmax over the candidates of the parameters of the labels that they have, (n_candidates, n_disputed)."""
    if parameters is None or labels is None:
        raise ConfigError("votes by label need data parameters of labels. Remedy: train them (per_label), or other votes")
    return softmax(np.take_along_axis(np.asarray(parameters), np.searchsorted(labels, table), axis=1))


def _opinion(network: FloatTable, table: RealArray, labels: npt.NDArray[np.int64]) -> FloatTable:
    """Return the network's log-probability of each candidate's label, (n_candidates, n_disputed)."""
    return np.stack([np.take_along_axis(network, np.searchsorted(labels, row)[None], axis=0)[0] for row in table])


def look_alike(candidates: Candidates, prior: FloatTable) -> bool:
    """Tell whether the images of the atlases look like the target, so that comparing their patches makes sense."""
    return float(normalised(prior) @ global_similarity(candidates)) >= ALIKE


def doubted(parameters: FloatTable, losses: FloatTable | None) -> FloatTable:
    """Return the prior of each candidate for joint label fusion, (n_candidates,), in (0, 0.5]; see the module.

    Parameters
    ----------
    parameters : (n_candidates,) float ndarray
        Data parameters.
    losses : (n_candidates,) float ndarray, optional
        Cross-entropy of each candidate over the disputed voxels; without it all parameters count in full.
    """
    share = np.ones(len(parameters))
    if losses is not None and np.isfinite(losses).all() and losses.min() > 0:
        share = np.clip((losses / losses.min() - 1) / MARGIN, 0, 1)
    return sigmoid(np.minimum(parameters, 0) * share)


def reliability(found: Fusion, network: FloatTable, labels: npt.NDArray[np.int64], atlas_weights: FloatTable) -> float:
    """Return how much of its weight the network keeps, 0 to 1.

    It keeps all when, at the disputed voxels, it has the label that the vote gives as often as the candidates have it
    (average with `atlas_weights`); with less it loses by the power `STRICTNESS` of the ratio.
    """
    winner = found.dseg[found.disputed]
    own = float((labels[network.argmax(axis=0)] == winner).mean())
    others = float(atlas_weights @ (found.candidates == winner).mean(axis=1))
    return min(own / others, 1.0) ** STRICTNESS if others > 0 else 1.0


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
