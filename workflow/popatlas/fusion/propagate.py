"""Bring atlases onto a target grid: one composed transform, one interpolation.

A chain is written in ANTs order: the first transform acts first on a point of the target grid. From a target over the
template to an atlas it is ``[target affine (inverted), target inverse warp, atlas warp, atlas affine]``; for a direct
registration it is ``[warp, affine]``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.fusion.labels import to_contiguous
from popatlas.images.io import load_image, save_image
from popatlas.images.labels import LabelImage, read_labels
from popatlas.images.place import check_place
from popatlas.transforms.resample import Step, resample

LabelInterpolator = Literal["genericLabel", "nearestNeighbor"]


def chain(
    warp: Path, affine: Path, target_affine: Path | None = None, target_inverse_warp: Path | None = None
) -> list[Step]:
    """Return the transform chain from a target grid to an atlas, in ANTs order.

    Parameters
    ----------
    warp, affine : Path
        Forward registration of the atlas (atlas image to template, or to the target when direct).
    target_affine, target_inverse_warp : Path, optional
        Registration of the target to the template; left out for a direct registration.

    Returns
    -------
    list of Step
    """
    forward = [Step(warp), Step(affine)]
    if target_affine is None or target_inverse_warp is None:
        return forward
    return [Step(target_affine, invert=True), Step(target_inverse_warp), *forward]


def propagate(
    target: Path,
    dsegs: Sequence[Path],
    brains: Sequence[Path],
    chains: Sequence[Sequence[Step]],
    interpolator: LabelInterpolator = "nearestNeighbor",
    subject: str | None = None,
    *,
    forms: bool = False,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Warp the labels and images of all atlases onto a target grid.

    Parameters
    ----------
    target : Path
        Image that defines the grid.
    dsegs, brains : sequence of Path
        Label image, as the user has it, and brain of each atlas.
    chains : sequence of chains
        One for each atlas, see :func:`chain`.
    interpolator : {"genericLabel", "nearestNeighbor"}
        For labels; images are interpolated linearly. ``genericLabel`` takes the label with the largest linear weight
        (Schaerer J, Roche F, Belaroussi B. A generic interpolator for multi-label images. Insight Journal 2014).
    subject : str, optional
        Named in messages.
    forms : bool
        Refuse label images whose sform and qform lie apart. Otherwise the sform places them, as it does the brains.

    Returns
    -------
    labels : (n_atlases, x, y, z) int32 ndarray
    images : (n_atlases, x, y, z) float32 ndarray

    Raises
    ------
    InputError
        No atlas, lists of different lengths, missing files, label images that cannot be used or do not lie on their brain.
    """
    if not dsegs:
        raise InputError(
            "no labelled atlas to propagate",
            subject=subject,
            remedy="set fuse.atlases to at least 1 and check that the labelled atlases passed registration",
        )
    if not len(dsegs) == len(brains) == len(chains):
        raise InputError(
            f"{len(dsegs)} label images, {len(brains)} images and {len(chains)} transform chains",
            subject=subject,
            remedy="give one of each for every atlas",
        )
    labels, images = [], []
    with tempfile.TemporaryDirectory(prefix="popatlas-labels-") as folder:
        placed = Path(folder) / "dseg.nii"
        for dseg, brain, steps in zip(dsegs, brains, chains, strict=True):
            given = read_labels(dseg, subject, forms=forms)
            check_place(given, subject, mask=_inside(brain))
            values, numbers = to_contiguous(given.data)  # ANTs reads integers as float32, which merges large ones
            save_image(numbers, given.affine, placed, np.int32)  # nibabel placed the brain: so it must the labels
            warped = resample(target, placed, steps, interpolator, subject)
            labels.append(values[np.rint(warped).astype(np.intp)].astype(np.int32))
            images.append(resample(target, brain, steps, "linear", subject).astype(np.float32))
    return np.stack(labels), np.stack(images)


def _inside(brain: Path) -> LabelImage:
    """Return where a brain image, 0 outside, is not 0."""
    image = load_image(brain)
    return LabelImage(brain, np.asarray(np.asarray(image.dataobj) != 0, dtype=np.int32), image.affine)
