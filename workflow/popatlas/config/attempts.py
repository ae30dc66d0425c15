"""The ways to try a registration that a configuration names, with all that a job needs to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from popatlas.config.sections import DEFAULT, Attempt, Config, Register
from popatlas.registration.engines.registry import ENGINES
from popatlas.settings import Content
from popatlas.zoo.find import find_weights


def resolve_attempt(config: Config, preset: str, start: str = "mass") -> Content:
    """Return the first way to try a registration, with everything that a job needs to know but the GPUs that it gets.

    Parameters
    ----------
    config : Config
        Validated configuration.
    preset : str
        Name of the preset.
    start : str
        Where the linear stage starts.

    Returns
    -------
    dict
        start, linear, engine, name of the preset and preset (the settings); those of a network tell its weights and their
        SHA-256, so that other weights under the same name are another way.

    Raises
    ------
    InputError
        When the weights of a network are in no lock file.
    """
    return _resolve(config.register, Attempt(start=start), preset)


def registration_settings(config: Config, preset: str) -> Content:
    """Return what the result of a registration depends on: `resolve_attempt` without the name or place of the weights.

    Rules hand this to their jobs, so that moved weights repeat nothing; `with_weights` tells the jobs where they are.
    """
    attempt = resolve_attempt(config, preset)
    return attempt | {"preset": {key: value for key, value in attempt["preset"].items() if key != "weights"}}


def with_weights(attempt: Mapping[str, Any], config: Config) -> Content:
    """Return what `registration_settings` gives with the name or file of the weights, where the engine takes any."""
    weights = engine_weights(config.register, attempt["engine"])
    preset = attempt["preset"] if weights is None else {**attempt["preset"], "weights": weights}
    return {**attempt, "preset": preset}


def resolve_fallback(config: Config, preset: str) -> list[Content]:
    """Return what is tried, in order, after a registration with `preset` fails the gate; see `resolve_attempt`."""
    return [_resolve(config.register, attempt, preset) for attempt in config.register.fallback]


def _resolve(register: Register, attempt: Attempt, preset: str) -> Content:
    engine, name = attempt.engine or register.engine, preset_of(register, attempt, preset)
    settings = dict(register.presets[engine][name])
    if weights := engine_weights(register, engine):
        settings |= {"weights": weights, "sha256": find_weights(weights).sha256}
    if attempt.similarity is not None:
        settings |= {"similarity": attempt.similarity, "options": {}}
    linear = attempt.linear or register.linear
    return {"start": attempt.start, "linear": linear, "engine": engine, "name": name, "preset": settings}


def preset_of(register: Register, attempt: Attempt, preset: str) -> str:
    """Return the name of the preset of an attempt after a registration with `preset`."""
    others = attempt.engine not in (None, register.engine) and preset not in register.presets[str(attempt.engine)]
    return attempt.preset or (DEFAULT if others else preset)


def engine_weights(register: Register, engine: str) -> str | None:
    """Return name or file of the weights that an engine takes, None for engines without a network of the zoo.

    Parameters
    ----------
    register : Register
        The configuration's section.
    engine : str
        The engine.
    """
    key = ENGINES[engine].weights
    if not key:
        return None
    found: Any = register
    for part in key.split("."):
        found = getattr(found, part)
    return str(found)


def iteration_preset(config: Config, iteration: int) -> str:
    """Return the name of the schedule of template iteration `iteration` (from 1); the last preset repeats."""
    presets = config.atlas.presets
    return presets[min(iteration, len(presets)) - 1]
