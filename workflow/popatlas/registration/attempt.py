"""One attempt at registering a pair: transforms, warped image, Jacobian and the gate's verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from popatlas.images.arrays import FloatArray, RealArray
from popatlas.registration.engines.registry import find_engine
from popatlas.registration.evidence import of_affine, of_deformation
from popatlas.registration.gate import STILL, Limits, beyond_repair, doubts, gate_metrics, judge
from popatlas.registration.linear import align, find_affine, write_aligned
from popatlas.registration.pair import Pair
from popatlas.registration.pose import turn_of
from popatlas.registration.types import Attempt, Made, Registration
from popatlas.settings import Content
from popatlas.transforms.affine import Matrix, read_affine
from popatlas.transforms.chain import Affine, Chain
from popatlas.transforms.composed import read_step, write_composed
from popatlas.transforms.displacement import write_jacobian
from popatlas.transforms.griddistance import grid_distance_mm

BEFORE = "affine of the attempt before"  # kept with the pair


def register(pair: Pair, attempt: Attempt, folder: Path, threads: int = 1) -> Registration:
    """Register two brains: start, rigid, affine, then the deformable stage.

    Parameters
    ----------
    pair : Pair
        Skull-stripped, intensity-normalised images and their masks.
    attempt : Attempt
        What to do.
    folder : Path
        Existing folder for the transform files.
    threads : int
        Threads of engines that use them.
    """
    return deform(pair, attempt, align(pair, attempt, folder), folder, threads)


def deform(pair: Pair, attempt: Attempt, affine: Path, folder: Path, threads: int = 1) -> Registration:
    """Run the deformable stage of an attempt from an affine; see `register`."""
    found = find_engine(attempt.engine).load()(pair, attempt, affine, folder, threads)
    return Registration(affine, found.warp, found.inverse_warp, found.diverged)


@dataclass(frozen=True)
class AttemptResult:
    """What one attempt gave.

    Attributes
    ----------
    attempt : Attempt
        What was tried.
    made : Made or None
        None when the affine was refused already, and nothing was deformed.
    metrics, reasons, notes : dict, list, list
        Numbers, why it fails, and what has to be said of it.
    start : str
        Where the affine came from, when the first start led to no clear pose.
    hopeless : bool
        No other attempt can mend it.
    """

    attempt: Attempt
    made: Made | None
    metrics: dict[str, float]
    reasons: list[str]
    notes: list[str]
    start: str = ""
    hopeless: bool = False

    @property
    def files(self) -> Registration:
        """The transforms; RuntimeError when the affine was refused."""
        if self.made is None:
            raise RuntimeError(f"nothing was deformed: {'; '.join(self.reasons)}")
        return self.made.files

    def row(self) -> Content:
        """Return the attempt for the gate's file: what was tried, its numbers and why it failed."""
        more = {
            "found_from": "" if self.start == self.attempt.start else self.start,
            "notes": self.notes,
            "beyond_repair": self.hopeless,
        }
        return attempt_row(self.attempt, self.metrics, self.reasons) | {name: value for name, value in more.items() if value}


def attempt_row(attempt: Attempt, metrics: dict[str, float], reasons: list[str]) -> Content:
    """Return an attempt for the gate's file; without metrics when it raised an error, which is then its reason."""
    tried = {"engine": attempt.engine, "linear": attempt.linear, "start": attempt.start}
    return {**tried, "metrics": metrics, "reasons": reasons}


def try_once(
    pair: Pair, attempt: Attempt, limits: Limits, folder: Path, threads: int = 1, made: Registration | None = None
) -> AttemptResult:
    """Register a pair once and judge it: first the affine and, where that is in order, the deformation.

    Parameters
    ----------
    pair : Pair
        Images and masks.
    attempt : Attempt
        Start, engines and preset.
    limits : mapping
        The configuration's `register.gate`.
    folder : Path
        Temporary folder that outlives the use of the result.
    threads : int
        Threads of engines that use them.
    made : Registration, optional
        Files of a registration of this attempt that another job has made.
    """
    found = None if made else find_affine(pair, attempt, folder)
    matrix = read_affine(made.affine) if made else found.matrix  # type: ignore[union-attr]
    start = found.start if found else ""
    metrics = of_affine(pair, attempt, matrix) | _distances(pair, found.begin if found else None, matrix)
    reasons, notes = judge(metrics, limits), doubts(metrics, limits, turn_of(matrix)[1])
    if reasons:
        return AttemptResult(attempt, None, metrics, reasons, notes, start, beyond_repair(metrics, limits))
    files = made or deform(pair, attempt, write_aligned(found, folder), folder, threads)  # type: ignore[arg-type]
    result, determinant = _make(pair, files, folder)
    view = _view(pair, result) if metrics["covered"] < 1 else None
    metrics |= gate_metrics(matrix, determinant, pair.fixed_mask.numpy(), result.warped_mask.numpy(), view)
    metrics |= of_deformation(pair, result)
    still = 0.0 if attempt.settings.idle else STILL * min(pair.fixed.spacing)
    said = doubts(metrics, limits, turn_of(matrix)[1], still)
    return AttemptResult(attempt, result, metrics, judge(metrics, limits), said, start)


def _distances(pair: Pair, begin: Matrix | None, matrix: Matrix) -> dict[str, float]:
    """Return how far an affine is from the start that led to it and from that of the attempt before, mm."""
    others = {"start_distance": begin, "attempt_distance": pair.asked.get(BEFORE)}
    pair.asked[BEFORE] = matrix
    grid = pair.scans()[0].grid
    return {name: grid_distance_mm(other, matrix, grid) for name, other in others.items() if other is not None}


def _make(pair: Pair, files: Registration, folder: Path) -> tuple[Made, FloatArray]:
    """Compose the transforms, as they are in the files, and apply them; return the Jacobian determinant too."""
    fixed, moving = pair.scans()
    there, back = map(read_step, (files.warp, files.inverse_warp))
    affine = Affine(torch.as_tensor(read_affine(files.affine)))
    forward, inverse = Chain((there, affine)), Chain((affine.inverse(), back))
    composed, logjacobian = folder / "composed.nii.gz", folder / "logjacobian.nii.gz"
    write_composed(composed, forward, fixed.grid)
    determinant = write_jacobian(composed, pair.fixed_file, logjacobian)
    warped = forward.apply(moving.image, moving.grid, fixed.grid)
    assert moving.mask is not None
    warped_mask = forward.apply(moving.mask, moving.grid, fixed.grid, "nearest")
    images = [pair.fixed.new_image_like(image[0, 0].numpy()) for image in (warped, warped_mask)]
    return Made(files, forward, inverse, (there, back), composed, logjacobian, *images), determinant


def _view(pair: Pair, made: Made) -> RealArray:
    """Return the voxels of the fixed grid that the field of view of the moving image holds after a registration."""
    fixed, moving = pair.scans()
    return made.forward.apply(torch.ones_like(moving.image), moving.grid, fixed.grid, "nearest")[0, 0].numpy()
