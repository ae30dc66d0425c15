"""Weighted voting where candidates disagree, with an explicit rule for ties: what all fusion methods have in common.

Most voxels are unanimous: they are copied, and work is done at the disputed voxels only. The labels and weights there
are tables (candidates x disputed voxels), never one map for each label, so memory is
bounded by 24 bytes x candidates x disputed voxels (label, share, and their sorted copies) however many labels there are.

At a tie the rule decides among the tied labels only:

``nearest``
    the label whose nearest decided voxel (unanimous, or won by a vote) is closest in millimetres; equal distances, and
    labels without any decided voxel, fall back to the smallest label value;
``lowest``
    the smallest label value (the habit of ``argmax``, biased towards background).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from popatlas.fusion.labels import bounding_box
from popatlas.fusion.result import Fusion
from popatlas.fusion.settings import Ties
from popatlas.images.arrays import BoolArray, FloatArray, IntArray

LabelTable = npt.NDArray[np.int32]
ShareTable = npt.NDArray[np.float32]
# voxels that are counted at once: bounds the temporary tables
BLOCK = 1 << 18
# shares that differ by less are equal: weights are rounded
EQUAL_SHARE = 1e-6
NO_LABEL = -1


def vote(
    labels: IntArray,
    disputed: BoolArray,
    weights: FloatArray | None = None,
    ties: Ties = "nearest",
    spacing: Sequence[float] | None = None,
    atlas_weights: FloatArray | None = None,
) -> Fusion:
    """Fuse candidates by a weighted vote.

    Parameters
    ----------
    labels : (n_candidates, x, y[, z]) int ndarray
        Candidate labels, not negative, on the grid of the target.
    disputed : (x, y[, z]) bool ndarray
        Where the candidates disagree; elsewhere the first one is copied.
    weights : (n_candidates,) or (n_candidates, n_disputed) float ndarray, optional
        Not negative; normalised to sum to 1 at each voxel, equal where they are all 0. Equal when left out.
    ties : {"nearest", "lowest"}
        Rule at ties, see the module.
    spacing : sequence of float, optional
        Voxel size in mm for the rule ``nearest``; 1 when left out.
    atlas_weights : (n_candidates,) float ndarray, optional
        Atlas weights to report; the mean weight when left out (equal when nothing is disputed).

    Returns
    -------
    Fusion
    """
    table = np.ascontiguousarray(labels[:, disputed], dtype=np.int32)
    weights = normalised(np.ones(len(labels)) if weights is None else weights)
    options, shares = count_votes(table, weights)
    if atlas_weights is None and table.shape[1]:
        atlas_weights = weights if weights.ndim == 1 else weights.mean(axis=1, dtype=float)
    atlas_weights = normalised(np.ones(len(labels)) if atlas_weights is None else np.asarray(atlas_weights))
    return decide(labels[0], disputed, options, shares, atlas_weights, table, ties, spacing)


def normalised(weights: FloatArray) -> npt.NDArray[np.float32]:
    """Return weights (n_candidates, ...) that sum to 1 over the candidates; equal ones where all are 0."""
    weights = np.asarray(weights, dtype=np.float32)
    total = weights.sum(axis=0)
    equal = np.float32(1 / len(weights))
    return np.asarray(np.where(total > 0, weights / np.where(total > 0, total, 1), equal), dtype=np.float32)


def count_votes(table: LabelTable, weights: npt.NDArray[np.float32]) -> tuple[LabelTable, ShareTable]:
    """Return the labels that were voted for at each voxel and their shares, most first.

    Parameters
    ----------
    table : (n_candidates, n) int32 ndarray
        Label of each candidate at each voxel.
    weights : (n_candidates,) or (n_candidates, n) float32 ndarray
        Sum to 1 over the candidates.

    Returns
    -------
    options : (n_candidates, n) int32 ndarray
        Different labels, by falling share, the smaller label first at equal shares; `NO_LABEL` after the last.
    shares : (n_candidates, n) float32 ndarray
        Sum of the weights of the candidates with that label; 0 after the last.
    """
    options, shares = np.full(table.shape, NO_LABEL, dtype=np.int32), np.zeros(table.shape, dtype=np.float32)
    for start in range(0, table.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        block = np.sort(table[:, part], axis=0)
        order = np.argsort(table[:, part], axis=0, kind="stable")
        some = weights[:, part] if weights.ndim == 2 else np.broadcast_to(weights[:, None], block.shape)
        some = np.take_along_axis(some, order, axis=0).astype(np.float64)
        # equal labels are neighbours now: the last one of a run collects the run
        running = np.cumsum(some, axis=0)
        last = np.ones(block.shape, dtype=bool)
        last[:-1] = block[1:] != block[:-1]
        # what had been collected at the end of the run before
        before = np.maximum.accumulate(np.where(last, running, 0), axis=0)
        before = np.concatenate([np.zeros_like(before[:1]), before[:-1]])
        share = np.where(last, running - before, -1.0)
        rank = np.lexsort((block, -np.round(share / EQUAL_SHARE)), axis=0)
        share = np.take_along_axis(share, rank, axis=0)
        options[:, part] = np.where(share >= 0, np.take_along_axis(block, rank, axis=0), NO_LABEL)
        shares[:, part] = np.maximum(share, 0)
    return options, shares


def decide(
    unanimous: IntArray,
    disputed: BoolArray,
    options: LabelTable,
    shares: ShareTable,
    atlas_weights: FloatArray,
    table: LabelTable,
    ties: Ties = "nearest",
    spacing: Sequence[float] | None = None,
) -> Fusion:
    """Return the fusion that gives each disputed voxel its first option, or the one that the tie rule picks.

    Parameters
    ----------
    unanimous : (x, y[, z]) int ndarray
        Labels of all other voxels.
    disputed : (x, y[, z]) bool ndarray
        Voxels of the tables.
    options, shares : (n_options, n_disputed) ndarray
        As of :func:`count_votes`.
    atlas_weights : (n_candidates,) float ndarray
        Sums to 1.
    table : (n_candidates, n_disputed) int32 ndarray
        Label of each candidate.
    ties, spacing
        See :func:`vote`.
    """
    fused = unanimous.astype(np.int32)
    fused[disputed] = options[0]
    tied = (shares >= shares[:1] - EQUAL_SHARE) & (options != NO_LABEL)
    several = tied.sum(axis=0) > 1
    if ties == "nearest" and several.any():
        where = np.zeros(fused.shape, dtype=bool)
        where[disputed] = several
        fused[where] = nearest_option(fused, where, np.where(tied, options, NO_LABEL)[:, several], spacing)
        _put_first(options, shares, fused[disputed])
    return Fusion(fused, disputed, options, shares, np.asarray(atlas_weights, dtype=np.float64), table)


def _put_first(options: LabelTable, shares: ShareTable, winner: npt.NDArray[np.int32]) -> None:
    """Move the winner of each voxel to the first row, in place."""
    columns = np.flatnonzero(options[0] != winner)
    rows = (options[:, columns] == winner[columns]).argmax(axis=0)
    for table in (options, shares):
        table[0, columns], table[rows, columns] = table[rows, columns], table[0, columns]


def nearest_option(
    fused: npt.NDArray[np.int32], tied: BoolArray, options: LabelTable, spacing: Sequence[float] | None
) -> npt.NDArray[np.int32]:
    """Return for each tied voxel the option (n_options, n_tied; -1: none) whose nearest decided voxel is closest."""
    from scipy.spatial import KDTree

    scale = np.ones(fused.ndim) if spacing is None else np.asarray(spacing, dtype=float)
    points = np.argwhere(tied) * scale
    best: npt.NDArray[np.int32] = options.max(axis=0)
    best_distance = np.full(len(points), np.inf)
    # ascending labels and a strict comparison: the smallest label wins equal distances
    for label in np.unique(options[options >= 0]):
        asking = (options == label).any(axis=0)
        surface = _surface_points((fused == label) & ~tied) * scale
        distance = KDTree(surface).query(points[asking])[0] if len(surface) else np.full(int(asking.sum()), np.inf)
        previous = best_distance[asking]
        # rounding: distances that are equal in exact arithmetic must not be decided by their last bit
        closer = (distance < previous - 1e-9) | (np.isinf(distance) & np.isinf(previous) & (label < best[asking]))
        best[asking] = np.where(closer, label, best[asking])
        best_distance[asking] = np.where(closer, distance, previous)
    return best


def _surface_points(mask: BoolArray) -> npt.NDArray[np.intp]:
    """Return the indices of the border voxels of `mask`: the nearest voxel to an outside point is one of them."""
    from scipy.ndimage import binary_erosion

    box = bounding_box(mask, margin=1)
    inside = mask[box]
    if inside.size == 0:
        return np.empty((0, mask.ndim), dtype=np.intp)
    edge = inside & ~binary_erosion(inside, border_value=1)
    return np.asarray(np.argwhere(edge) + np.array([part.start for part in box]), dtype=np.intp)
