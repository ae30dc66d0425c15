"""Numbers about a brain mask, and whether it is plausible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
import numpy.typing as npt

from popatlas.images.arrays import RealArray
from popatlas.preprocess.shape import DARK, USUAL_COMPACTNESS, Shape, measure_shape

# Beyond these no mask of a whole brain was seen, of 40 heads; what is usual stands in the messages
# share of dark voxels: of a mask that is odd in shape too, and of any (fluid can be as dark as bone, and sulci empty)
MOST_DARK, MOST_DARK_EVER = 0.03, 0.2
BARE = 0.05  # voxels outside the mask that are not dark, in shares of the mask: fewer in a stripped image
LEAST_COMPACTNESS = 0.35
MOST_ELONGATION = 2.0
MOST_CUT = 0.4  # area of the mask on a face of the image, in shares of its volume to the power of 2/3: 50 cm2 of 1400 ml
MOST_BORDER = 0.02  # share of the voxels of an organ on the edge of the image


class MaskQuality(TypedDict):
    """Numbers about a brain mask and what they mean, see `mask_quality`."""

    brain_ml: float
    components: int
    border_voxels: int
    compactness: float
    dark_share: float
    elongation: float
    contrast: float | None
    verdict: Literal["pass", "fail"]
    reasons: list[str]


def mask_quality(
    data: RealArray,
    mask: RealArray,
    affine: npt.NDArray[np.float64],
    volume_ml: Sequence[float],
    *,
    stripped: bool = False,
) -> MaskQuality:
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
    MaskQuality
        brain_ml, components, border_voxels (mask voxels on the edge of the image), compactness (volume of the mask over
        that of a ball with its surface, 0 to 1), dark_share (of the mask, as dark as bone or air), elongation (length over
        width), contrast (mean inside over mean of the shell of 3 voxels outside), verdict ("pass" or "fail") and reasons.
    """
    from scipy.ndimage import binary_dilation, label

    brain = mask > 0
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shape = measure_shape(data, brain, spacing)
    faces = [int(brain.take(edge, axis=axis).sum()) for axis in range(3) for edge in (0, -1)]
    border = sum(faces)
    shell = binary_dilation(brain, iterations=3) & ~brain
    outside = float(data[shell].mean()) if shell.any() else 0.0
    reasons = _volume_reasons(shape, volume_ml)
    if border > MOST_BORDER * max(int(brain.sum()), 1):
        reasons.append(f"the mask is cut by the edge of the image ({border} voxels on it)")
    if not stripped:
        usual = shape.compactness >= USUAL_COMPACTNESS and shape.is_upright
        most_dark = MOST_DARK_EVER if usual or _is_bare(data, brain) else MOST_DARK
        reasons += [*_cut_reasons(faces, spacing, shape.ml), *_shape_reasons(shape, most_dark)]
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


def _cut_reasons(faces: Sequence[int], spacing: npt.NDArray[np.float64], volume_ml: float) -> list[str]:
    """Return whether a face of the image cuts through the brain; the same for all voxel sizes."""
    areas = [count * float(np.prod(spacing)) / spacing[number // 2] / 100 for number, count in enumerate(faces)]
    most = MOST_CUT * volume_ml ** (2 / 3)
    if max(areas) <= most:
        return []
    side = ("left", "right", "back", "front", "bottom", "top")[int(np.argmax(areas))]
    return [f"the brain is cut at the {side} of the image ({max(areas):.0f} cm2 of it lie there, usually 0 to 30)"]


def _is_bare(data: RealArray, brain: npt.NDArray[np.bool_]) -> bool:
    """Tell whether there is nothing but the brain: the sulci of a stripped image are as empty as what surrounds it."""
    if not brain.any():
        return False
    return bool(np.sum(data[~brain] > DARK * np.percentile(data[brain], 75)) < BARE * brain.sum())


def _shape_reasons(shape: Shape, most_dark: float) -> list[str]:
    """Return in what the mask differs from all brains."""
    reasons = []
    if shape.dark_share > most_dark:
        reasons.append(f"{100 * shape.dark_share:.1f} % of it is as dark as bone or air (usually below 1 %)")
    if 0 < shape.compactness < LEAST_COMPACTNESS:
        reasons.append(f"its surface is ragged (compactness {shape.compactness:.2f}, usually 0.55 to 0.8)")
    if shape.elongation > MOST_ELONGATION:
        reasons.append(f"it is {shape.elongation:.1f} times as long as wide (usually 1.2 to 1.7), as half a brain is")
    return reasons
