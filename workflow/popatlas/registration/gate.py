"""The quality gate of a registration: numbers first, then a verdict with reasons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from popatlas.transforms.affine import Matrix, decompose


def dice(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Return the Dice overlap of two masks; 1 when both are empty."""
    a, b = first > 0, second > 0
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 1.0


def correlation(first: npt.NDArray[Any], second: npt.NDArray[Any], mask: npt.NDArray[Any]) -> float:
    """Return the Pearson correlation of two images inside a mask; 0 when one is constant."""
    inside = mask > 0
    a, b = first[inside].astype(np.float64), second[inside].astype(np.float64)
    if a.size < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def gate_metrics(
    affine: Matrix,
    jacobian: npt.NDArray[np.float32] | None,
    fixed_mask: npt.NDArray[Any],
    warped_mask: npt.NDArray[Any],
) -> dict[str, float]:
    """Return the numbers that the gate judges.

    Parameters
    ----------
    affine : (D + 1, D + 1) ndarray
        Affine part, LPS millimetres.
    jacobian : ndarray or None
        Jacobian determinant of the composed transform on the fixed grid.
    fixed_mask, warped_mask : ndarray
        Brain masks on the fixed grid.

    Returns
    -------
    dict
        scale_max, scale_min, shear, reflected (1 when the affine mirrors), mask_dice and nonpositive_jacobian (share of
        fixed-mask voxels).
    """
    parts = decompose(affine)
    metrics = {
        "scale_max": parts.scales[0],
        "scale_min": parts.scales[-1],
        "shear": parts.shear,
        "reflected": float(parts.reflected),
        "mask_dice": dice(fixed_mask, warped_mask),
    }
    if jacobian is not None:
        inside = jacobian[fixed_mask > 0]
        metrics["nonpositive_jacobian"] = float(np.mean(inside <= 0)) if inside.size else 0.0
    return metrics


def judge(metrics: Mapping[str, float], limits: Mapping[str, Any]) -> list[str]:
    """Return the reasons why a registration is implausible; empty when it passes.

    Parameters
    ----------
    metrics : mapping
        From `gate_metrics`, and where they are known `ncc` (correlation inside of the fixed mask after registration),
        `ncc_before` (the same before it), `inverse_error` (mean distance in voxels between a point and itself after the way
        there and back) and `diverged` (1 when the optimisation was stopped because it did).
    limits : mapping
        The configuration's `register.gate`.
    """
    low, high = limits["scale"]
    # comparisons with NaN are false: none of the limits would stop it
    checks = [(not np.isfinite(value), f"{name} is not finite ({value})") for name, value in metrics.items()]
    checks += [
        (metrics["scale_min"] < low, f"scale {metrics['scale_min']:.2f} below {low}"),
        (metrics["scale_max"] > high, f"scale {metrics['scale_max']:.2f} above {high}"),
        (metrics["shear"] > limits["shear"], f"shear {metrics['shear']:.2f} above {limits['shear']}"),
        (metrics.get("reflected", 0.0) > 0, "the affine mirrors the image"),
        (
            metrics["mask_dice"] < limits["mask_dice"],
            f"mask Dice {metrics['mask_dice']:.3f} below {limits['mask_dice']}",
        ),
    ]
    share = metrics.get("nonpositive_jacobian", 0.0)
    most = limits["nonpositive_jacobian"]
    checks.append((share > most, f"share of Jacobian <= 0 {share:.5f} above {most}"))
    if "ncc" in metrics and "ncc_before" in metrics:
        gain, least = metrics["ncc"] - metrics["ncc_before"], limits.get("similarity_gain", 0.0)
        checks.append((gain < least, f"correlation rose by {gain:.3f}, less than {least}"))
    if "inverse_error" in metrics:
        error, most = metrics["inverse_error"], limits.get("inverse_error", np.inf)
        checks.append((error > most, f"inverse consistency error {error:.3f} voxels above {most}"))
    checks.append((metrics.get("diverged", 0.0) > 0, "the optimisation diverged"))
    return [reason for failed, reason in checks if failed]
