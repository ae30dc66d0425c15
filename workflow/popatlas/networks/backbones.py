"""Backbones of the segmentation networks by name, with their options; torch is loaded when one is made."""

from __future__ import annotations

from popatlas.networks.architectures import Architecture
from popatlas.networks.limits import ENTRIES
from popatlas.networks.settings import NORM, NetworkSettings, Norm, Width, Widths
from popatlas.settings import option, settings


@settings
class BackboneSettings(NetworkSettings):
    """Options of a segmentation network."""

    features: Width = option(24, "Features of each voxel")


@settings
class LightSettings(BackboneSettings):
    """Options of `popatlas.networks.light.LightUNet`."""

    widths: Widths = option(
        (8, 32, 48),
        "Channels of each level: the full grid, that of double voxel size, and so on",
        min_length=2,
        max_length=ENTRIES,
    )
    blocks: Widths = option((1, 2), "Residual blocks of the encoder at each level but the first", max_length=ENTRIES)
    norm: Norm = option("instance", NORM)

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.widths) - 1:
            raise ValueError(f"blocks {list(self.blocks)} need one entry less than the widths {list(self.widths)}")
        super().__post_init__()

    @property
    def stride(self) -> int:
        """See `NetworkSettings.stride`."""
        return 1 << len(self.blocks)


@settings
class LRASPPSettings(BackboneSettings):
    """Options of `popatlas.networks.lraspp.MobileLRASPP`."""

    features: Width = option(32, "Features of each voxel")
    inner: Width = option(128, "Channels of the gated map")
    norm: Norm = option("instance", f"{NORM}; the paper has the last, with batches of 8 or 32 images")

    @property
    def stride(self) -> int:
        """See `NetworkSettings.stride`."""
        return 4


BACKBONES: dict[str, Architecture] = {
    "light": Architecture(
        code="popatlas.networks.light:LightUNet",
        title="a small U-Net, which a CPU can train",
        references=("ronneberger2015",),
        settings=LightSettings,
    ),
    "lraspp": Architecture(
        code="popatlas.networks.lraspp:MobileLRASPP",
        title="MobileNet blocks with the LR-ASPP head",
        references=("weihsbach2022", "sandler2018", "howard2019"),
        settings=LRASPPSettings,
    ),
}
