"""Intensities of images as tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def rescaled(image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scale each image of a batch so that its 0.5th and 99.5th percentiles (in its mask) become 0 and 1.

    Where the two are equal, because nearly everything is background, smallest and largest value take their place.
    """
    low, high = [], []
    for row in range(image.shape[0]):
        values = image[row] if mask is None else image[row][mask[row] > 0]
        flat = values.flatten()
        ends = torch.quantile(flat[:: max(1, len(flat) // 200_000)], flat.new_tensor([0.005, 0.995]))  # a sample will do
        if float(ends[1] - ends[0]) <= 1e-6 * float(flat.abs().max()):
            ends = torch.stack([flat.min(), flat.max()])
        low.append(ends[0])
        high.append(ends[1])
    shape = (-1, *[1] * (image.ndim - 1))
    bottom, top = torch.stack(low).reshape(shape), torch.stack(high).reshape(shape)
    scaled: Tensor = (image - bottom) / (top - bottom)
    return scaled
