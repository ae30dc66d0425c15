"""Registration networks: two images in, a displacement out; what every architecture of the package gives and takes.

An architecture is a module of its own that subclasses `RegistrationNetwork`, a class in `popatlas.networks.settings` for its
options and an entry in `popatlas.networks.architectures`; heads and integrators are in `popatlas.networks.heads`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from popatlas.errors import InputError
from popatlas.images.io import PathLike
from popatlas.networks.architectures import ARCHITECTURES
from popatlas.networks.base import arrange
from popatlas.networks.files import read_network, write_network
from popatlas.networks.limits import check_description
from popatlas.networks.settings import NetworkSettings
from popatlas.registry import find_entry
from popatlas.settings import Content, as_content, settings_from


@dataclass(frozen=True)
class Prediction:
    """What a registration network found.

    Attributes
    ----------
    displacement : (B, D, *shape) Tensor
        Voxels of the fixed grid: the fixed point with voxel index ``x`` goes to ``x + u(x)`` in the moving image.
    velocity : (B, D, *coarse) Tensor or None
        Stationary velocity whose flow is the displacement, in voxels of its own grid, which may be coarser; see
        `RegistrationNetwork.inverse` for the flow of its negative.
    smooth : tuple of (B, D, *any) Tensor
        Fields that the regulariser of a recipe penalises, each in voxels of its own grid; those of cascades and pyramids are
        their increments.
    matrices : tuple of (B, D, D + 1) Tensor
        Affine stages: fixed voxel ``x``, counted from the centre of the image, goes to ``A x + b``; may be penalised.
    mask : (B, 1, *shape) Tensor or None
        Logits of a mask of the fixed image, from a mask branch.
    """

    displacement: Tensor
    velocity: Tensor | None = None
    smooth: tuple[Tensor, ...] = ()
    matrices: tuple[Tensor, ...] = field(default=())
    mask: Tensor | None = None


class RegistrationNetwork(nn.Module, ABC):
    """A network that takes a fixed and a moving image to a displacement.

    Parameters
    ----------
    ndim : {2, 3}
        Spatial axes.
    settings : NetworkSettings
        Options of the architecture.

    Raises
    ------
    ValueError
        When `ndim` is neither 2 nor 3.
    """

    name: ClassVar[str]
    fixed_shape: ClassVar[bool] = False  # the output scales with the size of the images: good for that of the training only
    passes: int | None = None  # how often the network looks at a pair, of one that can look several times

    def __init__(self, ndim: int, settings: NetworkSettings) -> None:
        super().__init__()
        if ndim not in (2, 3):
            raise ValueError(f"networks have 2 or 3 spatial axes, not {ndim}")
        self.ndim, self.stride, self.options = ndim, settings.stride, as_content(settings)

    @abstractmethod
    def predict(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Register images whose sizes are multiples of `stride`; see `forward`."""

    def forward(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Register a batch of pairs.

        Parameters
        ----------
        fixed, moving : (B, 1, *shape) Tensor
            Images on one grid, in the range that the network was trained for; each size a multiple of `stride`.

        Returns
        -------
        Prediction
            Displacement and what the regulariser and the losses of a recipe need.

        Raises
        ------
        ValueError
            When shapes differ, are no multiple of `stride`, or have other axes than the network.
        """
        shape = fixed.shape
        if fixed.shape != moving.shape or fixed.ndim != self.ndim + 2 or fixed.shape[1] != 1:
            expected = f"two images (B, 1, *shape) with {self.ndim} spatial axes"
            raise ValueError(f"the network takes {expected}, not {tuple(fixed.shape)} and {tuple(moving.shape)}")
        if any(n % self.stride for n in shape[2:]):
            raise ValueError(f"sizes {tuple(shape[2:])} are not multiples of {self.stride}: pad the images")
        return self.predict(fixed, moving)

    def inverse(self, found: Prediction) -> Tensor | None:
        """Return the way back of a prediction.

        Parameters
        ----------
        found : Prediction
            Of this network, on any device.

        Returns
        -------
        (B, D, *shape) Tensor or None
            Voxels: the moving point ``y`` goes to ``y + v(y)`` in the fixed image. None for networks that know no better
            than to invert their displacement point by point.
        """
        return None

    def describe(self) -> Content:
        """Return the arguments of `build_registration_network` that make this architecture, as JSON can hold them."""
        return {"name": self.name, "ndim": self.ndim, **self.options}


def build_registration_network(name: str, ndim: int, **options: object) -> RegistrationNetwork:
    """Make a registration network with random weights, those of torch's global generator.

    Parameters
    ----------
    name : str
        Key of `popatlas.networks.architectures.ARCHITECTURES`.
    ndim : {2, 3}
        Spatial axes.
    **options
        Options of the architecture that differ from its defaults.

    Returns
    -------
    RegistrationNetwork
        The network, in training mode.

    Raises
    ------
    InputError
        When there is no such architecture or option, or its value is impossible.
    PackageError
        When an optional architecture needs a package that is not installed.
    """
    entry = find_entry(ARCHITECTURES, name, "network")
    try:
        check_description(options)
        settings = settings_from(entry.settings, options, f"network {name}")
        net: RegistrationNetwork = entry.load()(ndim, settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"network {name}: {error}", remedy="correct its options") from error
    arrange(net)
    return net


def save_registration_network(net: RegistrationNetwork, path: PathLike, metadata: Mapping[str, str]) -> None:
    """Write architecture and weights to a file; see `popatlas.networks.files.write_network`."""
    write_network(net, net.describe(), path, metadata)


def load_registration_network(path: PathLike) -> tuple[RegistrationNetwork, dict[str, str]]:
    """Read a network that `save_registration_network` wrote; see `popatlas.networks.files.read_network`."""
    return read_network(path, build_registration_network)
