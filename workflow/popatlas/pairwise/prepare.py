"""Two image files of any kind made ready for the engines: isotropic, comparable intensities, and what is foreground.

The engines work on copies; what is found is in millimetres and holds for the files as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.images.antialias import antialias_sigmas
from popatlas.images.arrays import FloatArray
from popatlas.images.grid import Grid
from popatlas.images.intensity import rescaled
from popatlas.images.io import save_image
from popatlas.images.place import read_mask_on
from popatlas.images.pyramid import shrink
from popatlas.images.scan import FLAT
from popatlas.pairwise.space import Registered, Space, read_voxels
from popatlas.registration.pair import Pair, load_pair
from popatlas.transforms.chain import Chain

Mask = npt.NDArray[np.bool_]
EMPTY = 0.1  # share of voxels that are exactly 0, from which on these are the background
FOREGROUND = (0.01, 0.98)  # shares of the image that a foreground may fill
BRIGHTEST = 1.5  # values above are cut off: vessels, fat, metal
MOST_VOXELS = 30_000_000  # of a working copy
LEAST_VOXELS = 4  # along the longest axis of one
SHEAR = 1e-3  # cosine between axes, above which ITK does not take a grid


@dataclass(frozen=True)
class Given:
    """What a user gives of one side.

    Attributes
    ----------
    image : Path
        NIfTI, 2D or 3D.
    mask : Path or None
        On the grid of the image; the image is cut out to it.
    labels : Path or None
        Labels, or overlapping labels with one structure per volume (4D); on any grid of the same world.
    points : Path or None
        Landmarks: name, x, y, z in RAS millimetres.
    is_found : bool
        The mask is not of the user, and gone afterwards.
    """

    image: Path
    mask: Path | None = None
    labels: Path | None = None
    points: Path | None = None
    is_found: bool = False


@dataclass(frozen=True)
class Image:
    """An image as it is in its file: voxels (x, y[, z]), place and foreground; engines see it cut out to that or whole."""

    data: FloatArray
    source: Registered
    inside: Mask
    cut: bool = False

    @property
    def file(self) -> Path:
        """Where it is."""
        return self.source.image

    @property
    def space(self) -> Space:
        """Where its voxels lie."""
        return self.source.space

    @property
    def grid(self) -> Grid:
        """The same in LPS."""
        return self.space.grid

    def tensor(self) -> Tensor:
        """Return the voxels, (1, 1, *shape)."""
        return torch.from_numpy(np.ascontiguousarray(self.data, dtype=np.float32))[None, None]


def read_image(given: Given, name: str) -> Image:
    """Read an image with its foreground.

    Parameters
    ----------
    given : Given
        The files.
    name : str
        "fixed" or "moving", for errors.

    Raises
    ------
    InputError
        For an image that cannot be read, has more than three axes, values that are not finite, one value only or a sheared
        grid; for a mask that is empty or on another grid.
    """
    source = Registered.of_file(given.image, f"{name} image")
    data = read_voxels(source.space, given.image, f"{name} image")
    if data.ndim != source.space.grid.ndim:
        remedy = "give one volume of it"
        raise InputError(f"the {name} image has {data.ndim} axes: {data.shape}", file=given.image, remedy=remedy)
    if min(data.shape) < 4:
        remedy = "take the axis away, or give a larger image"
        raise InputError(
            f"the {name} image has an axis of fewer than 4 voxels: {data.shape}", file=given.image, remedy=remedy
        )
    if is_constant(data):
        remedy = "check that the file holds the intended image"
        raise InputError(f"the {name} image is constant (value {data.max():g})", file=given.image, remedy=remedy)
    direction = source.space.grid.direction
    if np.abs(direction.T @ direction - np.eye(data.ndim)).max() > SHEAR:
        remedy = "resample the image without shear, or repair its header"
        raise InputError(f"the axes of the {name} image are not orthogonal", file=given.image, remedy=remedy)
    if given.mask is None:
        return Image(data, source, foreground(data))
    inside = read_mask_on(given.mask, given.image, names=(f"{name} image", "its mask")).data.reshape(data.shape) > 0
    if is_constant(data[inside]):
        remedy = "check that it is the mask of this image, and large enough"
        raise InputError(f"the {name} image is constant inside of its mask", file=given.mask, remedy=remedy)
    return Image(data, source, inside, cut=True)


def is_constant(values: FloatArray) -> bool:
    """Tell whether all values are one, but for rounding."""
    low, high = float(values.min()), float(values.max())
    return high - low <= FLAT * max(abs(low), abs(high))


def foreground(data: FloatArray) -> Mask:
    """Return what is no background: voxels other than 0 where many are 0, else those above Otsu's threshold, holes filled.

    Where that is next to nothing, nearly everything or of one value only (a mask), all voxels count.
    """
    from scipy.ndimage import binary_fill_holes
    from skimage.filters import threshold_otsu
    from skimage.measure import label

    if (data == 0).mean() >= EMPTY:
        inside = data != 0
    else:
        low, high = np.percentile(data, [1, 99])
        inside = data > threshold_otsu(np.clip(data, low, high)) if high > low else data > low
    parts = np.asarray(label(inside, connectivity=1))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    inside = np.asarray(binary_fill_holes(parts == sizes.argmax()))
    least, most = FOREGROUND
    if not least <= inside.mean() <= most or is_constant(data[inside]):
        return np.ones(data.shape, dtype=bool)
    return inside


def working_spacing(fixed: Grid, moving: Grid, wanted: float | None) -> float:
    """Return the voxel size of the working copies, mm: as many voxels as the fixed image has, when none is wanted.

    Raises
    ------
    InputError
        When a copy would have more voxels than can be worked with, or next to none.
    """
    spacing = wanted or float(np.prod(fixed.spacing)) ** (1 / fixed.ndim)
    for name, grid in (("fixed", fixed), ("moving", moving)):
        extent = np.array(grid.shape) * grid.spacing
        voxels = float(np.prod(extent / spacing))
        if voxels > MOST_VOXELS:
            raise InputError(
                f"the {name} image would have {voxels / 1e6:.0f} million voxels of {spacing:.3g} mm",
                remedy="give a coarser --resolution; warped images and labels still have the voxels of the fixed image",
            )
        if extent.max() < LEAST_VOXELS * spacing:
            raise InputError(
                f"the {name} image is {extent.max():.3g} mm wide, which is little in voxels of {spacing:.3g} mm",
                remedy="correct the voxel size in its header, or give a finer --resolution",
            )
    return spacing


def make_pair(fixed: Image, moving: Image, spacing: float, folder: Path, *, brains: bool) -> Pair:
    """Write isotropic copies with comparable intensities and load them as a pair.

    Parameters
    ----------
    fixed, moving : Image
        As they are in their files.
    spacing : float
        Voxel size of the copies, mm.
    folder : Path
        Existing folder for them, which outlives the pair.
    brains : bool
        They are brains without skull.

    Raises
    ------
    InputError
        For a mix of 2D and 3D.
    """
    if fixed.grid.ndim != moving.grid.ndim:
        message = f"the fixed image has {fixed.grid.ndim} axes and the moving one {moving.grid.ndim}"
        raise InputError(message, file=moving.file, remedy="give two images of 2 axes or two of 3 axes")
    files = [_write_copy(one, spacing, folder / name) for name, one in (("fixed", fixed), ("moving", moving))]
    pair = load_pair(*files[0], *files[1])
    return Pair(**{**vars(pair), "stripped": brains})


def _write_copy(image: Image, spacing: float, stem: Path) -> tuple[Path, Path]:
    """Write the working copy of an image and of its foreground; return the files."""
    grid = isotropic(image.grid, spacing)
    inside = torch.from_numpy(image.inside.astype(np.float32))[None, None]
    values = rescaled(image.tensor(), inside).clamp(0, BRIGHTEST)
    if image.cut:
        values = values * inside
    written = []
    for name, data in (("image", values), ("mask", inside)):
        moved = _resampled(data, image.grid, grid)[0, 0].numpy()
        path = stem.with_name(f"{stem.name}-{name}.nii.gz")
        save_image((moved > 0.5).astype(np.uint8) if name == "mask" else moved, grid.ras_affine, path)
        written.append(path)
    return written[0], written[1]


def _resampled(data: Tensor, grid: Grid, target: Grid) -> Tensor:
    if grid.same_as(target):
        return data
    steps = np.linalg.norm((np.linalg.inv(grid.affine) @ target.affine)[:-1, :-1], axis=1)
    return Chain().apply(shrink(data, data.shape[2:], antialias_sigmas(steps)), grid, target, padding="border")


def isotropic(grid: Grid, spacing: float) -> Grid:
    """Return the grid of isotropic voxels over the field of view of another, the axes along the same directions."""
    if max(abs(size / spacing - 1) for size in grid.spacing) < 1e-2:
        return grid
    extent = np.array(grid.shape) * grid.spacing
    shape = np.maximum(np.ceil(extent / spacing - 1e-3).astype(int), 4)
    affine = np.eye(grid.ndim + 1)
    affine[:-1, :-1] = grid.direction * spacing
    affine[:-1, -1] = grid.centre - affine[:-1, :-1] @ ((shape - 1) / 2)
    return Grid(tuple(shape.tolist()), affine)
