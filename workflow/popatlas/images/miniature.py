"""Miniature brains: simulated in a fraction of a second, for examples and tests that need an anatomy but no detail.

The brain is that of `popatlas.images.phantom` (MNI152 of the nilearn wheel) on a coarse grid, without skull, bent at random.
Its labels are the tissues of both sides; see there what such labels are worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from popatlas.images.deformation import Affine, Array, Grid, exponential, sample, scaling_velocity, smooth_velocity
from popatlas.images.io import save_image
from popatlas.images.subject import CENTER, CONTRAST, field_grid, torque_effect

if TYPE_CHECKING:
    from popatlas.images.scan import Scan

TISSUES = ("csf", "gm", "wm")
NAMES = {
    1: "left csf", 2: "left grey matter", 3: "left white matter",
    4: "right csf", 5: "right grey matter", 6: "right white matter",
}  # fmt: skip
SMOOTH_MM, FIELD_MM = 20.0, 4  # of the random velocity: its smoothness and its voxels


@dataclass(frozen=True)
class Miniature:
    """A brain.

    Attributes
    ----------
    image : (x, y[, z]) float32 ndarray
        Intensities, 0 outside of the brain.
    labels : (x, y[, z]) int16 ndarray
        The keys of `NAMES`, 0 outside of the brain.
    affine : (4, 4) ndarray
        Voxel to RAS millimetres.
    """

    image: Array
    labels: npt.NDArray[np.int16]
    affine: Affine

    def axial(self, index: int) -> Miniature:
        """Return an axial slice, of two axes."""
        affine = self.affine.copy()
        affine[:3, 3] += index * affine[:3, 2]
        return Miniature(
            np.ascontiguousarray(self.image[:, :, index]), np.ascontiguousarray(self.labels[:, :, index]), affine
        )

    def scan(self) -> Scan:
        """Return the image with its grid and its brain mask, as the engines take it."""
        import torch

        from popatlas.images import grid, scan

        image, mask = (torch.from_numpy(part)[None, None] for part in (self.image, (self.labels > 0).astype(np.float32)))
        return scan.Scan(image, grid.Grid.from_affine(self.image.shape, self.affine), mask)

    def save(self, folder: Path, name: str) -> tuple[Path, Path, Path]:
        """Write ``NAME_T1w``, ``NAME_mask`` and ``NAME_dseg`` (.nii.gz) to a folder; return the three paths."""
        image, mask, dseg = (folder / f"{name}_{suffix}.nii.gz" for suffix in ("T1w", "mask", "dseg"))
        save_image(self.image, self.affine, image)
        save_image(self.labels > 0, self.affine, mask, np.uint8)
        save_image(self.labels, self.affine, dseg)
        return image, mask, dseg


def draw_miniature(
    seed: int,
    spacing_mm: int = 4,
    *,
    bend_mm: float = 4.0,
    log_volume: float = 0.0,
    contrast: str = "T1w",
    noise: float = 0.02,
) -> Miniature:
    """Draw a brain.

    Parameters
    ----------
    seed : int
        What it is like; the same seed is the same anatomy in every contrast and with any voxels.
    spacing_mm : int
        Voxel size, whole millimetres.
    bend_mm : float
        How far it is bent: mean length of the random velocity, millimetres; 0 for MNI152 itself.
    log_volume : float
        Logarithm of its volume relative to MNI152.
    contrast : str
        ``T1w`` or ``T2w``.
    noise : float
        Standard deviation of the noise in the brain; white matter has 1 in T1w.
    """
    rng = np.random.default_rng(seed)
    field = _tissues(FIELD_MM)[0]
    velocity = smooth_velocity(rng, field, SMOOTH_MM, bend_mm) + scaling_velocity(field, np.full(3, log_volume / 3), CENTER)
    velocity += sample(torque_effect(), field_grid().affine, field.points(), mode="nearest")
    grid, shares = _tissues(spacing_mm)
    points = grid.points()
    points = points + sample(exponential(-velocity, field), field.affine, points, mode="nearest")
    tissues = sample(shares, grid.affine, points)
    inside = tissues.sum(axis=0) > 0.5
    side = np.where(points[0] < 0, 1, 1 + len(TISSUES))
    labels = np.where(inside, tissues.argmax(axis=0) + side, 0).astype(np.int16)
    levels = np.array([CONTRAST[contrast][name] for name in TISSUES], dtype=np.float32)
    image = np.tensordot(levels, tissues, axes=1) + np.float32(noise) * rng.standard_normal(grid.shape, dtype=np.float32)
    return Miniature(np.where(inside, np.maximum(image, 0.01), 0).astype(np.float32), labels, grid.affine)


@lru_cache(maxsize=4)
def _tissues(spacing_mm: int) -> tuple[Grid, Array]:
    """Return a grid of blocks of the 1 mm MNI grid, and the shares of the tissues in them (3, x, y, z)."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    image = load_mni152_template(resolution=1)
    brain = np.asarray(image.dataobj) > 0
    gm, wm = (
        np.asarray(load(resolution=1).dataobj, dtype=np.float32)
        for load in (load_mni152_gm_template, load_mni152_wm_template)
    )
    maps = np.stack([np.clip(brain - gm - wm, 0, 1), gm, wm])
    maps = np.pad(maps, [(0, 0), *((0, -n % spacing_mm) for n in brain.shape)])
    shape = tuple(n // spacing_mm for n in maps.shape[1:])
    blocks = maps.reshape(3, shape[0], spacing_mm, shape[1], spacing_mm, shape[2], spacing_mm).mean(axis=(2, 4, 6))
    affine = np.asarray(image.affine, dtype=np.float64) @ np.diag([*[float(spacing_mm)] * 3, 1.0])
    affine[:3, 3] = image.affine[:3, 3] + (spacing_mm - 1) / 2
    return Grid((shape[0], shape[1], shape[2]), affine), blocks.astype(np.float32)
