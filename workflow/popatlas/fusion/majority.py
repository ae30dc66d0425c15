"""Majority vote with an explicit rule for ties.

Votes are counted at each voxel, background included. At a tie the rule decides among the tied labels only:

``nearest``
    the label whose nearest undisputed voxel (one that a vote decided) is closest in millimetres; equal
    distances, and labels without any decided voxel, fall back to the smallest label value;
``lowest``
    the smallest label value (the habit of ``argmax``, biased towards background).

Heckemann RA, Hajnal JV, Aljabar P, Rueckert D, Hammers A. Automatic anatomical brain MRI segmentation combining
label propagation and decision fusion. NeuroImage 2006;33(1):115-126. doi:10.1016/j.neuroimage.2006.05.061
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from popatlas.fusion.labels import BoolArray, IntArray, bounding_box, check_stack, disputed_mask

Ties = Literal["nearest", "lowest"]


def majority_vote(
    labels: IntArray, ties: Ties = "nearest", spacing: Sequence[float] | None = None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Fuse a stack of label images by majority vote.

    Parameters
    ----------
    labels : (n_atlases, x, y, z) int ndarray
        Candidate labels on the target grid.
    ties : {"nearest", "lowest"}
        Rule at ties, see the module.
    spacing : sequence of float, optional
        Voxel size in mm for the rule ``nearest``; 1 when left out.

    Returns
    -------
    fused : (x, y, z) int32 ndarray
        Winning label.
    agreement : (x, y, z) float32 ndarray
        Share of the atlases that voted for a winning label, in (0, 1].

    Raises
    ------
    InputError
        When there is no atlas.
    """
    check_stack(labels)
    fused = labels[0].astype(np.int32)
    agreement = np.ones(fused.shape, dtype=np.float32)
    disputed = disputed_mask(labels)
    if not disputed.any():
        return fused, agreement
    candidates = labels[:, disputed].astype(np.int32)
    votes = np.stack([(candidates == row).sum(axis=0) for row in candidates])
    most = votes.max(axis=0)
    winning = votes == most
    # the smallest of the labels with most votes; the largest tells whether it is alone
    lowest = np.where(winning, candidates, np.iinfo(np.int32).max).min(axis=0)
    highest = np.where(winning, candidates, -1).max(axis=0)
    fused[disputed] = lowest
    agreement[disputed] = most / np.float32(len(labels))
    if ties == "nearest" and (lowest != highest).any():
        tied = np.zeros(fused.shape, dtype=bool)
        tied[disputed] = lowest != highest
        options = np.where(winning, candidates, -1)[:, lowest != highest]
        fused[tied] = _nearest_option(fused, tied, options, spacing)
    return fused, agreement


def _nearest_option(
    fused: npt.NDArray[np.int32], tied: BoolArray, options: npt.NDArray[np.int32], spacing: Sequence[float] | None
) -> npt.NDArray[np.int32]:
    """Return for each tied voxel the option (n_atlases, n_tied; -1: none) whose nearest decided voxel is closest."""
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
