"""Global rigid search between images of any contrast: CSNGF.

For each of many rotations the mean squared inner product of the two normalised gradient fields is found for **all**
shifts at once by FFT; the best rotations are refined from coarse to fine. Method: the WBIR 2022 paper on global rigid
multimodal alignment by cross-similarity of normalised gradient fields (CSNGF). Where we differ from it, on purpose:

* masks are eroded by one voxel instead of being multiplied into the image before the gradient, so that their borders make
  no gradients of their own;
* rotations are uniform on SO(3) and steps are rotation vectors (uniform Euler angles crowd the poles);
* both images are sampled on isotropic lattices in millimetres, so that shapes, spacings and obliqueness may differ;
* the peak over the shifts is refined below one voxel by a parabola along each axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.images.pyramid import coarsen
from popatlas.images.scan import Scan, check_scans
from popatlas.registration.global_search.fft import erode, padded, similarity_map, spectra
from popatlas.registration.global_search.rotations import Array, angle_between, cube_rotations, perturbed, uniform_rotations
from popatlas.similarity.ngf import normalised_gradient
from popatlas.transforms.affine import Matrix
from popatlas.transforms.fields import sample

BATCH_VOXELS = 2**18  # padded voxels per batch of rotations: larger batches leave the cache and are not faster
BACKGROUND_SHARE = 0.05  # of the voxels that have the value of all corners
DISTINCT = 20.0  # degrees between rotations that count as different poses


@dataclass(frozen=True)
class Level:
    """One level of the search.

    Attributes
    ----------
    factor : float
        Voxel size, in base voxels (see `GlobalSchedule.side`).
    sigma : float
        Gaussian smoothing, in base voxels.
    rotations : int
        New rotations tried; at the first level they cover all orientations, later they are made from the parents.
    step : float
        Degrees by which they differ from a parent, at most, per component of the rotation vector.
    keep : int
        Best rotations handed on; they are tried again, unchanged, at the next level.
    """

    factor: float
    sigma: float
    rotations: int
    step: float
    keep: int


@dataclass(frozen=True)
class GlobalSchedule:
    """What the search does; the default takes seconds on one CPU thread.

    Attributes
    ----------
    levels : tuple of Level
        From coarse to fine.
    side : int or None
        The base voxel is isotropic with this many along the longest side of the two images; None takes their finest spacing.
    overlap : float
        Shifts with less than this fraction of the largest possible overlap do not count (gamma of the paper).
    epsilon : float
        Regulariser of the gradient field, for intensities scaled to 0..1, per voxel.
    separation : float
        Degrees that the kept rotations of the first level are apart, so that they are not all on one peak.
    max_angle : float
        Largest rotation tried at the first level, degrees.
    cube : bool
        Try the 24 (in 2D 4) rotations that swap and flip world axes at the first level instead of uniform ones: finds scans
        whose header has the axes wrong.
    seed : int
        Of the steps from parents.
    """

    levels: tuple[Level, ...] = (
        Level(2, 1.5, 1000, 0, 16),
        Level(2, 1.5, 192, 10, 6),
        Level(2, 1.2, 128, 6, 4),
        Level(1, 1.0, 64, 4, 2),
        Level(1, 0.75, 32, 2, 1),
        Level(1, 0.75, 24, 1, 1),
    )
    side: int | None = 32
    overlap: float = 0.5
    epsilon: float = 1e-5
    separation: float = 10.0
    max_angle: float = 180.0
    cube: bool = False
    seed: int = 0


SCHEDULES = {
    "default": GlobalSchedule(),
    "paper": GlobalSchedule(
        levels=(Level(4, 5, 5000, 0, 20), Level(2, 3, 3000, 10, 3), Level(2, 2, 300, 3, 1), Level(1, 1.5, 0, 0, 1)),
        side=None,
        separation=0,
    ),
}


@dataclass(frozen=True)
class GlobalResult:
    """Outcome of the search.

    Attributes
    ----------
    matrix : (D+1, D+1) ndarray
        Rigid, fixed to moving, LPS millimetres.
    score : float
        Mean squared inner product of the gradient fields over the overlap, 0 to 1.
    runner_up : float
        Score at the last level of the best pose that is turned by more than 20 degrees from `matrix`; NaN when none was
        tried. A true peak stands well above it.
    runner_up_matrix : (D+1, D+1) ndarray or None
        That pose.
    evaluations : int
        Rotations tried, each with all shifts.
    """

    matrix: Matrix
    score: float
    runner_up: float
    runner_up_matrix: Matrix | None
    evaluations: int


@dataclass(frozen=True)
class _Poses:
    """Rotations tried at a level, with the best shift of each."""

    rotations: Array
    scores: Array
    translations: Array

    def matrix(self, row: int) -> Matrix:
        ndim = self.rotations.shape[-1]
        matrix = np.eye(ndim + 1)
        matrix[:ndim, :ndim], matrix[:ndim, ndim] = self.rotations[row], self.translations[row]
        return matrix

    def best(self, count: int, separation: float) -> Array:
        """Return the best rotations that are at least so many degrees apart."""
        kept: list[int] = []
        for row in np.argsort(-self.scores, kind="stable"):
            if len(kept) < count and np.all(angle_between(self.rotations[row], self.rotations[kept]) >= separation):
                kept.append(int(row))
        return self.rotations[kept]


def without_background(scan: Scan) -> Scan:
    """Give a scan without mask one that leaves out a background of one exact value, if it has one.

    Such a background (a stripped brain, the padding of a turned image, air cut off in CT) has no gradient, but it would
    count as overlap, and shifts that push it out of the other image would win.
    """
    if scan.mask is not None:
        return scan
    corners = scan.image[0, 0][tuple(slice(None, None, n - 1) for n in scan.grid.shape)]
    background = scan.image == corners.flatten()[0]
    constant = bool((corners == corners.flatten()[0]).all()) and float(background.float().mean()) > BACKGROUND_SHARE
    return replace(scan, mask=(~background).to(scan.image)) if constant else scan


def mask_extent(scan: Scan) -> tuple[Array, Array, Array]:
    """Return the lowest and the highest index of the mask along each axis, and how far they are apart in mm."""
    if scan.mask is None:
        low, high = np.zeros(scan.ndim), np.array(scan.grid.shape) - 1.0
    else:
        inside = (scan.mask[0, 0] > 0).nonzero().cpu().numpy().astype(np.float64)
        low, high = inside.min(0), inside.max(0)
    return low, high, (high - low) * np.array(scan.grid.spacing)


class _Lattice:
    """Isotropic voxels round the middle of a scan's mask, which can be turned before the scan is sampled on them.

    Parameters
    ----------
    scan : Scan
        Smoothed; its own voxels are finer than the lattice.
    spacing : float
        Of the lattice, mm.
    cube : bool
        Make all sides as long as the longest, for a scan that is turned.
    """

    def __init__(self, scan: Scan, spacing: float, *, cube: bool) -> None:
        affine = np.asarray(scan.grid.affine, dtype=np.float64)
        ndim = scan.ndim
        self.mask = torch.ones_like(scan.image) if scan.mask is None else (scan.mask > 0).to(scan.image)
        low, high, extent = mask_extent(scan)
        values = scan.image[self.mask > 0]
        self.image = (scan.image - values.min()) / (values.max() - values.min()).clamp(min=torch.finfo(values.dtype).tiny)
        self.spacing, self.middle, self.to_index = spacing, (low + high) / 2, np.linalg.inv(affine[:ndim, :ndim])
        self.centre = affine[:ndim, :ndim] @ self.middle + affine[:ndim, ndim]
        sides = np.full(ndim, extent.max()) if cube else extent
        # the small number keeps a side that fits exactly; three voxels have a central difference
        self.shape = tuple(max(3, int(side / spacing + 1e-6) + 1) for side in sides)

    def sampled(self, axes: Array) -> tuple[Tensor, Tensor]:
        """Return image and mask (N, 1, *shape) on the lattice turned to have the axes (N, D, D), the columns of each."""
        ticks = [torch.arange(count, dtype=torch.float64) - (count - 1) / 2 for count in self.shape]
        offsets = torch.stack(torch.meshgrid(*ticks, indexing="ij")).flatten(1)
        at = torch.as_tensor(self.spacing * self.to_index @ axes) @ offsets + torch.as_tensor(self.middle)[:, None]
        where = at.to(self.image).reshape(len(axes), len(self.shape), *self.shape)
        image, mask = (part.expand(len(axes), *part.shape[1:]) for part in (self.image, self.mask))
        return sample(image, where, mode="linear", padding="border"), sample(mask, where, mode="nearest", padding="zeros")


class _Matcher:
    """Finds the best shift of any rotation at one level."""

    def __init__(self, fixed: Scan, moving: Scan, level: Level, base: float, schedule: GlobalSchedule) -> None:
        spacing = level.factor * base
        self.fixed, self.moving = (
            _Lattice(coarsen(scan, spacing / 2, level.sigma * base), spacing, cube=turns)
            for scan, turns in ((fixed, False), (moving, True))
        )
        self.schedule = schedule
        left, _, right = np.linalg.svd(np.asarray(fixed.grid.direction, dtype=np.float64))
        self.axes = left @ right  # those of the fixed grid, without its shear
        self.size, self.shifts = padded(self.fixed.shape, self.moving.shape, schedule.overlap)
        self.reference = self._spectra(self.fixed, self.axes[None])

    def _spectra(self, lattice: _Lattice, axes: Array) -> Tensor:
        image, mask = lattice.sampled(axes)
        return spectra(normalised_gradient(image, self.schedule.epsilon)[:, 0], erode(mask), self.size)

    def __call__(self, rotations: Array) -> _Poses:
        """Evaluate rotations (N, D, D), fixed to moving, LPS millimetres."""
        step = max(1, BATCH_VOXELS // int(np.prod(self.size)))
        found = []
        for first in range(0, len(rotations), step):
            moving = self._spectra(self.moving, rotations[first : first + step] @ self.axes)
            score, _ = similarity_map(self.reference, moving, self.size, self.shifts, self.schedule.overlap)
            found.append(_peaks(score, self.shifts))
        scores, shifts = (torch.cat(parts).cpu().numpy().astype(np.float64) for parts in zip(*found, strict=True))
        # x of the fixed lattice lies on x + shift of the turned one, both counted from their corners
        offset = self.fixed.spacing * (shifts + (np.array(self.fixed.shape) - self.moving.shape) / 2)
        moved = (rotations @ self.axes @ offset[..., None])[..., 0]
        return _Poses(rotations, scores, self.moving.centre - rotations @ self.fixed.centre + moved)


def _peaks(score: Tensor, shifts: Sequence[range]) -> tuple[Tensor, Tensor]:
    """Return the largest score (B,) of maps and its shift (B, D), refined by a parabola along each axis."""
    peak, where = score.flatten(1).max(1)
    index = torch.stack(torch.unravel_index(where, score.shape[1:]), 1)
    rows = torch.arange(len(score), device=score.device)
    found = []
    for axis, wanted in enumerate(shifts):
        step = torch.zeros_like(index)
        step[:, axis] = 1
        inner = (index[:, axis] > 0) & (index[:, axis] < len(wanted) - 1)
        step = step * inner.unsqueeze(1)
        before, after = (score[(rows, *place.unbind(1))] for place in (index - step, index + step))
        bend = before + after - 2 * peak
        usable = inner & (before >= 0) & (after >= 0) & (bend < 0)
        fraction = torch.where(usable, 0.5 * (before - after) / bend, torch.zeros_like(bend))
        found.append(index[:, axis] + wanted.start + fraction)
    return peak, torch.stack(found, 1)


def search(fixed: Scan, moving: Scan, schedule: GlobalSchedule | None = None, subject: str | None = None) -> GlobalResult:
    """Find the rigid transform between two images of any contrast, from any start.

    Parameters
    ----------
    fixed, moving : Scan
        Images of 2 or 3 axes, of any shape and spacing. Backgrounds should be exactly constant or masked: every faint
        gradient counts as much as a strong one.
    schedule : GlobalSchedule, optional
        Default: `SCHEDULES["default"]`.
    subject : str, optional
        Named in errors.

    Returns
    -------
    GlobalResult
        The pose, its score and how far it stands above others. Deterministic.

    Raises
    ------
    InputError
        From `check_pair`, or when a mask is too thin for the coarse lattice.
    """
    check_scans(fixed, moving, subject)
    plan = schedule or SCHEDULES["default"]
    fixed, moving = without_background(fixed), without_background(moving)
    base = _base_spacing(fixed, moving, plan)
    rng = np.random.default_rng(plan.seed)
    tried: list[_Poses] = []
    for number, level in enumerate(plan.levels):
        matcher = _Matcher(fixed, moving, level, base, plan)
        if number == 0:
            identity = np.eye(fixed.ndim)[None]  # scans often agree already
            uniform = uniform_rotations(level.rotations, fixed.ndim, plan.max_angle)
            parents, new = (cube_rotations(fixed.ndim), uniform[:0]) if plan.cube else (identity, uniform)
        else:
            before = plan.levels[number - 1]
            parents = tried[-1].best(before.keep, plan.separation if number == 1 else 0.0)
            new = perturbed(parents, level.rotations, level.step, rng)
        tried.append(matcher(np.concatenate([parents, new])))
        if tried[-1].scores.max() < 0:
            message = f"a mask is too thin to be searched with voxels of {level.factor * base:.3g} mm"
            raise InputError(message, subject=subject, remedy="give a larger mask, or a finer schedule")
    return _result(tried, matcher)


def _base_spacing(fixed: Scan, moving: Scan, plan: GlobalSchedule) -> float:
    if plan.side is None:
        return float(min(*fixed.grid.spacing, *moving.grid.spacing))
    return max(float(max(mask_extent(scan)[2])) for scan in (fixed, moving)) / (plan.side - 1)


def _result(tried: list[_Poses], matcher: _Matcher) -> GlobalResult:
    """Gather the best pose and, from the finest level that tried one, the best distinct other pose."""
    last = tried[-1]
    winner = int(last.scores.argmax())
    evaluations = sum(len(poses.scores) for poses in tried)
    runner_up, other = float("nan"), None
    for poses in reversed(tried):
        distinct = angle_between(poses.rotations, last.rotations[winner]) > DISTINCT
        if distinct.any():
            row = int(np.where(distinct, poses.scores, -np.inf).argmax())
            again = matcher(poses.rotations[row : row + 1])
            runner_up, other = float(again.scores[0]), again.matrix(0)
            break
    return GlobalResult(last.matrix(winner), float(last.scores[winner]), runner_up, other, evaluations)
