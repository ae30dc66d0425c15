"""Colours of labels, the same in every picture and table."""

from __future__ import annotations

import colorsys


def label_rgb(label: int) -> tuple[float, float, float]:
    """Return the colour of a label: hues a golden angle apart, so that neighbours in number differ most."""
    hue = (label * 0.6180339887 + 0.05) % 1.0
    return colorsys.hsv_to_rgb(hue, (0.9, 0.65, 0.8)[label % 3], (1.0, 0.95, 0.82)[label // 3 % 3])


def label_hex(label: int) -> str:
    """Return the colour of a label as `#rrggbb`."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in label_rgb(label))
