"""What is known of a registration: the numbers that its gate judges, of the affine alone and of the whole."""

from __future__ import annotations

import numpy as np
import torch

from popatlas.images.antspy import AntsImage
from popatlas.images.grid import Grid
from popatlas.images.scan import Scan
from popatlas.measures.correlation import correlation
from popatlas.registration.gate import affine_metrics
from popatlas.registration.pair import Pair
from popatlas.registration.pose import Pose, PoseJudge, Structure, coverage, poses_of, turn_of
from popatlas.registration.sides import laterality
from popatlas.registration.types import Attempt, Made
from popatlas.transforms.affine import Matrix
from popatlas.transforms.fields import compose as compose_fields
from popatlas.transforms.fields import coordinates, sample
from popatlas.transforms.jacobian import least_determinant
from popatlas.transforms.linear import move, voxel_matrix


def of_pose(pair: Pair, matrix: Matrix, pose: Pose) -> dict[str, float]:
    """Return what a linear transform tells about how two brains lie.

    Parameters
    ----------
    pair : Pair
        The brains.
    matrix : (D+1, D+1) ndarray
        Fixed to moving, LPS millimetres.
    pose : Pose
        What is known of it.

    Returns
    -------
    dict
        Size and shape of the affine; turned (degrees), edges_affine, covered; in 3D pose and, where it can be known, sides.
    """
    fixed, moving = pair.scans()
    found = {"turned": turn_of(matrix)[0], "edges_affine": pose.edges, "covered": coverage(fixed, moving, matrix)}
    metrics = affine_metrics(matrix) | found
    if fixed.ndim == 3:
        metrics["pose"] = pose.distinct
        if pose.clear and (sides := _sides(pair, matrix)) is not None:
            metrics["sides"] = sides
    return metrics


def of_affine(pair: Pair, attempt: Attempt, matrix: Matrix) -> dict[str, float]:
    """Return what an affine tells.

    Parameters
    ----------
    pair : Pair
        The brains.
    attempt : Attempt
        What comes after the affine.
    matrix : (D+1, D+1) ndarray
        Fixed to moving, LPS millimetres.

    Returns
    -------
    dict
        That of `of_pose`, contrast and one_contrast, ncc_before and ncc_affine. See `popatlas.measures.dictionary`.
    """
    fixed, moving = pair.scans()
    poses = poses_of(pair)
    return of_pose(pair, matrix, poses.judge(matrix)) | {
        "contrast": poses.relation(matrix).contrast,
        "one_contrast": float(attempt.settings.one_contrast),
        "ncc_before": _correlation(fixed, moving, np.eye(fixed.ndim + 1)),
        "ncc_affine": _correlation(fixed, moving, matrix),
    }


def _correlation(fixed: Scan, moving: Scan, matrix: Matrix) -> float:
    """Return the correlation in the fixed brain after an affine; outside of the moving image everything is 0."""
    to_voxel = voxel_matrix(torch.as_tensor(matrix)[None], fixed.grid, moving.grid)
    moved = sample(moving.image, move(to_voxel.float(), coordinates(fixed.grid.shape)), padding="zeros")
    mask = torch.ones_like(fixed.image) if fixed.mask is None else fixed.mask
    return correlation(fixed.image.numpy(), moved.numpy(), mask.numpy())


def _sides(pair: Pair, matrix: Matrix) -> float | None:
    """Return the laterality of the moving brain, which is looked at once."""
    if "sides" not in pair.asked:
        fixed, moving = pair.scans()
        pair.asked["sides"] = laterality(moving, fixed, matrix)
    found: float | None = pair.asked["sides"]
    return found


def of_deformation(pair: Pair, made: Made) -> dict[str, float]:
    """Return what the whole registration tells, besides `gate.gate_metrics`.

    Parameters
    ----------
    pair : Pair
        The brains.
    made : Made
        Its transforms and what they make of the moving brain.

    Returns
    -------
    dict
        ncc, edges, nmi, displacement and displacement_p95 (mm, of the warp), folds (share of the fixed brain's voxels that
        fold towards some of their neighbours), inverse_error (voxels), diverged.
    """
    fixed, _ = pair.scans()
    inside = pair.fixed_mask.numpy() > 0
    moved = Scan(_tensor(made.warped), Grid.from_ants(made.warped), _tensor(made.warped_mask))
    brain = poses_of(pair).fixed
    judge = PoseJudge(brain, Structure(moved, brain.spacing)) if made.warped_mask.max() > 0 else None
    still = np.eye(fixed.ndim + 1)
    there, back = (warp.displacement for warp in made.warps)
    spacing = torch.tensor(fixed.grid.spacing).reshape(-1, *[1] * fixed.ndim)
    lengths = (there[0] * spacing).norm(dim=0).numpy()[inside]
    error = compose_fields(there, back).norm(dim=1)[0].numpy()[inside]
    return {
        "ncc": correlation(pair.fixed.numpy(), made.warped.numpy(), inside),
        "edges": judge.edges(still) if judge else 0.0,
        "nmi": judge.relation(still).nmi if judge else 1.0,
        "displacement": float(lengths.mean()),
        "displacement_p95": float(np.percentile(lengths, 95)),
        "folds": float((least_determinant(there)[0].numpy()[inside] <= 0).mean()),
        "inverse_error": float(error.mean()),
        "diverged": float(made.files.diverged),
    }


def _tensor(image: AntsImage) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.numpy(), dtype=np.float32))[None, None]
