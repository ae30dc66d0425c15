"""Operations on images and displacement fields: tensors anywhere, compiled kernels on the CPU.

Images are (B, C, *shape), fields (B, D, *coarse shape) in voxels of their own grid. A field grid is `shrink` times coarser
than the image grid and cell-centred: coarse voxel ``c`` covers the fine voxels ``shrink * c .. shrink * c + shrink - 1``.
`TensorOps` is written in torch, for 2D and 3D, any similarity and any device; `CompiledOps` does the same for 3D float32 on
the CPU with compiled kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from popatlas.transforms.fields import invert
from popatlas.transforms.jacobian import jacobian_determinant, least_determinant

Volume = npt.NDArray[np.float32]
Shared = TypeVar("Shared")  # what comes back for a range of planes
Share = Callable[[Callable[[int, int], Any]], list[Any]]  # of all planes

ITERATIONS, TOLERANCE = 20, 0.01  # of an inversion; voxels that its components may be off, on average or, compiled, at most
LARGEST_REST = 0.5  # voxels that a point may miss itself by after the quick inversion
SMALLEST_COMPILED = 4  # voxels of an axis: the borders of thinner slabs are left out by the kernels


class PlaneForce(Protocol):
    """Compiled agreement of two volumes and its ascent direction, for some planes.

    It takes 1 or 2 voxels along each axis of a voxel of the force, whether the force on the fixed image is subtracted, the
    force (3, x, y, z) to add to, and the first plane and the one after the last; it returns the sums of the agreement and of
    the weights over these planes. The force is that of the sum of the agreement.
    """

    def __call__(self, shrink: int, symmetric: bool, force: Volume, lo: int, hi: int, /) -> tuple[float, float]:
        """Add the force."""


class CompiledForce(Protocol):
    """Makes the force of two volumes, after a look at them as a whole where it needs one.

    It takes the fixed and the warped image, the weights (of shape (1, 1, 1) when there are none), and a function that runs
    another one on all ranges of planes and returns what comes back for each.
    """

    def __call__(self, fixed: Volume, moving: Volume, weight: Volume, share: Share, /) -> PlaneForce:
        """Return the force."""


class Loss(Protocol):
    """What a force is taken of: a similarity of `popatlas.similarity`."""

    def __call__(self, fixed: Tensor, moving: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss (B,); lower is better."""

    def compiled_force(self) -> CompiledForce | None:
        """Return the compiled force, if there is one for volumes of one channel."""


def gaussian_weights(sigma: float) -> list[float]:
    """Return the centre and one side of a normalised Gaussian kernel, cut at three sigma (voxels)."""
    radius = max(1, math.ceil(3 * sigma))
    values = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(radius + 1)]
    total = values[0] + 2 * sum(values[1:])
    return [value / total for value in values]


def coarse_shape(shape: Sequence[int], shrink: int) -> tuple[int, ...]:
    """Return the shape of a grid that is `shrink` times coarser; a last incomplete voxel counts."""
    return tuple(-(-n // shrink) for n in shape)


def block_sum(values: Tensor, shrink: Sequence[int]) -> Tensor:
    """Sum (B, C, *shape) over blocks of `shrink` voxels, one number for each axis; incomplete blocks get zeros."""
    if all(factor == 1 for factor in shrink):
        return values
    factors = list(shrink)
    padding = [side for n, f in zip(reversed(values.shape[2:]), reversed(factors), strict=True) for side in (0, -n % f)]
    pool = functional.avg_pool3d if len(factors) == 3 else functional.avg_pool2d
    return pool(functional.pad(values, padding), factors) * math.prod(factors)


def block_mean(image: Tensor, shrink: Sequence[int]) -> Tensor:
    """Average (B, C, *shape) over blocks of `shrink` voxels, one axis number each; the border is repeated."""
    padding = [side for n, f in zip(reversed(image.shape[2:]), reversed(list(shrink)), strict=True) for side in (0, -n % f)]
    return block_sum(functional.pad(image, padding, mode="replicate"), shrink) / math.prod(shrink)


def double(field: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a field on a grid twice as fine, vectors in the finer voxels, cut to `shape`."""
    mode = "trilinear" if field.ndim == 5 else "bilinear"
    fine = functional.interpolate(field, scale_factor=2, mode=mode, align_corners=False) * 2
    for axis, n in enumerate(shape, start=2):
        fine = fine.narrow(axis, 0, n)
    return fine.contiguous()


def gradient(image: Tensor) -> Tensor:
    """Return central differences (B, C, D, *shape) of an image, one-sided halves at the border."""
    parts = []
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        index = torch.arange(n, device=image.device)
        after = image.index_select(axis, (index + 1).clamp(max=n - 1))
        before = image.index_select(axis, (index - 1).clamp(min=0))
        parts.append((after - before) / 2)
    return torch.stack(parts, dim=2)


class TensorOps:
    """The operations in torch."""

    def warp(self, moving: Tensor, field: Tensor, shrink: int, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """Sample (B, C, *) `moving` at ``matrix (x + u(x))``, linear, border repeated.

        Parameters
        ----------
        matrix : (B, D, D + 1) Tensor
            From voxels of the result to voxels of `moving`.
        shape : sequence of int
            Shape of the result.
        """
        ndim = field.shape[1]
        full = field if shrink == 1 else double(field, shape)
        axes = [torch.arange(n, device=field.device, dtype=torch.float32) for n in shape]
        at = full + torch.stack(torch.meshgrid(*axes, indexing="ij"))
        offset = matrix[:, :, ndim].reshape(-1, ndim, *[1] * ndim)
        at = torch.einsum("bij,bj...->bi...", matrix[:, :, :ndim], at) + offset
        size = torch.tensor(moving.shape[2:], device=field.device, dtype=torch.float32).clamp(min=2) - 1
        unit = at.movedim(1, -1) / size * 2 - 1
        values = functional.grid_sample(
            moving.float(),  # images may be kept in a shorter type; positions never are
            unit.flip(-1),
            mode="bilinear",
            padding_mode="border",
            align_corners=True,
        )
        return values

    def force(
        self, loss: Loss, fixed: Tensor, warped: Tensor, mask: Tensor | None, shrink: int, symmetric: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the loss (B,) and its descent direction on the field grid (B, D, *coarse shape)."""
        a = fixed.detach().requires_grad_(symmetric)
        b = warped.detach().requires_grad_(True)
        value = loss(a, b, mask)
        slopes = torch.autograd.grad(value.sum(), (b, a) if symmetric else (b,))
        push = -(slopes[0].unsqueeze(2) * gradient(warped)).sum(1)
        if symmetric:
            push = push + (slopes[1].unsqueeze(2) * gradient(fixed)).sum(1)
        return value.detach(), block_sum(push, [shrink] * push.shape[1])

    def smooth(self, field: Tensor, sigma: float) -> Tensor:
        """Convolve each component with a Gaussian (sigma in voxels of the field); the border is repeated."""
        if sigma <= 0:
            return field
        side = gaussian_weights(sigma)
        kernel = torch.tensor(side[:0:-1] + side, device=field.device, dtype=field.dtype)
        ndim = field.ndim - 2
        convolve = functional.conv3d if ndim == 3 else functional.conv2d
        flat = field.reshape(-1, 1, *field.shape[2:])
        radius = len(side) - 1
        for axis in range(ndim):
            padding = [0] * (2 * ndim)
            padding[2 * (ndim - 1 - axis)] = padding[2 * (ndim - 1 - axis) + 1] = radius
            shape = [1] * (ndim + 2)
            shape[axis + 2] = len(kernel)
            flat = convolve(functional.pad(flat, padding, mode="replicate"), kernel.reshape(shape))
        return flat.reshape(field.shape)

    def even_out(self, field: Tensor, bulk: float) -> Tensor:
        """Return a field whose changes of volume are evened out, and whose shears and rotations stay.

        One explicit step of ``du/dt = grad div u``, the second term of the operator of linear elasticity and of viscous
        fluids (Christensen et al. 1996, doi:10.1109/83.536892), which Gaussian smoothing leaves out.

        Parameters
        ----------
        field : (B, D, *shape) Tensor
            Displacement in voxels.
        bulk : float
            Length of the step, at most 1 / D; 0 does nothing.
        """
        if bulk <= 0:
            return field
        divergence = sum(gradient(field[:, axis : axis + 1])[:, 0, axis] for axis in range(field.shape[1]))
        assert isinstance(divergence, Tensor)
        return field + bulk * gradient(divergence.unsqueeze(1))[:, 0]

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the displacement of going through `first`, then `second`, on their common grid."""
        ndim = first.shape[1]
        eye = torch.eye(ndim, ndim + 1, device=first.device).expand(first.shape[0], -1, -1)
        return first + self.warp(second, first, 1, eye, first.shape[2:])

    def jacobian(self, field: Tensor) -> Tensor:
        """Return the Jacobian determinant (B, *shape) of ``x + u(x)``."""
        return jacobian_determinant(field)

    def least_jacobian(self, field: Tensor) -> Tensor:
        """Return the least determinant of one-sided differences (B, *shape); see `fields.least_determinant`."""
        return least_determinant(field)

    def invert(self, field: Tensor, tolerance: float = TOLERANCE) -> Tensor:
        """Return the inverse of a displacement (B, D, *shape) without folds, all in voxels of its grid.

        Fixed-point iteration (Chen et al., 2008, doi:10.1118/1.2816107), and the slower way where stretches are too strong
        for it.
        """
        inverse = -field
        moves = torch.ones(len(field), dtype=torch.bool, device=field.device)  # whatever others need
        for _ in range(ITERATIONS):
            error = self.compose(inverse, field)
            inverse = torch.where(moves.reshape(-1, *[1] * (field.ndim - 1)), inverse - error, inverse)
            moves &= error.square().flatten(1).mean(1).sqrt() >= tolerance
            if not moves.any():
                break
        rest = error.abs().flatten(1).amax(1)
        if float(rest.max()) <= LARGEST_REST:  # it was already before the last correction
            return inverse
        return self._mended(inverse, field, self.compose(inverse, field).abs().flatten(1).amax(1) > LARGEST_REST)

    @staticmethod
    def _mended(inverse: Tensor, field: Tensor, far: Tensor) -> Tensor:
        """Return inverses, those of a batch that are far from the truth found anew by the slower way."""
        if not far.any():
            return inverse
        inverse = inverse.clone()
        inverse[far] = invert(field[far])
        return inverse


class CompiledOps(TensorOps):
    """The operations with compiled kernels: 3D, float32, CPU.

    Parameters
    ----------
    threads : int
        Threads that share each volume.
    """

    def __init__(self, threads: int = 1) -> None:
        from popatlas.transforms import kernels

        self.kernels = kernels
        self.threads = threads
        self.none = np.zeros((1, 1, 1), np.float32)

    def _share(self, work: Callable[[int, int], Shared], count: int, step: int = 1) -> list[Shared]:
        """Run `work(lo, hi)` on ranges of planes whose borders are multiples of `step`."""
        if self.threads == 1:
            return [work(0, count)]
        size = max(step, math.ceil(count / self.threads / step) * step)
        ranges = [(lo, min(lo + size, count)) for lo in range(0, count, size)]
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(lambda r: work(*r), ranges))

    def warp(self, moving: Tensor, field: Tensor, shrink: int, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """Sample `moving` at ``matrix (x + u(x))``; see `TensorOps.warp`."""
        out = torch.empty((*moving.shape[:2], *shape))
        for b in range(moving.shape[0]):
            for c in range(moving.shape[1]):
                source, target = moving[b, c].contiguous().numpy(), out[b, c].numpy()
                u, m = field[b].numpy(), matrix[b].contiguous().numpy()
                self._share(partial(self.kernels.warp, source, u, shrink, m, target), shape[0])
        return out

    def force(
        self, loss: Loss, fixed: Tensor, warped: Tensor, mask: Tensor | None, shrink: int, symmetric: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the loss (B,) and its descent direction, compiled where the loss has such a force, by torch elsewhere."""
        kernel = loss.compiled_force() if fixed.shape[1] == 1 else None
        if kernel is None:
            return super().force(loss, fixed, warped, mask, shrink, symmetric)
        shape = fixed.shape[2:]
        force = torch.zeros((fixed.shape[0], 3, *coarse_shape(shape, shrink)))
        values = []
        for b in range(fixed.shape[0]):
            weight = self.none if mask is None else mask[min(b, mask.shape[0] - 1), 0].contiguous().numpy()
            arrays = (fixed[b, 0].numpy(), warped[b, 0].numpy(), weight)
            target = force[b].numpy()
            push = kernel(*arrays, partial(self._share, count=shape[0]))
            parts = self._share(partial(push, shrink, symmetric, target), shape[0], shrink)
            values.append(-sum(p[0] for p in parts) / max(sum(p[1] for p in parts), 1e-6))
        return torch.tensor(values), force

    def smooth(self, field: Tensor, sigma: float) -> Tensor:
        """Convolve each component with a Gaussian; see `TensorOps.smooth`."""
        if sigma <= 0:
            return field
        weights = np.array(gaussian_weights(sigma), np.float32)
        flat = field.reshape(-1, *field.shape[2:]).contiguous()
        out = torch.empty_like(flat)
        self._share(partial(self.kernels.smooth, flat.numpy(), weights, out.numpy()), flat.shape[0])
        return out.reshape(field.shape)

    def even_out(self, field: Tensor, bulk: float) -> Tensor:
        """Return a field whose changes of volume are evened out; see `TensorOps.even_out`."""
        if bulk <= 0:
            return field
        out = field.clone(memory_format=torch.contiguous_format)
        for b in range(field.shape[0]):
            values = np.empty(field.shape[2:], np.float32)
            self._share(partial(self.kernels.divergence, out[b].numpy(), values), field.shape[2])
            self._share(partial(self.kernels.add_gradient, values, bulk, out[b].numpy()), field.shape[2])
        return out

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the displacement of going through `first`, then `second`."""
        out = torch.empty_like(first)
        for b in range(first.shape[0]):
            arrays = first[b].numpy(), second[b].numpy(), out[b].numpy()
            self._share(partial(self.kernels.compose, *arrays), first.shape[2])
        return out

    def jacobian(self, field: Tensor) -> Tensor:
        """Return the Jacobian determinant (B, *shape)."""
        out = torch.empty((field.shape[0], *field.shape[2:]))
        for b in range(field.shape[0]):
            self._share(partial(self.kernels.jacobian, field[b].numpy(), out[b].numpy()), field.shape[2])
        return out

    def least_jacobian(self, field: Tensor) -> Tensor:
        """Return the least determinant of one-sided differences (B, *shape)."""
        out = torch.empty((field.shape[0], *field.shape[2:]))
        for b in range(field.shape[0]):
            self._share(partial(self.kernels.least_jacobian, field[b].numpy(), out[b].numpy()), field.shape[2])
        return out

    def invert(self, field: Tensor, tolerance: float = TOLERANCE) -> Tensor:
        """Return the inverse of a displacement; see `popatlas.transforms.kernels_inverse`."""
        from popatlas.transforms import kernels_inverse

        out, rests = torch.empty_like(field), []
        for b in range(field.shape[0]):
            work = partial(kernels_inverse.invert, field[b].numpy(), tolerance, out[b].numpy())
            rests.append(max(self._share(work, field.shape[2])))
        return self._mended(out, field, torch.tensor(rests) > LARGEST_REST)


def ops_for(images: Sequence[Tensor], threads: int = 1) -> TensorOps:
    """Return compiled kernels where they serve all of some images and fields (3D float32 on the CPU), torch otherwise."""
    plain = any(x.ndim != 5 or x.device.type != "cpu" or x.dtype != torch.float32 for x in images)
    if plain or min(size for x in images for size in x.shape[2:]) < SMALLEST_COMPILED:
        return TensorOps()
    return CompiledOps(threads)
