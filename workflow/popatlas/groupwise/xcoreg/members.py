"""The members of a template as one group: the first template with its mask and classes, and the way to each member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from popatlas.groupwise.xcoreg.core import GroupResult
from popatlas.groupwise.xcoreg.files import GroupFiles, coregister_files, millimetres
from popatlas.groupwise.xcoreg.settings import XCoRegSettings
from popatlas.images.arrays import BoolArray, FloatArray
from popatlas.images.grid import Grid
from popatlas.images.place import read_mask_on
from popatlas.registration.batch import FILES
from popatlas.registration.engines.io import write_fields
from popatlas.transforms.fieldops import TensorOps
from popatlas.transforms.itk import write_affine

MARGIN_MM = 6.0  # round the brains
KEPT_AT_ONCE = 16  # larger groups are kept in the common space one image at a time, which is slower and far smaller


@dataclass(frozen=True)
class GroupTemplate:
    """What the group gave.

    Attributes
    ----------
    template : (*shape) ndarray
        Mean of the members in the common space.
    mask : (*shape) ndarray of bool
        Voxels that at least half of the brains cover.
    classes : (K, *shape) ndarray
        Probability of each class, from dark to bright; the first is the background.
    grid : Grid
        The common grid.
    history : list of list of float
        Of `popatlas.groupwise.xcoreg.core.GroupResult`.
    """

    template: FloatArray
    mask: BoolArray
    classes: FloatArray
    grid: Grid
    history: list[list[float]]


def coregister_members(
    files: GroupFiles, folders: Sequence[Path], settings: XCoRegSettings, threads: int = 1
) -> GroupTemplate:
    """Register the members of a template as one group.

    Parameters
    ----------
    files : GroupFiles
        Brains, their masks, rigid affines from the reference to each brain, and the reference.
    folders : sequence of Path
        Gets affine, displacement field and its inverse of each member, as `popatlas.registration.batch` writes them.
    settings : XCoRegSettings
        How.
    threads : int
        Of the compiled kernels.

    Returns
    -------
    GroupTemplate

    Raises
    ------
    InputError
        From `popatlas.groupwise.xcoreg.files.coregister_files`.
    """
    assert files.masks is not None
    kept = len(files.images) <= KEPT_AT_ONCE
    result, common = coregister_files(files, settings, kept=kept, threads=threads)
    assert result.posterior is not None
    shares = np.zeros(common.shape, np.float32)
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        own = Grid.from_file(files.images[number])
        write_affine(folder / FILES[0], millimetres(result.matrices[number], common, own))
        field = result.displacements[number]
        write_fields(field, result.inverse(number, threads), common, folder, diverged=False)
        shares += _moved_mask(files, number, result, common)
    return GroupTemplate(
        template=np.mean([image[0, 0].numpy() for image in result.warped], axis=0),
        mask=shares >= len(folders) / 2,
        classes=result.posterior.numpy(),
        grid=common,
        history=result.history,
    )


def _moved_mask(files: GroupFiles, number: int, result: GroupResult, common: Grid) -> FloatArray:
    """Return the brain of a member in the common space, 0 to 1."""
    assert files.masks is not None
    inside = read_mask_on(files.masks[number], files.images[number]).data > 0
    mask = torch.from_numpy(inside.astype(np.float32))[None, None]
    moved = TensorOps().warp(mask, result.displacements[number], 1, result.matrices[number], common.shape)
    return np.asarray(moved[0, 0].numpy())
