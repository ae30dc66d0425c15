"""Networks of label-driven registration: the displacement is a sum of those of several resolutions, at first exactly zero.

Hu et al., "Weakly-supervised convolutional neural networks for multimodal image registration", Medical Image Analysis
2018;49:1-13, doi:10.1016/j.media.2018.07.002; global and composite network: Hu et al., ISBI 2018, arXiv:1711.01666.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from popatlas.networks.base import convolution, enlarge, normalisation
from popatlas.networks.cascade import AffineHead, affine_displacement
from popatlas.networks.heads import FieldHead
from popatlas.networks.registration import Prediction, RegistrationNetwork
from popatlas.networks.settings import LabelRegSettings, Norm
from popatlas.transforms.fields import warp

FIRST = 7  # voxels that the first convolution sees along each axis


class LabelRegNet(RegistrationNetwork):
    """A residual encoder and decoder whose shortcuts add, and displacements from several of its levels.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    settings : LabelRegSettings
        Its options.
    """

    name = "labelreg"

    def __init__(self, ndim: int, settings: LabelRegSettings) -> None:
        super().__init__(ndim, settings)
        self.options["levels"] = chosen = settings.chosen
        variant, norm, levels = settings.variant, settings.norm, range(settings.halvings + 1)
        first = (settings.channels, settings.global_channels)
        widths, coarse = ([channels * 2**level for level in levels] for channels in first)
        self.whole = None if variant == "local" else Global(norm, ndim, coarse, settings.cells)
        self.local = None if variant == "global" else Local(norm, ndim, widths, chosen, settings.additive)

    def predict(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Return the sum of the displacements, which is what is to be smooth; see `RegistrationNetwork.forward`."""
        total = moving.new_zeros(len(moving), self.ndim, *moving.shape[2:])
        matrices: tuple[Tensor, ...] = ()
        if self.whole is not None:
            matrices = (self.whole(fixed, moving),)
            total = affine_displacement(matrices[0], total)
            moving = warp(moving, total)
        if self.local is not None:
            total = total + self.local(fixed, moving)
        return Prediction(total, smooth=(total,), matrices=matrices)


class Encoder(nn.Module):
    """From two images to features of all levels.

    Parameters
    ----------
    norm : str
        Normalisation.
    ndim : {2, 3}
        Spatial axes.
    widths : sequence of int
        Channels of each level.
    """

    def __init__(self, norm: Norm, ndim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.pool = functional.max_pool3d if ndim == 3 else functional.max_pool2d
        self.enter, self.body = nn.ModuleList(), nn.ModuleList()
        for level, (inputs, outputs) in enumerate(zip([2, *widths], widths[:-1], strict=False)):
            self.enter.append(_unit(norm, ndim, inputs, outputs, 3 if level else FIRST))
            self.body.append(_pair(norm, ndim, outputs))
        self.deepest = _unit(norm, ndim, widths[-2], widths[-1])
        _initialise(self)

    def forward(self, fixed: Tensor, moving: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the features that the decoder adds, the finest first, and those of the coarsest level."""
        skips = []
        values = torch.cat([moving, fixed], dim=1)
        for enter, body in zip(self.enter, self.body, strict=True):
            skips.append(enter(values))
            values = self.pool(functional.relu(body(skips[-1]) + skips[-1]), 2)
        return skips, self.deepest(values)


class Local(nn.Module):
    """A dense displacement; the parameters are those of `Encoder`, `LabelRegNet` and `Rise`."""

    def __init__(self, norm: Norm, ndim: int, widths: Sequence[int], levels: Sequence[int], additive: bool) -> None:
        super().__init__()
        self.encoder = Encoder(norm, ndim, widths)
        built = reversed(range(levels[0], len(widths) - 1))
        self.decoder = nn.ModuleList(Rise(norm, ndim, widths[level + 1], widths[level], additive) for level in built)
        self.heads = nn.ModuleDict({str(level): FieldHead(ndim, widths[level], spread=0) for level in levels})

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Return a displacement (B, D, *shape): the sum of those of the levels, all in voxels of the images."""
        skips, values = self.encoder(fixed, moving)
        features = {len(skips): values}
        for level, rise in zip(reversed(range(len(skips))), self.decoder, strict=False):
            features[level] = rise(features[level + 1], skips[level])
        parts = [head(features[int(level)]) for level, head in self.heads.items()]
        return torch.stack([enlarge(part, fixed.shape[2:]) for part in parts]).sum(0)


class Global(nn.Module):
    """An affine map (B, D, D + 1) from the deepest features."""

    def __init__(self, norm: Norm, ndim: int, widths: Sequence[int], cells: int) -> None:
        super().__init__()
        self.encoder = Encoder(norm, ndim, widths)
        self.head = AffineHead(ndim, widths[-1], cells)

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Return the affine map from the fixed to the moving image."""
        matrix: Tensor = self.head(self.encoder(fixed, moving)[1])
        return matrix


class Rise(nn.Module):
    """A decoder step: features of twice the channels and twice the voxel size are enlarged, those of the encoder added.

    Parameters
    ----------
    norm : str
        Normalisation.
    ndim : {2, 3}
        Spatial axes.
    inputs, outputs : int
        Channels of the coarser and of the finer level.
    additive : bool
        Whether to add the enlarged input, whose halves of the channels are added to each other to be as many as the output.
    """

    def __init__(self, norm: Norm, ndim: int, inputs: int, outputs: int, additive: bool) -> None:
        super().__init__()
        layer = nn.ConvTranspose3d if ndim == 3 else nn.ConvTranspose2d
        double = layer(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.rise = nn.Sequential(double, normalisation(norm, ndim, outputs), nn.ReLU(inplace=True))
        self.body = _pair(norm, ndim, outputs)
        self.additive = additive
        _initialise(self)

    def forward(self, values: Tensor, skip: Tensor) -> Tensor:
        """Return (B, outputs, *shape) for (B, inputs, *half shape) and (B, outputs, *shape)."""
        enlarged = self.rise(values)
        if self.additive:
            first, second = values.chunk(2, dim=1)
            enlarged = enlarged + enlarge(first + second, skip.shape[2:])
        # the encoder's features take the shortcut only
        return functional.relu(self.body(enlarged) + enlarged + skip)


def _unit(norm: Norm, ndim: int, inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    layer = convolution(ndim, inputs, outputs, kernel)
    return nn.Sequential(layer, normalisation(norm, ndim, outputs), nn.ReLU(inplace=True))


def _pair(norm: Norm, ndim: int, channels: int) -> nn.Sequential:
    """Return two convolutions and their normalisations, for a shortcut and an activation to follow."""
    second = convolution(ndim, channels, channels), normalisation(norm, ndim, channels)
    return nn.Sequential(_unit(norm, ndim, channels, channels), *second)


def _initialise(net: nn.Module) -> None:
    """Draw the weights of all convolutions as Glorot and Bengio (2010) do."""
    for value in net.parameters():
        if value.ndim > 2:
            nn.init.xavier_uniform_(value)
