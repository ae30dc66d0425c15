"""Vote weighted by how much each atlas looks like the target as a whole.

A weight is the correlation of all voxels of the region, to a power. Correlation does not depend on the scale of the
intensities, so atlases need not be matched to the target.

Artaechevarria X, Munoz-Barrutia A, Ortiz-de-Solorzano C. Combination strategies in multi-atlas image segmentation:
application to brain MR data. IEEE TMI 2009;28(8):1266-1277. doi:10.1109/TMI.2009.2014372
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from popatlas.fusion.candidates import Candidates
from popatlas.fusion.labels import union_mask
from popatlas.fusion.result import Fusion
from popatlas.fusion.settings import Ties
from popatlas.fusion.vote import vote
from popatlas.images.arrays import FloatArray


def global_vote(candidates: Candidates, ties: Ties = "nearest", power: float = 8.0) -> Fusion:
    """Fuse candidates by a vote with one weight for each: the correlation of its image with the target, to a power.

    Parameters
    ----------
    candidates : Candidates
        With images.
    ties : {"nearest", "lowest"}
        Rule at ties, see :mod:`popatlas.fusion.vote`.
    power : float
        0: a plain vote; larger: the most similar atlases decide.

    Returns
    -------
    Fusion
    """
    weights = global_similarity(candidates) ** power
    return vote(candidates.labels, candidates.disputed, weights, ties, candidates.spacing)


def global_similarity(candidates: Candidates) -> npt.NDArray[np.float64]:
    """Return the correlation of each atlas with the target where some candidate has a label, (n_candidates,), in [0, 1]."""
    target, images = candidates.need_images("similarity")
    region = union_mask(candidates.labels)
    if not region.any():
        return np.zeros(len(images))
    inside = np.asarray(target[region], dtype=np.float64)
    return np.array([_correlation(inside, np.asarray(image[region], dtype=np.float64)) for image in images])


def _correlation(fixed: FloatArray, moving: FloatArray) -> float:
    fixed, moving = fixed - fixed.mean(), moving - moving.mean()
    scale = float(np.sqrt((fixed @ fixed) * (moving @ moving)))
    return max(float(fixed @ moving) / scale, 0.0) if scale > 0 else 0.0
