"""Greedy as engine: the compositive registration of the Penn Image Computing and Science Laboratory (extra `greedy`).

Its Python package runs the command line on images in memory. It is given images in voxel coordinates, so that fields need no
conversion but the one of axes: greedy reads affine matrices in RAS and writes fields in LPS.

Yushkevich PA, Pluta J, Wang H, Wisse LE, Das S, Wolk D. Fast automatic segmentation of hippocampal subfields and medial
temporal lobe subregions in 3 Tesla and 7 Tesla T2-weighted MRI. Alzheimer's & Dementia 2016;12(7):P126-P127.
doi:10.1016/j.jalz.2016.06.205
"""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import picsl_greedy
import SimpleITK as sitk
import torch
from torch import Tensor

from popatlas.images.arrays import FloatArray
from popatlas.images.scan import check_pair
from popatlas.registration.engines.greedy.settings import GreedySettings
from popatlas.registration.engines.io import between_voxels, write_fields
from popatlas.registration.types import settings_of

if TYPE_CHECKING:
    from popatlas.registration.pair import Pair
    from popatlas.registration.types import Attempt, Deformation

RUNNERS = {2: picsl_greedy.Greedy2D, 3: picsl_greedy.Greedy3D}


@dataclass(frozen=True)
class GreedyResult:
    """What greedy found; fields are (B, D, *shape) in voxels of the fixed grid.

    Attributes
    ----------
    forward : Tensor
        A fixed point ``x`` goes to ``matrix (x + u(x))``.
    inverse : Tensor or None
        Displacement that undoes `forward`, on the same grid.
    """

    forward: Tensor
    inverse: Tensor | None


def register(
    fixed: Tensor,
    moving: Tensor,
    settings: GreedySettings | None = None,
    *,
    matrix: Tensor | None = None,
    inverse: bool = True,
    threads: int = 1,
    subject: str | None = None,
) -> GreedyResult:
    """Register a batch of pairs, one after another, on the CPU.

    Parameters
    ----------
    fixed : (B, 1, *shape) Tensor
        Fixed images with isotropic voxels, 2D or 3D.
    moving : (B, 1, *shape) Tensor
        Moving images in their own grid.
    settings : GreedySettings, optional
        What to do.
    matrix : (B, D, D + 1) Tensor, optional
        From voxels of `fixed` to voxels of `moving`; the identity when left out.
    inverse : bool
        Whether the inverse is wanted, which costs greedy about half as much again.
    threads : int
        Threads of greedy.
    subject : str, optional
        Named in errors.

    Raises
    ------
    InputError
        From `check_pair`.
    """
    check_pair(fixed, moving, subject=subject)
    forwards = []
    for index in range(fixed.shape[0]):
        start = None if matrix is None else _to_ras(matrix[index])
        forwards.append(_run(fixed[index, 0], moving[index, 0], settings or GreedySettings(), start, threads))
    forward = torch.stack(forwards)
    return GreedyResult(forward, invert(forward, threads) if inverse else None)


def invert(displacement: Tensor, threads: int = 1) -> Tensor:
    """Return the inverses of displacements (B, D, *shape) on their own grid, voxels; greedy takes fields from files only."""
    ndim = displacement.shape[1]
    inverses = []
    for field in displacement:
        vectors = np.ascontiguousarray(field.double().cpu().numpy().T)
        with tempfile.TemporaryDirectory(prefix="popatlas-greedy-") as folder:
            there, back = Path(folder) / "warp.mha", Path(folder) / "inverse.mha"
            sitk.WriteImage(sitk.GetImageFromArray(vectors, isVector=True), there)
            command = f"-d {ndim} -threads {threads} -V 0 -wp 0 -iw {there} {back}"
            RUNNERS[ndim]().execute(command, out=io.StringIO(), err=io.StringIO())
            inverses.append(_to_tensor(sitk.ReadImage(back)))
    return torch.stack(inverses)


def deform_greedy(pair: Pair, attempt: Attempt, affine: Path, folder: Path, threads: int) -> Deformation:
    """Run greedy from an affine.

    Parameters
    ----------
    pair : Pair
        Images with isotropic fixed voxels.
    attempt : Attempt
        With `GreedySettings`.
    affine : Path
        Affine, fixed to moving points.
    folder : Path
        Existing folder for the fields.
    threads : int
        Threads of greedy.
    """
    fixed, moving = pair.scans()
    matrix = between_voxels(affine, fixed.grid, moving.grid)
    settings = settings_of(attempt, GreedySettings)
    result = register(fixed.image, moving.image, settings, matrix=matrix, threads=threads, subject=pair.subject)
    assert result.inverse is not None
    return write_fields(result.forward, result.inverse, fixed.grid, folder, diverged=False)


def _run(fixed: Tensor, moving: Tensor, settings: GreedySettings, matrix: FloatArray | None, threads: int) -> Tensor:
    """Return the field (D, *shape) of one pair; the affine goes through a file, as version 1.4.0 refuses one in memory."""
    runner = RUNNERS[fixed.ndim]()
    command = f"{settings.command(fixed.ndim, threads)} -i fixed moving -o warp"
    with tempfile.TemporaryDirectory(prefix="popatlas-greedy-") as folder:
        if matrix is not None:
            np.savetxt(Path(folder) / "start.mat", matrix, fmt="%.17g")
            command += f" -it {folder}/start.mat"
        images = {"fixed": _to_image(fixed), "moving": _to_image(moving), "warp": None}
        runner.execute(command, out=io.StringIO(), err=io.StringIO(), **images)
    return _to_tensor(runner["warp"])


def _to_ras(matrix: Tensor) -> npt.NDArray[np.float64]:
    """Return a voxel matrix (D, D + 1) as a homogeneous one between images whose LPS millimetres are their voxels."""
    ndim = matrix.shape[0]
    full = np.eye(ndim + 1)
    full[:ndim] = matrix.double().cpu().numpy()
    flip = np.diag([-1.0, -1.0, *[1.0] * (ndim - 1)])  # the last 1 is the homogeneous coordinate
    return np.asarray(flip @ full @ flip)


def _to_image(image: Tensor) -> sitk.Image:
    """Return an image of unit voxels at the origin; the array axes of ITK are reversed."""
    return sitk.GetImageFromArray(np.ascontiguousarray(image.float().cpu().numpy().T))


def _to_tensor(field: sitk.Image) -> Tensor:
    """Return the vectors of a field, (D, *shape)."""
    return torch.from_numpy(np.ascontiguousarray(sitk.GetArrayFromImage(field).T, dtype=np.float32))
