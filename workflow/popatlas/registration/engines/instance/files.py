"""The instance engine between files: brains with any grids in, ITK displacement fields out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from popatlas.registration.engines.instance.core import Settings, register
from popatlas.registration.engines.io import between_voxels, check_isotropic, write_fields
from popatlas.registration.gate import WHOLE
from popatlas.registration.pose import coverage
from popatlas.registration.types import Deformation
from popatlas.transforms.affine import read_affine

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
