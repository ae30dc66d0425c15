"""The atlas weights of one scan and method: what each candidate counted, and how much of it is in the consensus."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from popatlas.fusion.candidates import Candidates
from popatlas.images.arrays import FloatArray, IntArray


def atlas_weights_table(
    candidates: Candidates,
    atlas_weights: FloatArray,
    dseg: npt.NDArray[np.int32],
    method: str,
    parameters: FloatArray | None = None,
) -> pd.DataFrame:
    """Return one row for each candidate.

    Parameters
    ----------
    candidates : Candidates
        All of them, also those that were left out.
    atlas_weights : (n_candidates,) float ndarray
        Of a Fusion; 0 for those left out.
    dseg : (x, y[, z]) int32 ndarray
        Consensus.
    method : str
        How it was made.
    parameters : (n_candidates,) float ndarray, optional
        Raw data parameters; NaN where a candidate has none.

    Returns
    -------
    DataFrame
        ``scan``, ``method``, ``atlas``, ``trust`` (sums to 1), ``rank`` (1: largest weight; equal weights share the better
        rank), ``parameter`` (NaN without data parameters), ``overlap`` (see :func:`overlaps`).
    """
    return pd.DataFrame(
        {
            "scan": candidates.subject or "",
            "method": method,
            "atlas": candidates.names,
            "trust": np.asarray(atlas_weights, dtype=float),
            "rank": pd.Series(atlas_weights).rank(ascending=False, method="min").astype(int),
            "parameter": np.full(len(atlas_weights), np.nan) if parameters is None else np.asarray(parameters, dtype=float),
            "overlap": overlaps(candidates, dseg),
        }
    )


def overlaps(candidates: Candidates, dseg: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Return the mean Dice of each candidate with the consensus over the labels that either has, (n_candidates,).

    Only voxels where candidates differ are looked at for each candidate: elsewhere the consensus is their label.
    Background is no label. NaN where neither has a label.
    """
    disputed = candidates.disputed
    values = np.union1d(np.unique(candidates.labels[:, disputed]), np.unique(dseg))
    table, consensus = (np.searchsorted(values, part) for part in (candidates.labels[:, disputed], dseg[disputed]))

    def count(numbers: IntArray) -> IntArray:
        return np.asarray(np.bincount(numbers, minlength=len(values))[values != 0])

    everywhere = count(np.searchsorted(values, dseg[~disputed]))
    size = count(consensus) + everywhere
    found = []
    for row in table:
        total = size + count(row) + everywhere
        shared = count(row[row == consensus]) + everywhere
        found.append(np.mean(2 * shared[total > 0] / total[total > 0]) if total.any() else np.nan)
    return np.array(found)
