"""Conditional LapIRN, small version: three resolutions and a dial for smoothness.

Mok and Chung, MICCAI 2021, arXiv:2106.12673; the pyramid without the dial is that of MICCAI 2020, arXiv:2006.16148.

Each resolution adds to the displacement of the coarser one. Within, displacements are in units of half the image, so that
they mean the same at each resolution. How smooth the result should be is an input: it sets mean and spread of the features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from popatlas.networks.registration import Prediction, RegistrationNetwork
from popatlas.networks.settings import LapIRNSettings
from popatlas.settings import Content
from popatlas.transforms.fields import warp

LEVELS, BLOCKS = LapIRNSettings.LEVELS, 5
LATENT = 64  # size of the vector that the dial becomes
SLOPE = 0.2


class LapIRN(RegistrationNetwork):
    """A pyramid of three networks, the coarsest first.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    settings : LapIRNSettings
        Its options.
    """

    name = "lapirn"
    fixed_shape = True

    def __init__(self, ndim: int, settings: LapIRNSettings) -> None:
        super().__init__(ndim, settings)
        channels, reach = settings.channels, settings.reach
        self.smoothness = settings.smoothness
        # the finest level keeps fewer features, at its many voxels
        ends = [4 * channels] * (LEVELS - 1) + [2 * channels]
        inputs = [2] + [2 + ndim] * (LEVELS - 1)
        self.levels = nn.ModuleList(Level(ndim, n, channels, end, reach) for n, end in zip(inputs, ends, strict=True))

    def describe(self) -> Content:
        """Return the arguments that make this architecture, with the `smoothness` of now."""
        return {**super().describe(), "smoothness": self.smoothness}

    def predict(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Return the sum of what the resolutions found; see `RegistrationNetwork.forward`."""
        dial = fixed.new_full((1, 1), self.smoothness)
        pyramid = [torch.cat([moving, fixed], dim=1)]
        for _ in range(LEVELS - 1):
            pyramid.append(_halved(pyramid[-1]))
        total: Tensor | None = None
        features: Tensor | None = None
        smooth = []
        for level in self.levels:
            images = pyramid.pop()
            if total is not None:
                mode = "trilinear" if self.ndim == 3 else "bilinear"
                total = functional.interpolate(total, scale_factor=2.0, mode=mode, align_corners=False)
                warped = warp(images[:, :1], _voxels(total))
                images = torch.cat([warped, images[:, 1:], total], dim=1)
            step, features = level(images, features, dial)
            total = step if total is None else total + step
            smooth.append(_voxels(step))
        assert total is not None
        return Prediction(_voxels(total), smooth=tuple(smooth))


class Level(nn.Module):
    """One resolution: features, residual blocks at half of it, and a displacement."""

    def __init__(self, ndim: int, inputs: int, channels: int, end: int, reach: float) -> None:
        super().__init__()
        self.reach = reach
        layer, rise = (nn.Conv3d, nn.ConvTranspose3d) if ndim == 3 else (nn.Conv2d, nn.ConvTranspose2d)
        fine, coarse = 2 * channels, 4 * channels

        def plain(before: int, after: int, stride: int = 1) -> nn.Module:
            return layer(before, after, 3, stride=stride, padding=1, bias=False)

        self.stem = nn.Sequential(plain(inputs, fine), nn.LeakyReLU(SLOPE), plain(fine, fine))
        self.down = plain(fine, coarse, 2)
        self.blocks = nn.ModuleList(Block(plain(coarse, coarse), plain(coarse, coarse), coarse) for _ in range(BLOCKS))
        self.up = rise(coarse, end, 2, stride=2, bias=False)
        half = (end + fine) // 2
        self.head = nn.Sequential(plain(end + fine, half), nn.LeakyReLU(SLOPE), plain(half, ndim), nn.Softsign())

    def forward(self, images: Tensor, coarser: Tensor | None, dial: Tensor) -> tuple[Tensor, Tensor]:
        """Return a displacement in halves of the image and the features that the next resolution starts from."""
        fine = self.stem(images)
        values = self.down(fine)
        if coarser is not None:
            values = values + coarser
        for block in self.blocks:
            values = functional.leaky_relu(block(values, dial), SLOPE)
        values = self.up(values)
        return self.reach * self.head(torch.cat([values, fine], dim=1)), values


class Block(nn.Module):
    """A residual block whose normalisations are set by the dial."""

    def __init__(self, first: nn.Module, second: nn.Module, channels: int) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.latent = nn.ModuleList(nn.Linear(LATENT if n else 1, LATENT) for n in range(4))
        self.styles = nn.ModuleList(nn.Linear(LATENT, 2 * channels) for _ in range(2))

    def forward(self, values: Tensor, dial: Tensor) -> Tensor:
        """Return (B, C, *shape) for (B, C, *shape) and a dial (1, 1)."""
        code = dial
        for layer in self.latent:
            code = functional.leaky_relu(layer(code), SLOPE)
        change = values
        for style, convolution in zip(self.styles, (self.first, self.second), strict=True):
            change = convolution(functional.leaky_relu(_styled(change, style(code)), SLOPE))
        return values + change


def _styled(values: Tensor, style: Tensor) -> Tensor:
    """Normalise each channel of each image and give it the spread and mean of a style (1, 2 C)."""
    spread, mean = style.reshape(2, 1, -1, *[1] * (values.ndim - 2))
    plain: Tensor = functional.instance_norm(values)
    styled: Tensor = (1 + spread) * plain + mean
    return styled


def _halved(images: Tensor) -> Tensor:
    pool = functional.avg_pool3d if images.ndim == 5 else functional.avg_pool2d
    smaller: Tensor = pool(images, 3, stride=2, padding=1, count_include_pad=False)
    return smaller


def _voxels(unit: Tensor) -> Tensor:
    """Turn a displacement in halves of the image (first to last voxel centre) into one in voxels."""
    halves = torch.tensor([(n - 1) / 2 for n in unit.shape[2:]], dtype=unit.dtype, device=unit.device)
    return unit * halves.reshape(-1, *[1] * (unit.ndim - 2))
