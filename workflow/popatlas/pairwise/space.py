"""Where the voxels of a file lie: what is written for it has its axes and its header; and what a registration remembers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.images.arrays import FloatArray, IntArray, RealArray
from popatlas.images.grid import SAME_DIRECTION, VECTOR_INTENTS, Array, Grid
from popatlas.images.header import check_header, refuse, type_fault
from popatlas.images.io import load_image, save_image, sha256
from popatlas.settings import Content


@dataclass(frozen=True, eq=False)
class Space:
    """Shape and affine of an image.

    Attributes
    ----------
    shape : tuple of int
        (x, y), (x, y, 1) or (x, y, z), as in its file.
    affine : (4, 4) ndarray
        Voxel index to RAS millimetres.
    file : Path or None
        Named in errors.
    """

    shape: tuple[int, ...]
    affine: Array
    file: Path | None = None

    @classmethod
    def of_file(cls, path: Path, what: str = "image") -> Space:
        """Return where an image lies; axes after the third are not looked at.

        Raises
        ------
        InputError
            When the file cannot be read, its voxels are no plain numbers, or its header does not say in one way where they
            lie.
        """
        check_header(path, what)
        image = nib.load(path)
        refuse(type_fault(image.get_data_dtype()), what, path)
        if image.header.get_intent()[0] in VECTOR_INTENTS:
            remedy = "give images of single values; transforms go into --transforms"
            raise InputError(
                f"the {what} holds vectors, which turn with the space that they are in", file=path, remedy=remedy
            )
        return cls(tuple(image.shape[:3]), np.asarray(image.affine, dtype=np.float64), path)

    @cached_property
    def grid(self) -> Grid:
        """The same in LPS; a third axis of one voxel counts as none, and the plane must lie along the first two world axes.

        Raises
        ------
        InputError
            When it does not.
        """
        if self.shape[2:] not in ((), (1,)):
            return Grid.from_affine(self.shape, self.affine, self.file)
        if np.abs(self.affine[2, :2]).max() > SAME_DIRECTION * np.abs(self.affine[:2, :2]).max():
            message = "the image is a plane that is not parallel to the first two axes of the world"
            remedy = "save it with an affine in which only the first two axes turn, for example diag(width, height, 1, 1)"
            raise InputError(message, file=self.file, remedy=remedy)
        return Grid.from_affine(self.shape[:2], self.affine, self.file)

    @property
    def height(self) -> float:
        """Third world coordinate of a plane, RAS mm."""
        return float(self.affine[2, 3])

    def save(self, data: RealArray, out: Path, dtype: npt.DTypeLike | None = None) -> None:
        """Write voxels of `grid`, and perhaps further volumes (last axis), as the file has them."""
        more = data.shape[self.grid.ndim :]
        shape = self.shape if not more or len(self.shape) == 3 else (*self.shape, 1)  # the fourth axis holds volumes
        save_image(data.reshape(*shape, *more), self.affine, out, dtype)

    def save_labels(self, data: IntArray, out: Path) -> None:
        """Write labels in the smallest type that holds them."""
        self.save(data, out, np.uint8 if data.max(initial=0) < 256 else np.int32)


@dataclass(frozen=True)
class Registered:
    """One image of a registration, as it was then.

    Attributes
    ----------
    image : Path
        Where it was.
    sha256 : str
        Of its file.
    space : Space
        Where its voxels lay.
    """

    image: Path
    sha256: str
    space: Space

    @classmethod
    def of_file(cls, path: Path, what: str = "image") -> Registered:
        """Look at an image that is registered now; see `Space.of_file`."""
        space = Space.of_file(path, what)
        return cls(path.absolute(), sha256(path), space)

    @classmethod
    def of_record(cls, told: Content) -> Registered:
        """Return what the record of a registration says of a side."""
        path = Path(told["image"])
        return cls(path, told["sha256"], Space(tuple(told["shape"]), np.array(told["affine"], dtype=np.float64), path))

    def content(self) -> Content:
        """Return what the record says."""
        space = self.space
        return {
            "image": str(self.image),
            "sha256": self.sha256,
            "shape": list(space.shape),
            "affine": space.affine.tolist(),
        }


def read_voxels(space: Space, path: Path, what: str = "image") -> FloatArray:
    """Read the voxels of an image, (x, y[, z]) and perhaps volumes.

    Raises
    ------
    InputError
        For a file that cannot be read, more axes than that, and values that are not finite.
    """
    data = np.asarray(load_image(path).dataobj)
    ndim = space.grid.ndim
    if data.ndim > ndim:
        data = data.reshape(*data.shape[:ndim], *data.shape[len(space.shape) :])
    while data.ndim > ndim and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim > ndim + 1:
        raise InputError(f"the {what} has {data.ndim} axes: {data.shape}", file=path, remedy="give one volume of it")
    if not np.isfinite(data).all():
        remedy = "replace them, by 0 outside of the field of view"
        raise InputError(f"the {what} has voxels that are not finite", file=path, remedy=remedy)
    return data
