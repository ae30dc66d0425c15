"""Joint label fusion: weighted voting that accounts for correlated errors of similar atlases.

The engine is ANTs' antsJointFusion. Around it:

* background is a label like any other and competes;
* where all atlases agree the consensus is copied; the engine runs only where a disputed voxel needs it (its votes
  come from patches centred within `radius`, so the mask is the disputed region dilated by `radius`: exact, not an
  approximation), inside the bounding box of that region;
* labels are contiguous for the engine and restored after;
* large images are cut into slabs with a halo that covers patch and search, so that the label probability maps
  (n_labels x voxels) stay below a memory budget;
* the engine's temporary files live in a folder that is removed.

Wang H, Suh JW, Das SR, Pluta JB, Craige C, Yushkevich PA. Multi-atlas segmentation with joint label fusion.
IEEE TPAMI 2013;35(3):611-623. doi:10.1109/TPAMI.2012.143
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.fusion.labels import BoolArray, Box, IntArray, bounding_box, check_stack, disputed_mask, to_contiguous

FloatArray = npt.NDArray[np.floating[Any]]
# float32 copies of the probability maps that exist at once: in the engine, read back, and stacked for the maximum
MAP_COPIES = 3


def joint_label_fusion(
    target: FloatArray,
    images: FloatArray,
    labels: IntArray,
    beta: float = 4.0,
    radius: int = 2,
    search: int = 1,
    rho: float = 0.1,
    memory_mb: float = 800.0,
) -> npt.NDArray[np.int32]:
    """Fuse a stack of label images by joint label fusion.

    Parameters
    ----------
    target : (x, y, z) float ndarray
        Image to label, intensities comparable with `images`.
    images : (n_atlases, x, y, z) float ndarray
        Atlas images on the target grid.
    labels : (n_atlases, x, y, z) int ndarray
        Atlas labels on the target grid.
    beta : float
        Exponent that turns intensity differences into error probabilities.
    radius : int
        Patch radius in voxels.
    search : int
        Local search radius in voxels; the cost grows with its cube.
    rho : float
        Ridge weight (alpha in the paper) that conditions the joint error matrix.
    memory_mb : float
        Budget for label probability maps.

    Returns
    -------
    (x, y, z) int32 ndarray
        Fused labels; only values that some atlas has. One atlas is returned as it is.

    Raises
    ------
    InputError
        No atlas, or shapes that differ.
    """
    check_stack(labels)
    if images.shape != labels.shape or target.shape != labels.shape[1:]:
        raise InputError(
            f"joint label fusion: shapes differ: target {target.shape}, images {images.shape}, labels {labels.shape}",
            remedy="propagate the atlases again onto the grid of the target",
        )
    fused: npt.NDArray[np.int32] = labels[0].astype(np.int32)
    disputed = disputed_mask(labels)
    if not disputed.any():
        return fused
    reach = 2 * radius + search
    box = bounding_box(disputed, margin=reach)
    values, indices = to_contiguous(labels[(slice(None), *box)])
    wanted = disputed[box]
    result = fused[box]  # a view: what is written to it is in `fused`
    target, images = target[box], images[(slice(None), *box)]
    for slab, core in _slabs(wanted.shape, len(values), reach, memory_mb):
        inner = np.zeros(wanted[slab].shape, dtype=bool)
        inner[core] = wanted[slab][core]
        if inner.any():
            stack = (slice(None), *slab)
            found = _run(target[slab], images[stack], indices[stack], inner, beta, radius, search, rho)
            result[slab][inner] = values[found]
    return fused


def _slabs(shape: tuple[int, ...], n_labels: int, halo: int, memory_mb: float) -> Iterator[tuple[Box, Box]]:
    """Yield (slab with halo, its core relative to the slab) along the longest axis, within the memory budget."""
    axis = int(np.argmax(shape))
    layer_mb = 4e-6 * MAP_COPIES * n_labels * float(np.prod(shape)) / shape[axis]
    depth = max(int(memory_mb / layer_mb) - 2 * halo, halo)
    for start in range(0, shape[axis], depth):
        stop = min(start + depth, shape[axis])
        low, high = max(start - halo, 0), min(stop + halo, shape[axis])
        slab, core = [slice(None)] * len(shape), [slice(None)] * len(shape)
        slab[axis], core[axis] = slice(low, high), slice(start - low, stop - low)
        yield tuple(slab), tuple(core)


def _run(
    target: FloatArray,
    images: FloatArray,
    indices: npt.NDArray[np.uint16],
    wanted: BoolArray,
    beta: float,
    radius: int,
    search: int,
    rho: float,
) -> npt.NDArray[np.intp]:
    """Return the winning label number at the voxels of `wanted`, in array order."""
    import ants
    from scipy.ndimage import binary_dilation

    structure = np.ones((2 * radius + 1,) * wanted.ndim, dtype=bool)
    mask = binary_dilation(wanted, structure=structure)
    # numbers start at 1 for the engine: background has to be an ordinary label to compete
    present, local = np.unique(indices, return_inverse=True)
    local = local.reshape(indices.shape) + 1
    with tempfile.TemporaryDirectory(prefix="popatlas-jlf-") as folder:
        outcome = ants.joint_label_fusion(
            _image(target),
            _image(mask),
            [_image(one) for one in images],
            label_list=[_image(one) for one in local],
            beta=beta,
            rad=[radius] * wanted.ndim,
            rho=rho,
            r_search=search,
            output_prefix=str(Path(folder) / "jlf"),
        )
        maps, numbers = outcome["probabilityimages"], outcome["segmentation_numbers"]
        best = np.full(int(wanted.sum()), -1.0, dtype=np.float32)
        winner = np.zeros(best.shape, dtype=np.intp)
        for number, probability in zip(numbers, maps, strict=True):
            if 1 <= number <= len(present):
                share = probability.numpy()[wanted]
                better = share > best
                best[better], winner[better] = share[better], present[number - 1]
    return winner


def _image(data: npt.NDArray[Any]) -> Any:
    """Return an array as ANTs image on a unit grid: the engine works in voxels."""
    import ants

    return ants.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
