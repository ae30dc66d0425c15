"""Settings of the network engine: a trained network predicts, the instance engine may refine it."""

from __future__ import annotations

from dataclasses import replace

from popatlas.networks.limits import REPEATS
from popatlas.registration.engines.engine import Engine
from popatlas.registration.engines.instance.settings import InstanceSettings
from popatlas.settings import option, settings

REFINED = (
    ", refined by compositive updates by the force of the similarity [@vercauteren2009] where the schedule has iterations"
)


@settings
class NetworkSettings(InstanceSettings):
    """Passes of the network and one schedule, by which the instance engine refines what it predicts."""

    passes: int = option(
        0, "Most passes of a network that was trained to refine its own prediction; 0: as in its training", ge=0, le=20
    )
    repeats: int = option(
        0, "How often each network of a recursive cascade is applied; 0: as in its training", ge=0, le=REPEATS["repeats"]
    )


_ONE_LEVEL = NetworkSettings(
    shrink=(1,), iterations=(0,), field_shrink=(1,), fluid=0.7, coarse_fluid=0.7, elastic=0.3, bulk=0.05
)
PRESETS: dict[str, NetworkSettings] = {
    "quick": _ONE_LEVEL,
    "fast": replace(_ONE_LEVEL, passes=1, iterations=(2,), step=1.5),
    "default": replace(_ONE_LEVEL, passes=2, iterations=(10,), step=0.8),
    "accurate": replace(_ONE_LEVEL, passes=3, iterations=(30,)),
}

ENGINE = Engine(
    name="network",
    title="a trained registration network, refined by the engine instance",
    methods=f"a prediction by a registration network{REFINED}",
    settings=NetworkSettings,
    presets=PRESETS,
    code="popatlas.registration.engines.network.core:deform_network",
    gpu=True,
    weights="weights",
)
