"""From the images of a study to those that a network was trained for, and from its displacement back to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from types import EllipsisType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from popatlas.errors import InputError
from popatlas.images.antialias import antialias_sigmas
from popatlas.images.grid import Array, Grid
from popatlas.images.io import PathLike
from popatlas.images.pyramid import shrink
from popatlas.images.scan import Scan
from popatlas.transforms.fields import Mode, sample
from popatlas.zoo.metadata import InputContract, Intensity

SAME_SPACING = 0.01  # relative difference of spacings up to which voxels are taken as they are
COARSEST = 3.0  # times the spacing of the network beyond which an image has too little detail
ROUNDING = 1e-6  # voxels
NEAR = 4  # voxels around what an image shows that its interpolation and smoothing may need
MARGIN = 4  # voxels around the brain, for networks that take any shape and brains that are larger than usual
FEWEST_ZEROS = 0.1  # share of background voxels below which an image without a mask is no brain


@dataclass(frozen=True)
class Origin:
    """Which image it is, for errors: the file, the subject, and what it is in a pair."""

    name: str = "image"
    file: PathLike | None = None
    subject: str | None = None

    def refuse(self, message: str, remedy: str) -> InputError:
        """Return the error."""
        return InputError(message, file=self.file, subject=self.subject, remedy=remedy)


@dataclass(frozen=True)
class Conformed:
    """An image on the grid of a network.

    Attributes
    ----------
    image : (1, 1, *shape) Tensor
        Values in the range of the contract.
    grid : Grid
        Where it lies.
    source : Grid
        Grid of the image that it was made of.
    """

    image: Tensor
    grid: Grid
    source: Grid

    def back(self, displacement: Tensor) -> Tensor:
        """Bring a displacement (B, D, *shape) on the network's grid to that of the image; see `field_to_grid`."""
        return field_to_grid(displacement, self.grid, self.source)


@dataclass(frozen=True)
class ConformedPair:
    """A fixed image and a moving one that an affine brought to it, both on the grid of a network."""

    fixed: Conformed
    moving: Tensor

    def back(self, displacement: Tensor) -> Tensor:
        """Bring a displacement on the network's grid to that of the fixed image.

        A fixed point goes along this displacement first and then through the affine that the pair was conformed with.
        """
        return self.fixed.back(displacement)


def to_contract(
    image: Tensor,
    grid: Grid,
    contract: InputContract,
    mask: Tensor | None = None,
    *,
    file: PathLike | None = None,
    subject: str | None = None,
) -> Conformed:
    """Bring an image to the orientation, spacing, shape and range that a network expects, in one interpolation.

    Axes are exchanged and turned over, not rotated. Where the spacing fits, voxels are taken as they are.

    Parameters
    ----------
    image : (1, 1, *shape) Tensor
        Image.
    grid : Grid
        Where it lies.
    contract : InputContract
        What the network expects.
    mask : (1, 1, *shape) Tensor, optional
        Brain; without one all voxels other than 0 are, which a contract of brains needs some of.
    file, subject : optional
        Named in errors.

    Raises
    ------
    InputError
        When the image has other axes, is empty, constant or not finite, too coarse, no brain where one is needed, or its
        brain is larger than the one shape of the network.
    """
    origin = Origin("image", file, subject)
    scan = Scan(image, grid, mask)
    inside = _check(scan, contract, origin)
    target = network_grid(grid, inside, contract, origin)
    return Conformed(_conform(scan, inside, target, np.eye(grid.ndim + 1), contract, origin), target, grid)


def conform_pair(
    fixed: Scan,
    moving: Scan,
    affine: Array,
    contract: InputContract,
    *,
    files: tuple[PathLike | None, PathLike | None] = (None, None),
    subject: str | None = None,
) -> ConformedPair:
    """Bring a pair to the grid of a network, the moving image through an affine.

    Parameters
    ----------
    fixed, moving : Scan
        Images with their grids and masks.
    affine : (D + 1, D + 1) ndarray
        Fixed to moving points, LPS millimetres.
    contract : InputContract
        What the network expects.
    files : pair of path-like, optional
        Of fixed and moving image, named in errors.
    subject : str, optional
        Named in errors.

    Raises
    ------
    InputError
        As `to_contract` for either image, and when the affine takes the moving brain out of the grid.
    """
    one = to_contract(fixed.image, fixed.grid, contract, fixed.mask, file=files[0], subject=subject)
    origin = Origin("moving image", files[1], subject)
    inside = _check(moving, contract, origin)
    return ConformedPair(one, _conform(moving, inside, one.grid, affine, contract, origin))


def field_to_grid(displacement: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
    """Bring a displacement to another grid of the same space.

    Parameters
    ----------
    displacement : (B, D, *shape) Tensor
        Voxels of `from_grid`.
    from_grid, to_grid : Grid
        Grids, of any orientation and spacing.

    Returns
    -------
    (B, D, *shape) Tensor
        Voxels of `to_grid`, linear interpolation; outside of `from_grid` that of its border, so that the field has no edge.
    """
    ndim = from_grid.ndim
    between = np.linalg.inv(from_grid.affine) @ to_grid.affine
    if (shift := _whole_shift(between)) is not None:  # nothing to interpolate
        for axis, start in enumerate(shift):
            index = torch.arange(start, start + to_grid.shape[axis], device=displacement.device)
            displacement = displacement.index_select(axis + 2, index.clamp(0, from_grid.shape[axis] - 1))
        return displacement
    values = sample(displacement, _places(between, to_grid.shape).to(displacement.device))
    turn = np.linalg.inv(to_grid.affine[:ndim, :ndim]) @ from_grid.affine[:ndim, :ndim]
    return torch.einsum("ij,bj...->bi...", torch.as_tensor(turn).to(values), values)


def network_grid(grid: Grid, inside: Tensor, contract: InputContract, origin: Origin = Origin()) -> Grid:
    """Return the grid on which a network sees an image.

    Parameters
    ----------
    grid : Grid
        Of the image.
    inside : (1, 1, *shape) Tensor
        Brain, boolean; the middle of its box is that of the grid.
    contract : InputContract
        What the network expects.
    origin : Origin
        For errors.
    """
    turned, axes = reoriented(grid, contract)
    ratios = [wanted / own for wanted, own in zip(contract.spacing_mm, turned.spacing, strict=True)]
    ratios = [1.0 if abs(ratio - 1) <= SAME_SPACING else ratio for ratio in ratios]
    box = [_extent(inside, axis) for axis in range(grid.ndim)]
    starts, shape = [], []
    for number, (axis, flipped) in enumerate(axes):
        count, ratio, (low, high) = turned.shape[number], ratios[number], box[axis]
        if flipped:
            low, high = count - 1 - high, count - 1 - low
        if contract.shape is None and not contract.stripped:  # there may be something to see everywhere
            low, high = 0, count - 1
        need = (high - low + 1) / ratio
        size = _size(need, number, contract)
        if need > size * (1 + SAME_SPACING):
            voxel = contract.spacing_mm[number]
            raise origin.refuse(
                f"the {origin.name} has a brain of {need * voxel:.0f} mm along axis {axis},"
                f" the network takes {size * voxel:.0f} mm",
                "check the brain mask and the voxel size, or use a network that takes any shape",
            )
        start = (low + high) / 2 - ratio * (size - 1) / 2
        starts.append(float(np.floor(start + 0.5)) if ratio == 1 else start)  # whole voxels need no interpolation
        shape.append(size)
    step = np.diag([*ratios, 1.0])
    step[:-1, -1] = starts
    return Grid(tuple(shape), turned.affine @ step)


def _size(need: float, axis: int, contract: InputContract) -> int:
    """Return how many voxels a network sees along one of its axes, of which it needs so many."""
    if contract.shape is not None:
        return contract.shape[axis]
    if contract.usual_shape is not None and need <= (usual := contract.usual_shape[axis]) * (1 + SAME_SPACING):
        return usual  # what it has learnt from
    size = int(np.ceil(need - SAME_SPACING)) + (2 * MARGIN if contract.stripped else 0)
    return size + -size % contract.multiple


def reoriented(grid: Grid, contract: InputContract) -> tuple[Grid, list[tuple[int, bool]]]:
    """Return a grid with axes exchanged and turned over, and which axis each one was and whether it was turned over."""
    ndim = grid.ndim
    if contract.orientation is None:
        return grid, [(axis, False) for axis in range(ndim)]
    closeness = np.abs(grid.direction)
    lies_along = max(permutations(range(ndim)), key=lambda worlds: sum(closeness[w, axis] for axis, w in enumerate(worlds)))
    change, axes = np.zeros((ndim + 1, ndim + 1)), []
    change[-1, -1] = 1
    for number, (world, sign) in enumerate(contract.world_axes()):
        axis = lies_along.index(world)
        flipped = bool(grid.direction[world, axis] * sign < 0)
        change[axis, number] = -1 if flipped else 1
        change[axis, -1] = grid.shape[axis] - 1 if flipped else 0
        axes.append((axis, flipped))
    return Grid(tuple(grid.shape[axis] for axis, _ in axes), grid.affine @ change), axes


def _check(scan: Scan, contract: InputContract, origin: Origin) -> Tensor:
    """Refuse an image that the network cannot take; return its brain, boolean."""
    image, mask, grid = scan.image, scan.mask, scan.grid
    if grid.ndim != contract.ndim:
        message = f"the {origin.name} has {grid.ndim} axes, the network takes {contract.ndim}"
        raise origin.refuse(message, f"use weights for {grid.ndim}D images: popatlas weights list")
    if wrong := int((~torch.isfinite(image)).sum()):
        message = f"the {origin.name} has {wrong} voxels that are NaN or infinite"
        raise origin.refuse(message, "replace them, by 0 outside of the field of view")
    if mask is not None and mask.shape != image.shape:
        message = f"the mask of the {origin.name} has shape {tuple(mask.shape[2:])}, not {tuple(image.shape[2:])}"
        raise origin.refuse(message, "resample the mask onto the image's grid")
    background = 0.0 if contract.stripped else float(image.min())
    inside = image != background if mask is None else mask > 0
    if not bool(inside.any()) or bool((image[inside] == image[inside][0]).all()):
        raise origin.refuse(f"the {origin.name} is empty or constant", "check the file and the brain extraction")
    zeros = 1 - float(inside.float().mean())
    if contract.stripped and mask is None and zeros < FEWEST_ZEROS:
        message = f"the network takes brains, and only {100 * zeros:.0f} % of the {origin.name} are 0"
        raise origin.refuse(message, "give the brain mask, or the image without the skull")
    worst = max(own / wanted for own, wanted in zip(sorted(grid.spacing), sorted(contract.spacing_mm), strict=True))
    if worst > COARSEST:
        sizes = (" x ".join(f"{size:g}" for size in spacing) for spacing in (grid.spacing, contract.spacing_mm))
        message = "voxels of the {} are {} mm, the network was trained with {} mm".format(origin.name, *sizes)
        raise origin.refuse(message, f"use images of up to {COARSEST:g} times that, or other weights")
    return inside


def _conform(scan: Scan, inside: Tensor, target: Grid, affine: Array, contract: InputContract, origin: Origin) -> Tensor:
    """Return an image on the grid of the network, through an affine from its points to those of the image."""
    brain = inside.to(scan.image)
    fill = 0.0 if contract.stripped else float(scan.image.min())
    values = (scan.image - fill) * brain if contract.stripped else scan.image - fill
    between = np.linalg.inv(scan.grid.affine) @ np.asarray(affine, dtype=np.float64) @ target.affine
    shown = inside | (values != 0)  # heads show more than the brain
    box = tuple(slice(max(low - NEAR, 0), high + NEAR + 1) for low, high in (_extent(shown, a) for a in range(target.ndim)))
    near: tuple[EllipsisType | slice, ...] = (..., *box)
    values, brain = values[near], brain[near]  # what lies further away is 0
    between[:-1, -1] -= [part.start for part in box]
    if (shift := _whole_shift(between)) is not None:
        values, there = (_cut(part, shift, target.shape) for part in (values, brain))
    else:
        sigmas = antialias_sigmas(np.linalg.norm(between[:-1, :-1], axis=1))
        at = _places(between, target.shape).to(values.device)
        whole = bool((at == at.round()).all())  # then no value has to change by rounding
        mode: Mode = "nearest" if whole else "linear"
        values = sample(shrink(values, values.shape[2:], sigmas), at, mode, padding="zeros")
        there = sample(brain, at, "nearest", padding="zeros")
    values, there = values + fill, there > 0
    if not bool(there.any()):
        message = f"no voxel of the {origin.name} lies on the grid of the network"
        raise origin.refuse(message, "check the affine between the images")
    return scaled(values, there, contract.intensity)


def scaled(image: Tensor, inside: Tensor, intensity: Intensity) -> Tensor:
    """Bring the values of an image to a range; see `popatlas.zoo.metadata.Intensity`. `inside` is the brain, boolean."""
    if intensity.kind == "none":
        return image
    if intensity.kind == "zscore":
        values = image[inside]
        spread = float(values.std(correction=0).clamp(min=torch.finfo(image.dtype).tiny))
        return (0.5 + 0.25 * (image - float(values.mean())) / spread).clamp(0, 1.5)
    if intensity.kind == "minmax":
        least, most = float(image.min()), float(image.max())
    elif intensity.kind == "clipped":
        least, most = float(image.min()), float(np.percentile(image.cpu().numpy(), 99))
    else:
        least, most = (float(value) for value in np.percentile(image[inside].cpu().numpy(), [1, 99]))
    span = intensity.high - intensity.low
    result = intensity.low + (image - least) * (span / max(most - least, torch.finfo(image.dtype).tiny))
    return result.clamp(intensity.low, intensity.high + (span / 2 if intensity.kind == "robust" else 0))


def _places(matrix: Array, shape: Sequence[int]) -> Tensor:
    """Return where the voxels of a shape go, (1, D, *shape), whole voxels exactly; one axis at a time to save memory."""
    index = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")  # views of single axes
    components = []
    for row in matrix[:-1]:
        at = sum((float(factor) * axis for factor, axis in zip(row[:-1], index, strict=True)), torch.tensor(float(row[-1])))
        near = at.round()
        components.append(torch.where((at - near).abs() < ROUNDING, near, at).float())
    return torch.stack(components)[None]


def _whole_shift(between: Array) -> list[int] | None:
    """Return where the first voxel goes when voxels go to voxels along equal axes, None otherwise."""
    shift = np.round(between[:-1, -1])
    whole = np.eye(len(between))
    whole[:-1, -1] = shift
    return [int(start) for start in shift] if np.abs(between - whole).max() < ROUNDING else None


def _cut(values: Tensor, starts: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return a box (1, 1, *shape) of an image that begins at some voxel; outside of the image it is 0."""
    padding: list[int] = []
    for n, start, size in reversed(list(zip(values.shape[2:], starts, shape, strict=True))):
        if start >= n or start + size <= 0:
            return values.new_zeros(*values.shape[:2], *shape)
        padding += [-start, start + size - n]  # what is negative is cut
    return functional.pad(values, padding)


def _extent(inside: Tensor, axis: int) -> tuple[int, int]:
    """Return the first and last index of a mask (1, 1, *shape) along an axis."""
    others = [number for number in range(inside.ndim) if number != axis + 2]
    found = inside.sum(dim=others).nonzero()[:, 0]
    return int(found[0]), int(found[-1])
