"""The instance engine between files: brains with any grids in, ITK displacement fields out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from popatlas.registration.engines.instance.core import register
from popatlas.registration.engines.instance.settings import InstanceSettings
from popatlas.registration.engines.io import between_voxels, check_isotropic, write_fields
from popatlas.registration.gate import WHOLE
from popatlas.registration.pose import coverage
from popatlas.registration.types import Attempt, Deformation, settings_of
from popatlas.transforms.affine import read_affine

if TYPE_CHECKING:
    from popatlas.registration.pair import Pair


def deform_instance(pair: Pair, attempt: Attempt, affine: Path, folder: Path, threads: int) -> Deformation:
    """Run the instance engine from an affine, on a GPU when one is visible and the job has one.

    Parameters
    ----------
    pair : Pair
        Images with isotropic fixed voxels.
    attempt : Attempt
        With `InstanceSettings`.
    affine : Path
        Affine, fixed to moving points.
    folder : Path
        Existing folder for the fields.
    threads : int
        Threads of the compiled kernels.
    """
    fixed, moving = pair.scans()
    check_isotropic(fixed.grid, pair.fixed_file, pair.subject)
    device = torch.device("cuda" if attempt.gpu and torch.cuda.is_available() else "cpu")
    cut = coverage(fixed, moving, read_affine(affine)) < WHOLE
    result = register(
        fixed.image.to(device),
        moving.image.to(device),
        settings_of(attempt, InstanceSettings),
        matrix=between_voxels(affine, fixed.grid, moving.grid).to(device),
        moving_mask=torch.ones_like(moving.image).to(device) if cut else None,  # nothing is known beyond its field of view
        subject=pair.subject,
        threads=threads,
        progress=lambda line: print(line, flush=True),
    )
    return write_fields(result.forward, result.inverse, fixed.grid, folder, diverged=result.diverged)
