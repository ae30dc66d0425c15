"""Settings of uniGradICON as engine: the schedule by which the instance engine refines what it predicts."""

from __future__ import annotations

from dataclasses import replace

from popatlas.registration.engines.engine import Engine
from popatlas.registration.engines.instance.settings import InstanceSettings
from popatlas.registration.engines.network.settings import REFINED

_TWO_LEVELS = InstanceSettings(shrink=(2, 1), iterations=(0, 0), field_shrink=(1, 1), fluid=2.0, coarse_fluid=2.0, bulk=0.0)
PRESETS: dict[str, InstanceSettings] = {
    "quick": _TWO_LEVELS,
    "fast": replace(_TWO_LEVELS, iterations=(10, 0)),
    "default": replace(_TWO_LEVELS, iterations=(10, 4)),
    "accurate": replace(_TWO_LEVELS, iterations=(30, 20)),
}

ENGINE = Engine(
    name="unigradicon",
    title="the network uniGradICON of its authors, refined by the engine instance",
    methods=f"a prediction by uniGradICON [@tian2024]{REFINED}",
    settings=InstanceSettings,
    presets=PRESETS,
    code="popatlas.registration.engines.unigradicon.core:deform_unigradicon",
    axes=(3,),
    gpu=True,
    weights="unigradicon.weights",
)
