"""Bending energy of a thin plate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from popatlas.regularisers.differences import check_field, mean_square, physical, step


def bending(displacement: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Return the bending energy: all squared second derivatives, mixed ones included.

    Rueckert et al., IEEE Transactions on Medical Imaging 1999;18:712-721, doi:10.1109/42.796284. Affine displacements cost
    nothing. Mixed derivatives are taken on the corners of the cells, so that no oscillation is invisible to them.

    Parameters
    ----------
    displacement : (B, D, *shape) Tensor
        Voxels of its own grid.
    spacing : sequence of float, optional
        Voxel sizes; derivatives are then physical, in 1/mm for mm.

    Returns
    -------
    (B,) Tensor
        Sum over components of ``u_xx**2 + u_yy**2 + u_zz**2 + 2 (u_xy**2 + u_xz**2 + u_yz**2)``, averaged over the voxels.

    Raises
    ------
    ValueError
        When the field is not one, or an axis has fewer than three voxels.
    """
    ndim = check_field(displacement, 3)
    field, sizes = physical(displacement, spacing)
    slopes = [step(field, axis) / sizes[axis] for axis in range(ndim)]
    terms = [
        (1 if i == j else 2) * mean_square(step(slopes[i], j) / sizes[j])
        for i, j in combinations_with_replacement(range(ndim), 2)
    ]
    return torch.stack(terms).sum(0)
