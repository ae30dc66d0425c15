"""Penalty on folds."""

from __future__ import annotations

from torch import Tensor

from popatlas.regularisers.differences import check_field
from popatlas.transforms.jacobian import jacobian_determinant


def folding_penalty(displacement: Tensor, floor: float = 0.0) -> Tensor:
    """Return by how much the map ``x + u(x)`` is folded.

    Parameters
    ----------
    displacement : (B, D, *shape) Tensor
        Voxels of its own grid.
    floor : float
        Jacobian determinant below which a voxel costs something; above 0 it keeps a margin.

    Returns
    -------
    (B,) Tensor
        Mean over the voxels of ``max(floor - det J, 0)``: exactly 0, with zero gradient, for a map without folds.

    Raises
    ------
    ValueError
        When the field is not one, or an axis has a single voxel.
    """
    check_field(displacement, 2)
    return (floor - jacobian_determinant(displacement)).clamp(min=0).flatten(1).mean(1)
