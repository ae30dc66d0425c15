"""Slabs of a volume with a halo: a result that needs neighbours is computed in pieces and does not depend on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from popatlas.fusion.labels import Box
from popatlas.images.arrays import IntArray


def slabs(shape: Sequence[int], halo: int, layers: int) -> Iterator[tuple[Box, Box]]:
    """Yield slabs along the longest axis.

    Parameters
    ----------
    shape : sequence of int
        Shape of the volume.
    halo : int
        Voxels that a slab has beyond its core on both sides, where the volume has them.
    layers : int
        Layers that a slab may have, halo included; a core has one layer at least.

    Yields
    ------
    slab : tuple of slice
        Part of the volume, with the halo.
    core : tuple of slice
        The part that this slab answers for, relative to the slab. The cores cover the volume once.
    """
    axis = max(range(len(shape)), key=lambda number: shape[number])
    depth = shape[axis] if layers >= shape[axis] else max(layers - 2 * halo, 1)
    for start in range(0, shape[axis], max(depth, 1)):
        stop = min(start + depth, shape[axis])
        low, high = max(start - halo, 0), min(stop + halo, shape[axis])
        slab, core = [slice(0, n) for n in shape], [slice(0, n) for n in shape]
        slab[axis], core[axis] = slice(low, high), slice(start - low, stop - low)
        yield tuple(slab), tuple(core)


def in_core(points: IntArray, slab: Box, core: Box) -> npt.NDArray[np.intp]:
    """Return which points (n, ndim) of the volume the slab answers for, as indices."""
    low = [outer.start + inner.start for outer, inner in zip(slab, core, strict=True)]
    high = [outer.start + inner.stop for outer, inner in zip(slab, core, strict=True)]
    return np.flatnonzero(((points >= low) & (points < high)).all(axis=1))
