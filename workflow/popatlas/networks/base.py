"""What the feature networks share: their contract and their layers, for 2D and 3D alike.

The blocks are ours: importing those of MONAI takes twice as long as importing torch, and each is a few lines.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from popatlas.networks.backbones import BackboneSettings
from popatlas.networks.settings import Norm
from popatlas.settings import as_content

GROUPS = 8  # of group normalisation, fewer where they do not divide the channels


class FeatureNetwork(nn.Module, ABC):
    """A network that gives each voxel of an image a vector of features.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    in_channels : int
        Channels of the image.
    settings : BackboneSettings
        Options of the network.

    Raises
    ------
    ValueError
        When `ndim` is neither 2 nor 3, or the number of channels not positive.
    """

    name: ClassVar[str]

    def __init__(self, ndim: int, in_channels: int, settings: BackboneSettings) -> None:
        super().__init__()
        if ndim not in (2, 3):
            raise ValueError(f"networks have 2 or 3 spatial axes, not {ndim}")
        if in_channels < 1:
            raise ValueError(f"cannot make features of {in_channels} channels")
        self.ndim, self.in_channels, self.channels = ndim, in_channels, settings.features
        self.stride, self.options = settings.stride, as_content(settings)

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """Return the features of an image on its own grid.

        Parameters
        ----------
        image : (B, in_channels, *shape) Tensor
            Each size a multiple of `stride`.

        Returns
        -------
        (B, channels, *shape) Tensor
            Features of each voxel.
        """


class Pointwise(nn.Linear):
    """A 1x1 convolution: the same linear map of the channels at each voxel.

    Written as a product with a matrix, since torch's convolution of this size turns channels-last images into others.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Return (B, outputs, *shape) for (B, inputs, *shape)."""
        return super().forward(values.movedim(1, -1)).movedim(-1, 1)


def pointwise(inputs: int, outputs: int) -> Pointwise:
    """Return a 1x1 convolution with no bias, for a normalisation or another linear layer to follow."""
    return Pointwise(inputs, outputs, bias=False)


def convolution(ndim: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    """Return a convolution with zeros around the image and no bias, for a normalisation to follow."""
    layer = nn.Conv3d if ndim == 3 else nn.Conv2d
    return layer(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)


def normalisation(norm: Norm, ndim: int, channels: int) -> nn.Module:
    """Return a normalisation with a gain and an offset for each channel.

    Parameters
    ----------
    norm : {"instance", "group", "batch"}
        What shares a mean and a variance: one channel of one image (Ulyanov et al. 2016), some channels of one image (Wu and
        He 2018), or one channel of all images of a step, and after training its running means (Ioffe and Szegedy 2015). The
        first two do the same in training and after, with any number of images; as they average over all voxels, they join
        far voxels weakly. In a few steps with many labels networks learnt far less with `group`.
    ndim : {2, 3}
        Spatial axes.
    channels : int
        Channels.
    """
    if norm == "batch":
        return nn.BatchNorm3d(channels) if ndim == 3 else nn.BatchNorm2d(channels)
    # torch's InstanceNorm would leave the channels-last format
    return nn.GroupNorm(channels if norm == "instance" else math.gcd(GROUPS, channels), channels)


def enlarge(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Interpolate (B, C, *coarse) linearly on a finer grid of the same extent: a linear map, as 1x1 convolutions are."""
    mode = "trilinear" if values.ndim == 5 else "bilinear"
    return functional.interpolate(values, size=tuple(shape), mode=mode, align_corners=False)


def arrange(net: nn.Module) -> None:
    """Keep the channels of a voxel together in memory, in the kernels and so in the images: it measures faster on CPUs."""
    for value in net.parameters():
        if value.ndim > 3:
            kind = torch.channels_last_3d if value.ndim == 5 else torch.channels_last
            value.data = value.data.contiguous(memory_format=kind)
