"""Settings of greedy as engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from popatlas.registration.engines.engine import Engine
from popatlas.registration.schedule import EngineSettings, plainly
from popatlas.settings import Count, option, settings

LOCAL = ("WNCC", "NCC")  # metrics with a radius


@settings
class GreedySettings(EngineSettings):
    """One schedule of greedy."""

    metric: Literal["WNCC", "NCC", "SSD", "NMI"] = option(
        "WNCC", "Similarity: weighted local correlation, local correlation, squared differences or mutual information"
    )
    radius: int = option(2, "Radius of WNCC and NCC, voxels; SSD and NMI have none", ge=1, le=16)
    iterations: tuple[Count, ...] = option(
        (100, 50, 10), "Iterations of each level, the last at full resolution", min_length=1, max_length=6
    )
    fluid: float = option(1.732, "Smoothing of each update, voxels (standard deviation)", ge=0, le=50)
    elastic: float = option(0.707, "Smoothing of the field, voxels (standard deviation)", ge=0, le=50)

    @property
    def one_contrast(self) -> bool:
        """Whether the metric is a correlation or a difference."""
        return self.metric != "NMI"

    def schedule(self) -> str:
        """Return the schedule in words."""
        return plainly(self) if self.metric in LOCAL else plainly(self, leave_out=("radius",))

    def command(self, ndim: int, threads: int) -> str:
        """Return the options of greedy's command line; no noise and unrounded fields, so that runs repeat exactly."""
        metric = f"{self.metric} {'x'.join([str(self.radius)] * ndim)}" if self.metric in LOCAL else self.metric
        schedule = "x".join(map(str, self.iterations))
        return (
            f"-d {ndim} -threads {threads} -V 0 -noise 0 -wp 0 -m {metric} -n {schedule} "
            f"-s {self.fluid:g}vox {self.elastic:g}vox"
        )


_DEFAULT = GreedySettings()
ENGINE = Engine(
    name="greedy",
    title="greedy (picsl-greedy)",
    methods="greedy diffeomorphic registration (picsl-greedy)",
    settings=GreedySettings,
    presets={
        "quick": replace(_DEFAULT, iterations=(60, 30, 0)),
        "fast": replace(_DEFAULT, iterations=(100, 50, 0)),
        "default": _DEFAULT,
        "accurate": replace(_DEFAULT, iterations=(100, 100, 50)),
    },
    code="popatlas.registration.engines.greedy.core:deform_greedy",
    extra="greedy",
)
