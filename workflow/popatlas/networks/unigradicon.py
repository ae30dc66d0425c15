"""uniGradICON, a foundation model of registration, as its authors' packages build it.

Four U-Nets, at a quarter, half and twice the full resolution, each see the moving image warped by those before. What they
find are coordinates: 0 at the first voxel of an axis and 1 at the last one, on whatever grid the images have.

Tian L, Greer H, Kwitt R, Vialard FX, San Jose Estepar R, Bouix S, Rushmore R, Niethammer M. uniGradICON: a foundation model
for medical image registration. MICCAI 2024, LNCS 15002:749-760. doi:10.1007/978-3-031-72069-7_70
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from popatlas.networks.architectures import ARCHITECTURES
from popatlas.networks.registration import Prediction, RegistrationNetwork
from popatlas.networks.settings import UniGradICONSettings

SMALLEST = 65  # voxels of each axis: the coarsest U-Net halves a quarter of them five times


class UniGradICON(RegistrationNetwork):
    """The network of the packages `unigradicon` and `icon_registration`, which have to be installed.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes; the published weights are for 3.
    settings : UniGradICONSettings
        Its options: none.

    Raises
    ------
    PackageError
        When a package is missing.
    """

    name = "unigradicon"

    def __init__(self, ndim: int, settings: UniGradICONSettings) -> None:
        super().__init__(ndim, settings)
        ARCHITECTURES[self.name].check_packages()
        import unigradicon

        self.net: Any = unigradicon.make_network((1, 1, *[SMALLEST] * ndim), include_last_step=True).regis_net

    def predict(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """See `RegistrationNetwork.predict`; raises ValueError for images of fewer voxels than `SMALLEST` along an axis."""
        if min(fixed.shape[2:]) < SMALLEST:
            raise ValueError(f"uniGradICON takes images of at least {SMALLEST} voxels along each axis")
        if self.net.identity_map.shape[2:] != fixed.shape[2:]:
            self.net.assign_identity_map((1, 1, *fixed.shape[2:]))
        self.net.to(fixed.device)  # a new identity is made on the CPU
        return Prediction(displacement_of(self.net(moving, fixed)(self.net.identity_map)))


def displacement_of(places: Tensor) -> Tensor:
    """Return the displacement that takes each voxel to a place.

    Parameters
    ----------
    places : (B, D, *shape) Tensor
        Coordinates, component d along axis d: 0 at the first voxel of that axis and 1 at the last one.

    Returns
    -------
    (B, D, *shape) Tensor
        Voxels.
    """
    shape = places.shape[2:]
    axes = [torch.arange(n, dtype=places.dtype, device=places.device) for n in shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    last = places.new_tensor([n - 1 for n in shape]).view(-1, *[1] * len(shape))
    return places * last - index
