"""The whole way of a registration as one field: made from its affine and its warp, once or again, to the same bytes.

A composed field holds nothing that the affine and the warp do not hold. What needs it and does not find it makes it from
them; the result is that of the registration, bit for bit, on one machine.
"""

from __future__ import annotations

from pathlib import Path

import torch

from popatlas.images.grid import Grid
from popatlas.images.io import PathLike
from popatlas.transforms.affine import read_affine
from popatlas.transforms.chain import Affine, Chain, Field
from popatlas.transforms.itk import read_displacement, write_displacement


def read_step(path: PathLike) -> Field:
    """Read a displacement field as a step of a chain."""
    values, grid = read_displacement(path)
    return Field(torch.as_tensor(values, dtype=torch.float32)[None], grid)


def write_composed(path: PathLike, chain: Chain, grid: Grid) -> None:
    """Write a chain as one field on a grid, rounded as all fields of registrations are."""
    write_displacement(path, chain.as_field(grid).displacement[0], grid, rounded=True)


def grid_of(image: PathLike) -> Grid:
    """Return the grid of an image file as ITK reads it, which is that of a registration."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(image))
    reader.ReadImageInformation()
    return Grid.from_sitk(reader)  # it has the same questions to ask as an image


def compose_forward(affine: Path, warp: Path, fixed: Path, out_file: PathLike) -> None:
    """Write the way from fixed to moving points, on the grid of the fixed image, from its affine and its warp."""
    write_composed(out_file, Chain((read_step(warp), Affine(torch.as_tensor(read_affine(affine))))), grid_of(fixed))


def way_back(affine: Path, inverse_warp: Path) -> Chain:
    """Return the way from moving to fixed points from the affine and the warp of the way back."""
    return Chain((Affine(torch.as_tensor(read_affine(affine))).inverse(), read_step(inverse_warp)))


def compose_inverse(affine: Path, inverse_warp: Path, moving: Path, out_file: PathLike) -> None:
    """Write the way back, on the grid of the moving image, from the affine and the warp of the way back."""
    write_composed(out_file, way_back(affine, inverse_warp), grid_of(moving))
