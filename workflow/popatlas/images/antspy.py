"""ANTsPy as everyone here uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import ModuleType

    from popatlas.images.arrays import FloatArray, RealArray


class AntsImage(Protocol):
    """What is used of an image of ANTsPy, which has no types of its own."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        ...

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size along each axis, millimetres."""
        ...

    @property
    def origin(self) -> tuple[float, ...]:
        """First voxel, LPS millimetres."""
        ...

    @property
    def direction(self) -> FloatArray:
        """Direction of each axis in LPS, (D, D)."""
        ...

    def numpy(self) -> FloatArray:
        """Return the voxels."""
        ...

    def new_image_like(self, data: RealArray) -> AntsImage:
        """Return other voxels on the same grid."""
        ...

    def min(self) -> float:
        """Return the lowest value."""
        ...

    def max(self) -> float:
        """Return the highest value."""
        ...

    def to_filename(self, filename: str) -> None:
        """Write the image."""
        ...

    def __mul__(self, factor: float) -> AntsImage: ...


def deterministic_ants() -> ModuleType:
    """Import ants in its repeatable mode (one ITK thread; `random_seed` alone is ignored by ANTsPy 0.6.3)."""
    import ants

    ants.config.set_ants_deterministic(True)
    found: ModuleType = ants
    return found
