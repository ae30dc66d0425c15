"""How a head lies in its image, when its header does not tell: the MNI152 brain is searched in all rotations and places.

The search (CSNGF, `popatlas.registration.global_search.csngf`) compares directions of edges only, so it needs no contrast
of a certain kind, no start and no field of view. It takes seconds, and is asked only for heads in which no brain was found
otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.preprocess.head import CoarseHead, Values

if TYPE_CHECKING:
    from popatlas.images.scan import Scan

Matrix = npt.NDArray[np.float64]

REFERENCE_MM = 4.0
SEARCH_MM = 8.0  # voxels of the search, for images that are larger than a head
MOST_SIDE = 64  # of them, along the longest side
RAS_LPS = np.diag([-1.0, -1.0, 1.0])
TISSUE = 0.05  # of the reference's range


@dataclass(frozen=True)
class Pose:
    """Where a brain lies in an image.

    Attributes
    ----------
    rotation : (3, 3) ndarray
        Takes the axes right, forwards and up of the person to axes of the image.
    centre_mm : (3,) ndarray
        Middle of the brain, mm from the corner of the image.
    """

    rotation: Matrix
    centre_mm: npt.NDArray[np.float64]

    @property
    def angle(self) -> float:
        """Degrees by which the person is turned against the axes of the image."""
        return float(np.degrees(np.arccos(np.clip((np.trace(self.rotation) - 1) / 2, -1, 1))))

    def quarter_turns(self) -> tuple[Matrix, float]:
        """Return the nearest rotation that takes axes to axes, and how far it is away in degrees."""
        from popatlas.registration.global_search.rotations import angle_between, cube_rotations

        cubes = cube_rotations(3)
        angles = angle_between(cubes, self.rotation)
        return cubes[int(angles.argmin())], float(angles.min())


def find_poses(coarse: CoarseHead) -> Iterator[Pose]:
    """Search the MNI152 brain in an image; yield the best pose, then the best one that is turned against it.

    Parameters
    ----------
    coarse : CoarseHead
        Image in voxels of about 4 mm.

    Yields
    ------
    Pose
        Nothing where there is too little to compare.
    """
    from popatlas.registration.global_search.csngf import SCHEDULES, search

    brain, middle = _reference()
    head = _scan(coarse.values, np.diag([*coarse.spacing, 1.0]), coarse.values > 0)
    extent = max(np.ptp(np.argwhere(coarse.inside), axis=0) * coarse.spacing)
    default = SCHEDULES["default"]
    side = int(np.clip(extent / SEARCH_MM + 1, default.side or 0, MOST_SIDE))
    try:
        found = search(brain, head, replace(default, side=side))
    except InputError:  # next to nothing is in the image
        return
    for matrix in (found.matrix, found.runner_up_matrix):
        if matrix is not None:
            rotation = RAS_LPS @ matrix[:3, :3] @ RAS_LPS
            # voxel centres count from 0 there, millimetres from the corner here
            centre = RAS_LPS @ (matrix[:3, :3] @ middle + matrix[:3, 3]) + coarse.spacing / 2
            yield Pose(rotation, centre)


@lru_cache(maxsize=1)
def _reference() -> tuple[Scan, npt.NDArray[np.float64]]:
    """Return the MNI152 brain and the middle of its box, LPS mm."""
    from scipy.ndimage import binary_dilation

    from popatlas.groupwise.template import reference_brain

    data, affine = reference_brain(REFERENCE_MM)
    inside = data > TISSUE
    corners = np.argwhere(inside)
    middle = affine[:3, :3] @ ((corners.min(0) + corners.max(0)) / 2) + affine[:3, 3]
    return _scan(data, affine, np.asarray(binary_dilation(inside))), RAS_LPS @ middle


def _scan(data: Values, affine: Matrix, mask: npt.NDArray[np.bool_]) -> Scan:
    import torch

    from popatlas.images.grid import Grid
    from popatlas.images.scan import Scan

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    image, inside = (torch.as_tensor(np.ascontiguousarray(part, dtype=np.float32))[None, None] for part in (data, mask))
    return Scan(image, Grid(data.shape, lps), inside)
