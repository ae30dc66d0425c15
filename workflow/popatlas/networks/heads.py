"""Heads: from features of voxels to a displacement, directly or as the flow of a stationary velocity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from popatlas.networks.registration import Prediction
from popatlas.networks.settings import Transform
from popatlas.transforms.fields import compose
from popatlas.transforms.velocity import integrate_stationary

SQUARINGS = 7  # of a flow


class FieldHead(nn.Module):
    """A convolution that starts near zero, so that an untrained network leaves the images where they are.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    channels : int
        Features of each voxel.
    kernel : int
        Voxels of the convolution along each axis, odd.
    spread : float
        Standard deviation of the random weights; 0 starts at exactly zero.
    vectors : int
        Vectors of each voxel, more than one for those of a finer grid.
    """

    def __init__(self, ndim: int, channels: int, kernel: int = 3, spread: float = 1e-5, vectors: int = 1) -> None:
        super().__init__()
        layer = nn.Conv3d if ndim == 3 else nn.Conv2d
        self.flow = layer(channels, ndim * vectors, kernel, padding=kernel // 2)
        with torch.no_grad():
            self.flow.weight.normal_(0, spread) if spread else self.flow.weight.zero_()
            self.flow.bias.zero_()  # type: ignore[union-attr]

    def forward(self, features: Tensor) -> Tensor:
        """Return vectors (B, D * vectors, *shape) for features (B, C, *shape), float32 in any precision."""
        vectors: Tensor = self.flow(features).float()
        return vectors


def finish(vectors: Tensor, shape: Sequence[int], transform: Transform, steps: int = SQUARINGS) -> Prediction:
    """Make a prediction of the vectors of a head.

    Parameters
    ----------
    vectors : (B, D, *coarse) Tensor
        Displacement or velocity in voxels of its own grid, whose voxels are blocks of 1, 2, 4 ... voxels of the images.
    shape : sequence of int
        Shape of the images: a whole multiple of `coarse`.
    transform : {"displacement", "velocity"}
        What the vectors are; a velocity flows by scaling and squaring on its own grid.
    steps : int
        Squarings.

    Returns
    -------
    Prediction
        With the vectors as the field to be smooth.
    """
    flows = transform == "velocity"
    coarse = integrate_stationary(vectors, steps, composed) if flows else vectors
    return Prediction(refined(coarse, shape), velocity=vectors if flows else None, smooth=(vectors,))


def flowed_back(found: Prediction, steps: int = SQUARINGS) -> Tensor | None:
    """Return the flow of the negative velocity of what `finish` made with as many squarings, None without a velocity."""
    if found.velocity is None:
        return None
    return finish(-found.velocity, found.displacement.shape[2:], "velocity", steps).displacement


def composed(first: Tensor, second: Tensor) -> Tensor:
    """Compose displacements as `popatlas.transforms.fields.compose` does, by compiled kernels where they are faster.

    These are for 3D on the CPU and have no gradients.
    """
    if torch.is_grad_enabled():
        return compose(first, second)
    from popatlas.transforms.fieldops import CompiledOps, ops_for

    both = first.contiguous(), second.contiguous()
    ops = ops_for(both, torch.get_num_threads())
    return ops.compose(*both) if isinstance(ops, CompiledOps) else compose(*both)


def refined(vectors: Tensor, shape: Sequence[int]) -> Tensor:
    """Bring a field in voxels of a block grid to the voxels of the images: (B, D, *coarse) to (B, D, *shape).

    The voxels of the coarse grid are blocks of equally many fine ones, so that a field of value c becomes one of value k c.
    """
    if tuple(vectors.shape[2:]) == tuple(shape):
        return vectors
    factors = [fine / coarse for fine, coarse in zip(shape, vectors.shape[2:], strict=True)]
    mode = "trilinear" if len(factors) == 3 else "bilinear"
    larger = functional.interpolate(vectors, size=tuple(shape), mode=mode, align_corners=False)
    if len(set(factors)) == 1:
        return larger * factors[0]
    return larger * torch.tensor(factors, dtype=larger.dtype, device=larger.device).reshape(1, -1, *[1] * len(factors))
