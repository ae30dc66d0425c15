"""The instance engine on files, with everything that it can take: masks, labels, landmarks, and a field to start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.images.arrays import FloatArray
from popatlas.images.grid import Grid
from popatlas.images.labels import LabelImage, read_labels, read_mask
from popatlas.images.scan import read_volume
from popatlas.measures.landmarks import AXES, RAS_TO_LPS, read_landmarks
from popatlas.registration.engines.instance.core import InstanceResult, register
from popatlas.registration.engines.instance.settings import InstanceSettings
from popatlas.registration.engines.io import between_voxels, check_isotropic, write_fields
from popatlas.registration.types import Deformation
from popatlas.transforms.itk import read_displacement
from popatlas.transforms.linear import voxel_matrix

MOST_LABELS = 64  # each is a map of the image's size, at seven scales


@dataclass(frozen=True)
class Side:
    """Files of the fixed or of the moving image; masks and labels lie on the image's grid.

    Attributes
    ----------
    image : Path
        Image, 2D or 3D.
    mask : Path, optional
        Voxels that count.
    labels : Path, optional
        Label image; labels that both images have draw together.
    landmarks : Path, optional
        Table of name, x, y, z in RAS millimetres; names that both tables have draw together.
    """

    image: Path
    mask: Path | None = None
    labels: Path | None = None
    landmarks: Path | None = None


def deform_files(
    fixed: Side,
    moving: Side,
    settings: InstanceSettings,
    folder: Path,
    *,
    affine: Path | None = None,
    initial: Path | None = None,
    subject: str | None = None,
    threads: int = 1,
) -> tuple[Deformation, InstanceResult]:
    """Register two images and write both displacement fields.

    Parameters
    ----------
    fixed, moving : Side
        Images and what is known about them.
    settings : InstanceSettings
        What the engine does.
    folder : Path
        Existing folder for the fields.
    affine : Path, optional
        ITK affine from fixed to moving points, the identity (in millimetres) when left out; the field comes before it.
    initial : Path, optional
        Displacement field on the fixed grid to start from.
    subject : str, optional
        Named in errors.
    threads : int
        Threads of the compiled kernels.

    Returns
    -------
    Deformation
        The two files.
    InstanceResult
        What the engine found.

    Raises
    ------
    InputError
        For files that cannot be read or lie on another grid than their image, no common label or landmark, more than
        `MOST_LABELS` common labels, and what `popatlas.registration.engines.instance.core.register` refuses.
    """
    grids = Grid.from_file(fixed.image), Grid.from_file(moving.image)
    check_isotropic(grids[0], fixed.image, subject)
    images = [read_volume(side.image, subject) for side in (fixed, moving)]
    masks = [_mask(side, grid, subject) for side, grid in zip((fixed, moving), grids, strict=True)]
    if affine is None:
        identity = torch.eye(grids[0].ndim + 1, dtype=torch.float64)[None]
        matrix = voxel_matrix(identity, *grids)[:, : grids[0].ndim].float()
    else:
        matrix = between_voxels(affine, *grids)
    labels = _labels(fixed, moving, grids, subject)
    result = register(
        images[0],
        images[1],
        settings,
        matrix=matrix,
        initial=None if initial is None else _initial(initial, grids[0], fixed.image, subject),
        fixed_mask=masks[0],
        moving_mask=masks[1],
        fixed_labels=labels[0],
        moving_labels=labels[1],
        landmarks=_landmarks(fixed, moving, grids, subject),
        subject=subject,
        threads=threads,
        progress=lambda line: print(line, flush=True),
    )
    return write_fields(result.forward, result.inverse, grids[0], folder, diverged=result.diverged), result


def _mask(side: Side, grid: Grid, subject: str | None) -> Tensor | None:
    if side.mask is None:
        return None
    mask = _beside(read_mask(side.mask, subject, axes=(grid.ndim,)), grid, side.image, subject)
    return torch.from_numpy(mask.data.astype(np.float32))[None, None]


def _beside(found: LabelImage, grid: Grid, image: Path, subject: str | None) -> LabelImage:
    """Return what lies on the grid of an image."""
    if not found.grid.same_as(grid):
        problem, remedy = f"it lies on another grid than {image.name}", "resample it onto that grid"
        raise InputError(problem, file=found.path, subject=subject, remedy=remedy)
    return found


def _labels(fixed: Side, moving: Side, grids: tuple[Grid, Grid], subject: str | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the maps (1, L, *shape) of the labels that both images have."""
    if fixed.labels is None and moving.labels is None:
        return None, None
    if fixed.labels is None or moving.labels is None:
        raise InputError("there are labels of one image only", subject=subject, remedy="give both label images, or none")
    files = ((fixed.labels, grids[0], fixed.image), (moving.labels, grids[1], moving.image))
    one, other = (
        _beside(read_labels(path, subject, axes=(grid.ndim,), empty=True), grid, image, subject)
        for path, grid, image in files
    )
    common = np.intersect1d(one.values, other.values)
    if not 0 < len(common) <= MOST_LABELS:
        raise InputError(
            f"{len(common)} labels are common with those of the fixed image, not 1 to {MOST_LABELS}",
            file=moving.labels,
            subject=subject,
            remedy="give label images of the same structures, merged into fewer ones if need be",
        )
    at = common.reshape(1, -1, *[1] * grids[0].ndim)
    maps = [torch.from_numpy((found.data[None, None] == at).astype(np.float32)) for found in (one, other)]
    return maps[0], maps[1]


def _landmarks(fixed: Side, moving: Side, grids: tuple[Grid, Grid], subject: str | None) -> tuple[Tensor, Tensor] | None:
    """Return the voxel coordinates (N, D) of the landmarks that both tables name."""
    if fixed.landmarks is None and moving.landmarks is None:
        return None
    if fixed.landmarks is None or moving.landmarks is None:
        raise InputError("there are landmarks of one image only", subject=subject, remedy="give both tables, or none")
    tables = [read_landmarks(path, subject).set_index("name")[AXES] for path in (fixed.landmarks, moving.landmarks)]
    names = tables[0].index.intersection(tables[1].index)
    if names.empty:
        raise InputError(
            f"no landmark has a name of {fixed.landmarks.name}",
            file=moving.landmarks,
            subject=subject,
            remedy="name pairs alike",
        )
    points = [_voxels(table.loc[names].to_numpy(dtype=float), grid) for table, grid in zip(tables, grids, strict=True)]
    return points[0], points[1]


def _voxels(ras: FloatArray, grid: Grid) -> Tensor:
    lps = (ras * RAS_TO_LPS)[:, : grid.ndim]
    inverse = np.linalg.inv(grid.affine)
    return torch.from_numpy(lps @ inverse[:-1, :-1].T + inverse[:-1, -1]).float()


def _initial(path: Path, grid: Grid, image: Path, subject: str | None) -> Tensor:
    displacement, own = read_displacement(path)
    if not own.same_as(grid):
        raise InputError(
            f"the field lies on another grid than {image.name}",
            file=path,
            subject=subject,
            remedy="resample it onto that grid",
        )
    return torch.from_numpy(displacement).float()[None]
