"""The input of every fusion method: checked candidate labels, and images where they are given, on one grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np

from popatlas.errors import InputError
from popatlas.fusion.labels import disputed_mask
from popatlas.images.arrays import BoolArray, FloatArray, IntArray
from popatlas.images.labels import LARGEST_LABEL

PROPAGATE_AGAIN = "propagate the atlases again onto the grid of the target"


@dataclass(frozen=True)
class Candidates:
    """Labels of several atlases on the grid of one target, 2D or 3D.

    Attributes
    ----------
    labels : (n_candidates, x, y[, z]) int ndarray
        Candidate labels, any values from 0 to 2^31 - 1.
    target : (x, y[, z]) float ndarray, optional
        Image to label.
    images : (n_candidates, x, y[, z]) float ndarray, optional
        Images of the atlases, intensities comparable with `target`.
    spacing : tuple of float, optional
        Voxel size in mm; 1 when left out.
    names : tuple of str
        Names of the candidates, for messages and tables; ``1``, ``2``, ... when left out.
    subject : str, optional
        Named in messages.

    Raises
    ------
    InputError
        No candidate, shapes that differ, negative or fractional labels, images that are not finite.
    """

    labels: IntArray
    target: FloatArray | None = None
    images: FloatArray | None = None
    spacing: tuple[float, ...] | None = None
    names: tuple[str, ...] = ()
    subject: str | None = None

    def __post_init__(self) -> None:
        if self.labels.ndim < 2 or self.labels.shape[0] == 0:
            self._refuse(
                "label fusion got no atlas",
                "set fuse.atlases to at least 1 and check that the labelled atlases passed registration",
            )
        if not np.issubdtype(self.labels.dtype, np.integer):
            self._refuse(f"candidate labels are {self.labels.dtype}, not integers", "give label numbers, 0 for background")
        if not self.names:
            object.__setattr__(self, "names", tuple(str(number + 1) for number in range(len(self.labels))))
        self._check_shapes()
        self._check_values()

    def _check_shapes(self) -> None:
        axes = self.labels.ndim - 1
        if self.spacing is not None and (len(self.spacing) != axes or not min(self.spacing) > 0):
            self._refuse(f"spacing {self.spacing} for {axes} axes", "give one positive voxel size in mm for each axis")
        if len(self.names) != len(self.labels):
            self._refuse(f"{len(self.names)} names for {len(self.labels)} candidates", "name each candidate")
        for what, image, shape in (
            ("target", self.target, self.labels.shape[1:]),
            ("atlas images", self.images, self.labels.shape),
        ):
            if image is not None and image.shape != shape:
                self._refuse(f"shapes differ: {what} {image.shape}, candidate labels {self.labels.shape}", PROPAGATE_AGAIN)

    def _check_values(self) -> None:
        for number, one in enumerate(self.labels):
            if one.size and (one.min() < 0 or one.max() > LARGEST_LABEL):
                self._refuse(
                    f"candidate {self.names[number]} has label {one.min() if one.min() < 0 else one.max()}",
                    "use labels from 0 (background) to 2147483647",
                )
        for what, image in (("target", self.target), ("an atlas image", self.images)):
            if image is not None and not np.isfinite(image).all():
                self._refuse(f"{what} has voxels that are not finite", "preprocess the image again")

    def _refuse(self, message: str, remedy: str) -> NoReturn:
        raise InputError(message, subject=self.subject, remedy=remedy)

    def need_images(self, method: str) -> tuple[FloatArray, FloatArray]:
        """Return target and atlas images; InputError when a method needs them and they are not there."""
        if self.target is None or self.images is None:
            self._refuse(f"fusion by {method} needs the image of the target and of each atlas", "give them too")
        return self.target, self.images

    @cached_property
    def disputed(self) -> BoolArray:
        """Where not all candidates have the same label."""
        return disputed_mask(self.labels)

    @property
    def empty(self) -> tuple[int, ...]:
        """Numbers of the candidates without any label; none when all are empty, which is then the result."""
        filled = [bool(one.any()) for one in self.labels]
        return tuple(number for number, any_label in enumerate(filled) if not any_label) if any(filled) else ()

    def pick(self, numbers: list[int]) -> Candidates:
        """Return only some of the candidates."""
        images = None if self.images is None else self.images[numbers]
        names = tuple(self.names[number] for number in numbers)
        return Candidates(self.labels[numbers], self.target, images, self.spacing, names, self.subject)
