"""ANTsPy as everyone here uses it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from popatlas.images.arrays import FloatArray, RealArray

# what ants imports for plots and statistics, which nobody here uses
UNUSED = ("ants.plotting", "ants.learn", "statsmodels", "statsmodels.api", "statsmodels.formula", "statsmodels.formula.api")


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


def spare_ants() -> None:
    """Let ants be imported without its plots and statistics, which are half of its start-up.

    For processes of our own only: whoever imports ants afterwards does not get them.
    """
    if "ants" in sys.modules or "statsmodels" in sys.modules:
        return
    for name in UNUSED:
        package, _, module = name.rpartition(".")
        found = sys.modules.setdefault(name, ModuleType(name))
        if package in UNUSED:
            setattr(sys.modules[package], module, found)


def deterministic_ants() -> ModuleType:
    """Import ants in its repeatable mode (one ITK thread; `random_seed` alone is ignored by ANTsPy 0.6.3)."""
    import ants

    ants.config.set_ants_deterministic(True)
    found: ModuleType = ants
    return found
