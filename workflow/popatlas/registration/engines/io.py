"""What engines share between files and tensors: voxel matrices of affine files, and fields as ITK files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.registration.types import Deformation
from popatlas.transforms.affine import read_affine
from popatlas.transforms.itk import write_displacement
from popatlas.transforms.linear import voxel_matrix

MOST_ANISOTROPIC = 1.5


def check_isotropic(grid: Grid, file: Path, subject: str | None) -> None:
    """Refuse a fixed grid whose voxels are much longer along one axis: updates are equally smooth in voxels."""
    longest, shortest = max(grid.spacing), min(grid.spacing)
    if longest > MOST_ANISOTROPIC * shortest:
        raise InputError(
            f"voxels of the fixed image are {' x '.join(f'{size:g}' for size in grid.spacing)} mm",
            file=file,
            subject=subject,
            remedy="resample it to isotropic voxels, or use register.engine: ants",
        )


def between_voxels(affine: Path, fixed: Grid, moving: Grid) -> Tensor:
    """Return the (1, D, D + 1) matrix from voxels of the fixed to voxels of the moving grid for an affine file."""
    matrix = torch.as_tensor(read_affine(affine), dtype=torch.float64).unsqueeze(0)
    return voxel_matrix(matrix, fixed, moving)[:, : fixed.ndim].float()


def write_fields(forward: Tensor, inverse: Tensor, grid: Grid, folder: Path, *, diverged: bool) -> Deformation:
    """Write the two fields of the first pair of a batch, (B, D, *shape) in voxels of the fixed grid, as ITK files."""
    paths = folder / "warp.nii.gz", folder / "inverse_warp.nii.gz"
    for path, displacement in zip(paths, (forward, inverse), strict=True):
        write_displacement(path, displacement[0].cpu().numpy().astype(np.float32), grid, rounded=True)
    return Deformation(*paths, diverged=diverged)
