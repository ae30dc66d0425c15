"""A level of resolution for engines that minimise a similarity by its slope: smaller images, what a displacement costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.images.pyramid import ANTIALIAS, shrink
from popatlas.images.scan import check_pair
from popatlas.similarity.base import Similarity
from popatlas.transforms.fields import coordinates, sample


@dataclass(frozen=True)
class Images:
    """A batch of pairs.

    Attributes
    ----------
    fixed, moving : (B, C, *shape) Tensor
        Images of 2 or 3 axes, each in its own grid.
    fixed_mask, moving_mask : (B, 1, *shape) Tensor or None
        Only voxels above 0 in both count.
    matrix : (B, D, D + 1) Tensor
        From voxels of `fixed` to voxels of `moving`.
    """

    fixed: Tensor
    moving: Tensor
    fixed_mask: Tensor | None
    moving_mask: Tensor | None
    matrix: Tensor

    @classmethod
    def checked(
        cls,
        fixed: Tensor,
        moving: Tensor,
        matrix: Tensor | None,
        fixed_mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
        subject: str | None = None,
    ) -> Images:
        """Return a batch, with the identity where there is no matrix.

        Raises
        ------
        InputError
            From `check_pair`, and for images of different shapes without a matrix.
        """
        check_pair(fixed, moving, fixed_mask, moving_mask, subject)
        if matrix is None and fixed.shape[2:] != moving.shape[2:]:
            message = (
                f"images of shapes {tuple(fixed.shape[2:])} and {tuple(moving.shape[2:])} and no matrix between their grids"
            )
            remedy = "give the matrix, or resample one image onto the grid of the other"
            raise InputError(message, subject=subject, remedy=remedy)
        ndim = fixed.ndim - 2
        whole = torch.eye(ndim, ndim + 1).expand(len(fixed), -1, -1) if matrix is None else matrix
        return cls(fixed, moving, fixed_mask, moving_mask, whole.to(fixed))


class ImageLevel:
    """Images of one resolution, on grids whose outermost voxels are those of the full ones.

    Attributes
    ----------
    shape : tuple of int
        Voxels of the fixed image.
    fixed_scale : (D, 1, ...) Tensor
        How far apart its voxels are, in voxels of the full image.
    """

    def __init__(self, images: Images, factor: int, similarity: Similarity) -> None:
        fixed, matrix = images.fixed, images.matrix
        # voxels of the moving image may be larger or smaller than those of the fixed one
        density = matrix[:, :, :-1].norm(dim=2).mean(0).tolist()
        self.similarity, self.matrix = similarity, matrix
        self.fixed, fixed_scale = _smaller(fixed, [float(factor)] * len(density))
        self.moving, moving_scale = _smaller(images.moving, [max(1.0, factor * d) for d in density])
        self.fixed_mask, self.moving_mask = (
            None if mask is None else shrink((mask > 0).to(fixed), image.shape[2:], [0.0] * len(density))
            for mask, image in ((images.fixed_mask, self.fixed), (images.moving_mask, self.moving))
        )
        self.shape = self.fixed.shape[2:]
        self.fixed_scale, self.moving_scale = (
            torch.tensor(scale).to(fixed).reshape(-1, *[1] * len(density)) for scale in (fixed_scale, moving_scale)
        )
        self.voxels = coordinates(self.shape, device=fixed.device, dtype=fixed.dtype)

    def compare(self, displacement: Tensor) -> Tensor:
        """Return the loss of the similarity (B,) after a displacement (B, D, *shape), voxels of the level."""
        at = (self.voxels + displacement) * self.fixed_scale
        moved_to = self.matrix[:, :, :-1] @ at.flatten(2) + self.matrix[:, :, -1:]
        at = moved_to.reshape(at.shape) / self.moving_scale
        return self.similarity(self.fixed, sample(self.moving, at), self._mask(at.detach()))

    def _mask(self, at: Tensor) -> Tensor | None:
        if self.moving_mask is None:
            return self.fixed_mask
        moved = sample(self.moving_mask, at, padding="zeros")
        return moved if self.fixed_mask is None else moved * self.fixed_mask


def _smaller(image: Tensor, factors: Sequence[float]) -> tuple[Tensor, list[float]]:
    """Return a smoothed image with about so many times fewer voxels, and how far apart they are in voxels of the old one."""
    old = image.shape[2:]
    new = [max(2, round((n - 1) / factor) + 1) if factor > 1 else n for n, factor in zip(old, factors, strict=True)]
    scale = [(n - 1) / (m - 1) for n, m in zip(old, new, strict=True)]
    return shrink(image, new, [ANTIALIAS * step if step > 1 else 0.0 for step in scale]), scale
