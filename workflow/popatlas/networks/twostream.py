"""A network with a stream for each image, applied twice for large displacements.

Schumacher et al., "Weak bounding box supervision for image registration networks", WBIR 2022; in full: Journal of Medical
Imaging 2022;9:044001, doi:10.1117/1.JMI.9.4.044001. Trained with the boxes of `popatlas.training.boxes`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from popatlas.networks.base import enlarge
from popatlas.networks.cascade import cascaded
from popatlas.networks.heads import FieldHead
from popatlas.networks.light import unit
from popatlas.networks.registration import Prediction, RegistrationNetwork
from popatlas.networks.settings import TwoStreamSettings
from popatlas.settings import Content

TAIL = 3  # convolutions between the U-Net and the field


class TwoStreamNet(RegistrationNetwork):
    """Features of each image by itself, a U-Net on both, a displacement of at most half the image.

    The paper's last activation is a tanh whose values are sampling locations, -1 and 1 being the ends of the image. Here
    they are added to the locations of the voxels: a value v along an axis of n voxels moves by ``v n / 2`` voxels. Taken
    alone as locations they would have to tell each voxel where it is, which convolutions do not know, and an untrained
    network would sample the centre of the image everywhere instead of leaving equal images alone.

    The paper prints neither kernels nor channels but 32 joint ones at the ends of the U-Net; we take kernels of 3 voxels and
    channels that double, and read its three encoder and four decoder blocks as three halvings, a block on the coarsest grid
    and one for each doubling.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    settings : TwoStreamSettings
        Its options.
    """

    name = "twostream"
    passes: int
    fixed_shape = True

    def __init__(self, ndim: int, settings: TwoStreamSettings) -> None:
        super().__init__(ndim, settings)
        maps, widths, norm = settings.maps, settings.widths, settings.norm
        self.passes = settings.passes
        joint = 2 * maps
        steps = list(pairwise([joint, *widths]))
        self.stream = nn.Sequential(unit(norm, ndim, 1, maps), unit(norm, ndim, maps, maps))
        self.encoder = nn.ModuleList(unit(norm, ndim, fine, coarse, stride=2) for fine, coarse in steps)
        self.deepest = unit(norm, ndim, widths[-1], widths[-1])
        self.decoder = nn.ModuleList(unit(norm, ndim, coarse + fine, fine) for fine, coarse in reversed(steps))
        self.tail = nn.Sequential(*(unit(norm, ndim, joint, joint) for _ in range(TAIL)))
        self.head = FieldHead(ndim, joint, kernel=1)

    def describe(self) -> Content:
        """Return the arguments that make this architecture, with the `passes` of now."""
        return {**super().describe(), "passes": self.passes}

    def predict(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Return the composed field; its `smooth` has the field of each pass, the first one first."""
        displacement, fields = cascaded([self.field] * self.passes, self.stream(fixed), moving)
        return Prediction(displacement, smooth=fields)

    def field(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Return the displacement of one pass.

        Parameters
        ----------
        fixed : (B, maps, *shape) Tensor
            Features of the fixed image.
        moving : (B, 1, *shape) Tensor
            Moving image.

        Returns
        -------
        (B, D, *shape) Tensor
            Voxels.
        """
        levels = [torch.cat([fixed, self.stream(moving)], dim=1)]
        for block in self.encoder:
            levels.append(block(levels[-1]))
        values: Tensor = self.deepest(levels.pop())
        for block in self.decoder:
            skip = levels.pop()
            values = block(torch.cat([enlarge(values, skip.shape[2:]), skip], dim=1))
        half = torch.tensor(moving.shape[2:], device=moving.device, dtype=moving.dtype) / 2
        displacement: Tensor = self.head(self.tail(values)).tanh() * half.reshape(-1, *[1] * self.ndim)
        return displacement
