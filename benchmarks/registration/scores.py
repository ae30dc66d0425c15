"""Scores of a displacement field against labels, the true field, and its own inverse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.registration.cases import Array, Case, Labels, Mask
from benchmarks.registration.rows import Distances, Regularity, Scores
from popatlas.images.deformation import Grid, sample
from popatlas.measures.jacobian import LOG_FLOOR
from popatlas.measures.overlap import overlap
from popatlas.measures.surface import label_surface_distances
from popatlas.transforms.fields import compose
from popatlas.transforms.jacobian import jacobian_determinant, least_determinant

SMALLEST = 100  # voxels that a structure needs in both images


def score(case: Case, forward: Array, inverse: Array | None) -> Scores:
    """Return all scores of a field.

    Parameters
    ----------
    case : Case
        The pair that was registered.
    forward : (3, x, y, z) ndarray
        Displacement from fixed to moving points, voxels of the fixed grid.
    inverse : (3, x, y, z) ndarray or None
        Displacement from moving to fixed points on the same grid.

    Returns
    -------
    dict
        ``dice``; ``hd95`` (mm); ``error`` and ``error_p95`` (voxels, in the brain); ``folded`` (share of the brain's voxels
        whose Jacobian determinant is not positive) and ``folded_voxels`` (their number on the whole grid); ``folds``
        (share of the brain's voxels that fold towards some neighbours); ``sdlogj``;
        ``inverse_error`` (voxels); ``volume_error`` (see there). NaN where a score does not exist.
    """
    brain = case.fixed_labels > 0
    warped = warp_labels(case, forward)
    labels = scored_labels(case)
    table = overlap(case.fixed_labels, warped).set_index("label")
    distances = label_surface_distances(case.fixed_labels, warped, [case.spacing] * 3, labels)
    return {
        "dice": float(table["dice"].reindex(labels).mean()),
        "hd95": float(distances["hd95"].mean()),
        **field_error(forward, case.truth, brain),
        **regularity(forward, brain),
        "inverse_error": inverse_error(forward, inverse, case.moving > 0),
        "volume_error": volume_error(case, forward, labels),
    }


def volume_error(case: Case, forward: Array, labels: Sequence[int]) -> float:
    """Return how far the volumes of structures by the Jacobian are from those of the moving labels: RMS of the log ratio.

    What studies of volume by deformation rest on. Both are volumes after the affine.
    """
    determinant = jacobian_determinant(torch.from_numpy(forward)[None])[0].numpy()
    share = abs(np.linalg.det(case.to_moving[:3, :3]))  # moving voxels in a fixed one
    found = np.array([determinant[case.fixed_labels == label].sum() for label in labels])
    true = np.array([(case.moving_labels == label).sum() / share for label in labels])
    return float(np.sqrt(np.mean(np.log(np.maximum(found, 1) / true) ** 2))) if len(labels) else float("nan")


def scored_labels(case: Case) -> list[int]:
    """Return the structures that are large enough in both images."""
    return large_labels(case.fixed_labels, case.moving_labels, SMALLEST)


def large_labels(one: Labels, other: Labels, smallest: int) -> list[int]:
    """Return the labels that have some voxels in each of two images."""
    counts = [np.unique(image[image > 0], return_counts=True) for image in (one, other)]
    large = [set(values[sizes >= smallest].tolist()) for values, sizes in counts]
    return sorted(large[0] & large[1])


def warp_labels(case: Case, forward: Array) -> Labels:
    """Read the moving labels through displacement and affine, nearest neighbour, in one step."""
    points = Grid(forward.shape[1:], np.eye(4)).points() + forward
    to_fixed = np.asarray(np.linalg.inv(case.to_moving), np.float64)
    return sample(case.moving_labels, to_fixed, points, order=0).astype(np.int16)


def field_error(forward: Array, truth: Array, brain: Mask) -> Distances:
    """Return mean and 95th percentile of the distance to the true field, voxels; NaN where it is not known."""
    if truth.size == 0:
        return {"error": float("nan"), "error_p95": float("nan")}
    distance = np.linalg.norm(forward - truth, axis=0)[brain]
    return {"error": float(distance.mean()), "error_p95": float(np.percentile(distance, 95))}


def regularity(forward: Array, brain: Mask) -> Regularity:
    """Return the folded share and number of voxels, by central and by one-sided differences (`folds`), and the spread.

    The spread is the standard deviation of the log-Jacobian in the brain.
    """
    determinant = jacobian_determinant(torch.from_numpy(forward)[None])[0].numpy()
    least = least_determinant(torch.from_numpy(forward)[None])[0].numpy()
    log = np.log(np.maximum(determinant[brain], np.exp(LOG_FLOOR)))
    return {
        "folded": float((determinant[brain] <= 0).mean()),
        "folded_voxels": float((determinant <= 0).sum()),
        "folds": float((least[brain] <= 0).mean()),
        "sdlogj": float(log.std()),
    }


def inverse_error(forward: Array, inverse: Array | None, brain: Mask) -> float:
    """Return the mean distance of a moving point from itself after the way back and forth, voxels."""
    if inverse is None:
        return float("nan")
    residual = compose(torch.from_numpy(inverse)[None], torch.from_numpy(forward)[None])[0]
    return float(residual.norm(dim=0).numpy()[brain].mean())
