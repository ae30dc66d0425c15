"""What the engines are compared on: pairs of images on one grid, with labels and, for phantoms, the true displacement."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.arrays import save_arrays

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int16]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """One pair, aligned but for the deformation.

    Attributes
    ----------
    fixed, moving : (x, y, z) float32 ndarray
        Brains without skull on the fixed grid, isotropic voxels, 0 outside.
    fixed_labels : (x, y, z) int16 ndarray
        Structures on the fixed grid, 0 outside of the brain.
    moving_labels : (a, b, c) int16 ndarray
        Structures of the moving brain on its own grid.
    to_moving : (4, 4) ndarray
        From voxels of the fixed grid to voxels of `moving_labels`; the displacement comes before it.
    spacing : float
        Voxel size of the fixed grid, millimetres.
    truth : (3, x, y, z) float32 ndarray
        Displacement from fixed to moving, voxels; of size 0 where it is not known.
    """

    fixed: Array
    moving: Array
    fixed_labels: Labels
    moving_labels: Labels
    to_moving: npt.NDArray[np.float64]
    spacing: float
    truth: Array

    def save(self, path: Path) -> None:
        """Write the pair; the workers read `fixed` and `moving` from it."""
        save_arrays(path, {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Case:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            values = {field.name: arrays[field.name] for field in fields(cls)}
        return cls(**values | {"spacing": float(values["spacing"])})
