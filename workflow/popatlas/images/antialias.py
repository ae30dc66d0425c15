"""Smoothing before resampling, so that the new grid holds nothing that it cannot carry."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# A Gaussian of this many new voxels (minus the old resolution) keeps what the new grid can carry
ANTIALIAS_FWHM = 1.0
FWHM = float(np.sqrt(8 * np.log(2)))  # full width at half maximum of a Gaussian of deviation 1
SIGMA_STEP = 0.05  # voxels; few different widths keep the cache of smoothing matrices useful


def antialias_sigmas(steps: npt.NDArray[np.float64]) -> list[float]:
    """Return the Gaussians that widen voxels to those of a coarser grid.

    Parameters
    ----------
    steps : (D,) ndarray
        Distance of neighbours of the new grid along each axis of the old one, old voxels.

    Returns
    -------
    list of float
        Standard deviations, old voxels; 0 where the new voxels are no larger.
    """
    sigmas = np.sqrt(np.maximum((ANTIALIAS_FWHM * steps) ** 2 - 1, 0)) / FWHM
    return [float(value) for value in np.round(sigmas / SIGMA_STEP) * SIGMA_STEP]
