"""Numbers about a brain mask, and whether it is plausible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from popatlas.preprocess.shape import Shape, measure_shape

# Beyond these no mask of a whole brain was seen, of 40 heads; what is usual stands in the messages
MOST_DARK = 0.04
LEAST_COMPACTNESS = 0.35
MOST_ELONGATION = 2.2
MOST_BORDER = 0.02  # share of the mask that lies on the edge of the image


def mask_quality(
    data: npt.NDArray[Any],
    mask: npt.NDArray[Any],
    affine: npt.NDArray[np.float64],
    volume_ml: Sequence[float],
    *,
    stripped: bool = False,
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
    stripped : bool
        The image was skull-stripped before and its foreground is the mask: it may be any organ or part of one, so that only
        volume and border are judged.

    Returns
    -------
    dict
        brain_ml, components, border_voxels (mask voxels on the edge of the image), compactness (volume of the mask over
        that of a ball with its surface, 0 to 1), dark_share (of the mask, as dark as bone or air), elongation (length over
        width), contrast (mean inside over mean of the shell of 3 voxels outside), verdict ("pass" or "fail") and reasons.
    """
    from scipy.ndimage import binary_dilation, label

    brain = mask > 0
    shape = measure_shape(data, brain, np.linalg.norm(affine[:3, :3], axis=0))
    border = int(sum(brain.take(edge, axis=axis).sum() for axis in range(3) for edge in (0, -1)))
    shell = binary_dilation(brain, iterations=3) & ~brain
    outside = float(data[shell].mean()) if shell.any() else 0.0
    reasons = [*_volume_reasons(shape, volume_ml), *_border_reasons(border, int(brain.sum()))]
    reasons += [] if stripped else _shape_reasons(shape)
    return {
        "brain_ml": round(shape.ml, 2),
        "components": int(np.asarray(label(brain)[0]).max()),  # type: ignore[index]
        "border_voxels": border,
        "compactness": round(shape.compactness, 4),
        "dark_share": round(shape.dark_share, 4),
        "elongation": round(shape.elongation, 3),
        "contrast": round(float(data[brain].mean()) / outside, 4) if outside > 0 and brain.any() else None,
        "verdict": "fail" if reasons else "pass",
        "reasons": reasons,
    }


def _volume_reasons(shape: Shape, volume_ml: Sequence[float]) -> list[str]:
    low, high = volume_ml
    if low <= shape.ml <= high:
        return []
    return [f"brain volume {shape.ml:.0f} ml outside {low:g} to {high:g} ml (adults usually 1000 to 1800)"]


def _border_reasons(border: int, count: int) -> list[str]:
    if border <= MOST_BORDER * max(count, 1):
        return []
    return [f"the mask is cut by the edge of the image ({border} voxels on it, usually none)"]


def _shape_reasons(shape: Shape) -> list[str]:
    """Return in what the mask differs from all brains."""
    reasons = []
    if shape.dark_share > MOST_DARK:
        reasons.append(f"{100 * shape.dark_share:.1f} % of it is as dark as bone or air (usually below 1 %)")
    if 0 < shape.compactness < LEAST_COMPACTNESS:
        reasons.append(f"its surface is ragged (compactness {shape.compactness:.2f}, usually 0.55 to 0.8)")
    if shape.elongation > MOST_ELONGATION:
        reasons.append(f"it is {shape.elongation:.1f} times as long as wide (usually 1.2 to 1.7), as half a brain is")
    return reasons
