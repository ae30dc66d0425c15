"""Chains of transforms: composed exactly, resampled once.

A chain holds its steps in the order in which a point of the fixed image goes through them. Between steps points are kept
in the voxels of the last field, and matrices are multiplied before they touch a point, so that each point is moved and
rounded as seldom as possible and an image is interpolated once, however long the chain is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from popatlas.images.grid import Array, Grid
from popatlas.transforms.fields import Mode, Padding, coordinates, invert, labels_at, sample
from popatlas.transforms.linear import move


@dataclass(frozen=True, eq=False)
class Affine:
    """A linear step.

    Attributes
    ----------
    matrix : (B, D + 1, D + 1) Tensor
        LPS millimetres; one matrix without a batch axis, as tensor or ndarray, is taken as a batch of one.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        matrix = torch.as_tensor(self.matrix)
        size = matrix.shape[-1]
        if matrix.ndim not in (2, 3) or size not in (3, 4) or matrix.shape[-2] != size:
            raise ValueError(f"not a homogeneous matrix: shape {tuple(matrix.shape)}")
        object.__setattr__(self, "matrix", matrix.reshape(-1, size, size))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.matrix.shape[-1] - 1

    def inverse(self) -> Affine:
        """Return the inverse step."""
        return Affine(torch.linalg.inv(self.matrix))


@dataclass(frozen=True, eq=False)
class Field:
    """A displacement step; points outside of its grid stay where they are, as in ITK.

    Attributes
    ----------
    displacement : (B, D, *shape) Tensor
        Voxels of `grid`.
    grid : Grid
        Where it lives.
    """

    displacement: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if self.displacement.shape[1:] != (self.grid.ndim, *self.grid.shape):
            raise ValueError(f"displacement of shape {tuple(self.displacement.shape)} on a grid of shape {self.grid.shape}")

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.grid.ndim

    def inverse(self) -> Field:
        """Return the inverse step on the same grid (`fields.invert`)."""
        return Field(invert(self.displacement), self.grid)


Step = Affine | Field


@dataclass(frozen=True, eq=False)
class Chain:
    """Transforms one after the other.

    Attributes
    ----------
    steps : tuple of Affine or Field
        In the order in which a fixed point goes through them; none is the identity.
    """

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if len({step.ndim for step in self.steps}) > 1:
            raise ValueError("2D and 3D transforms in one chain")

    def then(self, other: Chain) -> Chain:
        """Return the chain that goes through this one first and then through the other."""
        return Chain(self.steps + other.steps)

    def inverse(self) -> Chain:
        """Return the chain back from moving to fixed points: the inverse steps, last one first."""
        return Chain(tuple(step.inverse() for step in reversed(self.steps)))

    def apply(
        self,
        image: Tensor,
        moving_grid: Grid,
        fixed_grid: Grid,
        mode: Mode | Literal["generic"] = "linear",
        padding: Padding = "zeros",
    ) -> Tensor:
        """Resample an image onto the fixed grid with one interpolation.

        Parameters
        ----------
        image : (B, C, *moving shape) Tensor
            Moving image.
        moving_grid, fixed_grid : Grid
            Grid of `image` and that of the result.
        mode, padding : str
            See `fields.sample`. For labels: ``nearest``, or ``generic`` (`fields.warp_labels`); neither makes new ones.

        Returns
        -------
        (B, C, *fixed shape) Tensor
            Of the image's type.
        """
        if tuple(image.shape[2:]) != moving_grid.shape:
            raise ValueError(f"image of shape {tuple(image.shape)} on a grid of shape {moving_grid.shape}")
        dtype = image.dtype if image.dtype == torch.float64 else torch.float32
        index = coordinates(fixed_grid.shape, device=image.device, dtype=dtype)
        at = self._trace(index, fixed_grid.affine, moving_grid.affine, lattice=True)
        return labels_at(image, at, padding) if mode == "generic" else sample(image, at, mode, padding)

    def points(self, points: Tensor | Array) -> Tensor:
        """Move points, landmarks for example, from the fixed to the moving image.

        Parameters
        ----------
        points : (N, D) or (B, N, D) Tensor or ndarray
            LPS millimetres.

        Returns
        -------
        (N, D) or (B, N, D) Tensor
            LPS millimetres, float64. A batched chain needs batched points.
        """
        where = torch.as_tensor(points, dtype=torch.float64)
        batched = where if where.ndim == 3 else where.unsqueeze(0)
        world = np.eye(batched.shape[-1] + 1)
        moved = self._trace(batched.movedim(-1, 1), world, world).movedim(1, -1)
        if where.ndim == 3:
            return moved
        if moved.shape[0] != 1:
            raise ValueError(f"points (N, D) for a chain with a batch of {moved.shape[0]}: give (B, N, D)")
        return moved[0]

    def as_field(self, grid: Grid, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Field:
        """Return the whole chain as one displacement in voxels of a grid, usually the fixed one."""
        index = coordinates(grid.shape, device=device, dtype=dtype)
        return Field(self._trace(index, grid.affine, grid.affine, lattice=True) - index, grid)

    def _trace(self, at: Tensor, start: Array, end: Array, *, lattice: bool = False) -> Tensor:
        """Send points (B, D, *out) in voxels of one grid through the chain to voxels of another.

        Parameters
        ----------
        at : (B, D, *out) Tensor
            Voxel coordinates.
        start, end : (D + 1, D + 1) ndarray
            Voxel index to LPS millimetres of the two grids.
        lattice : bool
            Whether the points are all voxel centres in order; a field on that very grid is then read without interpolation.
        """
        voxels = at
        # `pending` is the matrix from the coordinates in `at` to millimetres that has not been applied yet
        pending = _tensor(start, at)
        for step in self.steps:
            if step.ndim != at.shape[1]:
                raise ValueError(f"{at.shape[1]}D points in a {step.ndim}D chain")
            if isinstance(step, Affine):
                pending = step.matrix.to(pending) @ pending
                continue
            at = _apply(torch.linalg.inv(_tensor(step.grid.affine, at)) @ pending, at)
            displacement = step.displacement.to(at)
            untouched = lattice and at is voxels and at.shape[2:] == displacement.shape[2:]
            at = at + (displacement if untouched else sample(displacement, at, "linear", "zeros"))
            pending = _tensor(step.grid.affine, at)
        return _apply(torch.linalg.inv(_tensor(end, at)) @ pending, at)


def _tensor(affine: Array, like: Tensor) -> Tensor:
    return torch.as_tensor(affine.copy(), dtype=torch.float64, device=like.device).unsqueeze(0)


def _apply(matrix: Tensor, at: Tensor) -> Tensor:
    """Map points by float64 matrices, in the points' type; the identity costs nothing."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    if not matrix.requires_grad and bool(((matrix - identity).abs() < 1e-12).all()):
        return at
    return move(matrix.to(at.dtype), at)
