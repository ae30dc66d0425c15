"""The images of a group at one resolution, each on its own grid, and how they look in the common space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.images.scan import check_image
from popatlas.registration.engines.instance.core import level_matrix
from popatlas.registration.engines.instance.inputs import zero_border
from popatlas.transforms.fieldops import TensorOps, block_mean, coarse_shape, ops_for

View = tuple[Tensor, Tensor]  # an image in the common space (V,) and the weight of its voxels (V,)


@dataclass(frozen=True)
class Group:
    """Images of one resolution.

    Attributes
    ----------
    images : sequence of (1, 1, *own shape) Tensor
        Each on its own grid.
    masks : sequence of (1, 1, *own shape + 2) Tensor
        Weights of their voxels with a border of zeros: nothing counts beyond an image.
    matrices, mask_matrices : sequence of (1, D, D + 1) Tensor
        From voxels of the common grid to those of `images` and `masks`.
    shape : tuple of int
        Voxels of the common grid.
    shrink : int
        Voxels of the full common grid along each axis of a voxel.
    """

    images: Sequence[Tensor]
    masks: Sequence[Tensor]
    matrices: Sequence[Tensor]
    mask_matrices: Sequence[Tensor]
    shape: tuple[int, ...]
    shrink: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def ndim(self) -> int:
        """Axes of the images."""
        return len(self.shape)

    def ops(self, threads: int) -> TensorOps:
        """Return the operations that serve these images."""
        return ops_for([*self.images, self.images[0].new_empty((1, 1, *self.shape))], threads)

    def smaller(self, shrink: int) -> Group:
        """Return the group at a coarser resolution, from the full one; axes of images with large voxels shrink less."""
        images, masks, matrices, mask_matrices = [], [], [], []
        for image, mask, matrix in zip(self.images, self.masks, self.matrices, strict=True):
            density = matrix[0, :, :-1].norm(dim=1)  # voxels of the image for each voxel of the common grid
            factors = [2 ** max(0, round(float(torch.log2((shrink * d).clamp(min=1e-6))))) for d in density]
            small = level_matrix(matrix, shrink, factors)
            inner = mask[(slice(None), slice(None), *[slice(1, -1)] * self.ndim)]
            padded, outer = zero_border(block_mean(inner, factors), small)
            images.append(block_mean(image, factors))
            masks.append(padded)
            matrices.append(small)
            mask_matrices.append(outer)
        return Group(images, masks, matrices, mask_matrices, coarse_shape(self.shape, shrink), shrink)


def checked_group(
    images: Sequence[Tensor],
    shape: Sequence[int],
    matrices: Sequence[Tensor] | None,
    masks: Sequence[Tensor | None] | None,
    names: Sequence[str] | None,
) -> Group:
    """Return the group at full resolution.

    Raises
    ------
    InputError
        For fewer than two images, images or masks that cannot be used (`popatlas.images.scan.check_image`), images of other
        shapes than the common grid without matrices, and an image that does not overlap the common grid.
    """
    called = list(names) if names is not None else [f"image {j + 1}" for j in range(len(images))]
    if len(images) < 2:
        count = f"{len(images)} image{'s' * (len(images) != 1)}"
        raise InputError(f"a group of {count}", remedy="give two or more images, of any contrasts")
    ndim = len(shape)
    given = list(masks) if masks is not None else [None] * len(images)
    whole = torch.eye(ndim, ndim + 1)[None]
    rows = list(matrices) if matrices is not None else [whole] * len(images)
    padded, outer = [], []
    for name, image, mask, matrix in zip(called, images, given, rows, strict=True):
        _check(name, image, mask, ndim)
        if matrices is None and tuple(image.shape[2:]) != tuple(shape):
            message = f"{name} has shape {tuple(image.shape[2:])}, the common grid {tuple(shape)}, and no matrix joins them"
            raise InputError(message, remedy="give the matrices between the grids, or resample the images to one grid")
        border, moved = zero_border(torch.ones_like(image) if mask is None else (mask > 0).to(image), matrix.to(image))
        there = TensorOps().warp(border, image.new_zeros((1, ndim, *shape)), 1, moved, shape)
        if not bool((there > 0).any()):
            raise InputError(f"{name} does not overlap the common space", remedy="check its header and its mask")
        padded.append(border)
        outer.append(moved)
    found = [image.float() for image in images]
    return Group(found, padded, [matrix.to(found[0]) for matrix in rows], outer, tuple(int(n) for n in shape), 1)


def _check(name: str, image: Tensor, mask: Tensor | None, ndim: int) -> None:
    if image.ndim != ndim + 2 or tuple(image.shape[:2]) != (1, 1):
        message = f"{name} has shape {tuple(image.shape)}, where (1, 1, *{ndim} axes) is needed"
        raise InputError(message, remedy="give images of one channel, all with as many axes as the common grid")
    try:
        check_image(image, mask)
    except InputError as error:
        raise InputError(f"{name}: {error.message}", remedy=error.remedy) from error


class Views:
    """The images in the common space; each is made when it is asked for, and kept until the images have moved.

    Parameters
    ----------
    make : callable
        Returns the view of the image with a number.
    count : int
        Images.
    kept : bool
        Keep them: faster, and as large as the images. Otherwise only one is in memory at a time.
    """

    def __init__(self, make: Callable[[int], View], count: int, *, kept: bool) -> None:
        self.make, self.count, self.kept = make, count, kept
        self._views: dict[int, View] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> View:
        if number in self._views:
            return self._views[number]
        view = self.make(number)
        if self.kept:
            self._views[number] = view
        return view

    def moved(self) -> None:
        """Forget all views: the images have moved."""
        self._views.clear()
