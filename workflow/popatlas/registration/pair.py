"""A pair of brains to register: images, masks, and the files that they came from."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.images.antspy import AntsImage, deterministic_ants
from popatlas.images.grid import Grid
from popatlas.images.io import PathLike, load_image
from popatlas.images.place import read_mask_on
from popatlas.images.scan import Scan


@dataclass(frozen=True)
class Pair:
    """A fixed and a moving image with their masks (ANTs images and the files that they came from).

    They are brains without skull (`stripped`) in a study; two files may be anything. `asked` keeps what was found out about
    the pair, so that another attempt need not ask again.
    """

    fixed: AntsImage
    fixed_mask: AntsImage
    moving: AntsImage
    moving_mask: AntsImage
    fixed_file: Path
    moving_file: Path
    subject: str = ""
    stripped: bool = True
    asked: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    def scans(self) -> tuple[Scan, Scan]:
        """Return fixed and moving as tensors with their grids and masks, for the engines that are not ANTs."""
        return (
            Scan(_tensor(self.fixed), Grid.from_ants(self.fixed), _tensor(self.fixed_mask)),
            Scan(_tensor(self.moving), Grid.from_ants(self.moving), _tensor(self.moving_mask)),
        )


def load_pair(fixed: PathLike, fixed_mask: PathLike, moving: PathLike, moving_mask: PathLike, subject: str = "") -> Pair:
    """Read four files.

    Raises
    ------
    InputError
        When an image is constant, a mask is empty or on another grid than its image, or a value is not finite.
    """
    ants = deterministic_ants()
    images: list[AntsImage] = []
    for path, mask_path in ((fixed, fixed_mask), (moving, moving_mask)):
        _check_finite(path, subject)
        inside = read_mask_on(mask_path, path, subject, names=(f"image {path}", "mask")).data
        image = ants.image_read(str(path))
        if image.max() <= image.min():
            remedy = "check the skull stripping"
            raise InputError("image is empty: all voxels are equal", file=path, subject=subject, remedy=remedy)
        images += [image, image.new_image_like(inside.astype(np.float32))]
    one, one_mask, other, other_mask = images
    return Pair(one, one_mask, other, other_mask, Path(fixed), Path(moving), subject)


def _tensor(image: AntsImage) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.numpy(), dtype=np.float32))[None, None]


def _check_finite(path: PathLike, subject: str) -> None:
    """Refuse values that are not finite as they are in the file: ANTs reads NaN as 0."""
    if not np.isfinite(np.asarray(load_image(path).dataobj)).all():
        message = "the image has voxels that are not finite"
        raise InputError(message, file=path, subject=subject, remedy="replace them, by 0 outside of the field of view")
