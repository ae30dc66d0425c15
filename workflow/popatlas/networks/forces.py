"""Forces of image similarity for a network to see and to follow, as in networks that learn a gradient descent.

A network that is given the derivative of the similarity by the field need not learn it from examples: it learns where to
trust it, and what to do instead where it cannot (Qiu et al. 2022, arXiv:2112.03915; Zhang et al. 2024, arXiv:2406.13413).
The derivative is that of Avants et al. 2008, doi:10.1016/j.media.2007.06.004. No gradients flow through a force.
"""

from __future__ import annotations

import torch
from torch import Tensor

from popatlas.images.precision import full_precision
from popatlas.similarity.lncc import LNCC, lncc_value_and_force
from popatlas.transforms.fieldops import CompiledOps, TensorOps, gradient, ops_for

WINDOW, FLOOR = 2, 1e-3  # radius in voxels and floor of the variances of the local correlation, images in [0, 1]
SIGMA = 0.7  # voxels that a force is smoothed by
SOFTNESS = 2.0  # means of the length of a force: one this long is halved


@torch.no_grad()
def image_force(fixed: Tensor, warped: Tensor) -> Tensor:
    """Return where to move the points of the fixed image for a higher local correlation, as much for each image.

    Parameters
    ----------
    fixed, warped : (B, 1, *shape) Tensor
        Images with intensities in [0, 1], the moving one warped by the field so far.

    Returns
    -------
    (B, D, *shape) Tensor
        Smoothed and `tempered`, without unit.
    """
    images = fixed.float().contiguous(), warped.float().contiguous()
    ops = _ops(*images)
    if isinstance(ops, CompiledOps):
        _, force = ops.force(LNCC(WINDOW, squared=True, floor=FLOOR), *images, None, 1, True)
    else:
        force = _push(*images) - _push(*reversed(images))
    return _smooth(force, ops)


def _push(still: Tensor, moved: Tensor) -> Tensor:
    """Return the force on one image, from the window at each voxel as the compiled kernel does."""
    _, slope = lncc_value_and_force(still, moved, WINDOW, exact=False, squared=True, floor=FLOOR)
    return -slope.unsqueeze(2)[:, 0] * gradient(moved)[:, 0]


@torch.no_grad()
def descriptor_force(fixed: Tensor, warped: Tensor) -> Tensor:
    """Return where to move the points of the fixed image for a smaller squared difference, as much for each image.

    Parameters
    ----------
    fixed, warped : (B, C, *shape) Tensor
        Descriptors, those of the moving image warped by the field so far.

    Returns
    -------
    (B, D, *shape) Tensor
        Smoothed and `tempered`, without unit.
    """
    fixed, warped = fixed.float(), warped.float()
    slopes = gradient(fixed + warped)
    force = ((fixed - warped).unsqueeze(2) * slopes).sum(1).contiguous()
    return _smooth(force, _ops(force))


def _smooth(force: Tensor, ops: TensorOps) -> Tensor:
    with full_precision(force):  # forces are small: float16 has no room for them
        return tempered(ops.smooth(force, SIGMA))


def tempered(force: Tensor) -> Tensor:
    """Return a force (B, D, *shape) whose longest vectors have a length just below 1, and the mean one is a third.

    So the force of a pair far apart is like that of a close one, and a few large vectors do not hide the others.
    """
    length = force.square().sum(1, keepdim=True).sqrt()
    mean = length.flatten(1).mean(1).clamp(min=torch.finfo(force.dtype).tiny)
    return force / (length + SOFTNESS * mean.reshape(-1, *[1] * (force.ndim - 1)))


def _ops(*images: Tensor) -> TensorOps:
    return ops_for(images, torch.get_num_threads())
