"""Joint label fusion by the engine of ANTs (antsJointFusion): what our own engine is compared with.

Around the engine:

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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from popatlas.fusion.candidates import Candidates
from popatlas.fusion.labels import bounding_box, to_contiguous
from popatlas.fusion.result import Fusion
from popatlas.fusion.settings import Ties
from popatlas.fusion.slabs import in_core, slabs
from popatlas.fusion.vote import EQUAL_SHARE, NO_LABEL, decide, vote
from popatlas.images.antspy import AntsImage
from popatlas.images.arrays import BoolArray, RealArray

# float32 copies of the probability maps that exist at once: in the engine, read back, and the list of the wrapper
MAP_COPIES = 3
# labels that are kept at a voxel
MOST_OPTIONS = 8


@dataclass(frozen=True)
class Engine:
    """Parameters of antsJointFusion, see :func:`joint_label_fusion_ants`."""

    beta: float
    radius: int
    search: int
    rho: float


def joint_label_fusion_ants(
    candidates: Candidates,
    *,
    beta: float = 4.0,
    radius: int = 2,
    search: int = 1,
    rho: float = 0.1,
    ties: Ties = "nearest",
    memory_mb: float = 800.0,
) -> Fusion:
    """Fuse candidates by ANTs' joint label fusion.

    Parameters
    ----------
    candidates : Candidates
        Labels and images on the grid of the target, 2D or 3D.
    beta : float
        Exponent that turns intensity differences into error probabilities.
    radius : int
        Patch radius in voxels.
    search : int
        Local search radius in voxels; the cost grows with its cube.
    rho : float
        Ridge weight (alpha in the paper) that conditions the joint error matrix.
    ties : {"nearest", "lowest"}
        Rule at ties, see :mod:`popatlas.fusion.vote`.
    memory_mb : float
        Budget for label probability maps.

    Returns
    -------
    Fusion
        With the `MOST_OPTIONS` most probable labels of each disputed voxel. The engine does not tell its weights: the
        atlas weight is the same for all candidates.
    """
    target, images = candidates.need_images("joint label fusion")
    labels, disputed = candidates.labels, candidates.disputed
    if not disputed.any():
        return vote(labels, disputed, ties=ties, spacing=candidates.spacing)
    engine = Engine(beta, radius, search, rho)
    reach = 2 * radius + search
    box = bounding_box(disputed, margin=reach)
    values, numbers = to_contiguous(labels[(slice(None), *box)])
    wanted = disputed[box]
    points = np.argwhere(wanted)
    options = np.full((MOST_OPTIONS, len(points)), NO_LABEL, dtype=np.int32)
    shares = np.zeros(options.shape, dtype=np.float32)
    for slab, core in slabs(wanted.shape, reach, _layers(wanted.shape, len(values), memory_mb)):
        columns = in_core(points, slab, core)
        if len(columns):
            inner = np.zeros(wanted[slab].shape, dtype=bool)
            inner[core] = wanted[slab][core]
            stack = (slice(None), *slab)
            maps = _run(target[box][slab], images[(slice(None), *box)][stack], numbers[stack], inner, engine)
            found, shares[:, columns] = most_probable(maps, len(columns))
            options[:, columns] = np.where(found != NO_LABEL, values[found], NO_LABEL)
    table = np.ascontiguousarray(labels[:, disputed], dtype=np.int32)
    atlas_weights = np.full(len(labels), 1 / len(labels))
    return decide(labels[0], disputed, options, shares, atlas_weights, table, ties, candidates.spacing)


def _layers(shape: tuple[int, ...], n_labels: int, memory_mb: float) -> int:
    """Return how many layers along the longest axis the engine may get."""
    return int(memory_mb / (4e-6 * MAP_COPIES * n_labels * float(np.prod(shape)) / max(shape)))


def most_probable(
    maps: Iterator[tuple[int, npt.NDArray[np.float32]]], count: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Keep the largest of many probabilities, one map after the other.

    Parameters
    ----------
    maps : iterator of (label, (count,) float32 ndarray)
        Probability of a label at each voxel.
    count : int
        Voxels.

    Returns
    -------
    options : (MOST_OPTIONS, count) int32 ndarray
        Labels by falling probability, the smaller label first at equal ones; `NO_LABEL` after the last.
    shares : (MOST_OPTIONS, count) float32 ndarray
    """
    options = np.full((MOST_OPTIONS, count), NO_LABEL, dtype=np.int32)
    shares = np.zeros(options.shape, dtype=np.float32)
    for label, probability in maps:
        last = shares.argmin(axis=0)
        better = np.flatnonzero(probability > shares[last, np.arange(count)])
        shares[last[better], better], options[last[better], better] = probability[better], label
    order = np.lexsort((np.where(shares > 0, options, np.iinfo(np.int32).max), -np.round(shares / EQUAL_SHARE)), axis=0)
    return np.take_along_axis(options, order, axis=0), np.take_along_axis(shares, order, axis=0)


def _run(
    target: RealArray, images: RealArray, numbers: npt.NDArray[np.uint16], wanted: BoolArray, engine: Engine
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield each label number and its probability at the voxels of `wanted`, in array order."""
    import ants
    from scipy.ndimage import binary_dilation

    structure = np.ones((2 * engine.radius + 1,) * wanted.ndim, dtype=bool)
    mask = binary_dilation(wanted, structure=structure)
    # numbers start at 1 for the engine: background has to be an ordinary label to compete
    present, local = np.unique(numbers, return_inverse=True)
    local = local.reshape(numbers.shape) + 1
    with tempfile.TemporaryDirectory(prefix="popatlas-jlf-") as folder:
        outcome = ants.joint_label_fusion(
            _image(target),
            _image(mask),
            [_image(one) for one in images],
            label_list=[_image(one) for one in local],
            beta=engine.beta,
            rad=[engine.radius] * wanted.ndim,
            rho=engine.rho,
            r_search=engine.search,
            output_prefix=str(Path(folder) / "jlf"),
        )
    for number, probability in zip(outcome["segmentation_numbers"], outcome["probabilityimages"], strict=True):
        if 1 <= number <= len(present):
            yield int(present[number - 1]), probability.numpy()[wanted]


def _image(data: RealArray) -> AntsImage:
    """Return an array as ANTs image on a unit grid: the engine works in voxels."""
    import ants

    image: AntsImage = ants.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
    return image
