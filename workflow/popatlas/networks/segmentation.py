"""Segmentation networks: features of each voxel, a linear classifier behind them, and the files that keep both.

With many labels the logits of a volume do not fit into memory (149 labels of 600 000 voxels: 360 MB, and several times that
in training), its features do. So a trainer takes logits only at sampled voxels, and `predict` goes through the voxels block
by block:

    rows = voxel_rows(net.features(image)).index_select(0, sample)
    loss = cross_entropy(net.classify(rows), labels.flatten()[sample])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from popatlas.errors import InputError
from popatlas.images.io import PathLike
from popatlas.networks.backbones import BACKBONES
from popatlas.networks.base import FeatureNetwork, arrange
from popatlas.networks.files import read_network, write_network
from popatlas.networks.limits import check_description
from popatlas.registry import find_entry
from popatlas.settings import Content, settings_from

BLOCK = 65536  # voxels: 40 MB of logits with 150 labels


class SegmentationNet(nn.Module):
    """A feature network and a linear classifier of each voxel.

    Parameters
    ----------
    backbone : FeatureNetwork
        Network for the features; its weights are put into the channels-last format, which is faster on CPUs.
    n_labels : int
        Labels L, background included: classes 0..L-1.
    positions : bool
        Give the backbone, after the channels of the image, the position of each voxel along each axis: -1 at the first voxel
        of the image, 1 at the last. Then all images must show the same field of view, and crops of them are other images.

    Raises
    ------
    ValueError
        When there is no label, or the backbone has no room for the positions.
    """

    def __init__(self, backbone: FeatureNetwork, n_labels: int, positions: bool = False) -> None:
        super().__init__()
        self.in_channels = backbone.in_channels - (backbone.ndim if positions else 0)
        if n_labels < 1 or self.in_channels < 1:
            raise ValueError(f"cannot tell {n_labels} labels from {self.in_channels} image channels")
        self.n_labels, self.positions = n_labels, positions
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.channels, n_labels)
        arrange(self)

    def features(self, image: Tensor) -> Tensor:
        """Return the features of each voxel.

        Parameters
        ----------
        image : (B, C, *shape) Tensor
            Images of any shape. Their last voxels are repeated up to a multiple of the backbone's stride, and what is
            computed there is cut off; means over the image (normalisation, pooling) include these few voxels.

        Returns
        -------
        (B, F, *shape) Tensor
            Features.

        Raises
        ------
        ValueError
            When axes or channels are not those of the network.
        """
        if image.ndim != self.backbone.ndim + 2 or image.shape[1] != self.in_channels:
            axes = f"(B, {self.in_channels}, *shape) with {self.backbone.ndim} spatial axes"
            raise ValueError(f"the network takes images {axes}, not {tuple(image.shape)}")
        shape = image.shape[2:]
        if self.positions:
            grid = voxel_positions(image)
            image = torch.cat([image, grid.expand(len(image), *grid.shape[1:])], dim=1)
        padding = [side for n in reversed(shape) for side in (0, -n % self.backbone.stride)]
        if not any(padding):  # a slice of everything still costs time in the backward pass
            return self.backbone(image)  # type: ignore[no-any-return]
        values: Tensor = self.backbone(functional.pad(image, padding, mode="replicate"))
        return values[tuple(slice(n) for n in (*values.shape[:2], *shape))]

    def classify(self, features_at_voxels: Tensor) -> Tensor:
        """Return the logits (n, L) of features (n, F)."""
        logits: Tensor = self.classifier(features_at_voxels)
        return logits

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, L, *shape) of images (B, C, *shape), all in memory at once."""
        return self.classify(self.features(image).movedim(1, -1)).movedim(-1, 1)

    @torch.no_grad()
    def predict(self, image: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
        """Label images as in use, whether or not the network is in training.

        Parameters
        ----------
        image : (B, C, *shape) Tensor
            Images.
        block : int
            Voxels whose logits are in memory at once.

        Returns
        -------
        labels : (B, *shape) Tensor of int64
            The most probable label of each voxel, the first of equals.
        probability : (B, *shape) Tensor
            Its probability, the softmax of its logit.

        Raises
        ------
        ValueError
            When `block` is not positive, or from `features`.
        """
        if block < 1:
            raise ValueError(f"block must be at least 1 voxel, not {block}")
        with evaluating(self):
            rows = voxel_rows(self.features(image))
            best = [self.classify(rows[i : i + block]).softmax(1).max(1) for i in range(0, len(rows), block)]
        shape = (image.shape[0], *image.shape[2:])
        labels, probability = torch.cat([part.indices for part in best]), torch.cat([part.values for part in best])
        return labels.reshape(shape), probability.reshape(shape)

    def describe(self) -> Content:
        """Return the arguments of `build_network` that make this architecture, as JSON can hold them."""
        own = {"n_labels": self.n_labels, "in_channels": self.in_channels, "positions": self.positions}
        return {"name": self.backbone.name, "ndim": self.backbone.ndim, **own, **self.backbone.options}


def build_network(
    name: str, ndim: int, n_labels: int, in_channels: int = 1, *, positions: bool = False, **options: object
) -> SegmentationNet:
    """Make a segmentation network with random weights, those of torch's global generator.

    Parameters
    ----------
    name : str
        Key of `popatlas.networks.backbones.BACKBONES`.
    ndim : {2, 3}
        Spatial axes.
    n_labels : int
        Labels, background included.
    in_channels : int
        Channels of the image.
    positions : bool
        See `SegmentationNet`.
    **options
        Options of the backbone.

    Returns
    -------
    SegmentationNet
        The network, in training mode.

    Raises
    ------
    InputError
        When there is no such network or option, or its value is impossible.
    """
    entry = find_entry(BACKBONES, name, "network")
    try:
        check_description({"n_labels": n_labels, "in_channels": in_channels, **options})
        settings = settings_from(entry.settings, options, f"network {name}")
        backbone: FeatureNetwork = entry.load()(ndim, in_channels + (ndim if positions else 0), settings)
        return SegmentationNet(backbone, n_labels, positions)
    except (TypeError, ValueError) as error:
        raise InputError(f"network {name}: {error}", remedy="correct its options") from error


def save_network(net: SegmentationNet, path: PathLike, metadata: Mapping[str, str]) -> None:
    """Write architecture and weights to a file; see `popatlas.networks.files.write_network`."""
    write_network(net, net.describe(), path, metadata)


def load_network(path: PathLike) -> tuple[SegmentationNet, dict[str, str]]:
    """Read a network that `save_network` wrote; see `popatlas.networks.files.read_network`."""
    return read_network(path, build_network)


def voxel_rows(features: Tensor) -> Tensor:
    """Return features (B, F, *shape) as one row for each voxel: (B * voxels, F), image by image, last axis fastest."""
    return features.movedim(1, -1).reshape(-1, features.shape[1])


def voxel_positions(image: Tensor) -> Tensor:
    """Return the position (1, D, *shape) of each voxel of (B, C, *shape) along each axis, -1 to 1, 0 where there is one."""
    shape = image.shape[2:]
    axes = [(2 * torch.arange(n, dtype=image.dtype, device=image.device) - (n - 1)) / max(n - 1, 1) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a block of code."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
