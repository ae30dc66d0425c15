"""Dual-PRNet: features of each image apart, and fields from coarse to fine that each correct the last one.

Hu, Kang, Huang, Scott, Wiest and Reyes (MICCAI 2019) and, with a local correlation that two convolutions and a residual
block join with the features, the same group's Dual-PRNet++ (Medical Image Analysis 2022); both are versions of
arXiv:1909.11966.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from popatlas.networks.base import enlarge
from popatlas.networks.heads import FieldHead, finish, refined
from popatlas.networks.registration import Prediction, RegistrationNetwork
from popatlas.networks.settings import PyramidSettings, Transform
from popatlas.networks.unet import Unit
from popatlas.transforms.fields import compose, warp


class DualPRNet(RegistrationNetwork):
    """Two streams with the same weights and a chain of increments.

    At each grid the field so far is enlarged, the moving features are warped by it and joined with the fixed ones, and a
    convolution gives the increment, which is composed with the field so far. Features live on the full grid and on those of
    voxels of double size and so on.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    settings : PyramidSettings
        Its options.
    """

    name = "pyramid"

    def __init__(self, ndim: int, settings: PyramidSettings) -> None:
        super().__init__(ndim, settings)
        widths, slope, fusion = settings.widths, settings.slope, settings.fusion
        self.transform: Transform = settings.transform
        self.correlation, self.stop, self.steps = settings.correlation, settings.stop, settings.steps
        self.stream = Stream(ndim, widths, slope)
        joint = 3**ndim if self.correlation else 0
        blocks = settings.residual
        self.heads = nn.ModuleList(
            _head(ndim, 2 * width + joint, width, fusion, blocks, slope) for width in reversed(widths)
        )

    def predict(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Return the composed field and, to be smooth, the increments, coarsest first; see `RegistrationNetwork.forward`."""
        total: Tensor | None = None
        increments = []
        for head, a, b in zip(self.heads, self.stream(fixed), self.stream(moving), strict=True):
            shape = a.shape[2:]
            if total is not None:
                total = refined(total, shape)
                b = warp(b, total.detach() if self.stop else total)
            joint = [a, b, correlate(a, b, self.correlation)] if self.correlation else [a, b]
            vectors = head(torch.cat(joint, dim=1))
            increments.append(vectors)
            step = finish(vectors, shape, self.transform, self.steps).displacement
            total = step if total is None else compose(step, total)
        assert total is not None
        return Prediction(total, smooth=tuple(increments))


class Stream(nn.Module):
    """Features of one image at each grid, from a U-Net.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    widths : sequence of int
        Channels of each grid, the full one first.
    slope : float
        Of the activations below zero.
    """

    def __init__(self, ndim: int, widths: Sequence[int], slope: float) -> None:
        super().__init__()
        inputs = [1, *widths]
        self.encoder = nn.ModuleList(
            Unit(ndim, inputs[i], width, slope, stride=2 if i else 1) for i, width in enumerate(widths)
        )
        self.bottom = Unit(ndim, widths[-1], widths[-1], slope)
        self.decoder = nn.ModuleList(
            Unit(ndim, widths[i + 1] + widths[i], widths[i], slope) for i in reversed(range(len(widths) - 1))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return (B, width, *grid) of each grid, coarsest first, for images (B, 1, *shape)."""
        levels = [image]
        for unit in self.encoder:
            levels.append(unit(levels[-1]))
        features = [self.bottom(levels.pop())]
        for unit in self.decoder:
            skip = levels.pop()
            features.append(unit(torch.cat([enlarge(features[-1], skip.shape[2:]), skip], dim=1)))
        return features


class ResidualBlock(nn.Module):
    """Features plus what two convolutions make of them.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    width : int
        Channels in and out.
    slope : float
        Of the activations below zero.
    """

    def __init__(self, ndim: int, width: int, slope: float) -> None:
        super().__init__()
        self.units = nn.Sequential(Unit(ndim, width, width, slope), Unit(ndim, width, width, slope))

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, width, *shape) for (B, width, *shape)."""
        out: Tensor = features + self.units(features)
        return out


def _head(ndim: int, inputs: int, width: int, fusion: int, residual: int, slope: float) -> nn.Sequential:
    units = [Unit(ndim, width if i else inputs, width, slope) for i in range(fusion)]
    channels = width if fusion else inputs
    blocks = [ResidualBlock(ndim, channels, slope) for _ in range(residual)]
    return nn.Sequential(*units, *blocks, FieldHead(ndim, channels))


def correlate(fixed: Tensor, moving: Tensor, reach: int) -> Tensor:
    """Return the mean products of features at a voxel and at its neighbours.

    Parameters
    ----------
    fixed, moving : (B, C, *shape) Tensor
        Features of both images.
    reach : int
        Voxels from a voxel to its neighbours along each axis.

    Returns
    -------
    (B, 3 ** D, *shape) Tensor
        ``mean_c fixed[c, x] moving[c, x + o]`` for the offsets ``o``, the last axis changing fastest; 0 outside.
    """
    ndim, shape = fixed.ndim - 2, fixed.shape[2:]
    wide = functional.pad(moving, (reach, reach) * ndim)
    offsets = product((0, reach, 2 * reach), repeat=ndim)
    windows = (tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True)) for offset in offsets)
    return torch.stack([(fixed * wide[(slice(None), slice(None), *window)]).mean(1) for window in windows], dim=1)
