"""Recursive cascades: each network sees the moving image as it is warped so far and adds its field by composition.

Zhao, Dong, Chang and Xu, "Recursive cascaded networks for unsupervised medical image registration", ICCV 2019,
arXiv:1907.12353. The network of each cascade and the affine stage before them are those of the Volume Tweening Network: Zhao
et al., IEEE Journal of Biomedical and Health Informatics 2020;24:1394-1404, doi:10.1109/JBHI.2019.2951024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from popatlas.networks.registration import Prediction, RegistrationNetwork
from popatlas.networks.settings import CascadeSettings
from popatlas.settings import Content
from popatlas.transforms.fields import compose, coordinates, warp

SLOPE = 0.1  # of the activation below zero
PLAIN = 2  # first levels with a single convolution
SPREAD = 1e-5  # standard deviation of the last weights: an untrained network leaves the images where they are


class RecursiveCascade(RegistrationNetwork):
    """An affine stage and a chain of small deformable registrations.

    Every cascade takes the fixed image and the moving image warped, always in one interpolation, by all that was found
    before it. The losses of the paper compare the images after the last one only, penalise the roughness of each cascade's
    own field (`Prediction.smooth`), and the affine matrix (`popatlas.regularisers.affine`).

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    settings : CascadeSettings
        Its options.
    """

    name = "cascade"

    def __init__(self, ndim: int, settings: CascadeSettings) -> None:
        super().__init__(ndim, settings)
        widths, cascades = settings.widths, settings.cascades
        self.repeats = settings.repeats
        self.affine = AffineStage(ndim, widths, settings.cells) if settings.affine else None
        self.cascades = nn.ModuleList(TweeningNet(ndim, widths, settings.scale / cascades) for _ in range(cascades))

    def describe(self) -> Content:
        """Return the arguments that make this architecture, with the `repeats` of now."""
        return {**super().describe(), "repeats": self.repeats}

    def predict(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Return the composed field; its `smooth` has the field of every application of a cascade, the first one first."""
        matrix = None if self.affine is None else self.affine(fixed, moving)
        stages = [net for net in self.cascades for _ in range(self.repeats)]
        displacement, fields = cascaded(stages, fixed, moving, matrix)
        return Prediction(displacement, smooth=fields, matrices=() if matrix is None else (matrix,))


def cascaded(
    stages: Iterable[Callable[[Tensor, Tensor], Tensor]], fixed: Tensor, moving: Tensor, matrix: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Apply registrations one after the other, each to the moving image as it is warped so far.

    The moving image is warped by the composed field each time, not the warped image again, which would blur it.

    Parameters
    ----------
    stages : iterable of callable
        At least one: takes `fixed` and the warped moving image, returns a displacement (B, D, *shape).
    fixed : Tensor
        What the stages take first: images or their features.
    moving : (B, C, *shape) Tensor
        Moving images.
    matrix : (B, D, D + 1) Tensor, optional
        Affine map before the first stage; see `affine_displacement`.

    Returns
    -------
    displacement : (B, D, *shape) Tensor
        From the fixed to the moving image, voxels: through the last stage's field first, the affine map last.
    fields : tuple of (B, D, *shape) Tensor
        That of each stage.
    """
    total = None if matrix is None else affine_displacement(matrix, moving.new_zeros(1, 1, *moving.shape[2:]))
    own: Tensor | None = None
    fields: list[Tensor] = []
    for stage in stages:
        fields.append(stage(fixed, moving if total is None else warp(moving, total)))
        own = fields[-1] if own is None else compose(fields[-1], own)
        total = own if matrix is None else affine_displacement(matrix, own)
    if total is None:
        raise ValueError("no stages")
    return total, tuple(fields)


def affine_displacement(matrix: Tensor, before: Tensor) -> Tensor:
    """Return the displacement of going through a displacement, then through an affine map.

    Parameters
    ----------
    matrix : (B, D, D + 1) Tensor
        ``x -> A x + b`` for voxels ``x`` counted from the centre of the image.
    before : (B or 1, D or 1, *shape) Tensor
        Displacement before it, voxels; zeros for none.

    Returns
    -------
    (B, D, *shape) Tensor
        Voxels; exact everywhere, as the map has no border.
    """
    shape = before.shape[2:]
    centre = torch.tensor(shape, device=before.device).sub(1).div(2).reshape(1, -1, *[1] * len(shape))
    points = coordinates(shape, device=before.device, dtype=before.dtype) - centre.to(before.dtype) + before
    change = matrix - torch.eye(*matrix.shape[1:], device=matrix.device, dtype=matrix.dtype)
    columns = change.reshape(*change.shape, *[1] * len(shape)).unbind(2)
    total = before + columns[-1]
    # no product of matrices, which automatic mixed precision would round to parts of a voxel
    for axis, column in enumerate(columns[:-1]):
        total = total + column * points[:, axis : axis + 1]
    return total


class AffineHead(nn.Module):
    """A dense layer from features to an affine map, at first the identity.

    A layer on all the voxels of the features, as the papers have it, would fit images of one shape only. The features are
    averaged in a fixed number of cells instead, so that any image can be registered and where a feature lies is still known;
    where there are as many voxels as cells, which is so for the published cascade (128 voxels along each axis, six
    halvings, two cells), nothing is averaged and it is the published layer.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    channels : int
        Features of each voxel.
    cells : int
        Cells along each axis; 1 averages over the whole image.
    """

    def __init__(self, ndim: int, channels: int, cells: int) -> None:
        super().__init__()
        self.ndim, self.cells = ndim, cells
        self.dense = nn.Linear(channels * cells**ndim, ndim * (ndim + 1))
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return matrices (B, D, D + 1), see `affine_displacement`, for features (B, C, *shape)."""
        pool = functional.adaptive_avg_pool3d if self.ndim == 3 else functional.adaptive_avg_pool2d
        change = self.dense(pool(features, self.cells).flatten(1)).reshape(-1, self.ndim, self.ndim + 1)
        dtype = torch.promote_types(change.dtype, torch.float32)  # half precision would round a matrix near the identity
        matrix: Tensor = change + torch.eye(self.ndim, self.ndim + 1, device=change.device, dtype=dtype)
        return matrix


class AffineStage(nn.Module):
    """From two images (B, 1, *shape) to matrices (B, D, D + 1)."""

    def __init__(self, ndim: int, widths: Sequence[int], cells: int) -> None:
        super().__init__()
        self.encoder = encoder(ndim, widths)
        self.head = AffineHead(ndim, widths[-1], cells)

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Return the affine map from the fixed to the moving image."""
        values = torch.cat([fixed, moving], dim=1)
        for stage in self.encoder:
            values = stage(values)
        matrix: Tensor = self.head(values)
        return matrix


class TweeningNet(nn.Module):
    """The deformable network of a cascade: fields of all levels, each enlarged and given to the next finer one.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    widths : sequence of int
        Channels of the levels, the finest (half the resolution) first.
    scale : float
        Voxels for an output of one.
    """

    def __init__(self, ndim: int, widths: Sequence[int], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.encoder = encoder(ndim, widths)
        self.decoder = nn.ModuleList()
        inputs = widths[-1]
        for fine in reversed(widths[:-1]):
            self.decoder.append(Rise(ndim, inputs, fine))
            inputs = 2 * fine + ndim
        self.head = _doubling(ndim, inputs, ndim)
        nn.init.normal_(self.head.weight, 0, SPREAD)

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Return a displacement (B, D, *shape) in voxels for images (B, 1, *shape)."""
        levels = [torch.cat([fixed, moving], dim=1)]
        for stage in self.encoder:
            levels.append(stage(levels[-1]))
        values = levels.pop()
        for rise in self.decoder:
            values = rise(values, levels.pop())
        field: Tensor = self.scale * self.head(values)
        return field


class Rise(nn.Module):
    """A decoder step: joins the encoder's features, the enlarged coarser ones and the enlarged field of the coarser ones."""

    def __init__(self, ndim: int, inputs: int, fine: int) -> None:
        super().__init__()
        self.values, self.enlarge = _doubling(ndim, inputs, fine), _doubling(ndim, ndim, ndim)
        self.field = (nn.Conv3d if ndim == 3 else nn.Conv2d)(inputs, ndim, 3, padding=1)

    def forward(self, values: Tensor, skip: Tensor) -> Tensor:
        """Return (B, 2 * fine + D, *shape) for (B, inputs, *half shape) and (B, fine, *shape)."""
        enlarged = functional.leaky_relu(self.values(values), SLOPE)
        return torch.cat([skip, enlarged, self.enlarge(self.field(values))], dim=1)


def encoder(ndim: int, widths: Sequence[int]) -> nn.ModuleList:
    """Return stages that halve the grid of two joined images (B, 2, *shape) again and again."""
    layer = nn.Conv3d if ndim == 3 else nn.Conv2d
    stages = nn.ModuleList()
    for level, (inputs, outputs) in enumerate(zip([2, *widths], widths, strict=False)):
        layers: list[nn.Module] = [layer(inputs, outputs, 3, stride=2, padding=1), nn.LeakyReLU(SLOPE, inplace=True)]
        if level >= PLAIN:
            layers += [layer(outputs, outputs, 3, padding=1), nn.LeakyReLU(SLOPE, inplace=True)]
        stages.append(nn.Sequential(*layers))
    return stages


def _doubling(ndim: int, inputs: int, outputs: int) -> nn.ConvTranspose2d | nn.ConvTranspose3d:
    """Return a transposed convolution to the grid of half the voxel size."""
    layer = nn.ConvTranspose3d if ndim == 3 else nn.ConvTranspose2d
    return layer(inputs, outputs, 4, stride=2, padding=1, bias=False)
