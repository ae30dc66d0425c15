"""The network of Deep-STAPLE: a MobileNet with a light pooling head (LR-ASPP), in 2D and 3D.

Weihsbach et al. (2022, "DeepSTAPLE: Learning to predict multimodal registration quality for unsupervised domain adaptation",
WBIR) train a 3D network of inverted residual blocks; channels, strides and the activation ReLU6 are those of its published
code, which take the expansion by six of MobileNetV2 (Sandler et al. 2018). The head is that of MobileNetV3 (Howard et al.
2019). For 2D the paper takes MobileNetV3-Large; ours has the same blocks as in 3D, so that both are one code.
"""

from __future__ import annotations

from torch import Tensor, nn

from popatlas.networks.backbones import LRASPPSettings
from popatlas.networks.base import FeatureNetwork, convolution, enlarge, normalisation, pointwise
from popatlas.networks.settings import Norm

# input, expanded and output channels and stride of each block; the first takes the image, at stride 2
STEM = (32, 16)
BLOCKS = (
    (16, 96, 16, 1),
    (16, 96, 24, 1),
    (24, 144, 24, 1),
    (24, 144, 32, 1),
    (32, 192, 32, 1),
    (32, 192, 32, 2),
    (32, 192, 64, 1),
    (64, 384, 64, 1),
    (64, 384, 64, 1),
)


class MobileLRASPP(FeatureNetwork):
    """Features from inverted residual blocks at 1/2 and 1/4 of the resolution and the LR-ASPP head.

    The head multiplies a 1x1 convolution of the deep map (1/4) with gates in 0..1 that global pooling opens, and adds the
    map after the first block (1/2). All after that product is linear: projection to the features, sum, interpolation to the
    full grid. With a linear classifier behind, interpolating features gives the same logits as interpolating logits, with
    fewer channels to interpolate; the logits of more labels than features are combinations of the features.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    in_channels : int
        Channels of the image.
    settings : LRASPPSettings
        Its options.
    """

    name = "lraspp"

    def __init__(self, ndim: int, in_channels: int, settings: LRASPPSettings) -> None:
        super().__init__(ndim, in_channels, settings)
        features, inner, norm = settings.features, settings.inner, settings.norm
        middle, low = STEM
        deep = BLOCKS[-1][2]
        self.stem = inverted(norm, ndim, convolution(ndim, in_channels, middle, stride=2), middle, low)
        self.blocks = nn.Sequential(*(InvertedResidual(norm, ndim, *block) for block in BLOCKS))
        self.branch = nn.Sequential(pointwise(deep, inner), normalisation(norm, ndim, inner), nn.ReLU(inplace=True))
        self.gate = nn.Sequential(pointwise(deep, inner), nn.Sigmoid())
        # no biases: that of the classifier has the same effect
        self.from_deep = pointwise(inner, features)
        self.from_low = pointwise(low, features)

    def coarse(self, image: Tensor) -> Tensor:
        """Return the features (B, channels, *half shape) at half the resolution, before they are interpolated."""
        low: Tensor = self.stem(image)
        deep = self.blocks(low)
        axes = tuple(range(2, deep.ndim))
        gated = self.branch(deep) * self.gate(deep.mean(axes, keepdim=True))
        values: Tensor = enlarge(self.from_deep(gated), low.shape[2:]) + self.from_low(low)
        return values

    def forward(self, image: Tensor) -> Tensor:
        """Return the features of an image; see `FeatureNetwork.forward`."""
        return enlarge(self.coarse(image), image.shape[2:])


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection, added to the input where channels and resolution allow."""

    def __init__(self, norm: Norm, ndim: int, inputs: int, middle: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.adds = inputs == outputs and stride == 1
        self.body = inverted(norm, ndim, pointwise(inputs, middle), middle, outputs, stride)

    def forward(self, values: Tensor) -> Tensor:
        """Return (B, outputs, *shape / stride) for (B, inputs, *shape)."""
        out: Tensor = self.body(values)
        return values + out if self.adds else out


def inverted(norm: Norm, ndim: int, first: nn.Module, middle: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return `first`, a depthwise convolution of its `middle` channels and a linear projection to `outputs`."""
    return nn.Sequential(
        first,
        normalisation(norm, ndim, middle),
        nn.ReLU6(inplace=True),
        convolution(ndim, middle, middle, stride=stride, groups=middle),
        normalisation(norm, ndim, middle),
        nn.ReLU6(inplace=True),
        pointwise(middle, outputs),
        normalisation(norm, ndim, outputs),
    )
