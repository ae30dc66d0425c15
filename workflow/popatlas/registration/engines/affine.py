"""Rigid, similarity and affine registration, coarse to fine, on any similarity.

The loss is computed on seeded random samples of the fixed image (single points, or small blocks for similarities that
look at neighbourhoods), so that its cost does not grow with the image; the moving image is interpolated once, in its own
grid. Sample points lie between voxels: on a lattice, mutual information prefers transforms that keep voxels on voxels.

The parameters are increments about the middle of the samples, whitened so that a step of length 1 moves the sample points by
1 mm (root mean square): translation, rotation and shear then need no weights, and BFGS starts well scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from popatlas.images.pyramid import coarsen, filled
from popatlas.images.scan import Scan, check_scans
from popatlas.registration.initialisation import centre_of_mass
from popatlas.similarity.base import Similarity
from popatlas.similarity.mi import NMI, MattesMI
from popatlas.similarity.ncc import NCC
from popatlas.similarity.ssd import SSD
from popatlas.transforms.affine import Matrix
from popatlas.transforms.fields import sample
from popatlas.transforms.linear import identity_parameters, matrix, move, voxel_matrix

Array = npt.NDArray[np.float64]

POINTWISE = (MattesMI, NMI, NCC, SSD)  # these look at no neighbourhood, so single points will do
ARMIJO = 1e-4  # share of the expected decrease that a step must give
HALVINGS = 12
LONGEST = 4.0  # voxels that one step may move the points
STALE = 0.5  # voxels that the points may move before the samples that count are chosen again
TINY = 1e-30


@dataclass(frozen=True)
class AffineSettings:
    """What the engine does.

    Attributes
    ----------
    similarity : Similarity
        At the last level; LNCC wants intensities of 0 to 1.
    coarse : Similarity or None
        At the other levels; None: the same one. Mattes mutual information is cheap and sees any contrast.
    sides : tuple of int
        Voxels along the longest side of the fixed image at each level; levels that are finer than the image are its own
        grid.
    samples : int
        Voxels of the fixed image that the loss is computed on, at most, at each level.
    block : int
        Side in voxels of the blocks that they form for similarities with a neighbourhood (LNCC).
    iterations : int
        Most iterations of each stage at each level.
    tolerance : float
        A stage ends when steps move the points by less than this, in voxels of the level (root mean square).
    overlap : float
        Least share of the samples that must fall into the moving image.
    seed : int
        Of the samples.
    """

    similarity: Similarity = field(default_factory=lambda: NMI(bins=64, order=3))
    coarse: Similarity | None = field(default_factory=MattesMI)
    sides: tuple[int, ...] = (32, 64, 128)
    samples: int = 100_000
    block: int = 5
    iterations: int = 50
    tolerance: float = 0.01
    overlap: float = 0.25
    seed: int = 0


@dataclass(frozen=True)
class Stage:
    """What one stage at one level did."""

    kind: str
    spacing: float
    iterations: int
    losses: tuple[float, ...]
    converged: bool


@dataclass(frozen=True)
class AffineResult:
    """Outcome of a linear registration.

    Attributes
    ----------
    matrix : (D+1, D+1) ndarray
        Fixed to moving, LPS millimetres.
    loss : float
        At the last level; infinite when the start left too little overlap.
    history : tuple of Stage
        Every stage at every level.
    converged : bool
        The last stage ended because its steps became small.
    """

    matrix: Matrix
    loss: float
    history: tuple[Stage, ...]
    converged: bool


def register(
    fixed: Scan,
    moving: Scan,
    kinds: Sequence[str] = ("rigid", "similarity", "affine"),
    initial: Matrix | None = None,
    settings: AffineSettings | None = None,
    subject: str | None = None,
) -> AffineResult:
    """Register two images linearly.

    Parameters
    ----------
    fixed, moving : Scan
        Images of 2 or 3 axes; samples outside of either mask do not count.
    kinds : sequence of str
        Transforms (`transforms.linear.KINDS`), simple to general: all of them at the coarsest level, the last one at the
        others.
    initial : (D+1, D+1) ndarray, optional
        Fixed to moving, LPS millimetres; default: `initialisation.centre_of_mass`.
    settings : AffineSettings, optional
        Default: mutual information.
    subject : str, optional
        Named in errors.

    Returns
    -------
    AffineResult
        The same for the same input. An optimisation that fails keeps its best matrix and is not `converged`.

    Raises
    ------
    InputError
        From `check_pair`.
    """
    check_scans(fixed, moving, subject)
    plan = settings or AffineSettings()
    current = centre_of_mass(fixed, moving) if initial is None else np.asarray(initial, dtype=np.float64)
    history: list[Stage] = []
    loss = float("inf")
    levels = _levels(filled(fixed), filled(moving), plan.sides)
    for number, (small, other) in enumerate(levels):
        similarity = plan.similarity if number == len(levels) - 1 else plan.coarse or plan.similarity
        for kind in kinds if number == 0 else kinds[-1:]:
            stage_plan = replace(plan, similarity=similarity, seed=plan.seed + len(history))
            problem = _Problem(small, other, kind, current, stage_plan)
            current, stage = _descend(problem, plan)
            loss = stage.losses[-1]
            history.append(stage)
    return AffineResult(current, loss, tuple(history), history[-1].converged)


def _levels(fixed: Scan, moving: Scan, sides: Sequence[int]) -> list[tuple[Scan, Scan]]:
    """Return smoothed copies from coarse to fine, without repeats of the finest."""
    extent = max((count - 1) * step for count, step in zip(fixed.grid.shape, fixed.grid.spacing, strict=True))
    levels: list[tuple[Scan, Scan]] = []
    for side in sides:
        spacing = extent / (side - 1)
        pair = coarsen(fixed, spacing), coarsen(moving, spacing)
        if not levels or pair[0].grid.shape != levels[-1][0].grid.shape:
            levels.append(pair)
    return levels


class _Problem:
    """The loss of one stage as a function of whitened parameters."""

    def __init__(self, fixed: Scan, moving: Scan, kind: str, start: Matrix, plan: AffineSettings) -> None:
        self.fixed, self.moving, self.kind, self.plan = fixed, moving, kind, plan
        self.spacing = float(min(fixed.grid.spacing))
        self.points, self.block = _sample_points(fixed, plan)
        self.values = sample(fixed.image, self.points)
        self.inside = torch.ones_like(self.values)
        self.start = torch.as_tensor(start, dtype=torch.float64, device=self.points.device)[None]
        to_world = torch.tensor(fixed.grid.affine, dtype=torch.float64, device=self.points.device)[None]
        world = move(to_world, self.points.double())[0]
        self.centre = world.mean(1)
        self.whitening = _whitening(kind, world, self.centre)

    def matrix_at(self, step: Tensor) -> Tensor:
        """Return the matrix (1, D+1, D+1) of whitened parameters (P,): the increment first, then the start."""
        return self.start @ matrix((self.whitening @ step)[None], self.kind, self.centre)

    def matching(self, step: Array) -> bool:
        """Choose the samples that count from where the moving image lies now; tell whether they are enough."""
        at = self._moved(torch.as_tensor(step, device=self.points.device))
        last = torch.tensor(self.moving.grid.shape, device=at.device)[:, None] - 1
        inside = ((at >= 0) & (at <= last)).all(1, keepdim=True).to(at)
        for mask, points in ((self.fixed.mask, self.points), (self.moving.mask, at)):
            if mask is not None:
                inside = inside * sample((mask > 0).to(at), points, mode="nearest")
        self.inside = inside
        return float(inside.mean()) >= self.plan.overlap

    def __call__(self, step: Array) -> tuple[float, Array]:
        """Return loss and gradient over the samples last chosen by `matching`."""
        variable = torch.tensor(step, device=self.points.device, requires_grad=True)
        loss = self._mean(sample(self.moving.image, self._moved(variable)))
        (gradient,) = torch.autograd.grad(loss, variable)
        return float(loss.detach()), gradient.cpu().numpy()

    def _moved(self, step: Tensor) -> Tensor:
        to_voxel = voxel_matrix(self.matrix_at(step), self.fixed.grid, self.moving.grid)
        return move(to_voxel.to(self.points), self.points)

    def _mean(self, moved: Tensor) -> Tensor:
        """Average the similarity over the blocks, each counting with its share of valid samples."""
        fixed, moved, inside = (values.reshape(-1, 1, *self.block) for values in (self.values, moved, self.inside))
        share = inside.flatten(1).mean(1)
        used = share > 0
        losses = self.plan.similarity(fixed[used], moved[used], inside[used])
        return (losses * share[used]).sum() / share[used].sum()


def _sample_points(fixed: Scan, plan: AffineSettings) -> tuple[Tensor, tuple[int, ...]]:
    """Return sample points (1, D, N) in voxels of the fixed grid, and the shape of the blocks that they come in.

    Single points make one block of shape (N, 1[, 1]); the blocks of the other similarities are cubes of voxels.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    shape = torch.tensor(fixed.grid.shape)
    pointwise = isinstance(plan.similarity, POINTWISE)
    block = tuple(1 if pointwise else min(plan.block, count) for count in fixed.grid.shape)
    offsets = torch.stack(torch.meshgrid(*(torch.arange(side) - (side - 1) / 2 for side in block), indexing="ij")).flatten(1)
    allowed = torch.ones(fixed.grid.shape) if fixed.mask is None else fixed.mask[0, 0].cpu()
    voxels = (allowed > 0).nonzero()
    count = min(len(voxels), max(1, plan.samples // offsets.shape[1]))
    chosen = voxels[torch.randperm(len(voxels), generator=generator)[:count]].T.float()
    chosen = chosen + torch.rand(chosen.shape, generator=generator) - 0.5
    reach = offsets.amax(1, keepdim=True)
    chosen = torch.minimum(torch.maximum(chosen, reach), shape[:, None] - 1 - reach)
    points = (chosen[:, :, None] + offsets[:, None, :]).flatten(1)[None].to(fixed.image)
    return points, (count, *block[1:]) if pointwise else block


def _whitening(kind: str, world: Tensor, centre: Tensor) -> Tensor:
    """Return W (P, P): parameters W q move the points (D, N) by |q| mm (root mean square), for small q."""
    ndim = len(centre)
    start = identity_parameters(kind, ndim).double().to(world)[0]

    def upper(values: Tensor) -> Tensor:
        return matrix(values[None], kind, centre)[0, :ndim]

    slopes: Tensor = torch.autograd.functional.jacobian(upper, start)  # type: ignore[no-untyped-call]
    homogeneous = torch.cat([world, torch.ones_like(world[:1])])
    second = homogeneous @ homogeneous.T / world.shape[1]
    gram = torch.einsum("dip,ij,djq->pq", slopes, second, slopes)
    # a mask in a plane leaves some parameters without effect
    gram = gram + 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverse: Tensor = torch.linalg.inv(torch.linalg.cholesky(gram))
    return inverse.T


def _descend(problem: _Problem, plan: AffineSettings) -> tuple[Matrix, Stage]:
    """Minimise by BFGS with backtracking; steps stay below `LONGEST` voxels.

    The set of samples that count stays the same while the points move less than `STALE` voxels: with samples coming and
    going the loss would jump, and its gradient, which does not know of them, would not lead down.
    """
    voxel = problem.spacing
    at = np.zeros(problem.whitening.shape[0])
    chosen = at
    losses, converged = [], False
    curvature: Array | None = None  # inverse Hessian; None: unknown, the step is one voxel downhill
    enough = problem.matching(at)
    loss, slope = problem(at) if enough else (float("inf"), at)
    losses.append(loss)
    while enough and len(losses) <= plan.iterations:
        direction = -slope * voxel / max(_norm(slope), TINY) if curvature is None else -curvature @ slope
        direction *= min(1.0, LONGEST * voxel / max(_norm(direction), TINY))
        found = _backtrack(problem, at, loss, slope, direction)
        if found is None:
            if curvature is None:  # no way down even along the gradient: as low as rounding allows
                converged = True
                break
            curvature = None
            continue
        step, loss, new_slope = found
        # a step of unknown curvature is short because it was halved, not because the end is near
        converged = curvature is not None and _norm(step) < plan.tolerance * voxel
        curvature = _updated(curvature, step, new_slope - slope)
        at, slope = at + step, new_slope
        losses.append(loss)
        if converged:
            break
        if _norm(at - chosen) > STALE * voxel:
            enough = problem.matching(at)
            if not enough:  # back to where the images still overlapped
                at = chosen
                break
            chosen = at
            loss, slope = problem(at)
    best = problem.matrix_at(torch.as_tensor(at, device=problem.points.device))[0].cpu().numpy()
    return best, Stage(problem.kind, voxel, len(losses) - 1, tuple(losses), converged)


def _norm(vector: Array) -> float:
    return float(np.linalg.norm(vector))


def _backtrack(
    problem: _Problem, at: Array, loss: float, slope: Array, direction: Array
) -> tuple[Array, float, Array] | None:
    """Shorten a step until the loss falls enough; None when it never does."""
    expected = float(slope @ direction)
    if expected >= 0:
        return None
    for _ in range(HALVINGS):
        new_loss, new_slope = problem(at + direction)
        if new_loss <= loss + ARMIJO * expected:
            return direction, new_loss, new_slope
        # minimum of the parabola through both losses and the slope, kept between a tenth and a half of the step
        bend = new_loss - loss - expected
        factor = float(np.clip(-expected / (2 * bend), 0.1, 0.5)) if np.isfinite(bend) else 0.5
        direction, expected = factor * direction, factor * expected
    return None


def _updated(curvature: Array | None, step: Array, change: Array) -> Array | None:
    """Return the BFGS update of the inverse Hessian; unchanged where the loss does not bend upwards."""
    product = float(step @ change)
    if product <= 1e-12 * _norm(step) * _norm(change):
        return curvature
    identity = np.eye(len(step))
    if curvature is None:
        curvature = identity * product / float(change @ change)
    left = identity - np.outer(step, change) / product
    return np.asarray(left @ curvature @ left.T + np.outer(step, step) / product)
