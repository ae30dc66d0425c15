"""Settings of the registration of a group."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from popatlas.registration.schedule import check_levels
from popatlas.settings import Count, Positive, option, settings

Motion = Literal["rigid", "affine", "ffd", "diffeomorphic"]
Shrink = Literal[1, 2, 4, 8]


@settings
class XCoRegSettings:
    """How a group is registered to its common space."""

    classes: int = option(4, "Classes of the common anatomy, background included", ge=2, le=32)
    motion: Motion = option(
        "diffeomorphic",
        "How the images may move: rigid, affine, ffd (control points, bending energy) or diffeomorphic (composed updates)",
    )
    shrink: tuple[Shrink, ...] = option(
        (4, 4, 2, 1),
        "Voxels of the common grid per voxel of each level; each level above 1 looks for classes anew",
        min_length=1,
        max_length=6,
    )
    iterations: tuple[Count, ...] = option((80, 80, 60, 30), "Most iterations of each level", min_length=1, max_length=6)
    bins: int = option(32, "Bins of an image's histogram", ge=8, le=256)
    low: float = option(0.1, "Percentile of an image's intensities that is the lowest bin", ge=0, le=50)
    high: float = option(99.9, "Percentile that is the highest bin", ge=50, le=100)
    posterior_floor: float = option(0.001, "Least probability of a class at a voxel", gt=0, le=0.02)
    warmup: int = option(20, "Updates of the classes before the images move", ge=0)
    starts: int = option(4, "Random classes to begin from; those that come to the largest chi are taken", ge=1, le=64)
    seed: int = option(0, "Of the random classes", ge=0)
    step: float = option(0.5, "Longest move of an iteration, voxels of the level (ffd: rate of Adam)", gt=0, le=5)
    tolerance: float = option(1e-4, "A level ends when chi, mean over the images, gains less in eight iterations", ge=0)
    fluid: float = option(4.0, "diffeomorphic: smoothing of each update, voxels (standard deviation)", ge=0, le=50)
    elastic: float = option(1.0, "diffeomorphic: smoothing of the field, voxels (standard deviation)", ge=0, le=50)
    bulk: float = option(0.1, "diffeomorphic: how far changes of volume are evened out", ge=0, le=0.33)
    spacing: tuple[Positive, ...] = option(
        (12.0, 12.0, 14.0, 20.0), "ffd: distance of the control points, voxels of each level", min_length=1, max_length=6
    )
    bending: float = option(0.001, "ffd: weight of the bending energy of the control points", ge=0)

    def __post_init__(self) -> None:
        if self.motion == "ffd":
            check_levels(shrink=self.shrink, iterations=self.iterations, spacing=self.spacing)
        check_levels(shrink=self.shrink, iterations=self.iterations)
        if any(fine not in (coarse, coarse // 2) for coarse, fine in pairwise(self.shrink)):
            raise ValueError(f"shrink may halve from level to level at most, got {list(self.shrink)}")
        if self.posterior_floor * self.classes >= 1:
            raise ValueError("posterior_floor times classes must be below 1")
