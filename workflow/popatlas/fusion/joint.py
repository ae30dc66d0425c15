"""Joint label fusion: weighted voting that accounts for correlated errors of similar atlases.

At each voxel of the region around disputed ones (`radius`), each atlas gives the patch that looks most like that of the
target (least mean squared difference, displaced by up to `search` voxels). The weights of the atlases solve
``(M + rho) w = 1``, negative ones are 0, and are normalised to sum to 1; M is the expected joint error of two atlases,
see :func:`popatlas.fusion.kernels_joint.weigh`. Each patch votes for all of its voxels, with the displaced labels.
Background is a label like any other and competes. Unanimous voxels keep their label.

The method and its behaviour at borders are those of ANTs' antsJointFusion (`popatlas.fusion.joint_ants`):

* a patch that leaves the image or is flat counts as free of error; where that of the target is, all weights are equal;
* displaced positions outside of the image have no vote.

Where displacements are equally good, the nearest wins, of equally near ones that with the smallest last coordinate (then the
one before); the order of the reference depends on its sort. A singular system (identical atlases and `rho` 0) gets a small
ridge instead of a singular value decomposition. An axis of one voxel has neither patch nor search.

Memory: a slab takes 14 bytes for each candidate and voxel (image, label, displacement, weight) and 56 for each voxel. Slabs
are cut so that this stays below a budget, as far as a halo of twice `radius` plus `search` on both sides lets them; the
result does not depend on it. There is never a map for each label. The tables of the result come on top: `MOST_OPTIONS`
labels and shares and the labels of all candidates at each disputed voxel.

Wang H, Suh JW, Das SR, Pluta JB, Craige C, Yushkevich PA. Multi-atlas segmentation with joint label fusion.
IEEE TPAMI 2013;35(3):611-623. doi:10.1109/TPAMI.2012.143
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.labels import bounding_box
from popatlas.fusion.result import Fusion
from popatlas.fusion.settings import Ties
from popatlas.fusion.slabs import in_core, slabs
from popatlas.fusion.vote import NO_LABEL, decide, vote
from popatlas.images.arrays import BoolArray, FloatArray, Kind, RealArray

# labels that are kept at a voxel
MOST_OPTIONS = 8
# of a slab: coordinates, number, best match and masks of a voxel; image, label, choice and weight of a candidate
BYTES_PER_VOXEL, BYTES_PER_CANDIDATE = 56, 14
Integers = npt.NDArray[np.int32]
Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tables:
    """Votes at the disputed voxels: options and shares as of `Fusion`, and the sum of the weights at these voxels."""

    options: Integers
    shares: npt.NDArray[np.float32]
    weight: Weights


@dataclass(frozen=True)
class Method:
    """Parameters of the kernels for one image, see :func:`joint_label_fusion`."""

    beta: float
    rho: float
    radius: Integers
    offsets: Integers
    prior: Weights

    @property
    def reach(self) -> int:
        """Voxels from a disputed voxel to what its votes depend on."""
        return int(2 * self.radius.max(initial=0) + np.abs(self.offsets).max(initial=0))


class JointOptions(TypedDict, total=False):
    """Options of `joint_label_fusion` that another method hands on."""

    beta: float
    radius: int
    search: int
    rho: float
    memory_mb: float


def joint_label_fusion(
    candidates: Candidates,
    *,
    beta: float = 4.0,
    radius: int = 2,
    search: int = 1,
    rho: float = 0.1,
    prior: FloatArray | None = None,
    ties: Ties = "nearest",
    memory_mb: float = 800.0,
) -> Fusion:
    """Fuse candidates by joint label fusion.

    Parameters
    ----------
    candidates : Candidates
        Labels and images on the grid of the target, 2D or 3D.
    beta : float
        Exponent that turns intensity differences into error probabilities.
    radius : int
        Patch radius in voxels, at least 1.
    search : int
        Local search radius in voxels; the cost grows with its cube.
    rho : float
        Ridge weight (alpha in the paper) that conditions the joint error matrix.
    prior : (n_candidates,) float ndarray, optional
        Weight of each candidate, not negative: a factor of its weights at voxels. The result is that without the candidates
        of weight 0. Equal when left out.
    ties : {"nearest", "lowest"}
        Rule at ties, see :mod:`popatlas.fusion.vote`.
    memory_mb : float
        Budget for slabs, see the module.

    Returns
    -------
    Fusion
        With the `MOST_OPTIONS` labels of the largest share at each disputed voxel; the atlas weight is the mean weight over
        the disputed voxels.

    Raises
    ------
    InputError
        No images, or parameters without meaning.
    """
    candidates.need_images("joint label fusion")
    _check_parameters(beta, radius, search, rho, candidates.subject)
    prior_weights = _checked_prior(prior, candidates)
    kept = np.flatnonzero(prior_weights)
    some = candidates if len(kept) == len(prior_weights) else candidates.pick(kept.tolist())
    if not some.disputed.any():
        return vote(candidates.labels, candidates.disputed, prior_weights, ties, candidates.spacing)
    shape = _lifted(some.disputed).shape
    method = Method(beta, rho, _along(shape, radius), search_offsets(_along(shape, search)), prior_weights[kept])
    tables = _count(some, method, memory_mb)
    weight = np.zeros(len(prior_weights))
    weight[kept] = tables.weight / tables.weight.sum()
    if some is not candidates:
        tables = _with_unanimous(tables, some, candidates.disputed)
    labels, disputed = candidates.labels, candidates.disputed
    table = np.ascontiguousarray(labels[:, disputed], dtype=np.int32)
    return decide(some.labels[0], disputed, tables.options, tables.shares, weight, table, ties, candidates.spacing)


def _check_parameters(beta: float, radius: int, search: int, rho: float, subject: str | None) -> None:
    for name, value, least in (("beta", beta, 0), ("radius", radius, 1), ("search", search, 0), ("rho", rho, 0)):
        if not least <= value < np.inf:
            raise InputError(
                f"joint label fusion: {name} is {value}", subject=subject, remedy=f"set {name} to at least {least}"
            )


def _checked_prior(prior: FloatArray | None, candidates: Candidates) -> Weights:
    """Return the prior weight of each candidate, (n_candidates,)."""
    count = len(candidates.labels)
    weights = np.ones(count) if prior is None else np.asarray(prior, dtype=np.float64)
    if weights.shape != (count,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise InputError(
            f"the prior of {count} candidates is {weights.tolist()}",
            subject=candidates.subject,
            remedy="give one number for each that is not negative, and one that is not 0",
        )
    return weights


def _lifted(image: npt.NDArray[Kind]) -> npt.NDArray[Kind]:
    """Return a 2D image as a volume of one plane."""
    return image if image.ndim == 3 else image[None]


def _along(shape: tuple[int, ...], radius: int) -> Integers:
    """Return a radius for each axis: 0 along an axis of one voxel."""
    return np.array([radius if n > 1 else 0 for n in shape], dtype=np.int32)


def search_offsets(radius: Integers) -> Integers:
    """Return the displacements of the search, the nearest first, (n, 3); of equally near ones, the first axis runs first."""
    x, y, z = (int(reach) for reach in radius)
    zyx = np.indices((2 * z + 1, 2 * y + 1, 2 * x + 1)).reshape(3, -1).T - (z, y, x)
    offsets = zyx[:, ::-1].astype(np.int32)
    return np.ascontiguousarray(offsets[np.argsort((offsets**2).sum(axis=1), kind="stable")])


def _count(candidates: Candidates, method: Method, memory_mb: float) -> Tables:
    """Return the votes at the disputed voxels, slab by slab."""
    pictures = candidates.need_images("joint label fusion")
    disputed, target = _lifted(candidates.disputed), _lifted(pictures[0])
    images, labels = ([_lifted(one) for one in stack] for stack in (pictures[1], candidates.labels))
    box = bounding_box(disputed, margin=method.reach)
    wanted = disputed[box]
    points = np.argwhere(wanted)
    options = np.full((MOST_OPTIONS, len(points)), NO_LABEL, dtype=np.int32)
    shares, weight = np.zeros(options.shape, dtype=np.float32), np.zeros(len(labels))
    bytes_per_layer = (BYTES_PER_VOXEL + BYTES_PER_CANDIDATE * len(labels)) * wanted.size / max(wanted.shape)
    for slab, core in slabs(wanted.shape, method.reach, int(1e6 * memory_mb / bytes_per_layer)):
        columns = in_core(points, slab, core)
        if len(columns):
            place = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(box, slab, strict=True))
            found = _count_in_slab(
                np.ascontiguousarray(target[place], dtype=np.float32),
                _copied([image[place] for image in images], np.float32),
                _copied([one[place] for one in labels], np.int32),
                (points[columns] - [part.start for part in slab]).astype(np.int32),
                method,
            )
            options[:, columns], shares[:, columns] = found.options, found.shares
            weight += found.weight
    used = max(int((shares > 0).any(axis=1).sum()), 1)
    return Tables(options[:used], shares[:used], weight)


def _copied(parts: list[RealArray], dtype: type[Kind]) -> npt.NDArray[Kind]:
    """Return arrays of one shape as a stack, converted without a copy in their own type."""
    stack = np.empty((len(parts), *parts[0].shape), dtype=dtype)
    for place, part in zip(stack, parts, strict=True):
        place[...] = part
    return stack


def _count_in_slab(
    target: npt.NDArray[np.float32], images: npt.NDArray[np.float32], labels: Integers, voxels: Integers, method: Method
) -> Tables:
    """Return the votes at some voxels (n, 3) of a slab that holds all that they depend on."""
    from popatlas.fusion.kernels_joint import tally, weigh

    near = _near(voxels, target.shape, method.radius)
    centres = np.argwhere(near).astype(np.int32)
    choices = _search(target, images, near, method)
    weights = np.empty(choices.shape, dtype=np.float32)
    weigh(target, images, centres, choices, method.offsets, method.radius, method.beta, method.rho, method.prior, weights)
    numbers = np.full(target.shape, -1, dtype=np.int32)
    numbers[near] = np.arange(len(centres), dtype=np.int32)
    options = np.empty((MOST_OPTIONS, len(voxels)), dtype=np.int32)
    shares = np.empty(options.shape, dtype=np.float32)
    tally(labels, voxels, numbers, choices, weights, method.offsets, method.radius, options, shares)
    return Tables(options, shares, weights[numbers[tuple(voxels.T)]].sum(axis=0, dtype=np.float64))


def _near(voxels: Integers, shape: tuple[int, ...], radius: Integers) -> BoolArray:
    """Return which voxels have one of `voxels` (n, 3) in their patch."""
    from scipy.ndimage import maximum_filter1d

    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(voxels.T)] = 1
    for axis, reach in enumerate(radius):
        mask = maximum_filter1d(mask, 2 * int(reach) + 1, axis=axis, mode="constant")
    return mask.astype(bool)


def _search(
    target: npt.NDArray[np.float32], images: npt.NDArray[np.float32], near: BoolArray, method: Method
) -> npt.NDArray[np.uint16]:
    """Return the best displacement of each atlas at the voxels of `near`, (n_centres, n_atlases)."""
    from popatlas.fusion.kernels_search import row_spans, search

    choices = np.zeros((int(near.sum()), len(images)), dtype=np.uint16)
    if len(method.offsets) == 1:
        return choices
    exact = np.empty((*target.shape[:2], 2), dtype=np.int32)
    wide = np.empty_like(exact)
    row_spans(near, method.radius[0], method.radius[1], exact, wide)
    least, choice = np.empty(target.shape, dtype=np.float32), np.empty(target.shape, dtype=np.uint16)
    for number, image in enumerate(images):
        search(target, image, exact, wide, method.offsets, method.radius, least, choice)
        choices[:, number] = choice[near]
    return choices


def _with_unanimous(tables: Tables, candidates: Candidates, disputed: BoolArray) -> Tables:
    """Add voxels of `disputed` where `candidates`, those that were fused, agree: their label is certain."""
    fused = candidates.disputed[disputed]
    options = np.full((len(tables.options), len(fused)), NO_LABEL, dtype=np.int32)
    shares = np.zeros(options.shape, dtype=np.float32)
    options[0], shares[0] = candidates.labels[0][disputed], 1
    options[:, fused], shares[:, fused] = tables.options, tables.shares
    return Tables(options, shares, tables.weight)
