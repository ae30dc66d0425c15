"""Correlation of two images: of all their voxels, inside a mask, and in the cube around each voxel."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from popatlas.images.arrays import FloatArray, RealArray

Border = Literal["nearest", "reflect"]


def pearson(first: RealArray, second: RealArray, undefined: float = float("nan")) -> float:
    """Return the Pearson correlation of two lists of numbers; `undefined` for less than two, or when one is constant."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return undefined
    return float(np.corrcoef(a, b)[0, 1])


def correlation(first: RealArray, second: RealArray, mask: RealArray) -> float:
    """Return the Pearson correlation of two images where a mask is above 0; 0 when one is constant there."""
    inside = mask > 0
    return pearson(first[inside], second[inside], undefined=0.0)


class WindowMoments:
    """Mean and variance of an image in the cube around each voxel.

    Parameters
    ----------
    image : ndarray
        Intensities.
    radius : int
        Cubes have ``2 * radius + 1`` voxels along each axis.
    mode : {"nearest", "reflect"}
        How the image goes on beyond its border, as in `scipy.ndimage.uniform_filter`.
    """

    def __init__(self, image: FloatArray, radius: int, mode: Border = "nearest") -> None:
        self.image, self.size, self.mode = image.astype(np.float64), 2 * radius + 1, mode
        self.mean = self._mean(self.image)
        self.variance = self._mean(self.image * self.image) - self.mean**2

    def covariance(self, other: WindowMoments) -> npt.NDArray[np.float64]:
        """Return the covariance with another image of the same windows."""
        return self._mean(self.image * other.image) - self.mean * other.mean

    def _mean(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        from scipy.ndimage import uniform_filter

        return np.asarray(uniform_filter(values, size=self.size, mode=self.mode))


def local_correlation(fixed: FloatArray, moving: FloatArray, radius: int) -> npt.NDArray[np.float64]:
    """Return the squared correlation of two images in the cube around each voxel; 0 where one is constant."""
    a, b = WindowMoments(fixed, radius), WindowMoments(moving, radius)
    spread = a.variance * b.variance
    floor = 1e-10 * max(float(a.image.var() * b.image.var()), 1e-30)
    return np.where(spread > floor, a.covariance(b) ** 2 / np.maximum(spread, floor), 0.0)
