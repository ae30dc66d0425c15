"""Backbones of the segmentation networks by name; torch is loaded when one is made."""

from __future__ import annotations

from popatlas.registry import Entry

BACKBONES: dict[str, Entry] = {
    "light": Entry(code="popatlas.networks.light:LightUNet", title="a small U-Net, which a CPU can train"),
    "lraspp": Entry(code="popatlas.networks.lraspp:MobileLRASPP", title="MobileNet blocks with the LR-ASPP head"),
}
