"""X-CoReg: classes and moves of a group by turns, coarse to fine (Luo and Zhuang, 2023, doi:10.1109/TPAMI.2022.3225418)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.groupwise.xcoreg.group import Group, Views, checked_group
from popatlas.groupwise.xcoreg.metric import Anatomy, ChiMetric, GroupMetric
from popatlas.groupwise.xcoreg.motion import GroupMotion, motion_of
from popatlas.groupwise.xcoreg.settings import XCoRegSettings
from popatlas.registration.engines.instance.core import unfolded
from popatlas.registration.engines.instance.updates import Search, Stop
from popatlas.registration.malloc import kept_memory
from popatlas.transforms.fieldops import ops_for

WINDOW = 8  # iterations over which a gain is measured


@dataclass(frozen=True)
class GroupResult:
    """What was found.

    Attributes
    ----------
    displacements : list of (1, D, *shape) Tensor
        Voxels of the common grid: a common point ``x`` goes to ``matrix_j (x + u_j(x))`` of image j. Their mean over the
        group is zero.
    matrices : list of (1, D, D + 1) Tensor
        From voxels of the common grid to voxels of each image, linear moves included.
    warped : list of (1, 1, *shape) Tensor
        Images in the common space.
    posterior : (K, *shape) Tensor
        Probability of each class, 0 where no image says anything; None when the metric knows no classes.
    proportions : (K,) Tensor
        Share of each class.
    history : list of list of float
        Metric less penalty, mean over the images, of each iteration of each level.
    """

    displacements: list[Tensor]
    matrices: list[Tensor]
    warped: list[Tensor]
    posterior: Tensor | None
    proportions: Tensor | None
    history: list[list[float]]

    def labels(self) -> Tensor:
        """Return the most probable class of each voxel (*shape), from 1; 0 where no image says anything."""
        if self.posterior is None:
            raise ValueError("the metric knows no classes")
        return (self.posterior.argmax(0) + 1) * (self.posterior.sum(0) > 0)

    def vanished(self) -> list[int]:
        """Return the classes, from 1, that are the most probable one nowhere."""
        if self.posterior is None:
            return []
        voxels = torch.bincount(self.labels().flatten(), minlength=len(self.posterior) + 1)
        return [number for number in range(1, len(self.posterior) + 1) if not voxels[number]]

    def inverse(self, number: int, threads: int = 1) -> Tensor:
        """Return the displacement (1, D, *shape) that undoes that of an image, voxels of the common grid."""
        field = self.displacements[number]
        return ops_for([field], threads).invert(field)


def coregister(
    images: Sequence[Tensor],
    settings: XCoRegSettings | None = None,
    *,
    shape: Sequence[int] | None = None,
    matrices: Sequence[Tensor] | None = None,
    masks: Sequence[Tensor | None] | None = None,
    prior: Tensor | None = None,
    metric: GroupMetric | None = None,
    names: Sequence[str] | None = None,
    kept: bool = True,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> GroupResult:
    """Register a group of images to a common space of their own.

    Parameters
    ----------
    images : sequence of (1, 1, *own shape) Tensor
        Two or more images of 2 or 3 axes and of any contrasts, each on its own grid.
    settings : XCoRegSettings, optional
        What to do.
    shape : sequence of int, optional
        Voxels of the common grid, which are isotropic; those of the first image when left out.
    matrices : sequence of (1, D, D + 1) Tensor, optional
        From voxels of the common grid to voxels of each image; the identity when left out.
    masks : sequence of (1, 1, *own shape) Tensor or None, optional
        Where an image may be trusted (above 0). Voxels beyond an image never count.
    prior : (K, *shape) Tensor, optional
        Probability of each class in the common space.
    metric : GroupMetric, optional
        Instead of the chi metric.
    names : sequence of str, optional
        What messages call the images.
    kept : bool
        Keep all images in the common space between the passes of an iteration. Without, only one is in memory at a time, and
        each is warped three times as often.
    threads : int
        Of the compiled kernels.
    progress : callable, optional
        Called with a line of text after each level.

    Returns
    -------
    GroupResult
        Moves, warped images, classes.

    Raises
    ------
    InputError
        From `checked_group`; for a prior of another shape or with a class that it has nowhere; and when one class is the
        most probable everywhere, so that the images have nothing to meet by.
    """
    plan = settings or XCoRegSettings()
    full = checked_group(images, tuple(shape or images[0].shape[2:]) if len(images) else (), matrices, masks, names)
    if prior is not None:
        _check_prior(prior, (plan.classes, *full.shape))
    measure: GroupMetric = metric if metric is not None else ChiMetric(full, plan, prior)
    motion = motion_of(plan, full)
    history = []
    with kept_memory():
        for shrink, iterations in zip(plan.shrink, plan.iterations, strict=True):
            group = full.smaller(shrink)
            motion.begin(group, threads)
            history.append(_level(motion, measure, group, plan, iterations, kept=kept))
            if progress is not None:
                progress(_told(shrink, history[-1]))
        result = _result(full, motion, measure, history, plan, threads, kept=kept)
    if result.posterior is not None and len(result.vanished()) >= plan.classes - 1:
        message = f"{plan.classes - 1} of {plan.classes} classes have vanished, so that nothing tells where the images meet"
        raise InputError(message, remedy="check that the images show the same anatomy, and the prior where one is given")
    return result


def _check_prior(prior: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(prior.shape) != shape:
        message = f"the prior has shape {tuple(prior.shape)}, where {shape} is needed"
        raise InputError(message, remedy="give one map for each class on the common grid")
    nowhere = [number for number, one in enumerate(prior, 1) if not float(one.max()) > 0]
    if nowhere:
        message = f"class {nowhere[0]} has no prior anywhere"
        raise InputError(message, remedy="leave its map out, and set classes to the number of maps")


def _told(shrink: int, values: Sequence[float]) -> str:
    if not values:
        return f"shrink {shrink}: no iteration"
    return f"shrink {shrink}: {values[0]:.4f} -> {max(values):.4f} an image in {len(values)} iterations"


def _level(
    motion: GroupMotion, metric: GroupMetric, group: Group, plan: XCoRegSettings, iterations: int, *, kept: bool
) -> list[float]:
    """Improve the moves at one resolution, and end with the best of them; return the values."""
    views = Views(motion.view, len(group), kept=kept)
    metric.begin(group, views)
    search = Search(plan.step, Stop(WINDOW, plan.tolerance))
    best = motion.state()
    for _ in range(iterations):
        search.note((motion.penalty() - metric.value(views)) / len(group))
        if search.improved:
            best = motion.state()
        if search.ended:
            break
        if search.back:
            motion.load(best)
        else:
            motion.move(views, metric, search.length)
        views.moved()
    if iterations and not search.worse:
        search.note((motion.penalty() - metric.value(views)) / len(group))
        best = motion.state() if search.improved else best
    motion.load(best)
    motion.finish()
    return [-loss for loss in search.losses]


def _result(
    full: Group,
    motion: GroupMotion,
    metric: GroupMetric,
    history: list[list[float]],
    plan: XCoRegSettings,
    threads: int,
    *,
    kept: bool,
) -> GroupResult:
    """Return the moves on the full grid, and the classes there."""
    while motion.group.shrink != 1:
        motion.begin(full.smaller(motion.group.shrink // 2), threads)
    displacements = [_one_to_one(motion.displacement(j).detach(), plan, threads) for j in range(len(full))]
    matrices = [motion.matrix(j).detach() for j in range(len(full))]
    views = Views(motion.view, len(full), kept=kept)
    anatomy: Anatomy | None = None
    if isinstance(metric, ChiMetric):
        metric.value(views)
        anatomy = metric.seen(views)
    warped = [views[j][0].reshape(1, 1, *full.shape) for j in range(len(full))]
    return GroupResult(
        displacements=displacements,
        matrices=matrices,
        warped=warped,
        posterior=None if anatomy is None else anatomy.posterior.reshape(-1, *full.shape),
        proportions=None if anatomy is None else anatomy.proportions,
        history=history,
    )


def _one_to_one(field: Tensor, plan: XCoRegSettings, threads: int) -> Tensor:
    return unfolded(field, ops_for([field], threads)) if plan.motion == "diffeomorphic" else field
