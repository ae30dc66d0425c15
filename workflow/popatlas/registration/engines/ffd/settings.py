"""Settings of the free-form engine: control points, any similarity, a penalty of the control displacements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from popatlas.registration.engines.engine import Engine
from popatlas.registration.engines.instance.settings import Shrink, SimilarityName, SimilaritySettings
from popatlas.registration.schedule import by, check_levels
from popatlas.regularisers.registry import NAMES
from popatlas.regularisers.registry import describe as describe_regulariser
from popatlas.settings import Count, OneOf, option, settings
from popatlas.similarity.registry import describe

FLOOR = 0.1  # Jacobian determinant from which a voxel is kept away: a margin, for slopes are central differences
KINDS = {"bspline": "cubic B-splines on", "linear": "linear interpolation between"}


@settings
class FFDSettings(SimilaritySettings):
    """One schedule of the free-form engine."""

    similarity: SimilarityName = option("nmi_mind", "Similarity (see popatlas.similarity)")
    options: Mapping[str, Any] = option({}, "Parameters of the similarity")
    spacing: float = option(5.0, "Distance of the control points, voxels of each level", ge=1, le=100)
    kind: Literal["bspline", "linear"] = option("bspline", "Interpolation between control points")
    regulariser: Annotated[str, OneOf(NAMES)] = option(
        "diffusion", "Penalty R of the control displacements (see popatlas.regularisers)"
    )
    weight: float = option(
        0.15,
        "Weight w of the penalty: the objective is similarity + w R(c / s), of control displacements c on their lattice and "
        "their distance s, both in voxels of the level, so that first derivatives are slopes without unit",
        ge=0,
    )
    folding: float = option(
        0.0,
        "Weight of the penalty on folds of the displacement at each voxel: by how much its Jacobian determinant is below "
        f"{FLOOR:g}, mean over the voxels of the level",
        ge=0,
    )
    shrink: tuple[Shrink, ...] = option(
        (4, 2, 1), "Voxels of the full grid per voxel of each level", min_length=1, max_length=6
    )
    iterations: tuple[Count, ...] = option((80, 60, 40), "Most iterations of each level", min_length=1, max_length=6)
    rate: float = option(0.2, "How far a control point moves in an iteration, voxels of the level", gt=0, le=10)

    def __post_init__(self) -> None:
        check_levels(shrink=self.shrink, iterations=self.iterations)

    def schedule(self) -> str:
        """Return the schedule in words."""
        return (
            f"{describe(self.similarity, self.options)}, {KINDS[self.kind]} control points every {self.spacing:g} voxels, "
            f"{describe_regulariser(self.regulariser)} with weight {self.weight:g}, {self._folding()}"
            f"at most {by(self.iterations)} "
            f"iterations at shrink factors {by(self.shrink)}, steps of {self.rate:g} voxels"
        )

    def _folding(self) -> str:
        return f"a penalty on folds with weight {self.folding:g}, " if self.folding else ""


_DEFAULT = FFDSettings()
ENGINE = Engine(
    name="ffd",
    title="free-form deformation by control points, ours",
    methods="free-form deformation by control points [@rueckert1999]",
    settings=FFDSettings,
    presets={
        "quick": replace(_DEFAULT, shrink=(4, 2), iterations=(60, 40)),
        "fast": replace(_DEFAULT, iterations=(80, 60, 10)),
        "default": _DEFAULT,
        "accurate": replace(_DEFAULT, similarity="auto", spacing=4.0, folding=1.0, iterations=(120, 100, 80)),
    },
    code="popatlas.registration.engines.ffd.core:deform_ffd",
)
