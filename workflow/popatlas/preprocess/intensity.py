"""Intensity normalisation inside the brain."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.images.arrays import RealArray


def normalise(data: RealArray, mask: RealArray, method: str) -> npt.NDArray[np.float32]:
    """Return the brain with comparable intensities; 0 outside the mask.

    Parameters
    ----------
    data : (x, y, z) ndarray
        Image.
    mask : (x, y, z) ndarray
        Non-zero is brain.
    method : str
        "robust": 1st to 99th percentile to 0..1, clipped at 1.5; "zscore": mean 0.5, SD 0.25, clipped at 0 and 1.5, so
        that the background stays below the brain; "none": values as they are.

    Raises
    ------
    InputError
        When the mask is empty or the brain is (nearly) constant.
    """
    inside = data[mask > 0].astype(np.float64)
    if inside.size == 0 or inside.std() == 0:
        raise InputError("the brain is empty or constant", remedy="look at the brain mask and the image")
    if method == "none":
        scaled = data.astype(np.float64)
    elif method == "zscore":
        scaled = np.clip(0.5 + 0.25 * (data - inside.mean()) / inside.std(), 0, 1.5)
    else:
        low, high = np.percentile(inside, [1, 99])
        if high <= low:
            raise InputError("nearly all brain voxels have one value", remedy="look at the brain mask and the image")
        scaled = np.clip((data - low) / (high - low), 0, 1.5)
    return np.where(mask > 0, scaled, 0).astype(np.float32)
