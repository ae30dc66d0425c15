"""One attempt at registering a pair: transforms, warped image, Jacobian and the gate's verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.io import load_image
from popatlas.images.place import read_mask_on
from popatlas.registration.engines.ants import deterministic_ants
from popatlas.registration.engines.registry import deform
from popatlas.registration.gate import beyond_repair, doubts, gate_metrics, judge
from popatlas.registration.linear import find_affine, write_aligned
from popatlas.registration.types import Registration, Rung
from popatlas.transforms.affine import Matrix, read_affine
from popatlas.transforms.displacement import write_jacobian

if TYPE_CHECKING:
    from popatlas.images.scan import Scan
    from popatlas.registration.pose import PoseJudge, Structure
    from popatlas.transforms.chain import Chain, Field


@dataclass(frozen=True)
class Pair:
    """A fixed and a moving brain with their masks (ANTs images and the files that they came from).

    `asked` keeps what was found out about the pair, so that another rung need not ask again.
    """

    ants: Any
    fixed: Any
    fixed_mask: Any
    moving: Any
    moving_mask: Any
    fixed_file: Path
    moving_file: Path
    subject: str = ""
    asked: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(cls, fixed: str, fixed_mask: str, moving: str, moving_mask: str, subject: str = "") -> Pair:
        """Read four files.

        Raises
        ------
        InputError
            When an image is constant, a mask is empty or on another grid than its image, or a value is not finite.
        """
        ants = deterministic_ants()
        images: list[Any] = []
        for path, mask_path in ((fixed, fixed_mask), (moving, moving_mask)):
            _check_finite(path, subject)
            inside = read_mask_on(mask_path, path, subject, names=(f"image {path}", "mask")).data
            image = ants.image_read(path)
            if image.max() <= image.min():
                remedy = "check the skull stripping"
                raise InputError("image is empty: all voxels are equal", file=path, subject=subject, remedy=remedy)
            images += [image, image.new_image_like(inside.astype(np.float32))]
        one, one_mask, other, other_mask = images
        return cls(ants, one, one_mask, other, other_mask, Path(fixed), Path(moving), subject)

    def scans(self) -> tuple[Scan, Scan]:
        """Return fixed and moving as tensors with their grids and masks, for the engines that are not ANTs."""
        import torch

        from popatlas.images.scan import Scan

        def tensor(image: Any) -> Any:
            return torch.from_numpy(np.ascontiguousarray(image.numpy(), dtype=np.float32))[None, None]

        return (
            Scan(tensor(self.fixed), Grid.from_ants(self.fixed), tensor(self.fixed_mask)),
            Scan(tensor(self.moving), Grid.from_ants(self.moving), tensor(self.moving_mask)),
        )

    @cached_property
    def spacing(self) -> float:
        """Voxels of the small copies that poses are judged on, mm."""
        from popatlas.registration.pose import common_spacing

        return common_spacing(*self.scans())

    @cached_property
    def structures(self) -> tuple[Structure, Structure]:
        """Small copies of fixed and moving with their edges."""
        from popatlas.registration.pose import Structure

        fixed, moving = self.scans()
        return Structure(fixed, self.spacing), Structure(moving, self.spacing)

    @cached_property
    def poses(self) -> PoseJudge:
        """Judge of affines between the two."""
        from popatlas.registration.pose import PoseJudge

        return PoseJudge(*self.structures)


@dataclass(frozen=True)
class Made:
    """Files (in the attempt's temporary folder) and images of a registration.

    Attributes
    ----------
    files : Registration
        The transforms.
    forward, inverse : Chain
        From fixed to moving points, and back.
    warps : pair of Field
        Their deformations alone.
    composed, logjacobian : Path
        The whole way as one field, and the logarithm of its Jacobian determinant.
    warped, warped_mask : ANTsImage
        Moving brain and mask on the fixed grid.
    """

    files: Registration
    forward: Chain
    inverse: Chain
    warps: tuple[Field, Field]
    composed: Path
    logjacobian: Path
    warped: Any
    warped_mask: Any


@dataclass(frozen=True)
class Attempt:
    """What one attempt gave.

    Attributes
    ----------
    rung : Rung
        What was tried.
    made : Made or None
        None when the affine was refused already, and nothing was deformed.
    metrics, reasons, notes : dict, list, list
        Numbers, why it fails, and what has to be said of it.
    start : str
        Where the affine came from, when the first start led to no clear pose.
    hopeless : bool
        No other rung can mend it.
    """

    rung: Rung
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

    def row(self) -> dict[str, Any]:
        """Return the attempt for the gate's file: what was tried, its numbers and why it failed."""
        more = {
            "found_from": "" if self.start == self.rung.start else self.start,
            "notes": self.notes,
            "beyond_repair": self.hopeless,
        }
        return attempt_row(self.rung, self.metrics, self.reasons) | {name: value for name, value in more.items() if value}


def attempt_row(rung: Rung, metrics: dict[str, float], reasons: list[str]) -> dict[str, Any]:
    """Return an attempt for the gate's file; without metrics when it raised an error, which is then its reason."""
    tried = {"engine": rung.engine, "linear": rung.linear, "start": rung.start}
    return {**tried, "metrics": metrics, "reasons": reasons}


def attempt(
    pair: Pair, rung: Rung, limits: Mapping[str, Any], folder: Path, threads: int = 1, made: Registration | None = None
) -> Attempt:
    """Register a pair once and judge it: first the affine and, where that is in order, the deformation.

    Parameters
    ----------
    pair : Pair
        Images and masks.
    rung : Rung
        Start, engines and preset.
    limits : mapping
        The configuration's `register.gate`.
    folder : Path
        Temporary folder that outlives the use of the result.
    threads : int
        Threads of engines that use them.
    made : Registration, optional
        Files of a registration of this rung that another job has made.
    """
    from popatlas.registration import evidence
    from popatlas.registration.pose import turn_of

    found = None if made else find_affine(pair, rung, folder)
    matrix = read_affine(made.affine) if made else found.matrix  # type: ignore[union-attr]
    start = found.start if found else ""
    metrics = evidence.of_affine(pair, rung, matrix)
    reasons, notes = judge(metrics, limits), doubts(metrics, limits, turn_of(matrix)[1])
    if reasons:
        return Attempt(rung, None, metrics, reasons, notes, start, beyond_repair(metrics, limits))
    files = made or deform(pair, rung, write_aligned(found, folder), folder, threads)  # type: ignore[arg-type]
    result, determinant = _make(pair, files, matrix, folder)
    view = _view(pair, result) if metrics["covered"] < 1 else None
    metrics |= gate_metrics(matrix, determinant, pair.fixed_mask.numpy(), result.warped_mask.numpy(), view)
    metrics |= evidence.of_deformation(pair, result)
    return Attempt(rung, result, metrics, judge(metrics, limits), notes, start)


def _make(pair: Pair, files: Registration, matrix: Matrix, folder: Path) -> tuple[Made, Any]:
    """Compose the transforms and apply them; return the Jacobian determinant too."""
    import torch

    from popatlas.transforms.chain import Affine, Chain, Field
    from popatlas.transforms.itk import read_displacement, write_displacement

    fixed, moving = pair.scans()
    there, back = (
        Field(torch.as_tensor(values, dtype=torch.float32)[None], grid)
        for values, grid in map(read_displacement, (files.warp, files.inverse_warp))
    )
    affine = Affine(torch.as_tensor(matrix))
    forward, inverse = Chain((there, affine)), Chain((affine.inverse(), back))
    composed, logjacobian = folder / "composed.nii.gz", folder / "logjacobian.nii.gz"
    write_displacement(composed, forward.as_field(fixed.grid).displacement[0], fixed.grid)
    determinant = write_jacobian(composed, pair.fixed_file, logjacobian)
    warped = forward.apply(moving.image, moving.grid, fixed.grid)
    assert moving.mask is not None
    warped_mask = forward.apply(moving.mask, moving.grid, fixed.grid, "nearest")
    images = [pair.fixed.new_image_like(image[0, 0].numpy()) for image in (warped, warped_mask)]
    return Made(files, forward, inverse, (there, back), composed, logjacobian, *images), determinant


def _view(pair: Pair, made: Made) -> Any:
    """Return the voxels of the fixed grid that the field of view of the moving image holds after a registration."""
    import torch

    fixed, moving = pair.scans()
    return made.forward.apply(torch.ones_like(moving.image), moving.grid, fixed.grid, "nearest")[0, 0].numpy()


def _check_finite(path: str, subject: str) -> None:
    """Refuse values that are not finite as they are in the file: ANTs reads NaN as 0."""
    if not np.isfinite(np.asarray(load_image(path).dataobj)).all():
        message = "the image has voxels that are not finite"
        raise InputError(message, file=path, subject=subject, remedy="replace them, by 0 outside of the field of view")
