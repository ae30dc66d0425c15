"""Brains as the registration engines take them."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.dataset import LPS
from benchmarks.starts.brains import Brain
from popatlas.images.grid import Grid
from popatlas.images.scan import Scan


def scan_of(brain: Brain) -> Scan:
    """Return a brain as a scan with mask."""
    image, mask = (
        torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))[None, None] for part in (brain.image, brain.mask > 0)
    )
    return Scan(image, Grid(brain.image.shape, LPS @ brain.affine), mask)
