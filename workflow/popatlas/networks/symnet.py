"""SYMNet: two velocities, one of each image (Mok and Chung, CVPR 2020, doi:10.1109/CVPR42600.2020.00470).

The displacement from the fixed to the moving image goes along the velocity of the fixed side for one unit of time and then
back along that of the moving side, so that both images are treated alike.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from popatlas.networks.registration import Prediction, RegistrationNetwork
from popatlas.networks.settings import SymNetSettings
from popatlas.transforms.fields import compose
from popatlas.transforms.velocity import integrate_stationary

HEAD = 5  # voxels of the last kernels
# channels of the decoder in units of `channels`, coarsest first: what comes up, then of the two convolutions
RISING, FIRST, SECOND = (8, 4, 2, 2), (8, 4, 4, 2), (4, 2, 2, 2)
SKIPS = (8, 4, 2, 1)


class SymNet(RegistrationNetwork):
    """A U-Net with two heads, one velocity each.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    settings : SymNetSettings
        Its options.
    """

    name = "symnet"

    def __init__(self, ndim: int, settings: SymNetSettings) -> None:
        super().__init__(ndim, settings)
        channels, halvings = settings.channels, settings.HALVINGS
        self.reach, self.steps = settings.reach, settings.steps
        layer, rise = (nn.Conv3d, nn.ConvTranspose3d) if ndim == 3 else (nn.Conv2d, nn.ConvTranspose2d)

        def two(inputs: int, first: int, second: int, stride: int = 1) -> nn.ModuleList:
            before = layer(inputs, first, 3, stride=stride, padding=1)
            return nn.ModuleList([before, layer(first, second, 3, padding=1)])

        widths = [channels * 2**level for level in range(halvings + 1)]
        self.encoder = nn.ModuleList([two(2, channels, channels)])
        for fine, coarse in pairwise(widths):
            # the coarsest level ends with as many channels as the one above it
            self.encoder.append(two(fine, coarse, fine if coarse == widths[-1] else coarse, stride=2))
        self.rises, self.decoder = nn.ModuleList(), nn.ModuleList()
        for up, skip, first, second in zip(RISING, SKIPS, FIRST, SECOND, strict=True):
            self.rises.append(rise(up * channels, up * channels, 2, stride=2))
            self.decoder.append(two((up + skip) * channels, first * channels, second * channels))
        heads = (layer(SECOND[-1] * channels, ndim, HEAD, padding=HEAD // 2, bias=False) for _ in range(2))
        self.heads = nn.ModuleList(heads)  # velocity of the fixed side, of the moving side

    def predict(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Return the flow of the fixed side, then the way back of the moving one; see `RegistrationNetwork.forward`."""
        levels: list[Tensor] = []
        values = torch.cat([fixed, moving], dim=1)
        for pair in self.encoder:
            values = _through(pair, values)
            levels.append(values)
        values = levels.pop()
        for rise, pair in zip(self.rises, self.decoder, strict=True):
            values = _through(pair, torch.cat([functional.relu(rise(values)), levels.pop()], dim=1))
        one, other = (self.reach * functional.softsign(head(values)) for head in self.heads)
        there, back = integrate_stationary(one, self.steps), integrate_stationary(-other, self.steps)
        return Prediction(compose(there, back), smooth=(one, other))


def _through(layers: nn.Module, values: Tensor) -> Tensor:
    for layer in layers.children():
        values = functional.relu(layer(values))
    return values
