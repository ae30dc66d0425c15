"""Local volume change of a transform: summary of the log Jacobian that the registration wrote.

ANTs computes the determinant (`transforms.displacement.write_jacobian`). SimpleITK's
DisplacementFieldJacobianDeterminant is not used: it differentiates along the image axes without the direction cosines, so
it is wrong on every grid whose axes are not ITK's LPS (RAS images, for one); a test shows both. ANTs cuts negative
determinants off at 0 and logarithms at log(0.001): shares of non-positive voxels stay exact, and folded voxels enter the
mean and SD of the logarithm with log(0.001).
"""

from __future__ import annotations

import numpy as np

from popatlas.images.arrays import FloatArray, RealArray

LOG_FLOOR = float(np.log(0.001))


def summarise_log_jacobian(log_determinant: FloatArray, mask: RealArray) -> dict[str, float]:
    """Summarise a log-Jacobian image inside a mask.

    Parameters
    ----------
    log_determinant : ndarray
        Logarithm of the determinant; non-positive determinants hold ``LOG_FLOOR``, minus infinity or NaN.
    mask : ndarray
        Nonzero voxels count.

    Returns
    -------
    dict
        ``log_jacobian_mean``, ``log_jacobian_sd`` and ``nonpositive_jacobian`` (share of the voxels); NaN for an
        empty mask.
    """
    inside = np.asarray(log_determinant, dtype=np.float64)[mask != 0]
    if inside.size == 0:
        return dict.fromkeys(("log_jacobian_mean", "log_jacobian_sd", "nonpositive_jacobian"), float("nan"))
    folded = ~(inside > LOG_FLOOR + 1e-4)
    values = np.where(folded, LOG_FLOOR, inside)
    return {
        "log_jacobian_mean": float(values.mean()),
        "log_jacobian_sd": float(values.std()),
        "nonpositive_jacobian": float(folded.mean()),
    }
