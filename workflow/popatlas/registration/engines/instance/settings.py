"""Settings of symmetric greedy diffeomorphic registration, the engine that a configuration calls ``instance``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from popatlas.errors import InputError
from popatlas.registration.engines.engine import Engine
from popatlas.registration.schedule import EngineSettings, Follows, by, check_levels
from popatlas.settings import Count, OneOf, option, settings
from popatlas.similarity.registry import OF_IMAGES, SIMILARITIES, describe, make

SimilarityName = Annotated[str, OneOf(OF_IMAGES)]
Shrink = Literal[1, 2, 4, 8]
LOCAL = {"radius": 2, "floor": 1e-3}  # of the local correlation
# each similarity has options of its own, which take its defaults
OPTIONS = {"options": Follows("similarity", {name: {} for name in OF_IMAGES})}


class SimilaritySettings(EngineSettings):
    """Settings of an engine that takes any similarity, by its name and its options."""

    FOLLOWS: ClassVar[Mapping[str, Follows]] = OPTIONS

    similarity: SimilarityName
    options: Mapping[str, Any]

    @property
    def one_contrast(self) -> bool:
        """Whether the similarity needs one contrast."""
        return SIMILARITIES[self.similarity].one_contrast

    def with_similarity(self, name: str, **options: object) -> Self:
        """Return the same schedule by another similarity, with its own defaults for options that are left out.

        Raises
        ------
        InputError
            When there is no such similarity of images, or it has no such option, or its value is impossible.
        """
        if options:
            make(name, **options)
        return self.changed(similarity=name, options=options)


@settings
class InstanceSettings(SimilaritySettings):
    """One schedule."""

    similarity: SimilarityName = option("lncc", "Similarity (see popatlas.similarity)")
    options: Mapping[str, Any] = option(LOCAL, "Parameters of the similarity, for example the radius of lncc in voxels")
    shrink: tuple[Shrink, ...] = option(
        (4, 2, 1), "Voxels of the full grid per voxel of each level", min_length=1, max_length=6
    )
    iterations: tuple[Count, ...] = option((100, 60, 16), "Most iterations of each level", min_length=1, max_length=6)
    field_shrink: tuple[Literal[1, 2], ...] = option(
        (1, 1, 1),
        "2: the field of a level lies on a grid twice as coarse as its images",
        min_length=1,
        max_length=6,
    )
    step: float = option(0.5, "Longest vector of an update, voxels of the field", gt=0, le=2)
    fluid: float = option(1.5, "Smoothing of each update of the last level, voxels (standard deviation)", ge=0, le=50)
    coarse_fluid: float = option(3.0, "The same of the levels before it", ge=0, le=50)
    elastic: float = option(0.5, "Smoothing of the field, voxels (standard deviation)", ge=0, le=50)
    bulk: float = option(
        0.1,
        "How far changes of volume are evened out after each iteration, where shears stay: a step of the gradient of the"
        " field's divergence",
        ge=0,
        le=0.33,
    )
    symmetric: bool = option(True, "Move both images to the middle")
    tolerance: float = option(1e-4, "A level ends when the loss improves by less over eight iterations", ge=0)
    precision: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "Type in which images are kept; positions are float32"
    )

    def __post_init__(self) -> None:
        check_levels(shrink=self.shrink, iterations=self.iterations, field_shrink=self.field_shrink)
        grids = [a * b for a, b in zip(self.shrink, self.field_shrink, strict=True)]
        if any(fine not in (coarse, coarse // 2) for coarse, fine in pairwise(grids)):
            raise ValueError(
                f"the field grid (shrink times field_shrink) may halve from level to level at most, got {grids}"
            )

    def _widths(self) -> str:
        """Return the smoothing of the updates in words."""
        if len(self.shrink) == 1 or self.coarse_fluid == self.fluid:
            return f"{self.fluid:g}"
        return f"{self.coarse_fluid:g}, in the last level {self.fluid:g}"

    def schedule(self) -> str:
        """Return the schedule in words."""
        return (
            f"{describe(self.similarity, self.options)}, at most {by(self.iterations)} iterations at shrink "
            f"factors {by(self.shrink)}, longest step {self.step:g} voxels, Gaussian smoothing of the updates (standard "
            f"deviation {self._widths()} voxels) and of the field ({self.elastic:g} voxels)"
            + (f", changes of volume evened out by {self.bulk:g} grad div" if self.bulk else "")
        )


@settings
class Settings(InstanceSettings):
    """A schedule and what only Python and the step DeformImages can ask for."""

    tolerance: float = option(
        1e-4, "A level ends when the loss improves by less over `window` iterations; negative: never before its last"
    )
    window: int = option(8, "Iterations over which an improvement is measured", ge=1)
    label_weight: float = option(
        0.5, "Weight of labels (multiscale Dice) in the loss, and of their updates as a share of step", ge=0
    )
    landmark_weight: float = option(
        0.5, "Weight of landmarks (mean distance in tens of voxels) in the loss, and of their updates", ge=0
    )


def full_settings(schedule: InstanceSettings) -> Settings:
    """Return a schedule with defaults for what it does not say."""
    if isinstance(schedule, Settings):
        return schedule
    return Settings(**{item.name: getattr(schedule, item.name) for item in fields(InstanceSettings)})


PRESETS: dict[str, InstanceSettings] = {
    "quick": InstanceSettings(iterations=(60, 30, 8), field_shrink=(1, 1, 2), coarse_fluid=2.0),
    "fast": InstanceSettings(iterations=(60, 30, 8)),
    "default": InstanceSettings(),
    "accurate": InstanceSettings(iterations=(150, 100, 40)),
}


def preset(name: str, **changes: Any) -> Settings:
    """Return the settings of a preset with some of them changed, see `EngineSettings.changed`.

    Raises
    ------
    InputError
        For a preset or a setting that does not exist, and for a value that cannot be.
    """
    if name not in PRESETS:
        raise InputError(f"no preset is called '{name}'", remedy=f"use one of {', '.join(PRESETS)}")
    return full_settings(PRESETS[name]).changed(**changes)


ENGINE = Engine(
    name="instance",
    title="symmetric greedy diffeomorphic registration, ours",
    methods=("popatlas' diffeomorphic engine: compositive updates by the force of the similarity [@vercauteren2009]"),
    settings=InstanceSettings,
    presets=PRESETS,
    code="popatlas.registration.engines.instance.files:deform_instance",
    gpu=True,
)
