"""What the instance engine is given, brought into one form: float32, one device, one batch; or one clear error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.images.scan import check_pair

Labels = tuple[Tensor, Tensor]
Points = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Inputs:
    """Arguments of `core.register`, all float32 on the device of `fixed` and of one batch size.

    Attributes
    ----------
    fixed, moving : (B, 1, *shape) Tensor
        Images.
    matrix : (B, D, D + 1) Tensor
        From voxels of `fixed` to voxels of `moving`.
    initial : (B, D, *shape) Tensor or None
        Displacement to start from.
    masks : pair of (B, 1, *shape) Tensor or None
        Weights of the voxels of fixed and moving.
    labels : pair of (B, L, *shape) Tensor or None
        Label maps of fixed and moving.
    landmarks : pair of (N, D) Tensor or None
        Corresponding points.
    """

    fixed: Tensor
    moving: Tensor
    matrix: Tensor
    initial: Tensor | None
    masks: tuple[Tensor | None, Tensor | None]
    labels: Labels | None
    landmarks: Points | None


def prepare(
    fixed: Tensor,
    moving: Tensor,
    *,
    matrix: Tensor | None = None,
    initial: Tensor | None = None,
    masks: tuple[Tensor | None, Tensor | None] = (None, None),
    labels: tuple[Tensor | None, Tensor | None] = (None, None),
    landmarks: Points | None = None,
    subject: str | None = None,
) -> Inputs:
    """Check the arguments and bring them into one form; a batch of one goes with every batch.

    Raises
    ------
    InputError
        From `check_pair`; for arguments whose shapes do not fit, that are not finite, or that lack their partner, for
        images of different shapes without a matrix, and for masks that have no voxel in common at the start.
    """

    def plain(values: Tensor) -> Tensor:
        return values.detach().to(fixed.device, torch.float32)

    fixed, moving = plain(fixed), plain(moving)
    masks = tuple(None if mask is None else plain(mask) for mask in masks)  # type: ignore[assignment]
    check_pair(fixed, moving, *masks, subject=subject)
    ndim, batch = fixed.ndim - 2, max(fixed.shape[0], moving.shape[0])
    check = _Check(batch, subject)
    if matrix is None:
        if fixed.shape[2:] != moving.shape[2:]:
            shapes = f"{tuple(fixed.shape[2:])} and {tuple(moving.shape[2:])}"
            raise InputError(
                f"images of shapes {shapes} and no matrix between their grids",
                subject=subject,
                remedy="give the matrix, or resample one image onto the grid of the other",
            )
        matrix = torch.eye(ndim, ndim + 1)[None]
    found = Inputs(
        fixed=check("fixed image", fixed, (1, *fixed.shape[2:])),
        moving=check("moving image", moving, (1, *moving.shape[2:])),
        matrix=check("matrix", plain(matrix), (ndim, ndim + 1)),
        initial=None if initial is None else check("initial field", plain(initial), (ndim, *fixed.shape[2:])),
        masks=(
            None if masks[0] is None else check("fixed mask", masks[0], (1, *fixed.shape[2:])),
            None if masks[1] is None else check("moving mask", masks[1], (1, *moving.shape[2:])),
        ),
        labels=_labels(labels, fixed, moving, check, plain),
        landmarks=_landmarks(landmarks, ndim, check, plain),
    )
    _check_overlap(found, subject)
    return found


@dataclass(frozen=True)
class _Check:
    """Refuses what does not fit a batch."""

    batch: int
    subject: str | None

    def __call__(self, name: str, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return (B, *shape) values, expanded from a batch of one."""
        if tuple(values.shape[1:]) != shape or values.shape[0] not in (1, self.batch):
            self.refuse(f"the {name} has shape {tuple(values.shape)}, not ({self.batch}, {', '.join(map(str, shape))})")
        if not bool(torch.isfinite(values).all()):
            self.refuse(f"the {name} holds values that are NaN or infinite")
        return values.expand(self.batch, *shape)

    def refuse(self, message: str) -> None:
        """Raise the error."""
        raise InputError(message, subject=self.subject, remedy="correct this argument of the instance engine")


def _labels(
    labels: tuple[Tensor | None, Tensor | None],
    fixed: Tensor,
    moving: Tensor,
    check: _Check,
    plain: Callable[[Tensor], Tensor],
) -> Labels | None:
    one, other = labels
    if one is None and other is None:
        return None
    if one is None or other is None:
        check.refuse("there are labels of one image only")
    assert one is not None and other is not None
    count = one.shape[1]
    return (
        check("fixed label maps", plain(one), (count, *fixed.shape[2:])),
        check("moving label maps", plain(other), (count, *moving.shape[2:])),
    )


def _landmarks(landmarks: Points | None, ndim: int, check: _Check, plain: Callable[[Tensor], Tensor]) -> Points | None:
    if landmarks is None:
        return None
    fixed, moving = map(plain, landmarks)
    if fixed.ndim != 2 or fixed.shape != moving.shape or fixed.shape[1] != ndim or not len(fixed):
        check.refuse(f"landmarks of shapes {tuple(fixed.shape)} and {tuple(moving.shape)}, not twice (N, {ndim})")
    if not bool(torch.isfinite(fixed).all() and torch.isfinite(moving).all()):
        check.refuse("a landmark is NaN or infinite")
    return fixed, moving


def _check_overlap(found: Inputs, subject: str | None) -> None:
    """Refuse masks that have no voxel in common when the optimisation starts."""
    from popatlas.transforms.fieldops import TensorOps

    fixed, moving = found.masks
    if moving is None:
        return
    start = torch.zeros_like(found.fixed).expand(-1, found.matrix.shape[1], *found.fixed.shape[2:])
    if found.initial is not None:
        start = found.initial
    padded, matrix = zero_border(moving, found.matrix)
    there = TensorOps().warp(padded, start, 1, matrix, found.fixed.shape[2:])
    both = there if fixed is None else there * fixed
    if not bool((both.flatten(1).amax(1) > 0).all()):
        raise InputError(
            "the masks of fixed and moving image have no voxel in common at the start",
            subject=subject,
            remedy="check the affine that the registration starts from, or start from a global search",
        )


def zero_border(mask: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Put a voxel of zeros around a mask (B, 1, *shape) and return the matrix to its voxels: nothing counts beyond it."""
    ndim = mask.ndim - 2
    shift = torch.zeros_like(matrix)
    shift[:, :, ndim] = 1
    return torch.nn.functional.pad(mask, [1] * (2 * ndim)), matrix + shift
