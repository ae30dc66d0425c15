"""Vote weighted by how much each atlas looks like the target around each voxel.

A weight is the correlation in a window around the voxel, to a power. Correlation does not depend on the scale of the
intensities, so atlases need not be matched to the target.

Artaechevarria X, Munoz-Barrutia A, Ortiz-de-Solorzano C. Combination strategies in multi-atlas image segmentation:
application to brain MR data. IEEE TMI 2009;28(8):1266-1277. doi:10.1109/TMI.2009.2014372
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from popatlas.fusion.candidates import Candidates
from popatlas.fusion.labels import bounding_box
from popatlas.fusion.result import Fusion
from popatlas.fusion.settings import Ties
from popatlas.fusion.vote import vote
from popatlas.images.arrays import BoolArray, FloatArray
from popatlas.measures.correlation import WindowMoments

# a window with less variance than this share of the image's is flat: its correlation says nothing
FLAT = 1e-6


def local_vote(candidates: Candidates, ties: Ties = "nearest", power: float = 8.0, radius: int = 2) -> Fusion:
    """Fuse candidates by a vote with a weight for each voxel: the correlation in a window, to a power.

    Parameters
    ----------
    candidates : Candidates
        With images.
    ties : {"nearest", "lowest"}
        Rule at ties, see :mod:`popatlas.fusion.vote`.
    power : float
        0: a plain vote; larger: the most similar atlases decide.
    radius : int
        The window has 2 `radius` + 1 voxels along each axis.

    Returns
    -------
    Fusion
    """
    weights = local_similarity(candidates, radius) ** power
    return vote(candidates.labels, candidates.disputed, weights, ties, candidates.spacing)


def local_similarity(candidates: Candidates, radius: int) -> npt.NDArray[np.float32]:
    """Return the windowed correlation with the target at the disputed voxels, (n_candidates, n_disputed), in [0, 1]."""
    target, images = candidates.need_images("similarity")
    disputed = candidates.disputed
    if not disputed.any():
        return np.zeros((len(images), 0), dtype=np.float32)
    box = bounding_box(disputed, margin=2 * radius)
    wanted = disputed[box]
    fixed = WindowMoments(target[box], radius, mode="reflect")
    var_fixed = np.maximum(fixed.variance, 0)
    weights = np.zeros((len(images), int(wanted.sum())), dtype=np.float32)
    for row, image in zip(weights, images, strict=True):
        moving = WindowMoments(image[box], radius, mode="reflect")
        row[:] = _ratio(fixed.covariance(moving), var_fixed, np.maximum(moving.variance, 0), wanted)
    return weights


def _ratio(shared: FloatArray, var_fixed: FloatArray, variance: FloatArray, wanted: BoolArray) -> FloatArray:
    """Return the positive part of a correlation at the wanted voxels; 0 where one of the windows is flat."""
    structured = (var_fixed > FLAT * var_fixed.max()) & (variance > FLAT * variance.max())
    scale = np.sqrt(np.where(structured, var_fixed * variance, 1))
    return np.asarray(np.clip(np.where(structured, shared / scale, 0), 0, 1)[wanted])
