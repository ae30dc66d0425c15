"""Is this the right pose? The agreement of edges after an affine, compared with that of the same affine turned otherwise.

Edges are directions of the gradient without their sign, so that the contrast of the images does not matter: the agreement is
the mean squared cosine between those of the two images, 1 at best and about 1/D by chance. Its size depends on noise,
voxels and contrast; how far it stands above the agreements of the 23 other ways in which axes can be swapped and turned does
not. On brains, heads and crops it stood 7 to 20 standard deviations above them in the right pose, at most 5 in a wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import polar
from scipy.spatial.transform import Rotation
from torch import Tensor

from popatlas.images.intensity import rescaled
from popatlas.images.pyramid import coarsen
from popatlas.images.scan import Scan
from popatlas.measures.correlation import pearson
from popatlas.registration.global_search.csngf import mask_extent
from popatlas.registration.global_search.fft import erode
from popatlas.registration.global_search.rotations import Array, cube_rotations
from popatlas.registration.pair import Pair
from popatlas.transforms.affine import Matrix
from popatlas.transforms.fields import sample
from popatlas.transforms.linear import voxel_matrix

SIDE = 45  # voxels of the small copies along the longest side of the brains: 4 mm for an adult
SHARP = 0.01  # edge strength that begins to count, per voxel of the small copies, for intensities scaled to 0..1
CLEAR = 6.0  # standard deviations at which a pose is taken without looking at others
FEWEST = 64  # voxels of the overlap that an agreement is worth anything with
BINS = 24  # of the joint histogram
AXES = ("left-right", "front-back", "head-foot")
OBLIQUE = 0.9  # largest part of an axis along one of the body's, below which it is oblique


@dataclass(frozen=True)
class Pose:
    """What is known of an affine.

    Attributes
    ----------
    edges : float
        Agreement of the edges, 0 to 1.
    distinct : float
        Standard deviations by which it exceeds those of the turned affines; NaN in 2D, where there are too few.
    turned : (D+1, D+1) ndarray
        The best one of the turned affines.
    """

    edges: float
    distinct: float
    turned: Matrix

    @property
    def clear(self) -> bool:
        """Whether it is right beyond doubt, or cannot be known (2D)."""
        return not self.distinct < CLEAR

    def __str__(self) -> str:
        return f"edges agree by {self.edges:.2f}, {self.distinct:.1f} standard deviations above turned ones"


@dataclass(frozen=True)
class Relation:
    """How the intensities of two images go together.

    Attributes
    ----------
    nmi : float
        Normalised mutual information, 1 (nothing in common) to 2.
    contrast : float
        Correlation over the one that Gaussian intensities with this mutual information would have: about 1 for images of
        one contrast, near 0 or negative for others.
    """

    nmi: float
    contrast: float


class Structure:
    """A small copy of a scan, and its edges in world space.

    Parameters
    ----------
    scan : Scan
        Image with mask.
    spacing : float
        Voxels of the copy, mm; see `common_spacing`.
    """

    def __init__(self, scan: Scan, spacing: float) -> None:
        self.spacing = spacing
        small = coarsen(scan, spacing, spacing)
        self.grid = small.grid
        self.mask = torch.ones_like(small.image) if small.mask is None else (small.mask > 0).to(small.image)
        self.image = rescaled(small.image, self.mask)
        per_voxel = torch.stack(torch.gradient(self.image[0, 0], dim=tuple(range(scan.ndim))))
        to_world = np.linalg.inv(self.grid.affine[:-1, :-1]).T * spacing
        world = torch.as_tensor(to_world).to(self.image) @ per_voxel.flatten(1)
        self.gradient = world.reshape(per_voxel.shape)
        self.core = erode(self.mask)

    @property
    def centre(self) -> Array:
        """Middle of the mask, LPS mm."""
        middle = (self.mask[0, 0] > 0).nonzero().double().mean(0).cpu().numpy()
        return np.asarray(self.grid.affine[:-1, :-1] @ middle + self.grid.affine[:-1, -1])


def common_spacing(fixed: Scan, moving: Scan) -> float:
    """Return the spacing of small copies of two scans, mm: a share of the larger brain, but no finer than their voxels."""
    largest = max(float(max(mask_extent(scan)[2])) for scan in (fixed, moving))
    return max(largest / SIDE, *fixed.grid.spacing, *moving.grid.spacing)


class PoseJudge:
    """Judges affines between two structures, fixed to moving points in LPS millimetres."""

    def __init__(self, fixed: Structure, moving: Structure) -> None:
        self.fixed, self.moving = fixed, moving
        core = fixed.core[0, 0] > 0
        self.at = core.nonzero().T.to(fixed.image)
        self.directions = _unit(fixed.gradient[:, core])
        self.other = torch.cat([moving.gradient, moving.core[0]])[None]
        self.judged: dict[bytes, Pose] = {}

    def edges(self, matrix: Matrix) -> float:
        """Return the mean squared cosine between edges where both brains are; 0 where they hardly overlap."""
        values = _sampled(self.other, self._moved(matrix, self.at))
        ndim = len(matrix) - 1
        back = torch.as_tensor(matrix[:-1, :-1].T.copy()).to(values)  # gradients turn by the transpose
        agreement = (self.directions * _unit(back @ values[:ndim])).sum(0).square()
        there = (values[ndim] > 0.5).to(agreement)
        return float((agreement * there).sum() / there.sum()) if there.sum() >= FEWEST else 0.0

    def judge(self, matrix: Matrix) -> Pose:
        """Compare an affine with itself after all turns that take axes to axes, about the middle of the fixed brain."""
        key = np.ascontiguousarray(matrix).tobytes()
        if key not in self.judged:
            self.judged[key] = self._judge(matrix)
        return self.judged[key]

    def _judge(self, matrix: Matrix) -> Pose:
        own, ndim = self.edges(matrix), len(matrix) - 1
        turns = [turn for turn in cube_rotations(ndim) if not np.allclose(turn, np.eye(ndim))]
        others = [matrix @ _about(self.fixed.centre, turn) for turn in turns]
        found = np.array([self.edges(other) for other in others])
        spread = float(found.std())
        distinct = (own - float(found.mean())) / spread if ndim == 3 and spread > 0 else float("nan" if ndim == 2 else "inf")
        return Pose(own, distinct if own > 0 else 0.0, others[int(found.argmax())])

    def relation(self, matrix: Matrix) -> Relation:
        """Compare the intensities where both brains are."""
        inside = self.fixed.mask[0, 0] > 0
        moved = self._moved(matrix, inside.nonzero().T.to(self.fixed.image))
        values = _sampled(torch.cat([self.moving.image[0], self.moving.mask[0]])[None], moved)
        there = values[1] > 0.5
        return relation(self.fixed.image[0, 0][inside][there].numpy(), values[0][there].numpy())

    def _moved(self, matrix: Matrix, voxels: Tensor) -> Tensor:
        to_voxel = voxel_matrix(torch.as_tensor(matrix)[None], self.fixed.grid, self.moving.grid)[0].to(voxels)
        return to_voxel[:-1, :-1] @ voxels + to_voxel[:-1, -1:]


def poses_of(pair: Pair) -> PoseJudge:
    """Return the judge of affines between the two brains of a pair, which is made once."""
    if "poses" not in pair.asked:
        fixed, moving = pair.scans()
        spacing = common_spacing(fixed, moving)
        pair.asked["poses"] = PoseJudge(Structure(fixed, spacing), Structure(moving, spacing))
    found: PoseJudge = pair.asked["poses"]
    return found


def relation(first: Array, second: Array) -> Relation:
    """Return how two lists of intensities go together; nothing in common when there are few, or one is constant."""
    if first.size < FEWEST or np.ptp(first) == 0 or np.ptp(second) == 0:
        return Relation(1.0, 0.0)
    joint = np.histogram2d(first, second, bins=BINS)[0]
    count, cells = joint.sum(), [joint.ravel(), joint.sum(0), joint.sum(1)]
    # each cell that is filled adds half a nat over the count to what a finite sample lacks of entropy (Miller and Madow)
    both, one, other = (_entropy(cell / count) + (np.count_nonzero(cell) - 1) / (2 * count) for cell in cells)
    implied = np.sqrt(-np.expm1(-2 * max(one + other - both, 1e-6)))
    return Relation(float((one + other) / both), float(pearson(first, second) / implied))


def _entropy(shares: Array) -> float:
    filled = shares[shares > 0]
    return float(-(filled * np.log(filled)).sum())


def coverage(fixed: Scan, moving: Scan, matrix: Matrix) -> float:
    """Return the share of the fixed brain that the field of view of the moving image holds after an affine."""
    inside = torch.ones_like(fixed.image[0, 0]) > 0 if fixed.mask is None else fixed.mask[0, 0] > 0
    to_voxel = voxel_matrix(torch.as_tensor(matrix)[None], fixed.grid, moving.grid)[0].to(fixed.image)
    at = to_voxel[:-1, :-1] @ inside.nonzero().T.to(fixed.image) + to_voxel[:-1, -1:]
    last = torch.tensor(moving.grid.shape, device=at.device)[:, None] - 1
    return float(((at >= -0.5) & (at <= last + 0.5)).all(0).float().mean())


def turn_of(matrix: Matrix) -> tuple[float, str]:
    """Return by how many degrees an affine turns, and about which axis, in words; of one that mirrors, what is left."""
    rotation = polar(matrix[:-1, :-1])[0]
    if np.linalg.det(rotation) < 0:
        rotation = rotation @ np.diag([-1.0, *[1.0] * (len(rotation) - 1)])
    if len(rotation) == 2:
        return float(abs(np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0])))), "the"
    vector = Rotation.from_matrix(rotation).as_rotvec(degrees=True)
    angle = float(np.linalg.norm(vector))
    parts = np.abs(vector) / max(angle, 1e-9)
    return angle, f"the {AXES[int(parts.argmax())]}" if parts.max() > OBLIQUE else "an oblique"


def _unit(vectors: Tensor) -> Tensor:
    return vectors / (vectors.square().sum(0, keepdim=True) + SHARP**2).sqrt()


def _sampled(image: Tensor, at: Tensor) -> Tensor:
    """Read (C, N) values of an image (1, C, *shape) at points (D, N)."""
    return sample(image, at[None])[0]


def _about(centre: Array, turn: Array) -> Matrix:
    matrix = np.eye(len(turn) + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = turn, centre - turn @ centre
    return matrix
