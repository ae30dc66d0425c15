"""The shape of a brain mask in numbers, and whether a brain can look like that.

Two numbers tell a brain from a head, and one from a brain that lies another way. Bone and air are as dark as nothing in a
brain is, so the **share of dark voxels** in a mask of the head is several times that of a mask of the brain. And a brain is
neither symmetrical from front to back nor from top to bottom: the **skewness** of its voxels points forwards and down, by
nearly the same amount in all people, and it is longest from front to back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from popatlas.images.arrays import RealArray

# Measured on 40 heads (20 to 82 years, 1 to 3 mm, real and simulated): right masks, and masks of heads that lie turned
DARK = 0.12  # of the 75th percentile of the mask: darker than cerebrospinal fluid
USUAL_DARK = 0.012  # right: 0 to 0.008; half of the head: 0.03 to 0.08
USUAL_COMPACTNESS = 0.6  # right: 0.65 to 0.79
USUAL_ML = (700.0, 2300.0)
FORWARDS_AND_DOWN = np.array([0.0, 0.83, -0.55])  # mean direction of the skewness in RAS
MOST_TURNED = 0.5  # cosine to it: 60 degrees
MOST_SIDEWAYS = 0.1  # skewness from left to right; right: 0 to 0.04
LONGEST = 0.97  # length from front to back, in shares of the longest other axis; right: 1.1 and more


@dataclass(frozen=True)
class Shape:
    """Numbers about a brain mask.

    Attributes
    ----------
    ml : float
        Volume.
    dark_share : float
        Share of its voxels that are darker than 12 % of its 75th percentile, counted from the darkest of the image.
    compactness : float
        Volume over that of a ball with its surface, 0 to 1.
    lengths_mm : (3,) ndarray
        Standard deviations of its voxels along the axes.
    skewness : (3,) ndarray
        Skewness of its voxels along the axes.
    elongation : float
        Standard deviation along the longest principal axis over that along the shortest.
    """

    ml: float
    dark_share: float
    compactness: float
    lengths_mm: npt.NDArray[np.float64]
    skewness: npt.NDArray[np.float64]
    elongation: float

    @property
    def is_brain(self) -> bool:
        """It can be a brain, lying in any way."""
        low, high = USUAL_ML
        return low <= self.ml <= high and self.dark_share <= USUAL_DARK and self.compactness >= USUAL_COMPACTNESS

    @property
    def is_upright(self) -> bool:
        """If it is a brain, it lies as the axes say: RAS, give or take a nod."""
        size = float(np.linalg.norm(self.skewness))
        forwards = float(self.skewness @ FORWARDS_AND_DOWN) > MOST_TURNED * size
        longest = self.lengths_mm[1] >= LONGEST * max(self.lengths_mm[0], self.lengths_mm[2])
        return bool(forwards and longest and abs(self.skewness[0]) <= MOST_SIDEWAYS)


def measure_shape(data: RealArray, mask: RealArray, spacing: npt.NDArray[np.float64]) -> Shape:
    """Measure a mask.

    Parameters
    ----------
    data : (x, y, z) ndarray
        Head, axes close to RAS.
    mask : (x, y, z) ndarray
        Non-zero is brain.
    spacing : (3,) ndarray
        Voxel size, mm.

    Returns
    -------
    Shape
        Zeros for an empty mask.
    """
    brain = mask > 0
    count = int(brain.sum())
    if not count:
        return Shape(0.0, 0.0, 0.0, np.zeros(3), np.zeros(3), 0.0)
    points = (np.argwhere(brain) - np.argwhere(brain).mean(0)) * spacing
    lengths = points.std(0)
    principal = np.linalg.eigvalsh(points.T @ points / count)
    inside = data[brain].astype(np.float64) - float(np.percentile(data, 0.5))
    bound = DARK * float(np.percentile(inside, 75))  # not the median: half of a wrong mask may be empty
    return Shape(
        ml=count * float(np.prod(spacing)) / 1000,
        dark_share=float(np.mean(inside <= bound)),
        compactness=compactness(brain),
        lengths_mm=lengths,
        skewness=(points**3).mean(0) / np.maximum(lengths, 1e-9) ** 3,
        elongation=float(np.sqrt(principal[-1] / max(principal[0], 1e-9))),
    )


def compactness(brain: npt.NDArray[np.bool_]) -> float:
    """Return 36 pi V^2 / S^3 in voxels; S is 2/3 of the number of faces (a ball has 1.5 times as many as its surface)."""
    padded = np.pad(brain, 1).astype(np.int8)
    faces = sum(int(np.abs(np.diff(padded, axis=axis)).sum()) for axis in range(3))
    surface = faces * 2 / 3
    return float(36 * np.pi * float(brain.sum()) ** 2 / surface**3) if surface else 0.0
