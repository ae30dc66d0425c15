"""Settings of SyN of ANTs as engine."""

from __future__ import annotations

from typing import Literal

from popatlas.registration.engines.engine import Engine
from popatlas.registration.schedule import EngineSettings, by
from popatlas.settings import Count, option, settings


@settings
class AntsSettings(EngineSettings):
    """One schedule of SyN."""

    metric: Literal["mattes", "CC"] = option("CC", "Similarity of the SyN stage")
    sampling: int = option(2, "Radius of CC in voxels, or histogram bins of mattes", ge=1, le=64)
    iterations: tuple[Count, ...] = option(
        (40, 20, 5), "SyN iterations of each level, the last at full resolution", min_length=1, max_length=6
    )
    gradient_step: float = option(0.25, "SyN gradient step", gt=0, le=1)
    flow_sigma: float = option(3.0, "Smoothing of the update field (ANTs: variance in voxels)", ge=0)
    total_sigma: float = option(0.0, "Smoothing of the total field (ANTs: variance in voxels)", ge=0)

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
            f"field {self.flow_sigma:g} and of the total field {self.total_sigma:g} voxels"
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
