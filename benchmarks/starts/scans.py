"""Brains as the registration engines take them."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.starts.brains import Brain
from popatlas.images.grid import Grid
from popatlas.images.scan import Scan

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def scan_of(brain: Brain) -> Scan:
    """Return a brain as a scan with mask."""
    image, mask = (
        torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))[None, None] for part in (brain.image, brain.mask > 0)
    )
    return Scan(image, Grid(brain.image.shape, TO_LPS @ brain.affine), mask)
