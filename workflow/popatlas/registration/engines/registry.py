"""The registration engines by name, and what is done with one: a linear stage, then its deformable stage.

Every engine takes a pair of brains and an affine to start from, and gives two displacement fields on the fixed grid in ITK
files: fixed points go through `warp`, then `affine`, to moving; moving points go back through the inverted affine, then
`inverse_warp`. To add an engine, write a module with an `Engine` and its settings, and add its line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from popatlas.errors import ConfigError, InputError
from popatlas.registration.engines.ants.settings import ENGINE as ANTS
from popatlas.registration.engines.engine import Engine
from popatlas.registration.engines.ffd.settings import ENGINE as FFD
from popatlas.registration.engines.greedy.settings import ENGINE as GREEDY
from popatlas.registration.engines.instance.settings import ENGINE as INSTANCE
from popatlas.registration.engines.lddmm.settings import ENGINE as LDDMM
from popatlas.registration.engines.network.settings import ENGINE as NETWORK
from popatlas.registration.engines.unigradicon.settings import ENGINE as UNIGRADICON
from popatlas.registration.types import Attempt, PlannedWeights
from popatlas.settings import settings_from
from popatlas.similarity.registry import make

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (INSTANCE, NETWORK, ANTS, GREEDY, FFD, LDDMM, UNIGRADICON)}


def find_engine(name: str) -> Engine:
    """Return an engine; ConfigError when there is none of this name."""
    if name not in ENGINES:
        raise ConfigError(f"no engine is called '{name}'. Remedy: use one of {', '.join(ENGINES)}")
    return ENGINES[name]


def shipped_attempt(
    engine: str = "instance", preset: str = "default", start: str = "mass", linear: str = "affine", gpu: int = 0
) -> Attempt:
    """Return an attempt by a preset of the package; engines that need weights are planned by a configuration only.

    Parameters
    ----------
    engine, preset : str
        Keys of `ENGINES` and of the engine's presets.
    start, linear, gpu
        See `Attempt`.

    Raises
    ------
    ConfigError
        For an engine or a preset that does not exist.
    """
    presets = find_engine(engine).presets
    if preset not in presets:
        raise ConfigError(f"engine '{engine}' has no preset '{preset}'. Remedy: use one of {', '.join(presets)}")
    return Attempt(start=start, linear=linear, engine=engine, settings=presets[preset], gpu=gpu)


def planned_attempt(attempt: Mapping[str, Any], gpu: int = 0) -> Attempt:
    """Return a planned attempt from what the configuration resolved.

    Parameters
    ----------
    attempt : mapping
        start, linear, engine and preset: the settings of the engine and, for a network, `weights` and `sha256`.
    gpu : int
        GPUs that the job has; engines that cannot use any are given none.

    Raises
    ------
    ConfigError
        For an engine that does not exist.
    InputError
        For settings that it does not take.
    """
    if missing := [key for key in ("start", "linear", "engine", "preset") if attempt.get(key) is None]:
        raise ConfigError(f"the attempt has no {' and no '.join(missing)}. Remedy: give start, linear, engine and preset")
    engine, preset = find_engine(attempt["engine"]), dict(attempt["preset"])
    source, sha256 = preset.pop("weights", None), preset.pop("sha256", "")
    preset = engine.settings.completed(preset)
    if "similarity" in preset:
        make(preset["similarity"], **preset["options"])
    if faults := engine.faults(preset, f"engine {engine.name}"):
        raise InputError(faults[0], remedy="correct the value")
    return Attempt(
        start=attempt["start"],
        linear=attempt["linear"],
        engine=engine.name,
        settings=settings_from(engine.settings, preset, f"engine {engine.name}"),
        weights=None if source is None else PlannedWeights(source, sha256),
        gpu=gpu if engine.gpu else 0,
    )
