"""The U-Net of DeepReg: residual blocks, pooling, transposed convolutions, sums instead of joints.

Fu et al. (Journal of Open Source Software 2020, doi:10.21105/joss.02705) present the toolkit. With grids of 8, 16 and 32
channels its network registered brains of growing children in a study of pre-alignment and resolution (WBIR 2022).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from popatlas.networks.base import normalisation
from popatlas.networks.heads import FieldHead, finish, flowed_back
from popatlas.networks.light import SLOPE, Residual, unit
from popatlas.networks.registration import Prediction, RegistrationNetwork
from popatlas.networks.settings import DeepRegSettings, Norm, Transform


class DeepRegUNet(RegistrationNetwork):
    """The U-Net of DeepReg, with our activation, whose small slope below zero the original lacks.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    settings : DeepRegSettings
        Its options.
    """

    name = "deepreg"

    def __init__(self, ndim: int, settings: DeepRegSettings) -> None:
        super().__init__(ndim, settings)
        widths, norm = settings.widths, settings.norm
        self.transform: Transform = settings.transform
        self.encoder = nn.ModuleList(_stage(norm, ndim, a, b) for a, b in pairwise([2, *widths]))
        self.pool = nn.MaxPool3d(2) if ndim == 3 else nn.MaxPool2d(2)
        self.decoder = nn.ModuleList(Rise(norm, ndim, coarse, fine) for fine, coarse in reversed(list(pairwise(widths))))
        self.head = FieldHead(ndim, widths[0])

    def predict(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Return the field of a pair; see `RegistrationNetwork.forward`."""
        levels = [self.encoder[0](torch.cat([moving, fixed], dim=1))]
        for stage in self.encoder[1:]:
            levels.append(stage(self.pool(levels[-1])))
        values: Tensor = levels.pop()
        for rise in self.decoder:
            values = rise(values, levels.pop())
        return finish(self.head(values), fixed.shape[2:], self.transform)

    def inverse(self, found: Prediction) -> Tensor | None:
        """Return the flow of the negative velocity; see `RegistrationNetwork.inverse`."""
        return flowed_back(found)


class Rise(nn.Module):
    """A decoder step: (B, coarse, *half shape) is enlarged, added to (B, fine, *shape), and convolved."""

    def __init__(self, norm: Norm, ndim: int, coarse: int, fine: int) -> None:
        super().__init__()
        layer = nn.ConvTranspose3d if ndim == 3 else nn.ConvTranspose2d
        enlarging = layer(coarse, fine, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.enlarge = nn.Sequential(enlarging, normalisation(norm, ndim, fine), nn.LeakyReLU(SLOPE, inplace=True))
        self.then = _stage(norm, ndim, fine, fine)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Return the features of the finer grid."""
        out: Tensor = self.then(self.enlarge(coarse) + fine)
        return out


def _stage(norm: Norm, ndim: int, inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(unit(norm, ndim, inputs, outputs), Residual(norm, ndim, outputs))
