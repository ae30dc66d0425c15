"""Similarity of two images inside a mask."""

from __future__ import annotations

import numpy as np

from popatlas.images.arrays import FloatArray, RealArray
from popatlas.measures.correlation import local_correlation, pearson


def similarity(fixed: FloatArray, moving: FloatArray, mask: RealArray, radius: int = 3) -> dict[str, float]:
    """Compare two images on one grid.

    Parameters
    ----------
    fixed, moving : (x, y, z) ndarray
        Intensities.
    mask : (x, y, z) ndarray
        Nonzero voxels count.
    radius : int
        Window radius of the local correlation in voxels.

    Returns
    -------
    dict
        ``correlation``: Pearson over the mask, in [-1, 1];
        ``local_correlation``: mean over the mask of the squared correlation in a cube of ``2 * radius + 1`` voxels,
        in [0, 1] (the metric CC of Avants BB et al., Medical Image Analysis 2008;12:26-41,
        doi:10.1016/j.media.2007.06.004);
        ``nmi``: normalised mutual information (H(A) + H(B)) / H(A, B) with 64 bins, in [1, 2] (Studholme C, Hill DLG,
        Hawkes DJ. Pattern Recognition 1999;32:71-86. doi:10.1016/S0031-3203(98)00091-0).
        NaN where undefined (empty mask, constant image).
    """
    from skimage.metrics import normalized_mutual_information

    inside = mask != 0
    a, b = fixed[inside].astype(np.float64), moving[inside].astype(np.float64)
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return dict.fromkeys(("correlation", "local_correlation", "nmi"), float("nan"))
    return {
        "correlation": pearson(a, b),
        "local_correlation": float(local_correlation(fixed, moving, radius)[inside].mean()),
        "nmi": float(normalized_mutual_information(a, b, bins=64)),
    }
