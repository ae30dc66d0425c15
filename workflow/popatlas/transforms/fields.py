"""Dense displacement fields and images as torch tensors: sample, warp, compose, invert.

Images are (B, C, *shape) with 2 or 3 spatial axes in NIfTI array order, displacements (B, D, *shape), component d along
array axis d, in voxels of the grid that they live on: the point with voxel index ``x`` goes to ``x + u(x)``. Everything
works for 2D and 3D by the same code, for batches, on any device, and can be differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from popatlas.transforms.ffd import along_axis, bspline_weights

Mode = Literal["linear", "nearest", "cubic"]
Padding = Literal["border", "zeros"]

SMALLEST_STEP = 2.0**-10  # damping of the inversion below which a point is given up
SMALLEST_COARSE = 16  # voxels of the shortest axis below which the inversion does not start from a coarser one


def coordinates(
    shape: Sequence[int], *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the voxel index of each voxel, (1, D, *shape)."""
    axes = [torch.arange(n, device=device, dtype=dtype) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0)


def sample(image: Tensor, at: Tensor, mode: Mode = "linear", padding: Padding = "border") -> Tensor:
    """Read an image between its voxels.

    Parameters
    ----------
    image : (B, C, *shape) Tensor
        Values. Any type for ``nearest``, floating otherwise.
    at : (B, D, *out) Tensor
        Voxel coordinates of the image's grid, with any number of axes after D (points are one axis). A batch of one is
        repeated, here and in `image`.
    mode : str
        ``linear``; ``nearest``, halves rounded up as ITK does; ``cubic``, the interpolating cubic B-spline with mirrored
        borders (Unser, 1999, doi:10.1109/79.799930), which equals SciPy's ``order=3, mode="mirror"``.
    padding : str
        Outside: ``border`` repeats the outermost voxels; ``zeros`` does so for half a voxel, up to the end of the image, and
        is 0 beyond it, which is ITK's rule.

    Returns
    -------
    (B, C, *out) Tensor
        Values, of the image's type.
    """
    ndim = image.ndim - 2
    if ndim not in (2, 3) or at.shape[1] != ndim:
        raise ValueError(f"image of shape {tuple(image.shape)} and coordinates of shape {tuple(at.shape)}")
    if mode not in get_args(Mode) or padding not in get_args(Padding):
        raise ValueError(f"no mode {mode!r} or no padding {padding!r}")
    if mode != "nearest" and not image.is_floating_point():
        raise ValueError(f"{mode} interpolation of {image.dtype}")
    out = at.shape[2:]
    where = at if at.ndim == image.ndim else at.reshape(*at.shape[:2], -1, *[1] * (ndim - 1))
    batch = max(image.shape[0], where.shape[0])
    image, where = image.expand(batch, *image.shape[1:]), where.expand(batch, *where.shape[1:])
    if mode == "nearest":
        values = _nearest(image, where)
    elif mode == "linear":
        values = _linear(image, where)
    else:
        values = _cubic(image, where, reach=0.5 if padding == "zeros" else 0.0)
    if padding == "zeros":
        values = values.masked_fill(~_inside(where, image.shape[2:]).unsqueeze(1), 0)
    return values if at.ndim == image.ndim else values.reshape(*values.shape[:2], *out)


def _inside(at: Tensor, shape: Sequence[int]) -> Tensor:
    """Tell which coordinates (B, D, *out) lie in the voxels of an image, (B, *out)."""
    inside = torch.ones_like(at[:, 0], dtype=torch.bool)
    for axis, n in enumerate(shape):
        inside &= (at[:, axis] >= -0.5) & (at[:, axis] < n - 0.5)
    return inside


def _linear(image: Tensor, at: Tensor) -> Tensor:
    # align_corners=False with this scaling has integer voxel centres as align_corners=True has, also for axes of one voxel
    at = at.to(torch.promote_types(image.dtype, at.dtype))
    size = torch.tensor(image.shape[2:], device=at.device, dtype=at.dtype).reshape(-1, *[1] * (at.ndim - 2))
    unit = ((2 * at + 1) / size - 1).movedim(1, -1).flip(-1)
    values = functional.grid_sample(image.to(at.dtype), unit, mode="bilinear", padding_mode="border", align_corners=False)
    return values.to(image.dtype)


def _nearest(image: Tensor, at: Tensor) -> Tensor:
    flat = torch.zeros_like(at[:, 0], dtype=torch.int64)
    for axis, n in enumerate(image.shape[2:]):
        flat = flat * n + torch.floor(at[:, axis] + 0.5).to(torch.int64).clamp(0, n - 1)
    index = flat.flatten(1).unsqueeze(1).expand(-1, image.shape[1], -1)
    return image.flatten(2).gather(2, index).reshape(*image.shape[:2], *at.shape[2:])


def _cubic(image: Tensor, at: Tensor, reach: float) -> Tensor:
    """Evaluate the cubic B-spline by 2 ** D linear samples of its coefficients (Sigg & Hadwiger, GPU Gems 2, 2005).

    Up to `reach` voxels beyond the outermost ones the spline goes on, further out it is constant.
    """
    margin = 2  # coefficients that the spline reaches beyond the image
    coefficients = _mirrored(spline_coefficients(image), margin)
    clamped = [at[:, axis].to(image.dtype).clamp(-reach, n - 1 + reach) for axis, n in enumerate(image.shape[2:])]
    pairs = [_linear_pair(x + margin) for x in clamped]
    total = torch.zeros((*image.shape[:2], *at.shape[2:]), dtype=image.dtype, device=image.device)
    for choice in product((0, 1), repeat=len(pairs)):
        positions, weights = zip(*(pair[which] for pair, which in zip(pairs, choice, strict=True)), strict=True)
        total = total + torch.stack(weights).prod(0).unsqueeze(1) * _linear(coefficients, torch.stack(positions, 1))
    return total


def _linear_pair(x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return two (position, weight) whose linear samples make the four weights of a cubic B-spline."""
    cell = torch.floor(x)
    t = x - cell
    w = bspline_weights(t)
    left, right = w[0] + w[1], w[2] + w[3]
    return (cell - 1 + w[1] / left, left), (cell + 1 + w[3] / right, right)


def spline_coefficients(image: Tensor) -> Tensor:
    """Return the coefficients of the cubic B-spline through the voxels (B, C, *shape), borders mirrored."""
    for axis in range(2, image.ndim):
        matrix = torch.as_tensor(_prefilter(image.shape[axis]), device=image.device, dtype=image.dtype)
        image = along_axis(matrix, image, axis)
    return image


@lru_cache(maxsize=32)
def _prefilter(n: int) -> npt.NDArray[np.float64]:
    """Return the inverse of the spline's values at the voxels: a matrix product is faster here than the recursive filter."""
    values = np.zeros((n, n))
    for offset, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
        np.add.at(values, (np.arange(n), _mirror(np.arange(n) + offset, n)), weight)
    return np.asarray(np.linalg.inv(values), dtype=np.float64)


def _mirror(index: npt.NDArray[np.intp], n: int) -> npt.NDArray[np.intp]:
    """Fold indices back into 0 .. n - 1; the outermost voxels are not repeated."""
    period = max(2 * (n - 1), 1)
    folded = np.abs(index) % period
    return np.minimum(folded, period - folded) if n > 1 else np.zeros_like(index)


def _mirrored(image: Tensor, margin: int) -> Tensor:
    """Extend each spatial axis by mirrored voxels on both sides."""
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        index = torch.as_tensor(_mirror(np.arange(-margin, n + margin), n), device=image.device)
        image = image.index_select(axis, index)
    return image


def warp(image: Tensor, displacement: Tensor, mode: Mode = "linear", padding: Padding = "border") -> Tensor:
    """Return ``image(x + u(x))`` on the grid of the displacement, which is that of the image.

    Parameters
    ----------
    image : (B, C, *shape) Tensor
        Moving image.
    displacement : (B, D, *shape) Tensor
        Voxels.
    mode, padding : str
        See `sample`.

    Returns
    -------
    (B, C, *shape) Tensor
    """
    _check_grid(image, displacement)
    return sample(image, displaced(displacement), mode, padding)


def displaced(displacement: Tensor) -> Tensor:
    """Return where each voxel goes, ``x + u(x)``, (B, D, *shape) voxel coordinates."""
    shape = displacement.shape[2:]
    return coordinates(shape, device=displacement.device, dtype=displacement.dtype) + displacement


def _check_grid(image: Tensor, displacement: Tensor) -> None:
    if image.shape[2:] != displacement.shape[2:] or displacement.shape[1] != displacement.ndim - 2:
        raise ValueError(f"displacement of shape {tuple(displacement.shape)} for shape {tuple(image.shape)}")


def check_displacement(displacement: Tensor) -> None:
    """Refuse what is no displacement (B, D, *shape); ValueError."""
    _check_grid(displacement, displacement)


def warp_labels(
    labels: Tensor,
    displacement: Tensor,
    mode: Literal["nearest", "generic"] = "nearest",
    padding: Padding = "border",
) -> Tensor:
    """Warp a label image; no label is made that was not there.

    Parameters
    ----------
    labels : (B, 1, *shape) Tensor
        Labels, any type.
    displacement : (B, D, *shape) Tensor
        Voxels.
    mode : str
        ``nearest``, or ``generic``: the label whose linearly warped map is largest, with smoother borders. The maps are made
        one by one, so that the memory does not grow with the number of labels; of equal maps the smaller label is taken.
    padding : str
        ``zeros`` sets label 0 outside; see `sample`.

    Returns
    -------
    (B, 1, *shape) Tensor
        Labels of the same type.
    """
    _check_grid(labels, displacement)
    at = displaced(displacement)
    if mode == "nearest":
        return sample(labels, at, "nearest", padding)
    if mode != "generic":
        raise ValueError(f"no mode {mode!r}")
    return labels_at(labels, at, padding)


def labels_at(labels: Tensor, at: Tensor, padding: Padding = "border") -> Tensor:
    """Return the label with the largest linear weight at voxel coordinates; see `warp_labels` (``generic``) and `sample`."""
    best, result = None, None
    for label in torch.unique(labels):
        weight = sample((labels == label).to(at.dtype), at, "linear", padding)
        if best is None or result is None:
            best, result = weight, torch.where(weight > 0, label, torch.zeros_like(label))
            continue
        result = torch.where(weight > best, label, result)
        best = torch.maximum(best, weight)
    if result is None:
        raise ValueError("the label image is empty")
    return result


def compose(first: Tensor, second: Tensor) -> Tensor:
    """Return the displacement of going through `first`, then `second`: ``u(x) = first(x) + second(x + first(x))``.

    Parameters
    ----------
    first, second : (B, D, *shape) Tensor
        Voxels of one grid; outside of it `second` is that of the border.

    Returns
    -------
    (B, D, *shape) Tensor
    """
    return first + warp(second, first)


def invert(displacement: Tensor, iterations: int = 30, tolerance: float = 0.01) -> Tensor:
    """Return the inverse of a displacement by a damped fixed-point iteration (Chen et al., 2008, doi:10.1118/1.2816107).

    Each point searches ``v`` with ``v + u(x + v) = 0`` by ``v <- v - step (v + u(x + v))``. A step that does not bring it
    closer is taken back and halved, so that strong stretches, at which the plain iteration diverges, converge too.

    Parameters
    ----------
    displacement : (B, D, *shape) Tensor
        Voxels; should not fold.
    iterations : int
        Most iterations.
    tolerance : float
        Largest remaining error at which to stop, voxels.

    Returns
    -------
    (B, D, *shape) Tensor
        Field `v` with ``compose(v, u) = 0``.
    """
    check_displacement(displacement)
    return torch.cat([_invert_one(one.unsqueeze(0), iterations, tolerance) for one in displacement])


def _invert_one(displacement: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Invert a batch of one: start from the inverse at half the resolution, then move the points that are not there yet."""
    shape = displacement.shape[2:]
    start = -displacement
    if min(shape) >= SMALLEST_COARSE:
        half = resize_field(displacement, [(n + 1) // 2 for n in shape])
        start = resize_field(_invert_one(half, iterations, tolerance), shape)
    origin = coordinates(shape, device=start.device, dtype=start.dtype).flatten(2)
    inverse = start.flatten(2)
    rest = inverse + sample(displacement, origin + inverse)
    error = _squared_norm(rest)
    step = torch.ones_like(error)
    for _ in range(iterations):
        todo = ((error > tolerance**2) & (step > SMALLEST_STEP)).nonzero()[:, 0]
        if not len(todo):
            break
        trial = inverse[..., todo] - step[todo] * rest[..., todo]
        trial_rest = trial + sample(displacement, origin[..., todo] + trial)
        trial_error = _squared_norm(trial_rest)
        closer = trial_error < error[todo]
        inverse = inverse.index_copy(2, todo, torch.where(closer, trial, inverse[..., todo]))
        rest = rest.index_copy(2, todo, torch.where(closer, trial_rest, rest[..., todo]))
        error[todo] = torch.where(closer, trial_error, error[todo])
        step[todo] *= torch.where(closer, 1.0, 0.5)
    return inverse.reshape(displacement.shape)


def _squared_norm(vectors: Tensor) -> Tensor:
    """Return the squared lengths (N,) of (1, D, N); they only steer, so they are cut off from the gradient."""
    return vectors.detach().square().sum(1)[0]


def inverse_error(forward: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far points end from where they began after `forward`, then `inverse`.

    Parameters
    ----------
    forward, inverse : (B, D, *shape) Tensor
        Voxels.

    Returns
    -------
    mean, largest : (B,) Tensor
        Distance in voxels over the grid.
    """
    distance = compose(forward, inverse).norm(dim=1).flatten(1)
    return distance.mean(1), distance.amax(1)


def resize_field(displacement: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a displacement on a grid of another shape and the same outermost voxel centres (`Grid.resized`).

    Parameters
    ----------
    displacement : (B, D, *old shape) Tensor
        Voxels of the old grid.
    shape : sequence of int
        New shape.

    Returns
    -------
    (B, D, *shape) Tensor
        Linear interpolation, in voxels of the new grid.
    """
    check_displacement(displacement)
    mode = "trilinear" if displacement.shape[1] == 3 else "bilinear"
    resized = functional.interpolate(displacement, size=tuple(shape), mode=mode, align_corners=True)
    factors = [(new - 1) / (old - 1) if old > 1 else 1.0 for old, new in zip(displacement.shape[2:], shape, strict=True)]
    return resized * torch.tensor(factors, device=resized.device, dtype=resized.dtype).reshape(-1, *[1] * len(shape))
