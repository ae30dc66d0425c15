"""One attempt at registering a pair: transforms, warped image, Jacobian and the gate's verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.io import load_image
from popatlas.images.place import read_mask_on
from popatlas.registration.ants import deterministic_ants
from popatlas.registration.engines import Registration, Rung, register
from popatlas.registration.gate import correlation, gate_metrics, judge
from popatlas.transforms.affine import read_affine
from popatlas.transforms.displacement import apply_chain, compose, write_jacobian

if TYPE_CHECKING:
    from popatlas.registration.inputs import Scan


@dataclass(frozen=True)
class Pair:
    """A fixed and a moving brain with their masks (ANTs images and the files that they came from)."""

    ants: Any
    fixed: Any
    fixed_mask: Any
    moving: Any
    moving_mask: Any
    fixed_file: Path
    moving_file: Path
    subject: str = ""

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

        from popatlas.registration.inputs import Scan

        def tensor(image: Any) -> Any:
            return torch.from_numpy(np.ascontiguousarray(image.numpy(), dtype=np.float32))[None, None]

        return (
            Scan(tensor(self.fixed), Grid.from_ants(self.fixed), tensor(self.fixed_mask)),
            Scan(tensor(self.moving), Grid.from_ants(self.moving), tensor(self.moving_mask)),
        )


@dataclass(frozen=True)
class Attempt:
    """What one attempt gave; files lie in the attempt's temporary folder."""

    rung: Rung
    files: Registration
    composed: Path
    logjacobian: Path
    warped: Any
    warped_mask: Any
    metrics: dict[str, float]
    reasons: list[str]

    def row(self) -> dict[str, Any]:
        """Return the attempt for the gate's file: what was tried, its numbers and why it failed."""
        return attempt_row(self.rung, self.metrics, self.reasons)


def attempt_row(rung: Rung, metrics: dict[str, float], reasons: list[str]) -> dict[str, Any]:
    """Return an attempt for the gate's file; without metrics when it raised an error, which is then its reason."""
    tried = {"engine": rung.engine, "linear": rung.linear, "start": rung.start}
    return {**tried, "metrics": metrics, "reasons": reasons}


def attempt(
    pair: Pair, rung: Rung, limits: Mapping[str, Any], folder: Path, threads: int = 1, made: Registration | None = None
) -> Attempt:
    """Register a pair once and judge it.

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
    files = made or register(pair, rung, folder, threads)
    chain = [files.warp, files.affine]
    keep = [False, False]
    composed, logjacobian = folder / "composed.nii.gz", folder / "logjacobian.nii.gz"
    compose(pair.fixed_file, pair.moving_file, chain, keep, composed)
    determinant = write_jacobian(composed, pair.fixed_file, logjacobian)
    warped = apply_chain(pair.fixed, pair.moving, chain, keep)
    warped_mask = apply_chain(pair.fixed, pair.moving_mask, chain, keep, "nearestNeighbor")
    mask = pair.fixed_mask.numpy()
    metrics = gate_metrics(read_affine(files.affine), determinant, mask, warped_mask.numpy())
    stages = {"ncc_before": [], "ncc_affine": chain[1:], "ncc": chain}
    for name, transforms in stages.items():
        image = apply_chain(pair.fixed, pair.moving, transforms, [False] * len(transforms))
        metrics[name] = correlation(pair.fixed.numpy(), image.numpy(), mask)
    metrics["inverse_error"] = inverse_error(files, pair, mask)
    metrics["diverged"] = float(files.diverged)
    return Attempt(rung, files, composed, logjacobian, warped, warped_mask, metrics, judge(metrics, limits))


def inverse_error(files: Registration, pair: Pair, mask: Any) -> float:
    """Return the mean distance, in voxels of the fixed grid, between points of the mask and themselves after both warps."""
    import torch

    from popatlas.transforms.fields import compose as compose_fields
    from popatlas.transforms.itk import read_displacement

    forward, back = (torch.as_tensor(read_displacement(path)[0])[None].float() for path in (files.warp, files.inverse_warp))
    distance = compose_fields(forward, back).norm(dim=1)[0].numpy()
    inside = mask > 0
    return float(distance[inside].mean()) if inside.any() else 0.0


def _check_finite(path: str, subject: str) -> None:
    """Refuse values that are not finite as they are in the file: ANTs reads NaN as 0."""
    if not np.isfinite(np.asarray(load_image(path).dataobj)).all():
        message = "the image has voxels that are not finite"
        raise InputError(message, file=path, subject=subject, remedy="replace them, by 0 outside of the field of view")
