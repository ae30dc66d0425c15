"""A registration network for CPUs: a pair of brains at 2 mm takes a fraction of a second on one thread.

All convolutions work on blocks of 2 voxels and coarser: the blocks of both images are their channels, and those of the head
may be the blocks of a full velocity (Shi et al. 2016, doi:10.1109/CVPR.2016.207). The rest is a residual U-Net as in
`popatlas.networks.light`.

The network may look again at what it has done, the moving image being warped by all before: its own fields are composed, as
those of the repeated cascades of Zhao et al. 2019 (doi:10.1109/ICCV.2019.01070). In training the passes before the last one
are of a random number and have no gradients, so that a pass learns to improve whatever the passes before have left.

Instead of the images it may see their self-similarity (Heinrich et al. 2013, doi:10.1007/978-3-642-40811-3_24), which is the
same in an inverted image: what one contrast teaches is then of use for others.

It may be guided: each pass is given the force of the similarity and adds a learnt share of it to its velocity, as networks
do that learn a gradient descent (see `popatlas.networks.forces`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from popatlas.networks.forces import descriptor_force, image_force
from popatlas.networks.heads import FieldHead, composed, finish, flowed_back, refined
from popatlas.networks.light import Merge, Residual, unit
from popatlas.networks.registration import Prediction, RegistrationNetwork
from popatlas.networks.settings import FastSettings, Norm, Transform
from popatlas.settings import Content
from popatlas.similarity.mind import mindssc_descriptor
from popatlas.transforms.fields import warp

BLOCK = FastSettings.BLOCK
RADIUS, DILATION = 1, 1  # of a descriptor, voxels
ENTRIES = {2: 4, 3: 12}
SHARE = 0.3  # voxels that the longest vectors of a force add to an untrained network


@dataclass(frozen=True)
class Seen:
    """What the network sees of an image: (B, C, *shape) voxels, and (B, K, *shape / 2) self-similarity of its blocks."""

    image: Tensor | None
    descriptor: Tensor | None

    def channels(self) -> Tensor:
        """Return all of it on the grid of the blocks."""
        parts = [] if self.image is None else [to_blocks(self.image)]
        return torch.cat(parts if self.descriptor is None else [*parts, self.descriptor], dim=1)

    def warped(self, displacement: Tensor) -> Seen:
        """Return it moved by a displacement, voxels."""
        image = None if self.image is None else warp(self.image, displacement)
        if self.descriptor is None:
            return Seen(image, None)
        return Seen(image, warp(self.descriptor, block_means(displacement) / BLOCK))

    def forces(self, moved: Seen) -> list[Tensor]:
        """Return the forces on the points of this image that `moved` causes, (B, D, *shape) or (B, D, *shape / 2)."""
        found = [] if self.image is None or moved.image is None else [image_force(self.image, moved.image)]
        if self.descriptor is not None and moved.descriptor is not None:
            found.append(descriptor_force(self.descriptor, moved.descriptor))
        return found


class FastNet(RegistrationNetwork):
    """Blocks of both images, a residual U-Net, a field on the grid of the blocks.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    settings : FastSettings
        Its options.
    """

    name = "fast"
    passes: int

    def __init__(self, ndim: int, settings: FastSettings) -> None:
        super().__init__(ndim, settings)
        widths, blocks, norm = settings.widths, settings.blocks, settings.norm
        fine, sees, guided = settings.fine, settings.sees, settings.guided
        self.transform: Transform = settings.transform
        self.fine, self.squarings, self.passes, self.sees = fine, settings.squarings, settings.passes, sees
        steps = list(pairwise(widths))
        looks_at = [BLOCK**ndim] * (sees != "descriptors") + [1] * (sees != "images")
        inputs = BLOCK**ndim * (sees != "descriptors") + ENTRIES[ndim] * (sees != "images")
        pushes = ndim * sum(looks_at) * guided
        self.stem = _stage(norm, ndim, 2 * inputs + pushes, widths[0], 1, blocks[0])
        self.encoder = nn.ModuleList(
            _stage(norm, ndim, fine, coarse, 2, count) for (fine, coarse), count in zip(steps, blocks[1:], strict=True)
        )
        self.decoder = nn.ModuleList(
            Merge(norm, ndim, coarse, fine, fine, unit(norm, ndim, fine, fine)) for fine, coarse in reversed(steps)
        )
        self.head = FieldHead(ndim, widths[0], vectors=BLOCK**ndim if fine else 1)
        self.shares = nn.Parameter(torch.full((len(looks_at),), SHARE)) if guided else None

    def predict(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Return the composed fields of all passes; see `RegistrationNetwork.forward`."""
        before, shape = self.passes - 1, fixed.shape[2:]
        pair = self._seen(fixed), self._seen(moving)
        if not self.training:
            return self._improved(*pair, shape, before)
        some = int(torch.randint(before + 1, ()))
        with torch.no_grad():
            start = self._improved(*pair, shape, some - 1).displacement if some else None
        return self._pass(*pair, shape, start)

    def inverse(self, found: Prediction) -> Tensor | None:
        """Return the flow of the negative velocity; see `RegistrationNetwork.inverse`. Several passes have none."""
        return flowed_back(found, self.squarings)

    def describe(self) -> Content:
        """Return the arguments that make this architecture, with the `passes` of now."""
        return {**super().describe(), "passes": self.passes}

    def _seen(self, image: Tensor) -> Seen:
        """Return what the network sees of an image (B, 1, *shape); no gradient reaches the image."""
        if self.sees == "images":
            return Seen(image, None)
        with torch.no_grad():
            descriptor = block_means(mindssc_descriptor(image.float(), RADIUS, DILATION)[:, 0])
        return Seen(image if self.sees == "both" else None, descriptor)

    def _improved(self, fixed: Seen, moving: Seen, shape: Sequence[int], more: int) -> Prediction:
        """Return what one pass and some more find."""
        found = self._pass(fixed, moving, shape, None)
        for _ in range(more):
            found = self._pass(fixed, moving, shape, found.displacement)
        return found

    def _pass(self, fixed: Seen, moving: Seen, shape: Sequence[int], start: Tensor | None) -> Prediction:
        """Look at the images, the moving one warped by a displacement, and return this displacement improved."""
        if start is None:
            return self._look(fixed, moving, shape)
        found = self._look(fixed, moving.warped(start), shape)
        displacement = composed(found.displacement, start)
        return Prediction(displacement, smooth=(displacement,))

    def _look(self, fixed: Seen, moving: Seen, shape: Sequence[int]) -> Prediction:
        shares = () if self.shares is None else self.shares.unbind()
        forces = fixed.forces(moving) if shares else []
        blocks = [to_blocks(one) if one.shape[2:] == tuple(shape) else one for one in forces]
        levels = [self.stem(torch.cat([fixed.channels(), moving.channels(), *blocks], dim=1))]
        for stage in self.encoder:
            levels.append(stage(levels[-1]))
        values: Tensor = levels.pop()
        for merge in self.decoder:
            values = merge(values, levels.pop())
        vectors = self.head(values)
        if self.fine:
            vectors = from_blocks(vectors, shape)
        for share, force in zip(shares, forces, strict=True):
            vectors = vectors + share * _on_grid(force, vectors.shape[2:])
        return finish(vectors, shape, self.transform, self.squarings)


def _on_grid(force: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a force on the grid of the vectors, in voxels of that grid."""
    smaller = force.shape[2] > shape[0]
    return block_means(force) / BLOCK if smaller else refined(force, shape)


def _stage(norm: Norm, ndim: int, inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    residuals = (Residual(norm, ndim, outputs) for _ in range(blocks))
    return nn.Sequential(unit(norm, ndim, inputs, outputs, stride=stride), *residuals)


def block_means(values: Tensor) -> Tensor:
    """Return the means over blocks: (B, C, *shape) to (B, C, *shape / 2)."""
    pool = functional.avg_pool2d if values.ndim == 4 else functional.avg_pool3d
    return pool(values, BLOCK)


def to_blocks(image: Tensor, size: int = BLOCK) -> Tensor:
    """Make the voxels of each block channels: (B, C, *shape) to (B, C * size**D, *shape / size)."""
    shape, ndim = image.shape[2:], image.ndim - 2
    split = image.reshape(*image.shape[:2], *(side for n in shape for side in (n // size, size)))
    inner = [3 + 2 * axis for axis in range(ndim)]
    outer = [2 + 2 * axis for axis in range(ndim)]
    return split.permute(0, 1, *inner, *outer).reshape(image.shape[0], -1, *(n // size for n in shape))


def from_blocks(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `to_blocks`: (B, C * size**D, *shape / size) to (B, C, *shape)."""
    ndim = len(shape)
    sizes = [fine // coarse for fine, coarse in zip(shape, values.shape[2:], strict=True)]
    split = values.reshape(values.shape[0], -1, *sizes, *values.shape[2:])
    order = [axis for pair in zip(range(2 + ndim, 2 + 2 * ndim), range(2, 2 + ndim), strict=True) for axis in pair]
    return split.permute(0, 1, *order).reshape(values.shape[0], -1, *shape)
