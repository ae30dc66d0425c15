"""The network of deep combined computing: one encoder, one decoder that segments, one that registers the group.

Each contrast has normalisations of its own (domain-specific batch normalisation); all else is shared. The registration
decoder sees, at each level, what an image shows and the mean and variance of that over the group, so that the images may
come in any order and number. Flows of all levels are added, and their mean over the group is taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from popatlas.networks.base import convolution, enlarge, normalisation, pointwise

SLOPE = 0.1  # of the leaky rectifier


class Domains(nn.Module):
    """A batch normalisation for each contrast."""

    def __init__(self, ndim: int, channels: int, domains: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(normalisation("batch", ndim, channels) for _ in range(domains))

    def forward(self, values: Tensor, domain: int) -> Tensor:
        """Return (B, C, *shape) normalised as images of a contrast are."""
        found: Tensor = self.each[domain](values)
        return found


class Residual(nn.Module):
    """Two convolutions and a way round them; the first may halve the resolution."""

    def __init__(self, ndim: int, inputs: int, outputs: int, domains: int, stride: int = 1) -> None:
        super().__init__()
        self.first = convolution(ndim, inputs, outputs, stride=stride)
        self.second = convolution(ndim, outputs, outputs)
        self.norms = nn.ModuleList(Domains(ndim, outputs, domains) for _ in range(2))
        is_same = (inputs, stride) == (outputs, 1)
        self.round = None if is_same else convolution(ndim, inputs, outputs, kernel=1, stride=stride)

    def forward(self, values: Tensor, domain: int = 0) -> Tensor:
        """Return (B, outputs, *shape), half as large where the stride is 2."""
        found = functional.leaky_relu(self.norms[0](self.first(values), domain), SLOPE)
        found = self.norms[1](self.second(found), domain)
        return functional.leaky_relu(found + (values if self.round is None else self.round(values)), SLOPE)


class SegmentationBranch(nn.Module):
    """The decoder that segments each image."""

    def __init__(self, ndim: int, features: Sequence[int], domains: int, classes: int) -> None:
        super().__init__()
        pairs = list(pairwise(features))
        self.up = nn.ModuleList(pointwise(b, a) for a, b in pairs)
        self.blocks = nn.ModuleList(Residual(ndim, a, a, domains) for a, _ in pairs)
        self.head = nn.Linear(features[0], classes)

    def forward(self, levels: Sequence[Tensor], domain: int) -> Tensor:
        """Return the class probabilities (B, K, *shape) from the features of each level, fine to coarse."""
        values = levels[-1]
        for number in reversed(range(len(levels) - 1)):
            skip = levels[number]
            values = self.blocks[number](skip + enlarge(self.up[number](values), skip.shape[2:]), domain)
        logits = self.head(values.movedim(1, -1)).movedim(-1, 1)
        return torch.softmax(logits, 1)


class RegistrationBranch(nn.Module):
    """The decoder that registers the group."""

    def __init__(self, ndim: int, features: Sequence[int], domains: int) -> None:
        super().__init__()
        self.own = nn.ModuleList(pointwise(n, n) for n in features)
        self.group = nn.ModuleList(Residual(ndim, 2 * n, n, 1) for n in features)
        self.up = nn.ModuleList(pointwise(b, a) for a, b in pairwise(features))
        self.blocks = nn.ModuleList(Residual(ndim, n, n, domains) for n in features)
        self.heads = nn.ModuleList(nn.Linear(n, ndim) for n in features)
        for head in self.heads:  # registration begins with images that stay
            for value in head.parameters():
                nn.init.zeros_(value)

    def forward(self, images: Sequence[Sequence[Tensor]], domains: Sequence[int]) -> list[Tensor]:
        """Return the displacement (B, D, *shape) of each image from the features of each of its levels."""
        last = len(self.heads) - 1
        values: list[Tensor] = []
        flows: list[Tensor] = []
        for level in reversed(range(len(self.heads))):
            seen = torch.stack([levels[level] for levels in images])
            mean = seen.mean(0)
            group = self.group[level](torch.cat([mean, (seen - mean).square().mean(0)], 1))
            shape = seen.shape[3:]
            mixed = [self.own[level](one - mean) + group for one in seen]
            if level < last:
                mixed = [one + enlarge(self.up[level](below), shape) for one, below in zip(mixed, values, strict=True)]
            values = [self.blocks[level](one, domain) for one, domain in zip(mixed, domains, strict=True)]
            found = [self.heads[level](one.movedim(1, -1)).movedim(-1, 1) for one in values]
            flows = found if level == last else [a + 2 * enlarge(b, shape) for a, b in zip(found, flows, strict=True)]
        middle = torch.stack(flows).mean(0)
        return [flow - middle for flow in flows]


class CombinedNet(nn.Module):
    """Segments and registers a group.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    domains : int
        Contrasts.
    classes : int
        Classes K.
    features : sequence of int
        Channels of each level, from fine to coarse.
    """

    def __init__(self, ndim: int, domains: int, classes: int, features: Sequence[int]) -> None:
        super().__init__()
        self.ndim, self.domains, self.classes, self.features = ndim, domains, classes, tuple(features)
        pairs = list(pairwise(self.features))
        first = [Residual(ndim, 1, self.features[0], domains)]
        self.encoder = nn.ModuleList([*first, *(Residual(ndim, a, b, domains, stride=2) for a, b in pairs)])
        self.segmentation = SegmentationBranch(ndim, self.features, domains, classes)
        self.registration = RegistrationBranch(ndim, self.features, domains)

    def forward(self, images: Sequence[Tensor], domains: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Return class probabilities and displacements of a group.

        Parameters
        ----------
        images : sequence of (B, 1, *shape) Tensor
            B groups, one tensor for each image of a group; sizes are multiples of ``2 ** (levels - 1)``.
        domains : sequence of int
            Contrast of each image.

        Returns
        -------
        list of (B, K, *shape) Tensor
            Probabilities on the grid of each image.
        list of (B, D, *shape) Tensor
            From the common space to each image, voxels; their mean is zero.
        """
        levels = [self._encoded(image, domain) for image, domain in zip(images, domains, strict=True)]
        maps = [self.segmentation(found, domain) for found, domain in zip(levels, domains, strict=True)]
        return maps, self.registration(levels, domains)

    def segment(self, image: Tensor, domain: int) -> Tensor:
        """Return the class probabilities (B, K, *shape) of images (B, 1, *shape) of a contrast."""
        found: Tensor = self.segmentation(self._encoded(image, domain), domain)
        return found

    def _encoded(self, image: Tensor, domain: int) -> list[Tensor]:
        found = [image]
        for block in self.encoder:
            found.append(block(found[-1], domain))
        return found[1:]

    def describe(self) -> dict[str, object]:
        """Return the arguments that make this architecture, as JSON can hold them."""
        return {"ndim": self.ndim, "domains": self.domains, "classes": self.classes, "features": list(self.features)}
