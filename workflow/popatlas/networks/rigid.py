"""A network that looks at two images and tells how one is turned and shifted against the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from popatlas.networks.cascade import affine_displacement, encoder
from popatlas.networks.registration import Prediction, RegistrationNetwork
from popatlas.networks.settings import RigidSettings
from popatlas.transforms.euler import rotation_of


class RigidNet(RegistrationNetwork):
    """An encoder and a dense layer to Euler angles and a shift, at first the identity.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    settings : RigidSettings
        Its options.
    """

    name = "rigid"

    def __init__(self, ndim: int, settings: RigidSettings) -> None:
        super().__init__(ndim, settings)
        self.cells, self.scale = settings.cells, settings.scale
        self.encoder = encoder(ndim, settings.widths)
        self.dense = nn.Linear(settings.widths[-1] * self.cells**ndim, ndim + ndim * (ndim - 1) // 2)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def predict(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Return the rigid map of a pair, also as field; see `RegistrationNetwork.forward`."""
        values = torch.cat([fixed, moving], dim=1)
        for stage in self.encoder:
            values = stage(values)
        pool = functional.adaptive_avg_pool3d if self.ndim == 3 else functional.adaptive_avg_pool2d
        found = self.dense(pool(values, self.cells).flatten(1))
        found = found.to(torch.promote_types(found.dtype, torch.float32))  # half precision would round the angles
        matrix = torch.cat([rotation_of(found[:, self.ndim :]), self.scale * found[:, : self.ndim, None]], dim=2)
        return Prediction(affine_displacement(matrix, matrix.new_zeros(1, 1, *fixed.shape[2:])), matrices=(matrix,))
