"""What every fusion method returns: labels, their probabilities, agreement, entropy, and the weight of each candidate."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from popatlas.images.arrays import BoolArray, FloatArray

Map = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Fusion:
    """A consensus and how sure it is; maps have the shape of the target and are made when they are asked for.

    Attributes
    ----------
    dseg : (x, y[, z]) int32 ndarray
        Fused labels, with the values of the candidates.
    disputed : (x, y[, z]) bool ndarray
        Where the candidates disagree. Everywhere else the label is certain.
    options : (n_options, n_disputed) int32 ndarray
        Labels with a share at each disputed voxel, the winner first, then by falling share; -1 after the last.
    shares : (n_options, n_disputed) float32 ndarray
        Probability of each option; 0 after the last.
    atlas_weights : (n_candidates,) float64 ndarray
        Share of each candidate in the decision, sums to 1.
    candidates : (n_candidates, n_disputed) int32 ndarray
        Label of each candidate at the disputed voxels.
    notes : dict
        What the method says about its work, for the record of a job.
    """

    dseg: npt.NDArray[np.int32]
    disputed: BoolArray
    options: npt.NDArray[np.int32]
    shares: npt.NDArray[np.float32]
    atlas_weights: npt.NDArray[np.float64]
    candidates: npt.NDArray[np.int32]
    notes: dict[str, object] = field(default_factory=dict)

    def probability(self) -> Map:
        """Return the probability of the label that won, in (0, 1]."""
        return self._map(self.shares[0] if len(self.shares) else self.shares.sum(axis=0), 1.0)

    def probability_of(self, label: int) -> Map:
        """Return the probability of one label."""
        share = np.where(self.options == label, self.shares, 0).sum(axis=0)
        return self._map(share, (self.dseg == label).astype(np.float32))

    def agreement(self) -> Map:
        """Return the share of the candidates that have the label that won, unweighted, in [0, 1]."""
        return self._map((self.candidates == self.dseg[self.disputed]).mean(axis=0, dtype=np.float32), 1.0)

    def entropy(self) -> Map:
        """Return the entropy of the probabilities in bits; 0 where the candidates agree."""
        logs = np.log2(self.shares, out=np.zeros_like(self.shares), where=self.shares > 0)
        return self._map(np.maximum(-(self.shares * logs).sum(axis=0), 0), 0.0)

    def _map(self, values: FloatArray, elsewhere: float | Map) -> Map:
        full = np.empty(self.dseg.shape, dtype=np.float32)
        full[...] = elsewhere
        full[self.disputed] = values
        return full
