"""A registration network with a second branch, which outlines a mask of the fixed image from the same encoder.

The idea is that of a fully convolutional network for thoracic computed tomography, which finds the lungs beside the field,
so that the similarity can be weighted by them; its layers are not published. Ours are VoxelMorph's.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from popatlas.networks.registration import Prediction
from popatlas.networks.settings import MaskedSettings
from popatlas.networks.unet import Decoder, VoxelMorphUNet


class MaskedFCN(VoxelMorphUNet):
    """VoxelMorph's network and a decoder for a mask; without the tensors under ``mask.`` it is the plain one.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    settings : MaskedSettings
        Its options.
    """

    name = "masked"

    def __init__(self, ndim: int, settings: MaskedSettings) -> None:
        super().__init__(ndim, settings)
        widths = [2, *settings.encoder]
        decoder, final, slope, upsampling = settings.mask_decoder, settings.mask_final, settings.slope, settings.upsampling
        branch = Decoder(ndim, widths, decoder, final, False, slope, upsampling)
        layer = nn.Conv3d if ndim == 3 else nn.Conv2d
        self.mask = nn.ModuleDict({"decoder": branch, "head": layer(branch.channels, 1, 3, padding=1)})

    def predict(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Return field and mask of a pair; see `RegistrationNetwork.forward`."""
        levels = self.encode(fixed, moving)
        prediction = self.field(levels, fixed.shape[2:])
        return replace(prediction, mask=self.mask["head"](self.mask["decoder"](levels)))
