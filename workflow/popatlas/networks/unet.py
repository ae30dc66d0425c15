"""VoxelMorph's network: one U-Net takes both images, joined as channels, to a displacement or a velocity.

Balakrishnan, Zhao, Sabuncu, Guttag and Dalca (CVPR 2018, doi:10.1109/CVPR.2018.00964; IEEE TMI 2019,
doi:10.1109/TMI.2019.2897538) predict displacements, Dalca, Balakrishnan, Guttag and Sabuncu (MICCAI 2018,
doi:10.1007/978-3-030-00928-1_82; Medical Image Analysis 2019, doi:10.1016/j.media.2019.07.006) velocities. Layers, their
order and the order of their channels are the published ones, so that published weights fit: the moving image is the first
channel, and in a joint the enlarged features come before those of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from popatlas.networks.base import enlarge
from popatlas.networks.heads import FieldHead, finish, refined
from popatlas.networks.registration import Prediction, RegistrationNetwork
from popatlas.networks.settings import Alignment, Padding, Transform, UNetSettings, Upsampling
from popatlas.transforms.fields import coordinates, sample


class VoxelMorphUNet(RegistrationNetwork):
    """VoxelMorph's U-Net with a head for the field.

    The published networks are these, the first by default: VoxelMorph 0.1 with ``decoder=(32, 32, 32, 32)`` and
    ``final=(32, 16, 16)``; that of CVPR 2018, "vm2", with ``decoder=(32, 32, 32, 32, 32)`` and ``final=(16, 16)``; that of
    MICCAI 2018 with ``decoder=(32, 32, 32, 32, 16)``, ``final=()``, ``half=True``, ``transform="velocity"``, of whose two
    heads this is the mean. The last two come from TensorFlow: ``padding="end"``.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    settings : UNetSettings
        Its options.
    """

    name = "unet"

    def __init__(self, ndim: int, settings: UNetSettings) -> None:
        super().__init__(ndim, settings)
        encoder, slope, padding = settings.encoder, settings.slope, settings.padding
        self.transform: Transform = settings.transform
        self.alignment: Alignment = settings.alignment
        self.shrink, self.steps = settings.shrink, settings.steps
        widths = [2, *encoder]
        self.encoder = nn.ModuleList(
            Unit(ndim, widths[i], widths[i + 1], slope, stride=2, padding=padding) for i in range(len(encoder))
        )
        self.decoder = Decoder(ndim, widths, settings.decoder, settings.final, settings.half, slope, settings.upsampling)
        self.head = FieldHead(ndim, self.decoder.channels)

    def predict(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Return the field of a pair; see `RegistrationNetwork.forward`."""
        return self.field(self.encode(fixed, moving), fixed.shape[2:])

    def encode(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        """Return the pair (B, 2, *shape) and the features of each coarser grid, finest first."""
        levels = [torch.cat([moving, fixed], dim=1)]
        for unit in self.encoder:
            levels.append(unit(levels[-1]))
        return levels

    def field(self, levels: Sequence[Tensor], shape: Sequence[int]) -> Prediction:
        """Return the prediction on a grid of `shape` for the features that `encode` gives."""
        vectors = self.head(self.decoder(levels))
        if self.shrink:
            vectors = resized(vectors, [n // 2 for n in shape], self.alignment)
        coarse = finish(vectors, vectors.shape[2:], self.transform, self.steps)
        return replace(coarse, displacement=resized(coarse.displacement, shape, self.alignment))

    def inverse(self, found: Prediction) -> Tensor | None:
        """Return the flow of the negative velocity, enlarged as that of the velocity; see `RegistrationNetwork.inverse`."""
        if found.velocity is None:
            return None
        coarse = finish(-found.velocity, found.velocity.shape[2:], "velocity", self.steps)
        return resized(coarse.displacement, found.displacement.shape[2:], self.alignment)


class Unit(nn.Module):
    """A convolution of three voxels along each axis and its activation, with the initial weights of He et al. (2015).

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    inputs, outputs : int
        Channels.
    slope : float
        Of the activation below zero.
    stride : {1, 2}
        Voxels from one output to the next.
    padding : {"both", "end"}
        See `UNetSettings`.
    """

    def __init__(
        self, ndim: int, inputs: int, outputs: int, slope: float, stride: int = 1, padding: Padding = "both"
    ) -> None:
        super().__init__()
        self.behind = (0, 1) * ndim if padding == "end" else ()
        layer = nn.Conv3d if ndim == 3 else nn.Conv2d
        self.conv = layer(inputs, outputs, 3, stride=stride, padding=0 if self.behind else 1)
        self.activation = nn.LeakyReLU(slope, inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, values: Tensor) -> Tensor:
        """Return (B, outputs, *shape / stride) for (B, inputs, *shape)."""
        out: Tensor = self.activation(self.conv(functional.pad(values, self.behind) if self.behind else values))
        return out


class Decoder(nn.ModuleList):
    """From the features of all grids to those of one: units in the order in which they work.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    widths : sequence of int
        Channels of the images and of each grid of the encoder, finest first.
    decoder, final : sequence of int
        Channels; see `UNetSettings`.
    half : bool
        Stop at voxels of double size.
    slope : float
        Of the activations below zero.
    upsampling : {"nearest", "linear"}
        How features are enlarged.
    """

    def __init__(
        self,
        ndim: int,
        widths: Sequence[int],
        decoder: Sequence[int],
        final: Sequence[int],
        half: bool,
        slope: float,
        upsampling: Upsampling = "nearest",
    ) -> None:
        joined = {i: widths[-1 - i] for i in range(1, len(widths) - 1)}
        if not half:
            joined[len(decoder)] = widths[0]
        units, channels = [], widths[-1]
        for i, outputs in enumerate([*decoder, *final]):
            units.append(Unit(ndim, channels + joined.get(i, 0), outputs, slope))
            channels = outputs
        super().__init__(units)
        self.joints = list(joined)  # numbers of the units before which features are enlarged and joined
        self.channels = channels + (joined.get(len(units), 0))
        self.upsampling = upsampling

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return features (B, channels, *shape) for those of all grids, the images first."""
        values, skips = levels[-1], list(levels[:-1])
        for i, unit in enumerate(self):
            values = unit(self._join(values, skips.pop()) if i in self.joints else values)
        return self._join(values, skips.pop()) if len(self) in self.joints else values

    def _join(self, values: Tensor, skip: Tensor) -> Tensor:
        if self.upsampling == "linear":
            return torch.cat([enlarge(values, skip.shape[2:]), skip], dim=1)
        return torch.cat([functional.interpolate(values, size=skip.shape[2:], mode="nearest"), skip], dim=1)


def resized(vectors: Tensor, shape: Sequence[int], alignment: Alignment) -> Tensor:
    """Bring a field to voxels of half or double size.

    Parameters
    ----------
    vectors : (B, D, *old shape) Tensor
        Voxels of its own grid.
    shape : sequence of int
        New shape, by one factor for all axes.
    alignment : {"blocks", "corners", "origin"}
        Where the voxels lie; see `UNetSettings`.

    Returns
    -------
    (B, D, *shape) Tensor
        Linear interpolation, in voxels of the new grid: values times the factor of the shape, also for ``corners``.
    """
    if tuple(vectors.shape[2:]) == tuple(shape) or alignment == "blocks":
        return refined(vectors, shape)
    factor = shape[0] / vectors.shape[2]
    if alignment == "origin":
        return factor * sample(vectors, coordinates(shape, device=vectors.device, dtype=vectors.dtype) / factor)
    mode = "trilinear" if vectors.ndim == 5 else "bilinear"
    return factor * functional.interpolate(vectors, size=tuple(shape), mode=mode, align_corners=True)
