"""Numbers about a brain mask, and whether it is plausible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def mask_quality(
    data: npt.NDArray[Any], mask: npt.NDArray[Any], affine: npt.NDArray[np.float64], volume_ml: Sequence[float]
) -> dict[str, Any]:
    """Measure a brain mask.

    Parameters
    ----------
    data : (x, y, z) ndarray
        Preprocessed head.
    mask : (x, y, z) ndarray
        Non-zero is brain.
    affine : (4, 4) ndarray
        Voxel to RAS millimetres.
    volume_ml : pair of float
        Plausible volume.

    Returns
    -------
    dict
        brain_ml, components, border_voxels (mask voxels on the edge of the image), compactness (volume of the mask over
        that of a ball with its surface, 0 to 1), contrast (mean inside over mean of the shell of 3 voxels outside),
        verdict ("pass" or "fail") and reasons.
    """
    from scipy.ndimage import binary_dilation, label

    brain = mask > 0
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    volume = float(brain.sum()) * voxel_ml
    border = int(sum(brain.take(edge, axis=axis).sum() for axis in range(3) for edge in (0, -1)))
    shell = binary_dilation(brain, iterations=3) & ~brain
    outside = float(data[shell].mean()) if shell.any() else 0.0
    low, high = volume_ml
    reasons = []
    if not low <= volume <= high:
        reasons.append(f"brain volume {volume:.0f} ml outside {low:g} to {high:g} ml")
    if border > 0.02 * max(int(brain.sum()), 1):
        reasons.append("the mask is cut by the edge of the image")
    return {
        "brain_ml": round(volume, 2),
        "components": int(np.asarray(label(brain)[0]).max()),  # type: ignore[index]
        "border_voxels": border,
        "compactness": round(_compactness(brain), 4),
        "contrast": round(float(data[brain].mean()) / outside, 4) if outside > 0 and brain.any() else None,
        "verdict": "fail" if reasons else "pass",
        "reasons": reasons,
    }


def _compactness(brain: npt.NDArray[np.bool_]) -> float:
    """Return 36 pi V^2 / S^3 in voxels; S is 2/3 of the number of faces (a ball has 1.5 times as many as its surface)."""
    padded = np.pad(brain, 1).astype(np.int8)
    faces = sum(int(np.abs(np.diff(padded, axis=axis)).sum()) for axis in range(3))
    surface = faces * 2 / 3
    return float(36 * np.pi * float(brain.sum()) ** 2 / surface**3) if surface else 0.0
