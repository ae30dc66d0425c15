"""Where a registration starts: geometry centres, centres of mass, principal axes.

Every start is a rigid matrix, fixed to moving, LPS millimetres. A scan with a mask is described by the mask alone, which
does not depend on its contrast; one without by its intensities above the minimum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from popatlas.images.pyramid import coarsen
from popatlas.images.scan import Scan, check_scans
from popatlas.registration.global_search.rotations import Array, cube_rotations
from popatlas.similarity.mi import MattesMI
from popatlas.transforms.affine import Matrix
from popatlas.transforms.fields import coordinates, sample
from popatlas.transforms.linear import voxel_matrix

QUICK_SIDE = 24  # voxels along the longest side of the image on which orientations are compared
QUICK_BINS = 16


def geometry_centre(fixed: Scan, moving: Scan) -> Matrix:
    """Return the translation between the middles of the two grids, LPS millimetres, (D+1, D+1)."""
    return rigid(np.eye(fixed.ndim), np.asarray(fixed.grid.centre), np.asarray(moving.grid.centre))


def centre_of_mass(fixed: Scan, moving: Scan) -> Matrix:
    """Return the translation between the two centres of mass.

    Parameters
    ----------
    fixed, moving : Scan
        Images; where one has a mask, the mask is what is weighed.

    Returns
    -------
    (D+1, D+1) ndarray
        Fixed to moving, LPS millimetres.

    Raises
    ------
    InputError
        From `check_pair`.
    """
    check_scans(fixed, moving)
    return rigid(np.eye(fixed.ndim), mass_moments(fixed)[0], mass_moments(moving)[0])


def moments(fixed: Scan, moving: Scan) -> Matrix:
    """Return the rigid transform between the centres of mass and the principal axes of two images.

    Axes have neither sign nor, for bodies that are about as wide as high, a sure order. So all proper rotations that take
    axes to axes (24 in 3D, 4 in 2D) and the plain translation are compared by the mutual information of small copies of
    the images.

    Parameters
    ----------
    fixed, moving : Scan
        Images; where one has a mask, the mask is what is weighed.

    Returns
    -------
    (D+1, D+1) ndarray
        Fixed to moving, LPS millimetres; its linear part is a proper rotation.

    Raises
    ------
    InputError
        From `check_pair`.
    """
    check_scans(fixed, moving)
    (from_centre, from_axes), (to_centre, to_axes) = (_frame(scan) for scan in (fixed, moving))
    turns = [np.eye(fixed.ndim), *(to_axes @ cube @ from_axes.T for cube in cube_rotations(fixed.ndim))]
    return most_similar(fixed, moving, [rigid(turn, from_centre, to_centre) for turn in turns])


STARTS: dict[str, Callable[[Scan, Scan], Matrix]] = {
    "geometry": geometry_centre,
    "mass": centre_of_mass,
    "moments": moments,
}


def rigid(rotation: Array, from_centre: Array, to_centre: Array) -> Matrix:
    """Return the matrix of a rotation that takes one point to another."""
    ndim = len(rotation)
    matrix = np.eye(ndim + 1)
    matrix[:ndim, :ndim], matrix[:ndim, ndim] = rotation, to_centre - rotation @ from_centre
    return matrix


def mass_moments(scan: Scan) -> tuple[Array, Array]:
    """Return the centre of mass (D,) in LPS mm and the covariance (D, D) in mm**2 of a scan's mask or intensities."""
    weights = scan.image - scan.image.min() if scan.mask is None else (scan.mask > 0).to(scan.image)
    weights = weights[0, 0].to(torch.float64)
    weights = weights / weights.sum()
    ticks = [torch.arange(count, dtype=torch.float64, device=weights.device) for count in weights.shape]
    unit = np.eye(scan.ndim, dtype=int)
    mean = np.array([_moment(weights, ticks, powers) for powers in unit])
    centred = [tick - middle for tick, middle in zip(ticks, mean, strict=True)]
    spread = np.array([[_moment(weights, centred, first + second) for first in unit] for second in unit])
    affine = np.asarray(scan.grid.affine, dtype=np.float64)
    linear = affine[:-1, :-1]
    return linear @ mean + affine[:-1, -1], linear @ spread @ linear.T


def _moment(weights: Tensor, ticks: Sequence[Tensor], powers: npt.NDArray[np.int_]) -> float:
    """Return the sum of the weights times a power of the position along each axis."""
    for tick, power in zip(ticks[::-1], powers[::-1], strict=True):
        weights = weights @ tick ** int(power)
    return float(weights)


def most_similar(fixed: Scan, moving: Scan, matrices: list[Matrix]) -> Matrix:
    """Return the matrix under which small copies of two images share most information; the first one when several do."""
    extent = max((count - 1) * step for count, step in zip(fixed.grid.shape, fixed.grid.spacing, strict=True))
    spacing = extent / (QUICK_SIDE - 1)
    small, other = (coarsen(scan, spacing, spacing) for scan in (fixed, moving))
    voxels = coordinates(small.grid.shape, device=small.image.device).flatten(2)
    losses = []
    for matrix in matrices:
        to_voxel = voxel_matrix(torch.as_tensor(matrix)[None], small.grid, other.grid).to(voxels)
        at = to_voxel[:, :-1, :-1] @ voxels + to_voxel[:, :-1, -1:]
        moved = sample(other.image, at.reshape(1, fixed.ndim, *small.grid.shape))
        losses.append(float(MattesMI(bins=QUICK_BINS)(small.image, moved)[0]))
    return matrices[int(np.argmin(losses))]


def _frame(scan: Scan) -> tuple[Array, Array]:
    """Return the centre of mass and the principal axes as the columns of a proper rotation."""
    centre, covariance = mass_moments(scan)
    axes = np.linalg.eigh(covariance)[1]
    axes[:, 0] *= np.sign(np.linalg.det(axes))
    return centre, axes
