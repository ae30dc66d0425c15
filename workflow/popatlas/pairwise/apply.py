"""`popatlas apply`: images, labels and points through transforms, interpolated once; there and back.

Whatever is given lies in the space of the moving image and comes out in that of the fixed one; the inverse takes it back.
Images are read at the places where fixed points go, so that points themselves go the other way through the same transforms:
here both are asked for by the same words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from popatlas.errors import InputError
from popatlas.images.arrays import FloatArray, IntArray
from popatlas.images.grid import Grid
from popatlas.images.io import load_image, save_image, sha256, write_table
from popatlas.measures.landmarks import AXES, RAS_TO_LPS, read_landmarks
from popatlas.pairwise import files as names
from popatlas.pairwise.files import Outputs
from popatlas.pairwise.prepare import ras_affine
from popatlas.pairwise.scores import Structures
from popatlas.transforms.affine import read_affine
from popatlas.transforms.chain import Affine, Chain, Field
from popatlas.transforms.itk import read_displacement

INVERSE = "inverse:"  # before the name of a transform file
LINEAR = (".mat", ".txt", ".tfm")
TABLES = (".tsv",)
LABELS = re.compile(r"(^|_)(dseg|mask)\.nii(\.gz)?$")  # names of label images in BIDS


@dataclass(frozen=True)
class Way:
    """A chain from fixed to moving points, the chain back, and the images at both ends where they are known."""

    forward: Chain
    inverse: Chain
    fixed: Path | None = None
    moving: Path | None = None

    def turned(self) -> Way:
        """Return the way back."""
        return Way(self.inverse, self.forward, self.moving, self.fixed)

    def then(self, other: Way) -> Way:
        """Return the way through this one and then the other, as a fixed point goes."""
        forward, inverse = self.forward.then(other.forward), other.inverse.then(self.inverse)
        return Way(forward, inverse, self.fixed, other.moving)


def way_of_registrations(prefixes: Sequence[str]) -> Way:
    """Return the chain of registrations by `popatlas register`.

    Parameters
    ----------
    prefixes : sequence of str
        Their `--out`: the first one has the image at the end of the way as fixed, the next one registers to the moving image
        of the first one, and so on.

    Raises
    ------
    InputError
        See `Outputs.read`; and when one does not begin where that before it ends.
    """
    way = _registration(prefixes[0])
    for prefix in prefixes[1:]:
        other = _registration(prefix)
        if not _is_one(way.moving, other.fixed):
            message = f"{prefix} registers to {other.fixed}, and the way before it ends in {way.moving}"
            remedy = "give the registrations in the order of a fixed point's way, or their files by --transforms"
            raise InputError(message, remedy=remedy)
        way = way.then(other)
    return way


def _is_one(one: Path | None, other: Path | None) -> bool:
    """Tell whether two paths are of one image, by their contents where they differ."""
    if one == other or one is None or other is None:
        return one == other
    return one.is_file() and other.is_file() and sha256(one) == sha256(other)


def _registration(prefix: str) -> Way:
    outputs = Outputs(prefix)
    record = outputs.read()
    affine = Affine(torch.as_tensor(read_affine(outputs.path(names.AFFINE))))
    forward, inverse = Chain((affine,)), Chain((affine.inverse(),))
    if names.WARP in record["files"]:
        forward = Chain((_field(outputs.path(names.WARP)),)).then(forward)
        inverse = inverse.then(Chain((_field(outputs.path(names.INVERSE_WARP)),)))
    images = (Path(record[side]["image"]) for side in ("fixed", "moving"))
    return Way(forward, inverse, *images)


def way_of_files(transforms: Sequence[str]) -> Way:
    """Return the chain of transform files, as a fixed point goes through them: usually a warp, then an affine.

    Parameters
    ----------
    transforms : sequence of str
        ITK/ANTs files of affines and displacement fields; ``inverse:FILE`` stands for the inverse of one. Fields are
        inverted by iteration.

    Raises
    ------
    InputError
        For a file that is missing or no transform.
    """
    steps = [_step(text) for text in transforms]
    return Way(Chain(tuple(steps)), Chain(tuple(step.inverse() for step in reversed(steps))))


def _step(text: str) -> Affine | Field:
    path = Path(text.removeprefix(INVERSE))
    if not path.is_file():
        raise InputError("the transform does not exist", file=path, remedy="check the path")
    step = Affine(torch.as_tensor(read_affine(path))) if path.suffix in LINEAR else _field(path)
    return step.inverse() if text.startswith(INVERSE) else step


def _field(path: Path) -> Field:
    values, grid = read_displacement(path)
    return Field(torch.as_tensor(values, dtype=torch.float32)[None], grid)


def apply_to_image(source: Path, reference: Path, chain: Chain, out: Path) -> None:
    """Resample an image (linear); a 4D one volume by volume.

    Parameters
    ----------
    source : Path
        Image in the moving space.
    reference : Path
        Image whose grid the result has.
    chain : Chain
        Fixed to moving points.
    out : Path
        NIfTI, float32; 0 outside of what the source shows (its least value, where that is below 0).
    """
    target, grid = grid_of(reference), grid_of(source)
    data = np.asarray(load_image(source).dataobj)
    if not np.isfinite(data).all():
        remedy = "replace them, by 0 outside of the field of view"
        raise InputError("the image has voxels that are not finite", file=source, remedy=remedy)
    volumes = np.moveaxis(data.reshape(*grid.shape, -1), -1, 0)
    moved = np.stack([resampled(one, grid, target, chain) for one in volumes], axis=-1)
    save_image(moved[..., 0] if moved.shape[-1] == 1 else moved, ras_affine(target), out)


def resampled(data: FloatArray, grid: Grid, target: Grid, chain: Chain) -> FloatArray:
    """Return an image on another grid (linear); outside of its view 0, or its least value where that is below 0."""
    fill = np.float32(min(data.min(), 0))
    values = torch.from_numpy(np.ascontiguousarray(data - fill))[None, None]
    return chain.apply(values, grid, target)[0, 0].numpy() + fill


def apply_to_labels(source: Path, reference: Path, chain: Chain, out: Path, image: Path | None = None) -> None:
    """Resample labels: each voxel gets the label with the largest linear weight; overlapping ones (4D) each for itself.

    Where their image is known they must lie on it.
    """
    target = grid_of(reference)
    own = None if image is None or not image.is_file() else grid_of(image)
    save_structures(Structures.read(source, target.ndim, own).through(chain, target), target, out)


def save_structures(data: IntArray, grid: Grid, out: Path) -> None:
    """Write labels in the smallest type that holds them."""
    save_image(data, ras_affine(grid), out, np.uint8 if data.max(initial=0) < 256 else np.int32)


def apply_to_points(source: Path, chain: Chain, out: Path) -> None:
    """Move landmarks (name, x, y, z in RAS mm); `chain` takes moving points to fixed ones."""
    table = read_landmarks(source)
    ndim = chain.steps[0].ndim if chain.steps else 3
    moved = chain.points(table[AXES].to_numpy()[:, :ndim] * RAS_TO_LPS[:ndim]).numpy() * RAS_TO_LPS[:ndim]
    table[AXES[:ndim]] = moved
    write_table(table, out)


def grid_of(path: Path) -> Grid:
    """Return the grid of an image from its header; a third axis of one voxel counts as none."""
    grid = Grid.from_file(path)
    return Grid.from_affine(grid.shape[:2], ras_affine(grid), path) if grid.shape[2:] == (1,) else grid


def apply_file(source: Path, out: Path, way: Way, reference: Path | None = None, *, labels: bool = False) -> None:
    """Bring a file from the moving to the fixed space.

    Parameters
    ----------
    source : Path
        Image, labels, or a table of landmarks (.tsv).
    out : Path
        Where the result goes.
    way : Way
        See `way_of_registrations` and `way_of_files`.
    reference : Path, optional
        Image whose grid the result has: that of the registration when left out.
    labels : bool
        The file holds labels; so do those that BIDS calls `dseg` or `mask`.

    Raises
    ------
    InputError
        When no grid is known, or a file cannot be read.
    """
    if not source.is_file():
        raise InputError("the file does not exist", file=source, remedy="check the path")
    if source.suffix in TABLES:
        apply_to_points(source, way.inverse, out)
        return
    grid = reference or way.fixed
    if grid is None or not grid.is_file():
        remedy = "name an image of the fixed space by --reference"
        raise InputError("it is not known on which grid the result is wanted", file=grid or source, remedy=remedy)
    if labels or LABELS.search(source.name):
        apply_to_labels(source, grid, way.forward, out, way.moving)
    else:
        apply_to_image(source, grid, way.forward, out)
