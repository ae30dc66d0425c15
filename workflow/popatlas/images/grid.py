"""Regular grids of voxels in world space: shape and voxel index to LPS millimetres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.images.antspy import AntsImage
from popatlas.images.io import PathLike

if TYPE_CHECKING:
    import SimpleITK as sitk

Array = npt.NDArray[np.float64]

SAME_DIRECTION = 1e-4  # largest difference of direction cosines that is rounding of a header
VECTOR_INTENTS = ("vector", "displacement vector")  # NIfTI images whose fifth axis holds components


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid of 2 or 3 axes.

    Attributes
    ----------
    shape : tuple of int
        Voxels along each axis, NIfTI array order (i, j[, k]).
    affine : (D + 1, D + 1) ndarray
        Voxel index to LPS millimetres; voxel centres have integer indices.
    """

    shape: tuple[int, ...]
    affine: Array

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ValueError(f"a grid has 2 or 3 axes of at least one voxel, not {shape}")
        if affine.shape != (len(shape) + 1,) * 2:
            raise ValueError(f"affine of shape {affine.shape} for {len(shape)} axes")
        if not np.isfinite(affine).all() or np.linalg.det(affine[:-1, :-1]) == 0:
            raise ValueError(f"the affine cannot be inverted: {affine.tolist()}")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between voxel centres along each axis, millimetres."""
        return tuple(float(length) for length in np.linalg.norm(self.affine[:-1, :-1], axis=0))

    @property
    def direction(self) -> Array:
        """Unit vectors of the axes, as columns (D, D)."""
        return np.asarray(self.affine[:-1, :-1] / np.array(self.spacing))

    @property
    def origin(self) -> Array:
        """Centre of the first voxel (D,), LPS millimetres."""
        return self.affine[:-1, -1]

    @property
    def centre(self) -> Array:
        """Middle of the grid (D,), LPS millimetres."""
        return np.asarray(self.affine[:-1, :-1] @ ((np.array(self.shape) - 1) / 2) + self.origin)

    @property
    def ras_affine(self) -> Array:
        """Affine as NIfTI wants it: (4, 4), RAS millimetres; a 2D image lies in the plane z = 0."""
        affine, axes = np.eye(4), [*range(self.ndim), 3]
        affine[np.ix_(axes, axes)] = self.affine
        return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)

    @classmethod
    def isotropic(cls, shape: Sequence[int], spacing: float = 1.0) -> Grid:
        """Return a grid along the world axes with its first voxel at the origin; spacing in millimetres."""
        return cls(tuple(shape), np.diag([*[spacing] * len(shape), 1.0]))

    @classmethod
    def from_file(cls, path: PathLike) -> Grid:
        """Read the grid of a NIfTI file from its header.

        Parameters
        ----------
        path : path-like
            Image of 2 or 3 axes; further axes (time, components) are left out. As in nibabel the sform comes before the
            qform.

        Returns
        -------
        Grid
            The header's RAS millimetres turned into LPS.

        Raises
        ------
        InputError
            When the file cannot be read or has no usable geometry, or a 2D image leaves its plane.
        """
        import nibabel as nib

        try:
            image = nib.load(path)
            shape, affine = image.shape, np.asarray(image.affine, dtype=np.float64)
            components = image.header.get_intent()[0] in VECTOR_INTENTS
        except Exception as error:  # nibabel raises many kinds on damaged files
            raise InputError(f"cannot read image: {error}", file=path, remedy="replace or exclude the file") from error
        flat = components and len(shape) == 5 and shape[4] == 2  # vectors in the plane: a 2D grid kept as one slice
        ndim = 2 if flat else min(len(shape), 3)
        return cls.from_affine(shape[:ndim], affine, path)

    @classmethod
    def from_affine(cls, shape: Sequence[int], affine: Array, path: PathLike | None = None) -> Grid:
        """Return the grid of an array with nibabel's affine.

        Parameters
        ----------
        shape : sequence of int
            2 or 3 axes; further ones are left out.
        affine : (4, 4) ndarray
            Voxel index to RAS millimetres.
        path : path-like, optional
            File that is named in errors.

        Raises
        ------
        InputError
            When the geometry cannot be used, or a 2D image leaves its plane.
        """
        ndim = min(len(shape), 3)
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        axes = [*range(ndim), 3]
        if ndim == 2 and np.abs(lps[2, :2]).max() > SAME_DIRECTION * np.abs(lps[:2, :2]).max():
            message = "the 2D image does not lie in the plane of the first two world axes"
            raise InputError(message, file=path, remedy="give a third axis of one voxel")
        try:
            return cls(tuple(shape[:ndim]), lps[np.ix_(axes, axes)])
        except ValueError as error:
            raise InputError(str(error), file=path, remedy="repair the header's sform and qform") from error

    @classmethod
    def from_sitk(cls, image: sitk.Image) -> Grid:
        """Return the grid of a SimpleITK image."""
        return cls._from_itk(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @classmethod
    def from_ants(cls, image: AntsImage) -> Grid:
        """Return the grid of an ANTs image."""
        return cls._from_itk(image.shape, image.spacing, image.origin, image.direction)

    @classmethod
    def _from_itk(
        cls, shape: Sequence[int], spacing: Sequence[float], origin: Sequence[float], direction: npt.ArrayLike
    ) -> Grid:
        ndim = len(shape)
        affine = np.eye(ndim + 1)
        affine[:ndim, :ndim] = np.asarray(direction, dtype=np.float64).reshape(ndim, ndim) * np.asarray(spacing)
        affine[:ndim, ndim] = origin
        return cls(tuple(shape), affine)

    def resized(self, shape: Sequence[int]) -> Grid:
        """Return a grid of another shape whose first and last voxel centres stay (torch's ``align_corners=True``).

        Raises
        ------
        ValueError
            When an axis of one voxel is to get more, or the other way round: its extent is not defined.
        """
        if len(shape) != self.ndim or any((old == 1) != (new == 1) for old, new in zip(self.shape, shape, strict=True)):
            raise ValueError(f"a grid of shape {self.shape} cannot be resized to {tuple(shape)}")
        factors = [1.0 if new == 1 else (old - 1) / (new - 1) for old, new in zip(self.shape, shape, strict=True)]
        return Grid(tuple(shape), self.affine @ np.diag([*factors, 1.0]))

    def corners(self) -> Array:
        """Return the outermost voxel centres (2 ** D, D), LPS millimetres."""
        index = np.array(list(product(*((0, n - 1) for n in self.shape))), dtype=np.float64)
        return np.asarray(index @ self.affine[:-1, :-1].T + self.origin)

    def same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Tell whether two grids have the same shape and corresponding voxels lie within `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        # between corners the distance of two affine grids is no larger than at one of them
        return bool(np.linalg.norm(self.corners() - other.corners(), axis=1).max() <= tolerance_mm)

    def check_same(
        self,
        other: Grid,
        names: tuple[str, str] = ("fixed", "moving"),
        *,
        tolerance_mm: float = 1e-3,
        file: PathLike | None = None,
        subject: str | None = None,
    ) -> None:
        """Refuse another grid.

        Parameters
        ----------
        other : Grid
            Grid that must be this one.
        names : (str, str)
            What this and the other grid belong to, for the message.
        tolerance_mm : float
            Largest distance of corresponding voxels, millimetres.
        file, subject : optional
            Named in the error.

        Raises
        ------
        InputError
            Names what differs: number of axes, shape, spacing, direction or origin.
        """
        if not self.same_as(other, tolerance_mm):
            message = f"grids of {names[0]} and {names[1]} differ: {self._difference(other)}"
            raise InputError(message, file=file, subject=subject, remedy="resample one onto the grid of the other")

    def _difference(self, other: Grid) -> str:
        if self.ndim != other.ndim:
            return f"{self.ndim} and {other.ndim} axes"
        parts = []
        if self.shape != other.shape:
            parts.append(f"shape {self.shape} and {other.shape}")
        if not np.allclose(self.spacing, other.spacing, rtol=0, atol=1e-4):
            parts.append(f"spacing {_short(self.spacing)} and {_short(other.spacing)} mm")
        if not np.allclose(self.direction, other.direction, rtol=0, atol=SAME_DIRECTION):
            parts.append(f"direction {_short(self.direction.ravel())} and {_short(other.direction.ravel())}")
        if not parts:
            parts.append(f"origin {_short(self.origin)} and {_short(other.origin)} mm")
        return ", ".join(parts)


def _short(values: Sequence[float] | Array) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
