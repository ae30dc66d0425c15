"""Settings of SyN of ANTs as engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from popatlas.registration.engines.engine import Engine
from popatlas.registration.schedule import EngineSettings, Follows, by
from popatlas.settings import Count, option, settings

# what `sampling` is by metric, and its range. ITK keeps two bins at each end of a Mattes histogram empty: with up to 5 SyN
# moves nothing. Of what 32 bins gain in Dice, 6 gain 0.4, 7 gain 0.7, 8 gain 0.8, 10 and 128 more than 0.9
SAMPLING = {"CC": ("radius of CC in voxels", 1, 16), "mattes": ("number of histogram bins of mattes", 8, 128)}


@settings
class AntsSettings(EngineSettings):
    """One schedule of SyN."""

    FOLLOWS: ClassVar[Mapping[str, Follows]] = {"sampling": Follows("metric", {"CC": 2, "mattes": 32})}

    metric: Literal["mattes", "CC"] = option("CC", "Similarity of the SyN stage")
    sampling: int = option(
        2,
        "Radius of CC in voxels, 1 to 16, or histogram bins of mattes, 8 to 128; left out it is 2 or 32, by the metric",
        ge=1,
        le=128,
    )
    iterations: tuple[Count, ...] = option(
        (40, 20, 5), "SyN iterations of each level, the last at full resolution", min_length=1, max_length=6
    )
    gradient_step: float = option(0.25, "SyN gradient step", gt=0, le=1)
    flow_sigma: float = option(3.0, "Smoothing of the update field, variance in voxels^2", ge=0, le=2500)
    total_sigma: float = option(0.0, "Smoothing of the total field, variance in voxels^2", ge=0, le=2500)

    def __post_init__(self) -> None:
        meaning, low, high = SAMPLING[self.metric]
        if not low <= self.sampling <= high:
            raise ValueError(f"sampling is the {meaning} here, {low} to {high}, got {self.sampling}")

    @property
    def one_contrast(self) -> bool:
        """Whether the metric is a correlation."""
        return self.metric == "CC"

    def schedule(self) -> str:
        """Return the schedule in words."""
        metric = (
            f"cross-correlation with radius {self.sampling}"
            if self.metric == "CC"
            else f"mutual information [@mattes2003] with {self.sampling} bins"
        )
        return (
            f"{metric}, SyN iterations {by(self.iterations)}, gradient step {self.gradient_step:g}, smoothing of the update "
            f"field with variance {self.flow_sigma:g} and of the total field with variance {self.total_sigma:g} voxels^2"
        )


ENGINE = Engine(
    name="ants",
    title="SyN of ANTs",
    methods="symmetric diffeomorphic registration (SyN) of ANTs [@avants2008]",
    settings=AntsSettings,
    presets={
        "quick": AntsSettings(metric="mattes", sampling=32, iterations=(40, 20, 0), gradient_step=0.2),
        "fast": AntsSettings(iterations=(40, 20, 0)),
        "default": AntsSettings(),
        "accurate": AntsSettings(sampling=4, iterations=(100, 70, 50, 20), gradient_step=0.1),
    },
    code="popatlas.registration.engines.ants.core:deform_ants",
)
