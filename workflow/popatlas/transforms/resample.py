"""Resample an image onto another grid through transform files: one composed transform, one interpolation, by ANTs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError


@dataclass(frozen=True)
class Step:
    """One transform file of a chain; only affine files (.mat) can be inverted."""

    file: Path
    invert: bool = False


def resample(
    target: Path, moving: Path, steps: Sequence[Step], interpolator: str, subject: str | None = None
) -> npt.NDArray[np.float64]:
    """Resample an image onto the grid of `target` through a chain, interpolating once.

    Parameters
    ----------
    target, moving : Path
        Images.
    steps : sequence of Step
        Chain in ANTs order; empty: only the grids differ.
    interpolator : str
        ANTs name: ``linear``, ``genericLabel``, ``nearestNeighbor``, ...
    subject : str, optional
        Named in messages.

    Returns
    -------
    (x, y, z) float64 ndarray
        In the voxel order of `target`.

    Raises
    ------
    InputError
        When a file is missing or ANTs refuses the chain.
    """
    import ants

    for file in (target, moving, *(step.file for step in steps)):
        if not file.exists():
            raise InputError("file is missing", file=file, subject=subject, remedy="run the registration step again")
    try:
        warped = ants.apply_transforms(
            fixed=ants.image_read(str(target), pixeltype="double"),
            moving=ants.image_read(str(moving), pixeltype="double"),
            transformlist=[str(step.file) for step in steps],
            whichtoinvert=[step.invert for step in steps],
            interpolator=interpolator,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"ANTs cannot apply the transforms: {error}",
            file=moving,
            subject=subject,
            remedy="run the registration step again",
        ) from error
    return np.asarray(warped.numpy(), dtype=np.float64)
