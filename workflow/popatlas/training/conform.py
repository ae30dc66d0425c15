"""Scans on the training grid: read, scaled, and resampled once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.images.antialias import antialias_sigmas
from popatlas.images.filters import gaussian_smooth
from popatlas.images.grid import SAME_DIRECTION, Grid
from popatlas.images.io import load_image
from popatlas.images.labels import read_mask
from popatlas.training.grid import RAS, TrainingGrid
from popatlas.training.labelfiles import count_structures, read_channels
from popatlas.training.sections import Intensity
from popatlas.training.table import TrainingScan
from popatlas.transforms.affine import read_affine
from popatlas.transforms.chain import Affine, Chain
from popatlas.transforms.fields import Mode, displaced, sample
from popatlas.transforms.linear import move
from popatlas.zoo.contract import FEWEST_ZEROS

MOST_VOXELS = 4  # of an array that is kept for interpolating it once, times those of the grid: memory


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan on the training grid.

    Attributes
    ----------
    image : (1, 1, *shape) float32 Tensor
        Intensities.
    spacing : tuple of float
        Voxel size, millimetres.
    labels : (1, C, *shape) int32 Tensor or None
        Labels, see `popatlas.training.structures`.
    mask : (1, 1, *shape) float32 Tensor or None
        1 where the image counts, else 0.
    name : str
        Of the scan.
    origins : dict
        ``image``, ``labels`` and ``mask`` to the array that each comes from and the matrix from voxels of the grid to voxels
        of that array. Whatever moves the scan further then interpolates it once, as in use, not a second time.
    """

    image: Tensor
    spacing: tuple[float, ...]
    labels: Tensor | None = None
    mask: Tensor | None = None
    name: str = ""
    origins: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def moved(self, displacement: Tensor) -> Volume:
        """Return the scan moved by a displacement (1, D, *shape), voxels of the grid, 0 where it comes from outside."""
        at = displaced(displacement)

        def part(name: str, mode: Mode) -> Tensor | None:
            data: Tensor | None = getattr(self, name)
            if data is None or name not in self.origins:
                return None if data is None else sample(data, at, mode, "zeros")
            source, matrix = self.origins[name]
            return sample(source, move(matrix.to(at), at), mode, "zeros")

        image, labels, mask = part("image", "linear"), part("labels", "nearest"), part("mask", "nearest")
        assert image is not None
        return Volume(image, self.spacing, labels, mask, self.name)

    def to(self, device: torch.device | str) -> Volume:
        """Return the volume on a device."""
        labels, mask = (None if part is None else part.to(device) for part in (self.labels, self.mask))
        origins = {name: (data.to(device), matrix) for name, (data, matrix) in self.origins.items()}
        return Volume(self.image.to(device), self.spacing, labels, mask, self.name, origins)


def load_scan(
    scan: TrainingScan,
    grid: TrainingGrid,
    intensity: Intensity = "robust",
    *,
    stripped: bool = False,
    structures: int = 0,
) -> Volume:
    """Read a scan onto the training grid.

    Parameters
    ----------
    scan : TrainingScan
        Its files.
    grid : TrainingGrid
        Without a slice axis.
    intensity : {"robust", "zscore", "none"}
        Scaling of the image, from the voxels of its mask; without a mask from those above its smallest value. ``robust``:
        1st to 99th percentile to 0..1, clipped; ``zscore``: mean to 0.5 and a standard deviation to 0.25, clipped to
        0..1.5; ``none``: values as they are.
    stripped : bool
        The image is to show the brain alone: it is 0 outside of the mask and, without a mask, must have a background of 0.
        Else what the image shows outside of the mask stays.
    structures : int
        Structures of the labels, see `popatlas.training.labelfiles.read_channels`.

    Returns
    -------
    Volume
        Interpolated once through the affine, after a Gaussian where the voxels grow: linearly, labels and mask by the
        nearest voxel, 0 outside of the field of view.

    Raises
    ------
    InputError
        A file cannot be read or has other axes than the grid, the image is empty, constant or no brain alone, labels cannot
        be used or do not lie on it, the scan misses the grid, or it has an affine and the grid no place in the common space.
    """
    if grid.slice_axis:
        raise ValueError("a grid of slices: use load_slices")
    return _Source.read(scan, grid, intensity, stripped, structures).on(grid)


def load_slices(
    scan: TrainingScan,
    grid: TrainingGrid,
    slice_mm: Sequence[float],
    intensity: Intensity = "robust",
    *,
    stripped: bool = False,
    structures: int = 0,
) -> list[Volume]:
    """Read slices of a volume as 2D samples; the file is read, and its intensities are scaled, once.

    Parameters
    ----------
    scan : TrainingScan
        Of three axes.
    grid : TrainingGrid
        With a slice axis.
    slice_mm : sequence of float
        Distance of each slice from the middle of the grid along the slice axis, millimetres.
    intensity, stripped, structures
        See `load_scan`.

    Returns
    -------
    list of Volume
        Of two axes, in the order of `slice_mm`.
    """
    if not grid.slice_axis:
        raise ValueError("a grid without a slice axis: use load_scan")
    source = _Source.read(scan, grid, intensity, stripped, structures)
    return [source.on(grid, mm) for mm in slice_mm]


def load_labels(scan: TrainingScan, grid: TrainingGrid, slice_mm: Sequence[float] = (0.0,)) -> list[Tensor]:
    """Read the label map of a scan onto the training grid, or onto slices of it; its image is not read.

    Parameters
    ----------
    scan, grid
        See `load_scan`; the scan has labels.
    slice_mm : sequence of float
        See `load_slices`; left out without a slice axis.

    Returns
    -------
    list of (1, 1, *shape) int32 Tensor
        By the nearest voxel, 0 outside of the field of view.

    Raises
    ------
    InputError
        As `load_scan`, when no label lies on the grid, and for structures that may overlap.
    """
    if scan.labels is None:
        raise ValueError(f"{scan.name} has no labels")
    ndim, own = grid.image_ndim, Grid.from_file(scan.image)
    own = _flat(own) if ndim == 2 and _is_flat(own) else own
    if count := count_structures(scan.labels):
        message = f"the file has {count} structures, which may overlap, and images are drawn from label maps"
        remedy = "merge them into one label map, or learn from the scans (data.source: scans)"
        raise InputError(message, file=scan.labels, subject=scan.name, remedy=remedy)
    part, matrix = _read_labels(scan, ndim), _matrix(scan, ndim)
    found = [part.on(grid.place(own, mm), matrix, "nearest") for mm in slice_mm]
    if not any(bool(labels.any()) for labels in found):
        remedy = "check centre and shape of the grid, and the direction of the affine (common space to image)"
        raise InputError("no label lies on the training grid", file=scan.labels, subject=scan.name, remedy=remedy)
    return [labels.squeeze(-1) if grid.slice_axis else labels for labels in found]


def middle_of(scan: TrainingScan) -> tuple[float, ...]:
    """Return the middle of what a scan shows, of its mask where it has one, in the common space: `TrainingGrid.centre`."""
    ndim = Grid.from_file(scan.image).ndim
    ndim = 2 if ndim == 3 and _is_flat(Grid.from_file(scan.image)) else ndim
    part = _read(scan.image, scan.name, ndim) if scan.mask is None else _read_mask(scan.mask, scan.name, ndim)
    found = (part.data[0, 0] > part.data.min()).nonzero()
    middle = (found.amin(0) + found.amax(0)).double().numpy() / 2
    here = part.grid.affine @ np.append(middle, 1.0)
    there = np.linalg.inv(_matrix(scan, ndim)) @ here
    return tuple(float(value) for value in there[:-1] * RAS[:ndim])


@dataclass(frozen=True, eq=False)
class _Part:
    """An image as read, (1, C, *own shape), and its grid."""

    data: Tensor
    grid: Grid

    def on(self, grid: Grid, matrix: npt.NDArray[np.float64], mode: Mode) -> Tensor:
        """Resample onto a grid through an affine to this image."""
        data = self.smoothed(grid, matrix) if mode == "linear" else self.data
        return Chain((Affine(torch.from_numpy(matrix)),)).apply(data, self.grid, grid, mode)

    def smoothed(self, grid: Grid, matrix: npt.NDArray[np.float64]) -> Tensor:
        """Return the image after the Gaussian that a coarser grid needs."""
        return gaussian_smooth(self.data, _growth(matrix, grid, self.grid))

    def voxels(self, grid: Grid, matrix: npt.NDArray[np.float64]) -> Tensor:
        """Return the matrix (1, D + 1, D + 1) from voxels of a grid, through an affine, to those of this image."""
        return torch.from_numpy(np.linalg.inv(self.grid.affine) @ matrix @ grid.affine)[None]


@dataclass(frozen=True, eq=False)
class _Source:
    """The files of a scan as read."""

    scan: TrainingScan
    image: _Part
    labels: _Part | None
    mask: _Part | None
    matrix: npt.NDArray[np.float64]

    @classmethod
    def read(cls, scan: TrainingScan, grid: TrainingGrid, intensity: Intensity, stripped: bool, structures: int) -> _Source:
        """Read and scale what a scan has."""
        if intensity not in get_args(Intensity):
            raise ValueError(f"no intensity {intensity!r}, use one of {', '.join(get_args(Intensity))}")
        if scan.affine is not None and grid.centre is None:
            message = "the scan has an affine to a common space and the training grid has no place there"
            raise InputError(message, file=scan.affine, subject=scan.name, remedy="give the training grid a centre")
        ndim = grid.image_ndim
        mask = None if scan.mask is None else _read_mask(scan.mask, scan.name, ndim)
        image = _scaled(_read(scan.image, scan.name, ndim), mask, intensity, scan, stripped)
        labels = None if scan.labels is None else _read_labels(scan, ndim, structures)
        return cls(scan, image, labels, mask, _matrix(scan, ndim))

    def on(self, grid: TrainingGrid, slice_mm: float = 0.0) -> Volume:
        """Resample everything onto the grid, or onto a slice of it."""
        place = grid.place(self.image.grid, slice_mm)
        image = self.image.on(place, self.matrix, "linear")
        labels = None if self.labels is None else self.labels.on(place, self.matrix, "nearest")
        mask = None if self.mask is None else self.mask.on(place, self.matrix, "nearest")
        empty = bool(image.max() <= image.min()) or (mask is not None and not bool(mask.any()))
        if empty:
            message = "nothing of the scan, or of its mask, lies on the training grid"
            remedy = "check centre and shape of the grid, and the direction of the affine (common space to image)"
            raise InputError(message, file=self.scan.image, subject=self.scan.name, remedy=remedy)
        parts = (part if part is None or not grid.slice_axis else part.squeeze(-1) for part in (image, labels, mask))
        image, labels, mask = parts  # type: ignore[assignment]
        return Volume(image.contiguous(), grid.spacing, labels, mask, self.scan.name, self._origins(grid, place))

    def _origins(self, grid: TrainingGrid, place: Grid) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what `Volume.origins` holds: nothing for slices, and for arrays that are much finer than the grid."""
        parts = {"image": self.image, "labels": self.labels, "mask": self.mask}
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name, part in parts.items():
            if part is None or grid.slice_axis or part.data[0, 0].numel() > MOST_VOXELS * math.prod(place.shape):
                continue
            data = part.smoothed(place, self.matrix) if name == "image" else part.data
            found[name] = data, part.voxels(place, self.matrix)
        return found


def _read(path: Path, name: str, ndim: int) -> _Part:
    """Read an image of `ndim` axes; voxels that are not finite become 0."""
    try:
        data = np.asarray(load_image(path).dataobj)
        grid = Grid.from_file(path)
    except InputError as error:
        raise InputError(error.message, file=path, subject=name, remedy=error.remedy) from error
    while data.ndim > grid.ndim and data.shape[-1] == 1:
        data = data[..., 0]
    values = np.nan_to_num(data, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return _part(values, grid, path, name, ndim)


def _part(data: npt.NDArray[np.generic], grid: Grid, path: Path, name: str, ndim: int) -> _Part:
    """Return voxels of `ndim` axes on their grid; InputError for another number of axes."""
    if ndim == 2 and _is_flat(grid):
        data, grid = data[..., 0], _flat(grid)
    if data.ndim != ndim or grid.ndim != ndim:
        remedy = "give the grid a slice axis" if (data.ndim, ndim) == (3, 2) else f"give images of {ndim} axes"
        raise InputError(f"the image has {data.ndim} axes, expected {ndim}", file=path, subject=name, remedy=remedy)
    return _Part(torch.from_numpy(np.ascontiguousarray(data))[None, None], grid)


def _is_flat(grid: Grid) -> bool:
    """Tell whether a grid is one slice in the plane of the first two world axes: a 2D image as many programs write it."""
    if grid.ndim == 2 or grid.shape[2] != 1:
        return False
    return bool(np.abs(grid.affine[2, :2]).max() <= SAME_DIRECTION * np.abs(grid.affine[:2, :2]).max())


def _flat(grid: Grid) -> Grid:
    return Grid(grid.shape[:2], grid.affine[np.ix_([0, 1, 3], [0, 1, 3])])


def _read_labels(scan: TrainingScan, ndim: int, structures: int = 0) -> _Part:
    channels, grid = read_channels(scan, structures)
    assert scan.labels is not None
    parts = [_part(data, grid, scan.labels, scan.name, ndim) for data in channels]
    return _Part(torch.cat([part.data for part in parts], 1), parts[0].grid)


def _read_mask(path: Path, name: str, ndim: int) -> _Part:
    found = read_mask(path, name)
    return _part(found.data.astype(np.float32), found.grid, path, name, ndim)


def _scaled(image: _Part, mask: _Part | None, intensity: Intensity, scan: TrainingScan, stripped: bool) -> _Part:
    """Return the image with comparable intensities, by the rules for the pipeline's brains; cut out where it is stripped."""
    if mask is None:
        inside = image.data > image.data.min()
    else:
        same = mask.grid.same_as(image.grid)
        inside = (mask.data if same else Chain().apply(mask.data, mask.grid, image.grid, "nearest")) > 0
    values = image.data[inside].double().numpy()
    if values.size == 0 or values.max() <= values.min():
        message = "the image is constant" if mask is None else "the image is constant in its mask, or the mask misses it"
        raise InputError(message, file=scan.image, subject=scan.name, remedy="replace the image or delete its row")
    data = _brain(image.data, None if mask is None else inside, scan) if stripped else image.data
    return _Part(_rescaled(data, values, intensity, scan), image.grid)


def _brain(data: Tensor, mask: Tensor | None, scan: TrainingScan) -> Tensor:
    """Return an image that is 0 outside of its mask; refuse one without a mask that has hardly any background."""
    if mask is not None:
        return torch.where(mask, data, 0)
    zeros = float((data == 0).double().mean())
    if zeros < FEWEST_ZEROS:
        message = f"the recipe learns from brains (grid.stripped), and only {100 * zeros:.0f} % of the image are 0"
        remedy = "fill the column `mask` of the table, or train on whole heads: --set grid.stripped=false"
        raise InputError(message, file=scan.image, subject=scan.name, remedy=remedy)
    return data


def _rescaled(data: Tensor, values: npt.NDArray[np.float64], intensity: Intensity, scan: TrainingScan) -> Tensor:
    if intensity == "none":
        return data
    if intensity == "zscore":
        return (0.5 + 0.25 * (data - float(values.mean())) / float(values.std())).clamp(0, 1.5)
    low, high = (float(value) for value in np.percentile(values, [1, 99]))
    if high <= low:
        message = "nearly all foreground voxels of the image have one value"
        raise InputError(message, file=scan.image, subject=scan.name, remedy="look at the image and its mask")
    return ((data - low) / (high - low)).clamp(0, 1.5)


def _matrix(scan: TrainingScan, ndim: int) -> npt.NDArray[np.float64]:
    """Return the affine from the common space to the image, LPS millimetres; the identity for a scan without one."""
    if scan.affine is None:
        return np.eye(ndim + 1)
    matrix = read_affine(scan.affine)
    if matrix.shape != (ndim + 1, ndim + 1):
        message = f"the affine is one of {len(matrix) - 1} axes and the images have {ndim}"
        raise InputError(message, file=scan.affine, subject=scan.name, remedy="give the affine of this image")
    return matrix


def _growth(matrix: npt.NDArray[np.float64], fixed: Grid, moving: Grid) -> list[float]:
    """Return the Gaussian, in moving voxels along each axis, that widens the moving voxels to the fixed ones."""
    step = np.linalg.inv(moving.affine) @ matrix @ fixed.affine
    return antialias_sigmas(np.linalg.norm(step[:-1, :-1], axis=1))
