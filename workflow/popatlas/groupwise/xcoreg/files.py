"""X-CoReg on files: images of any grids in, warped images, classes, fields and affines out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.groupwise.xcoreg.core import GroupResult, coregister
from popatlas.groupwise.xcoreg.settings import XCoRegSettings
from popatlas.images.arrays import FloatArray
from popatlas.images.grid import Grid
from popatlas.images.header import check_header
from popatlas.images.io import load_image, save_image
from popatlas.images.place import read_mask_on
from popatlas.images.scan import read_volume
from popatlas.registration.engines.io import between_voxels, check_isotropic
from popatlas.transforms.itk import write_affine, write_displacement
from popatlas.transforms.linear import voxel_matrix


@dataclass(frozen=True)
class GroupFiles:
    """The files of a group, one entry for each image.

    Attributes
    ----------
    images : sequence of Path
        Images of any contrasts and grids.
    masks : sequence of Path, optional
        Where they may be trusted, each on the grid of its image.
    margin_mm : float
        By which the masks are widened: the rim of a brain shows where it ends.
    affines : sequence of Path, optional
        ITK affines from the common space to each image; the identity in millimetres when left out.
    reference : Path, optional
        Image whose grid is the common one, with isotropic voxels; the first image when left out.
    prior : Path, optional
        Class probabilities on the common grid, classes along the last axis.
    """

    images: Sequence[Path]
    masks: Sequence[Path] | None = None
    margin_mm: float = 0.0
    affines: Sequence[Path] | None = None
    reference: Path | None = None
    prior: Path | None = None


def coregister_files(
    files: GroupFiles, settings: XCoRegSettings, *, subject: str | None = None, kept: bool = True, threads: int = 1
) -> tuple[GroupResult, Grid]:
    """Register the images of some files; see `popatlas.groupwise.xcoreg.core.coregister`.

    Returns
    -------
    GroupResult
        What was found.
    Grid
        The common grid.

    Raises
    ------
    InputError
        For files that cannot be read or are no images of 2 or 3 axes, lists of different lengths, masks and priors on other
        grids, a common grid whose voxels are not isotropic, and what `coregister` refuses.
    """
    for name, others in (("masks", files.masks), ("affines", files.affines)):
        if others is not None and len(others) != len(files.images):
            message = f"{len(files.images)} images and {len(others)} {name}"
            raise InputError(message, subject=subject, remedy="give one for each image, in the same order")
    for path in files.images:
        check_header(path)
    grids = [Grid.from_file(path) for path in files.images]
    reference = files.reference or files.images[0]
    common = Grid.from_file(reference)
    check_isotropic(common, reference, subject)
    result = coregister(
        [read_volume(path, subject) for path in files.images],
        settings,
        shape=common.shape,
        matrices=[_matrix(files, number, common, grid) for number, grid in enumerate(grids)],
        masks=None if files.masks is None else [_mask(files, number) for number in range(len(files.masks))],
        prior=None if files.prior is None else _prior(files.prior, common, subject),
        names=[str(path) for path in files.images],
        kept=kept,
        threads=threads,
        progress=lambda line: print(line, flush=True),
    )
    return result, common


def _mask(files: GroupFiles, number: int) -> Tensor:
    assert files.masks is not None
    found = read_mask_on(files.masks[number], files.images[number])
    inside = found.data > 0
    if files.margin_mm > 0:
        from scipy.ndimage import distance_transform_edt

        away: FloatArray = np.asarray(distance_transform_edt(~inside, sampling=found.grid.spacing), dtype=np.float64)
        inside = away <= files.margin_mm
    return torch.from_numpy(inside.astype(np.float32))[None, None]


def _matrix(files: GroupFiles, number: int, common: Grid, grid: Grid) -> Tensor:
    if files.affines is not None:
        return between_voxels(Path(files.affines[number]), common, grid)
    still = torch.eye(common.ndim + 1, dtype=torch.float64)[None]
    return voxel_matrix(still, common, grid)[:, : common.ndim].float()


def _prior(path: Path, common: Grid, subject: str | None) -> Tensor:
    image = load_image(path)
    values = np.asarray(image.dataobj, dtype=np.float32)
    if values.ndim != common.ndim + 1 or tuple(values.shape[:-1]) != tuple(common.shape):
        message = f"class probabilities of shape {values.shape} do not lie on the common grid of shape {common.shape}"
        raise InputError(message, file=path, subject=subject, remedy="give one map for each class along the last axis")
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1 + 1e-3:
        message = "class probabilities must lie between 0 and 1"
        raise InputError(message, file=path, subject=subject, remedy="scale the maps")
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0)))


def write_group(
    result: GroupResult,
    common: Grid,
    *,
    grids: Sequence[Grid],
    warped: Sequence[Path] = (),
    warps: Sequence[Path] = (),
    inverse_warps: Sequence[Path] = (),
    affines: Sequence[Path] = (),
    posterior: Path | None = None,
    labels: Path | None = None,
    threads: int = 1,
) -> None:
    """Write what was found; lists that are empty are not written.

    Parameters
    ----------
    result : GroupResult
        Of `coregister_files`.
    common : Grid
        The common grid.
    grids : sequence of Grid
        Grids of the images.
    warped : sequence of Path
        Images in the common space.
    warps, inverse_warps : sequence of Path
        Displacement fields on the common grid, ITK: a common point goes through the warp, then the affine, to the image; a
        point of the image goes through the inverted affine, then the inverse warp.
    affines : sequence of Path
        ITK affines from the common space to each image.
    posterior : Path, optional
        Class probabilities, classes along the last axis.
    labels : Path, optional
        The most probable class of each voxel, from 1; 0 where no image says anything.
    threads : int
        Of the inversion.
    """
    to_ras = common.ras_affine
    for path, image in zip(warped, result.warped, strict=bool(warped)):
        save_image(image[0, 0].numpy(), to_ras, path, np.float32)
    for path, field in zip(warps, result.displacements, strict=bool(warps)):
        write_displacement(path, field[0], common)
    for number, path in enumerate(inverse_warps):
        write_displacement(path, result.inverse(number, threads)[0], common)
    for number, path in enumerate(affines):
        write_affine(path, millimetres(result.matrices[number], common, grids[number]))
    if result.posterior is None:
        return
    if posterior is not None:
        save_image(np.moveaxis(result.posterior.numpy(), 0, -1), to_ras, posterior, np.float32)
    if labels is not None:
        save_image(result.labels().numpy(), to_ras, labels, np.uint8)


def millimetres(matrix: Tensor, common: Grid, grid: Grid) -> Tensor:
    """Return a (1, D, D + 1) matrix from voxels of the common grid to those of an image as one (D + 1, D + 1) in LPS mm."""
    whole = torch.eye(common.ndim + 1, dtype=torch.float64)
    whole[:-1] = matrix[0].double()
    before, after = torch.from_numpy(np.linalg.inv(common.affine)), torch.from_numpy(grid.affine.copy())
    return after @ whole @ before
