"""The diffeomorphic instance engine: multi-resolution compositive updates driven by the force of a similarity.

One iteration: warp the moving image, take the descent direction of the loss on the warped image, smooth it (fluid
regularisation), scale it so that its longest vector is one step, compose it with the field, smooth the field (elastic
regularisation) and even out its changes of volume. Small smooth steps that are composed, not added, keep the map one-to-one
(Christensen et al., 1996, doi:10.1109/83.536892; Vercauteren et al., 2009, doi:10.1016/j.neuroimage.2008.10.040).

The symmetric variant moves both images to the middle by opposite steps and joins the halves at the end, so that exchanging
fixed and moving gives the inverse (Avants et al., 2008, doi:10.1016/j.media.2007.06.004).

A level may keep its field on a grid twice as coarse as its images: the images are compared at full resolution, while
smoothing and composition work on an eighth of the voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from popatlas.images.intensity import rescaled
from popatlas.registration.engines.instance.inputs import Inputs, prepare, zero_border
from popatlas.registration.engines.instance.settings import InstanceSettings, Settings, full_settings
from popatlas.registration.engines.instance.updates import (
    Halves,
    Landmarks,
    Level,
    LevelReport,
    Step,
    Stop,
    Terms,
    run_level,
)
from popatlas.registration.malloc import kept_memory
from popatlas.transforms.fieldops import TensorOps, block_mean, coarse_shape, double, ops_for

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FOLDED = 0.02  # a smaller Jacobian determinant is smoothed away


@dataclass(frozen=True)
class InstanceResult:
    """What the engine found.

    Attributes
    ----------
    forward : (B, D, *shape) Tensor
        Displacement in voxels of the fixed grid: a fixed point ``x`` goes to ``matrix (x + u(x))``.
    inverse : (B, D, *shape) Tensor
        Displacement that undoes `forward`, on the same grid.
    levels : list of LevelReport
        Losses of each level and why it ended, for each pair.
    """

    forward: Tensor
    inverse: Tensor
    levels: list[LevelReport]

    @property
    def diverged(self) -> bool:
        """Whether a level lost what a pair had gained; the fields are the best ones before that."""
        return any("diverged" in level.stopped for level in self.levels)


def register(
    fixed: Tensor,
    moving: Tensor,
    settings: InstanceSettings,
    *,
    matrix: Tensor | None = None,
    initial: Tensor | None = None,
    fixed_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
    fixed_labels: Tensor | None = None,
    moving_labels: Tensor | None = None,
    landmarks: tuple[Tensor, Tensor] | None = None,
    subject: str | None = None,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> InstanceResult:
    """Register a batch of pairs.

    Parameters
    ----------
    fixed : (B, 1, *shape) Tensor
        Fixed images with isotropic voxels, 2D or 3D.
    moving : (B, 1, *shape) Tensor
        Moving images in their own grid.
    settings : InstanceSettings
        What to do; `Settings` say more.
    matrix : (B, D, D + 1) Tensor, optional
        From voxels of `fixed` to voxels of `moving`; the identity when left out.
    initial : (B, D, *shape) Tensor, optional
        Displacement of the fixed grid to start from, voxels.
    fixed_mask, moving_mask : (B, 1, *shape) Tensor, optional
        Weights of the voxels, 0 to 1. Without a mask the border of the moving image is repeated beyond it: give a mask of
        ones where its field of view ends inside of the fixed one.
    fixed_labels, moving_labels : (B, L, *shape) Tensor, optional
        One map for each label, 0 to 1; they join the images by multiscale Dice.
    landmarks : pair of (N, D) Tensor, optional
        Voxel coordinates of corresponding points in fixed and moving.
    subject : str, optional
        Named in errors.
    threads : int
        Threads of the compiled kernels.
    progress : callable, optional
        Called with a line of text after each level.

    Returns
    -------
    InstanceResult
        Fields on the fixed grid, on the device of `fixed`.

    Raises
    ------
    InputError
        From `inputs.prepare`: images, masks, fields, labels or landmarks that do not fit.
    """
    from popatlas.similarity.registry import make

    settings = full_settings(settings)
    found = prepare(
        fixed,
        moving,
        matrix=matrix,
        initial=initial,
        masks=(fixed_mask, moving_mask),
        labels=(fixed_labels, moving_labels),
        landmarks=landmarks,
        subject=subject,
    )
    terms = Terms(
        image=make(settings.similarity, **settings.options),
        landmarks=None if found.landmarks is None else Landmarks(*found.landmarks, found.matrix),
        label_weight=settings.label_weight,
        landmark_weight=settings.landmark_weight,
    )
    images = replace(found, fixed=rescaled(found.fixed, found.masks[0]), moving=rescaled(found.moving, found.masks[1]))
    halves = _start(found, settings)
    reports = []
    with kept_memory():
        for index in range(len(settings.shrink)):
            level = _level(images, settings, index)
            step = _step(settings, index)
            ops = choose_ops(level, threads)
            halves, report = run_level(level, halves, terms, step, Stop(settings.window, settings.tolerance), ops)
            reports.append(report)
            if progress is not None:
                progress(f"level {index + 1} of {len(settings.shrink)}, {report}")
        forward, inverse = _join(halves, settings.symmetric, ops)
    shape = found.fixed.shape[2:]
    return InstanceResult(_full(forward, shape), _full(inverse, shape), reports)


def choose_ops(level: Level, threads: int) -> TensorOps:
    """Return the operations that serve a level and its field."""
    field = level.fixed.new_empty((1, 1, *level.field_shape))
    return ops_for([level.fixed, level.moving, field], threads)


def level_matrix(matrix: Tensor, fixed_shrink: int, moving_shrink: Sequence[int]) -> Tensor:
    """Return a voxel matrix (B, D, D + 1) between grids that are shrunk by whole factors (cell-centred)."""
    ndim = matrix.shape[1]
    shrink = torch.tensor(moving_shrink, dtype=matrix.dtype, device=matrix.device)
    linear, offset = matrix[:, :, :ndim], matrix[:, :, ndim]
    centre = torch.full((ndim,), (fixed_shrink - 1) / 2, dtype=matrix.dtype, device=matrix.device)
    moved = (linear @ centre + offset - (shrink - 1) / 2) / shrink
    return torch.cat([linear * fixed_shrink / shrink.unsqueeze(-1), moved.unsqueeze(-1)], dim=-1)


def _level(found: Inputs, settings: Settings, index: int) -> Level:
    """Shrink the images for a level; coarse axes of the moving image are shrunk less."""
    shrink, dtype = settings.shrink[index], PRECISIONS[settings.precision]
    density = found.matrix[:, :, :-1].norm(dim=2).mean(0)  # moving voxels for each fixed voxel
    factors = [2 ** max(0, round(math.log2(max(shrink * float(d), 1e-6)))) for d in density]
    whole = [shrink] * len(factors)
    matrix = level_matrix(found.matrix, shrink, factors)
    fixed_mask, moving_mask = found.masks
    small = None if moving_mask is None else zero_border(block_mean(moving_mask, factors), matrix)
    return Level(
        fixed=block_mean(found.fixed, whole).to(dtype),
        moving=block_mean(found.moving, factors).to(dtype),
        fixed_mask=None if fixed_mask is None else block_mean(fixed_mask, whole),
        moving_mask=None if small is None else small[0],
        fixed_labels=None if found.labels is None else block_mean(found.labels[0], whole),
        moving_labels=None if found.labels is None else block_mean(found.labels[1], factors),
        matrix=matrix,
        mask_matrix=matrix if small is None else small[1],
        shrink=shrink,
        field_shrink=settings.field_shrink[index],
        iterations=settings.iterations[index],
    )


def _step(settings: Settings, index: int) -> Step:
    fluid = settings.fluid if index == len(settings.shrink) - 1 else settings.coarse_fluid
    return Step(settings.step, fluid, settings.elastic, settings.bulk, settings.symmetric)


def _start(found: Inputs, settings: Settings) -> Halves:
    factor = settings.shrink[0] * settings.field_shrink[0]
    batch, ndim = found.matrix.shape[:2]
    zero = torch.zeros((batch, ndim, *coarse_shape(found.fixed.shape[2:], factor)), device=found.fixed.device)
    return Halves(zero, zero if found.initial is None else block_mean(found.initial, [factor] * ndim) / factor)


def _full(displacement: Tensor, shape: Sequence[int]) -> Tensor:
    """Refine a field by factors of two up to `shape`."""
    while tuple(displacement.shape[2:]) != tuple(shape):
        factor = 1
        while coarse_shape(shape, factor) != tuple(displacement.shape[2:]):
            factor *= 2
        displacement = double(displacement, coarse_shape(shape, factor // 2))
    return displacement


def _join(halves: Halves, symmetric: bool, ops: TensorOps) -> tuple[Tensor, Tensor]:
    """Return the map from fixed to moving and its inverse."""
    to_moving = unfolded(halves.to_moving, ops)
    if not symmetric:
        return to_moving, unfolded(ops.invert(to_moving), ops)
    to_fixed = unfolded(halves.to_fixed, ops)
    forward = ops.compose(ops.invert(to_fixed), to_moving)
    return unfolded(forward, ops), unfolded(ops.compose(ops.invert(to_moving), to_fixed), ops)


def unfolded(displacement: Tensor, ops: TensorOps, rounds: int = 20) -> Tensor:
    """Smooth a field where the determinant of some one-sided differences is near zero or negative, until it is nowhere."""
    for _ in range(rounds):
        bad = (ops.least_jacobian(displacement) < FOLDED).float().unsqueeze(1)
        if not bad.any():
            break
        near = (4 * ops.smooth(bad, 1.5)).clamp(max=1)
        displacement = displacement + near * (ops.smooth(displacement, 1.5) - displacement)
    return displacement
