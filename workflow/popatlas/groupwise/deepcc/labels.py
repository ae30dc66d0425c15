"""Softened labels: probabilities that fall with the distance from the border of a class."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CLIP = 50.0  # of the exponent


def softened(labels: Tensor, classes: int, slope: float) -> Tensor:
    """Return label maps as probabilities, ``softmax_k(slope * D_k)`` with the signed distance ``D_k``, positive inside.

    Parameters
    ----------
    labels : (*shape) Tensor of integers
        Classes from 0; none above `classes` - 1.
    classes : int
        Their number K.
    slope : float
        Per voxel.

    Returns
    -------
    (K, *shape) Tensor
        Sums to 1. A class that is nowhere is as far as the image is large.
    """
    from scipy.ndimage import distance_transform_edt

    values = labels.numpy()
    far = float(np.linalg.norm(values.shape))
    signed = np.empty((classes, *values.shape), np.float32)
    for k in range(classes):
        inside = values == k
        if inside.all() or not inside.any():
            signed[k] = far if inside.all() else -far
        else:  # half a voxel lies between the border and the voxels on its sides
            within, without = (np.asarray(distance_transform_edt(where), np.float32) for where in (inside, ~inside))
            signed[k] = np.where(inside, within - 0.5, 0.5 - without)
    return torch.softmax(torch.from_numpy(slope * signed).clamp(-CLIP, CLIP), 0)
