"""A small encoder and decoder that one CPU thread can train on whole volumes.

The shape is that of a U-Net (Ronneberger, Fischer and Brox 2015; in 3D Cicek et al. 2016) with residual blocks (He et al.
2016). Most of the work is done on grids 2 and 4 times coarser, where a 3D image has 8 and 64 times fewer voxels; the full
grid sees two convolutions. The decoder adds where a U-Net joins channels: a 1x1 convolution of joined channels is a sum of
1x1 convolutions, and that of the coarser part is cheaper before it is enlarged. The last convolution is linear, as the
classifier behind it: with a normalisation and an activation between them the labels of brains were learnt more slowly.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from popatlas.networks.backbones import LightSettings
from popatlas.networks.base import FeatureNetwork, convolution, enlarge, normalisation, pointwise
from popatlas.networks.settings import Norm

SLOPE = 0.01  # of the activation below zero
STEM = 5  # voxels that the first convolution sees each way: on a CPU torch is slow with three of a single channel


class LightUNet(FeatureNetwork):
    """Features from a small U-Net.

    With the default options a feature sees 67 voxels along each axis by convolutions, up to 36 to one side, and all others
    only through the means and variances of the normalisation (not at all with ``norm="batch"`` after training).

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    in_channels : int
        Channels of the image.
    settings : LightSettings
        Its options.
    """

    name = "light"

    def __init__(self, ndim: int, in_channels: int, settings: LightSettings) -> None:
        super().__init__(ndim, in_channels, settings)
        widths, blocks, norm, features = settings.widths, settings.blocks, settings.norm, settings.features
        self.stem = unit(norm, ndim, in_channels, widths[0], kernel=STEM)
        steps = list(pairwise(widths))
        self.encoder = nn.ModuleList(
            nn.Sequential(unit(norm, ndim, fine, coarse, stride=2), *(Residual(norm, ndim, coarse) for _ in range(count)))
            for (fine, coarse), count in zip(steps, blocks, strict=True)
        )
        self.decoder = nn.ModuleList(
            Merge(norm, ndim, coarse, fine, fine, Residual(norm, ndim, fine)) for fine, coarse in reversed(steps[1:])
        )
        inner = 2 * widths[0]
        self.head = Merge(norm, ndim, widths[1], widths[0], inner, convolution(ndim, inner, features))

    def forward(self, image: Tensor) -> Tensor:
        """Return the features of an image; see `FeatureNetwork.forward`."""
        levels = [self.stem(image)]
        for stage in self.encoder:
            levels.append(stage(levels[-1]))
        values: Tensor = levels.pop()
        for merge in [*self.decoder, self.head]:
            values = merge(values, levels.pop())
        return values


class Residual(nn.Module):
    """Two convolutions whose result is added to their input: (B, C, *shape) to the same."""

    def __init__(self, norm: Norm, ndim: int, channels: int) -> None:
        super().__init__()
        second = convolution(ndim, channels, channels), normalisation(norm, ndim, channels)
        self.body = nn.Sequential(unit(norm, ndim, channels, channels), *second)
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, values: Tensor) -> Tensor:
        """Return the activated sum."""
        out: Tensor = self.activation(self.body(values) + values)
        return out


class Merge(nn.Module):
    """A decoder step: (B, coarse, *half shape) and (B, fine, *shape) are added as (B, inner, *shape), and `then` follows."""

    def __init__(self, norm: Norm, ndim: int, coarse: int, fine: int, inner: int, then: nn.Module) -> None:
        super().__init__()
        self.rise, self.skip = pointwise(coarse, inner), pointwise(fine, inner)
        self.then = nn.Sequential(normalisation(norm, ndim, inner), nn.LeakyReLU(SLOPE, inplace=True), then)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Return the features of the finer level."""
        out: Tensor = self.then(enlarge(self.rise(coarse), fine.shape[2:]) + self.skip(fine))
        return out


def unit(norm: Norm, ndim: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a convolution, its normalisation and activation."""
    activation = nn.LeakyReLU(SLOPE, inplace=True)
    return nn.Sequential(convolution(ndim, inputs, outputs, kernel, stride), normalisation(norm, ndim, outputs), activation)
