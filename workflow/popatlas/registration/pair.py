"""One attempt at registering a pair: transforms, warped image, Jacobian and the gate's verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from popatlas.errors import InputError
from popatlas.registration.ants import Registration, Schedule, deterministic_ants, register
from popatlas.registration.gate import correlation, gate_metrics, judge
from popatlas.transforms.affine import read_affine
from popatlas.transforms.displacement import apply_chain, compose, write_jacobian


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

    @classmethod
    def load(cls, fixed: str, fixed_mask: str, moving: str, moving_mask: str, subject: str = "") -> Pair:
        """Read four files; empty images and masks raise InputError."""
        ants = deterministic_ants()
        images: list[Any] = []
        for path in (fixed, fixed_mask, moving, moving_mask):
            image = ants.image_read(path)
            values = image.numpy()
            if not np.isfinite(values).all() or values.max() <= values.min():
                raise InputError(
                    "image is empty or not finite", file=path, subject=subject, remedy="check the skull stripping"
                )
            images.append(image)
        one, one_mask, other, other_mask = images
        return cls(ants, one, one_mask, other, other_mask, Path(fixed), Path(moving))


@dataclass(frozen=True)
class Attempt:
    """What one attempt gave; files lie in the attempt's temporary folder."""

    files: Registration
    composed: Path
    logjacobian: Path
    warped: Any
    warped_mask: Any
    metrics: dict[str, float]
    reasons: list[str]


def attempt(pair: Pair, preset: Mapping[str, Any], limits: Mapping[str, Any], folder: Path, *, search: bool) -> Attempt:
    """Register a pair once and judge it.

    Parameters
    ----------
    pair : Pair
        Images and masks.
    preset : mapping
        One of the configuration's `register.presets`.
    limits : mapping
        The configuration's `register.gate`.
    folder : Path
        Temporary folder that outlives the use of the result.
    search : bool
        Start from a multi-start search.
    """
    files = register(pair.fixed, pair.moving, Schedule.from_config(preset), folder, search=search)
    chain = [files.warp, files.affine]
    keep = [False, False]
    composed, logjacobian = folder / "composed.nii.gz", folder / "logjacobian.nii.gz"
    compose(pair.fixed_file, pair.moving_file, chain, keep, composed)
    determinant = write_jacobian(composed, pair.fixed_file, logjacobian)
    warped = apply_chain(pair.fixed, pair.moving, chain, keep)
    after_affine = apply_chain(pair.fixed, pair.moving, chain[1:], keep[1:])
    warped_mask = apply_chain(pair.fixed, pair.moving_mask, chain, keep, "nearestNeighbor")
    mask = pair.fixed_mask.numpy()
    metrics = gate_metrics(read_affine(files.affine), determinant, mask, warped_mask.numpy())
    metrics["ncc_affine"] = correlation(pair.fixed.numpy(), after_affine.numpy(), mask)
    metrics["ncc"] = correlation(pair.fixed.numpy(), warped.numpy(), mask)
    return Attempt(files, composed, logjacobian, warped, warped_mask, metrics, judge(metrics, limits))
