"""The instance and FFD engines between files: brains with any grids in, ITK displacement fields out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.scan import check_scans
from popatlas.registration.engines.instance.core import Settings, register, rescaled
from popatlas.registration.gate import WHOLE
from popatlas.registration.pose import coverage
from popatlas.registration.types import Deformation
from popatlas.similarity.registry import make
from popatlas.transforms.affine import read_affine
from popatlas.transforms.itk import write_displacement
from popatlas.transforms.linear import voxel_matrix

MOST_ANISOTROPIC = 1.5

if TYPE_CHECKING:
    from popatlas.registration.pair import Pair


def settings_from_config(preset: Mapping[str, Any]) -> Settings:
    """Return the engine's settings from one of the configuration's `register.presets.instance`."""
    known = {item.name for item in fields(Settings)}
    chosen = {key: value for key, value in preset.items() if key in known}
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in chosen.items()}
    return Settings(**values)


def deform_instance(pair: Pair, preset: Mapping[str, Any], affine: Path, folder: Path, threads: int) -> Deformation:
    """Run the instance engine from an affine, on a GPU when one is visible and `gpu` is set in the preset.

    Parameters
    ----------
    pair : Pair
        Images with isotropic fixed voxels.
    preset : mapping
        One of the configuration's `register.presets.instance`.
    affine : Path
        Affine, fixed to moving points.
    folder : Path
        Existing folder for the fields.
    threads : int
        Threads of the compiled kernels.
    """
    fixed, moving = pair.scans()
    check_isotropic(fixed.grid, pair.fixed_file, pair.subject)
    device = torch.device("cuda" if preset.get("gpu", 0) and torch.cuda.is_available() else "cpu")
    cut = coverage(fixed, moving, read_affine(affine)) < WHOLE
    result = register(
        fixed.image.to(device),
        moving.image.to(device),
        settings_from_config(preset),
        matrix=between_voxels(affine, fixed.grid, moving.grid).to(device),
        moving_mask=torch.ones_like(moving.image).to(device) if cut else None,  # nothing is known beyond its field of view
        subject=pair.subject,
        threads=threads,
        progress=lambda line: print(line, flush=True),
    )
    return write_fields(result.forward, result.inverse, fixed.grid, folder, diverged=result.diverged)


def deform_ffd(pair: Pair, preset: Mapping[str, Any], affine: Path, folder: Path, threads: int) -> Deformation:
    """Run the free-form engine from an affine; see `popatlas.registration.engines.ffd`. `threads` is that of torch.

    Parameters
    ----------
    pair : Pair
        Images.
    preset : mapping
        One of the configuration's `register.presets.ffd`.
    affine : Path
        Affine, fixed to moving points.
    folder : Path
        Existing folder for the fields.
    threads : int
        Not used: torch's number of threads is set by the step.
    """
    from popatlas.registration.engines import ffd
    from popatlas.transforms.fields import invert

    fixed, moving = pair.scans()
    options: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in preset.items()}
    similarity = make(options.pop("similarity"), **options.pop("options"))
    check_scans(fixed, moving, pair.subject)
    result = ffd.register(
        rescaled(fixed.image),
        rescaled(moving.image),
        ffd.FFDSettings(similarity=similarity, **options),
        matrix=between_voxels(affine, fixed.grid, moving.grid),
        fixed_mask=fixed.mask,
        moving_mask=moving.mask,
    )
    forward = result.displacement.detach()
    return write_fields(forward, invert(forward), fixed.grid, folder, diverged=result.diverged)


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
        write_displacement(path, displacement[0].cpu().numpy().astype(np.float32), grid)
    return Deformation(*paths, diverged=diverged)
