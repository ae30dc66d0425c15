"""Smooth random diffeomorphisms with exact inverses, for simulation.

A deformation is the flow of a stationary velocity field: ``exp(v)`` maps points, ``exp(-v)`` is its inverse (scaling and
squaring: Arsigny et al., MICCAI 2006, doi:10.1007/11866565_113). Effects that are to act together are added as velocities.

Fields have the shape (3, x, y, z), are float32 and in RAS millimetres on a coarse grid without rotation; points outside of
the grid move like its border. On disk fields are LPS millimetres, as ITK and ANTs read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from popatlas.images.arrays import RealArray
from popatlas.images.io import atomic_path

Array = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]
Shape = tuple[int, int, int]

SQUARINGS = 6  # the first step moves no point by more than a small part of a voxel
DISK_STEP_MM = 1 / 128  # displacements on disk are rounded to this, which makes the compressed files much smaller


@dataclass(frozen=True)
class Grid:
    """A regular grid: shape and voxel to RAS millimetres."""

    shape: Shape
    affine: Affine

    @property
    def spacing(self) -> npt.NDArray[np.float64]:
        """Voxel size along each axis, millimetres."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    def points(self, transform: Affine | None = None) -> Array:
        """Return the voxel centres (3, x, y, z) in RAS millimetres, moved by an affine (4, 4) when one is given."""
        matrix = self.affine if transform is None else transform @ self.affine
        axes = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in self.shape], indexing="ij", sparse=True)
        rows = [sum(float(row[i]) * axes[i] for i in range(3)) + float(row[3]) for row in matrix[:3]]
        return np.stack([np.broadcast_to(row, self.shape) for row in rows]).astype(np.float32)


def sample(
    volume: RealArray,
    affine: Affine,
    points: Array,
    *,
    order: Literal[0, 1] = 1,
    mode: Literal["constant", "nearest"] = "constant",
) -> Array:
    """Read a volume at points.

    Parameters
    ----------
    volume : (x, y, z) or (c, x, y, z) ndarray
        Values; a leading axis is a channel.
    affine : (4, 4) ndarray
        Voxel to RAS millimetres of the volume.
    points : (3, ...) ndarray
        RAS millimetres.
    order : int
        0 nearest neighbour, 1 linear.
    mode : str
        scipy's boundary mode: ``constant`` is 0 outside, ``nearest`` repeats the border.

    Returns
    -------
    (...) or (c, ...) float32 ndarray
    """
    from scipy.ndimage import map_coordinates

    inverse = np.linalg.inv(affine).astype(np.float32)
    index = np.tensordot(inverse[:3, :3], points, axes=1)
    index += inverse[:3, 3].reshape(3, *[1] * (points.ndim - 1))
    if volume.ndim == 3:
        return np.asarray(map_coordinates(volume, index, output=np.float32, order=order, mode=mode))
    return np.stack([map_coordinates(part, index, output=np.float32, order=order, mode=mode) for part in volume])


def smooth_velocity(rng: np.random.Generator, grid: Grid, sigma_mm: float, mean_mm: float) -> Array:
    """Return a random velocity field, Gaussian noise smoothed by `sigma_mm`, whose vectors are `mean_mm` long on average."""
    from scipy.ndimage import gaussian_filter

    noise = rng.standard_normal((3, *grid.shape)).astype(np.float32)
    sigma = sigma_mm / grid.spacing
    smooth = np.stack([gaussian_filter(part, sigma, mode="reflect") for part in noise])
    return np.asarray(smooth * (mean_mm / np.linalg.norm(smooth, axis=0).mean()), dtype=np.float32)


def scaling_velocity(grid: Grid, log_scale: npt.NDArray[np.float64], center: npt.NDArray[np.float64]) -> Array:
    """Return the velocity whose flow scales each axis by ``exp(log_scale)`` about `center` (RAS millimetres)."""
    offset = grid.points() - center.astype(np.float32).reshape(3, 1, 1, 1)
    return np.asarray(offset * log_scale.astype(np.float32).reshape(3, 1, 1, 1))


def expansion_velocity(region: Array, grid: Grid, core_mm: float = 3.0, reach_mm: float = 14.0) -> Array:
    """Return a velocity that makes a region grow at the expense of its surroundings.

    The field is the gradient of a potential whose Laplacian is positive in the region and negative round it, with sum
    zero, so that far points do not move.

    Parameters
    ----------
    region : (x, y, z) ndarray
        Share of each voxel that belongs to the region, 0 to 1.
    grid : Grid
        Grid of the region.
    core_mm, reach_mm : float
        Smoothing of the source and of the surroundings that give way, millimetres.

    Returns
    -------
    (3, x, y, z) float32 ndarray
        Velocity; the mean divergence in the region is 1, so that flowing for a short time `t` adds `t` to the logarithm
        of its volume.
    """
    from scipy.fft import irfftn, rfftn
    from scipy.ndimage import gaussian_filter

    source, sink = (gaussian_filter(region, width / grid.spacing) for width in (core_mm, reach_mm))
    density = source / source.sum() - sink / sink.sum()
    waves = [2 * np.pi * np.fft.fftfreq(n, d) for n, d in zip(grid.shape[:2], grid.spacing[:2], strict=True)]
    waves.append(2 * np.pi * np.fft.rfftfreq(grid.shape[2], grid.spacing[2]))
    k = np.meshgrid(*waves, indexing="ij", sparse=True)
    square = k[0] ** 2 + k[1] ** 2 + k[2] ** 2
    square[0, 0, 0] = 1
    potential = -rfftn(density) / square
    potential[0, 0, 0] = 0
    field = np.stack([irfftn(1j * axis * potential, s=grid.shape) for axis in k])
    divergence = sum(np.gradient(field[i], grid.spacing[i], axis=i) for i in range(3))
    return np.asarray(field * (region.sum() / (divergence * region).sum()), dtype=np.float32)


def exponential(velocity: Array, grid: Grid, squarings: int = SQUARINGS) -> Array:
    """Return the displacement of the flow of a velocity field for unit time, by scaling and squaring."""
    start = grid.points()
    displacement = velocity / np.float32(2**squarings)
    for _ in range(squarings):
        displacement = displacement + sample(displacement, grid.affine, start + displacement, mode="nearest")
    return np.asarray(displacement, dtype=np.float32)


def jacobian_determinant(displacement: Array, spacing: npt.NDArray[np.float64]) -> Array:
    """Return the Jacobian determinant (x, y, z) of ``x -> x + u(x)``, central differences, for a grid without rotation."""
    rows = [[np.gradient(displacement[i], spacing[j], axis=j) + (i == j) for j in range(3)] for i in range(3)]
    matrix = np.moveaxis(np.array(rows, dtype=np.float32), (0, 1), (-2, -1))
    return np.asarray(np.linalg.det(matrix), dtype=np.float32)


def growth_times(velocity: Array, region: Array, grid: Grid, times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the change of the logarithm of a region's volume for each flow time."""
    changes = []
    for time in times:
        determinant = jacobian_determinant(exponential(velocity * np.float32(time), grid), grid.spacing)
        changes.append(float(np.log((determinant * region).sum() / region.sum())))
    return np.array(changes)


def write_displacement(displacement: Array, affine: Affine, path: Path) -> None:
    """Write a displacement field (3, x, y, z), RAS millimetres, as an ITK vector image in LPS millimetres, atomically."""
    ticks = np.rint(np.moveaxis(displacement, 0, -1) * np.array([-1, -1, 1], dtype=np.float32) / DISK_STEP_MM)
    image = nib.Nifti1Image((ticks * DISK_STEP_MM).astype(np.float32)[:, :, :, None, :], affine)
    image.header.set_intent("vector")
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def read_displacement(path: Path) -> tuple[Array, Affine]:
    """Read what `write_displacement` wrote: (3, x, y, z) in RAS millimetres, and the affine."""
    image = nib.load(path)
    vectors = np.asarray(image.dataobj, dtype=np.float32)[:, :, :, 0, :] * np.array([-1, -1, 1], dtype=np.float32)
    return np.moveaxis(vectors, -1, 0), np.asarray(image.affine, dtype=np.float64)
