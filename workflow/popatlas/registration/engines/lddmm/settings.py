"""Settings of the engine of flows: velocities that change with time, smoothed by a Sobolev operator, any similarity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from popatlas.registration.engines.engine import Engine
from popatlas.registration.engines.instance.settings import LOCAL, Shrink, SimilarityName, SimilaritySettings
from popatlas.registration.schedule import by, check_levels
from popatlas.settings import Count, option, settings
from popatlas.similarity.registry import describe


@settings
class LDDMMSettings(SimilaritySettings):
    """One schedule of the engine of flows."""

    similarity: SimilarityName = option("lncc", "Similarity (see popatlas.similarity)")
    options: Mapping[str, Any] = option(LOCAL, "Parameters of the similarity, for example the radius of lncc in voxels")
    velocities: int = option(
        4,
        "Velocities through which a point flows one after the other; 1: a stationary one, by scaling and squaring",
        ge=1,
        le=32,
    )
    alpha: float = option(
        1.0,
        "Smoothness of the operator L = (1 - alpha Laplacian)^2 of the velocities, square voxels of each level; its "
        "smoothing of an update is about as wide as a Gaussian of sqrt(8 alpha) voxels",
        ge=0,
        le=100,
    )
    weight: float = option(
        0.005, "Weight of the energy, the mean over the voxels of |L v|^2 of the velocity v in voxels of the level", ge=0
    )
    shrink: tuple[Shrink, ...] = option(
        (4, 2, 1), "Voxels of the full grid per voxel of each level", min_length=1, max_length=6
    )
    iterations: tuple[Count, ...] = option((60, 40, 15), "Most iterations of each level", min_length=1, max_length=6)
    step: float = option(0.5, "Longest change of the flow by an update, voxels of the level", gt=0, le=2)
    tolerance: float = option(1e-4, "A level ends when its loss falls by less over eight iterations", ge=0)

    def __post_init__(self) -> None:
        check_levels(shrink=self.shrink, iterations=self.iterations)

    def schedule(self) -> str:
        """Return the schedule in words."""
        flow = "a stationary velocity" if self.velocities == 1 else f"{self.velocities} velocities one after the other"
        return (
            f"{describe(self.similarity, self.options)}, {flow}, the operator (1 - {self.alpha:g} Laplacian)^2 and its "
            f"energy with weight {self.weight:g}, at most {by(self.iterations)} iterations at shrink factors "
            f"{by(self.shrink)}, steps of {self.step:g} voxels"
        )


_DEFAULT = LDDMMSettings()
ENGINE = Engine(
    name="lddmm",
    title="flows of velocities that change with time, ours",
    methods="large deformations by flows of velocities [@beg2005]",
    settings=LDDMMSettings,
    presets={
        "quick": replace(_DEFAULT, shrink=(4, 2), iterations=(40, 20)),
        "fast": replace(_DEFAULT, iterations=(60, 40, 5)),
        "default": _DEFAULT,
        "accurate": replace(_DEFAULT, iterations=(100, 80, 40)),
    },
    code="popatlas.registration.engines.lddmm.core:deform_lddmm",
)
