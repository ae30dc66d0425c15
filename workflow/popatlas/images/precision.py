"""Full precision inside of mixed precision: for sums whose small differences matter."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a block in which automatic mixed precision is off for the device of a tensor.

    Parameters
    ----------
    tensor : Tensor
        On any device. The meta device, on which memory is counted without data, knows no mixed precision.

    Returns
    -------
    context manager
    """
    if tensor.device.type == "meta":
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
