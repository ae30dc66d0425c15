"""The configuration: defaults, the user's file on top, validation by JSON Schema with readable messages."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from popatlas.errors import ConfigError, InputError
from popatlas.paths import resolved
from popatlas.resources import schema_path, workflow_root
from popatlas.schema import schema_problems
from popatlas.settings import merge, not_finite, suggest
from popatlas.yamlfile import read_yaml

Config = dict[str, Any]
_shipped = functools.cache(read_yaml)  # files of the package; those of the user may change between two looks


def default_config() -> Config:
    """Return the shipped configuration, all keys present."""
    return copy.deepcopy(dict(_shipped(workflow_root() / "config.yaml")))


def load_config(source: Path | str | Mapping[str, Any] | None = None, **overrides: Any) -> Config:
    """Read, complete and validate a configuration.

    Parameters
    ----------
    source : path or mapping, optional
        The user's YAML file or its content; keys left out take the shipped defaults.
    **overrides
        Top-level keys set last, for example ``bids_dir``.

    Returns
    -------
    dict
        A complete configuration.

    Raises
    ------
    ConfigError
        With one line per problem: the key, what is wrong, what is allowed.
    """
    name = str(source) if isinstance(source, str | Path) else "configuration"
    user = (_own(Path(source)) if isinstance(source, str | Path) else source) or {}
    if not isinstance(user, Mapping):
        raise ConfigError(f"{name}: expected keys and values at the top level. Remedy: compare with config.yaml")
    config = merge(default_config(), user)
    config |= {key: value for key, value in overrides.items() if value is not None}
    problems = list(find_problems(config))
    if problems:
        lines = "\n  - ".join(problems)
        raise ConfigError(
            f"{name}: {len(problems)} problem(s)\n  - {lines}\nRemedy: correct the keys; the shipped config.yaml lists all"
        )
    return config


def _own(path: Path) -> Any:
    try:
        return read_yaml(path, "the configuration")
    except InputError as error:
        raise ConfigError(str(error)) from error


def find_problems(config: Config) -> Iterator[str]:
    """Yield one readable line per problem of a complete configuration."""
    problems = [*not_finite(config), *schema_problems(_shipped(schema_path("config")), config)]
    yield from problems
    if not problems:
        yield from _contradictions(config)


def _contradictions(config: Config) -> Iterator[str]:
    register = config["register"]
    wanted = [("register.preset", register["engine"], register["preset"])]
    wanted += [("atlas.presets", register["engine"], name) for name in config["atlas"]["presets"]]
    for number, rung in enumerate(register["ladder"]):
        wanted.append((f"register.ladder.{number}", *_rung_preset(register, rung, register["preset"])))
    for where, engine, name in wanted:
        known = register["presets"].get(engine, {})
        if name not in known:
            yield f"{where}: no preset is called '{name}'{suggest(name, sorted(known))} (engine {engine})"
    for number, rung in enumerate(register["ladder"]):
        engine, name = _rung_preset(register, rung, register["preset"])
        if "similarity" in rung and "similarity" not in register["presets"].get(engine, {}).get(name, {"similarity": ""}):
            yield f"register.ladder.{number}: the engine {engine} takes no similarity from this key; leave it out"
    yield from _weights_contradictions(register)
    for engine in ("instance", "network", "ffd", "unigradicon"):
        for name, preset in register["presets"].get(engine, {}).items():
            yield from _uneven(f"register.presets.{engine}.{name}", preset)
    for where, limits in (
        ("cohort.spacing_mm", config["cohort"]["spacing_mm"]),
        ("preprocess.brain.volume_ml", config["preprocess"]["brain"]["volume_ml"]),
        ("register.gate.scale", config["register"]["gate"]["scale"]),
    ):
        if limits[0] >= limits[1]:
            yield f"{where}: the first value must be below the second, got {limits}"
    yield from _fusion_contradictions(config["fuse"])
    if config["train"]["recipe"] is not None:
        yield from _training_contradictions(config)


def _weights_contradictions(register: Mapping[str, Any]) -> Iterator[str]:
    used = (register["engine"], *(rung.get("engine") for rung in register["ladder"]))
    for engine, where in (("network", "register.weights"), ("unigradicon", "register.unigradicon.weights")):
        if engine in used:
            yield from _wrong_weights(engine, str(engine_weights(register, engine)), where)


def _wrong_weights(engine: str, name: str, where: str) -> Iterator[str]:
    from popatlas.registration.engines.network.core import check_brains
    from popatlas.registration.engines.unigradicon.core import check_unigradicon
    from popatlas.zoo.store import find_weights

    try:
        entry = check_unigradicon(name) if engine == "unigradicon" else find_weights(name)
        check_brains(entry)
    except InputError as error:
        yield f"{where}: {error} (engine {engine})"
        return
    if entry.ndim != 3:
        yield f"{where}: {entry.name} is for images of {entry.ndim} axes; see `popatlas weights list`"


def _fusion_contradictions(fuse: Mapping[str, Any]) -> Iterator[str]:
    methods, segmenter, dataparams, atlases = fuse["methods"], fuse["segmenter"], fuse["dataparams"], fuse["atlases"]
    chosen = f"fuse.methods has {', '.join(methods) or 'none'}"
    if segmenter["enabled"] and segmenter["labels"] not in methods:
        yield f"fuse.segmenter.labels: '{segmenter['labels']}' is not made, {chosen}; name one of them, or add it there"
    if fuse["select_by"] == "trust" and "dataparams" not in methods:
        yield f"fuse.select_by: trust is learned by the method dataparams, {chosen}; add it there, or select by similarity"
    if dataparams["warm_up"] >= dataparams["epochs"]:
        epochs = f"{dataparams['warm_up']} of {dataparams['epochs']} epochs"
        yield f"fuse.dataparams.warm_up: after {epochs} no epoch is left to learn data parameters in"
    if "dataparams" in methods and dataparams["votes"] == "label" and not dataparams["per_label"]:
        yield "fuse.dataparams.votes: 'label' needs the parameters of labels (fuse.dataparams.per_label: true)"
    if fuse["bench"] and not methods:
        yield "fuse.bench: there is nothing to compare, fuse.methods is empty"
    count = atlases if isinstance(atlases, int) else len(atlases)
    if fuse["bench"] and not isinstance(atlases, str) and count < 2:
        yield f"fuse.bench: atlases are labelled by each other, at least 2 are needed (fuse.atlases: {atlases})"


def _training_contradictions(config: Config) -> Iterator[str]:
    from popatlas.training.recipe import learns_from_labels, load_recipe

    train, methods, recipe = config["train"], config["fuse"]["methods"], None
    try:
        recipe = load_recipe(train["recipe"], train["changes"], build=False)
    except InputError as error:
        yield f"train.recipe: {error.message.strip()}; {error.remedy}"
    labels = train["labels"]
    if labels == "reference" and not config["measure"]["reference"]:
        yield "train.labels: there are no reference labels, measure.reference is empty"
    elif labels not in (None, "reference", *methods):
        chosen = f"fuse.methods has {', '.join(methods) or 'none'}"
        yield f"train.labels: '{labels}' is not made, {chosen}; name one of them, or add it there, or use reference"
    if recipe is not None and labels is None and learns_from_labels(recipe):
        yield f"train.labels: the recipe {recipe.name} learns from labels; name one of fuse.methods, or reference"


def _uneven(where: str, preset: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the levels of a schedule."""
    levels = {key: preset[key] for key in ("shrink", "iterations", "field_shrink") if key in preset}
    lengths = {key: len(values) for key, values in levels.items()}
    if len(set(lengths.values())) > 1:
        yield f"{where}: {', '.join(lengths)} need one entry for each level, got {', '.join(map(str, lengths.values()))}"
    elif "field_shrink" in levels:
        grids = [a * b for a, b in zip(levels["shrink"], levels["field_shrink"], strict=True)]
        if any(fine not in (coarse, coarse // 2) for coarse, fine in pairwise(grids)):
            yield f"{where}: the field grid (shrink times field_shrink) may halve from level to level at most, got {grids}"


def _rung_preset(register: Mapping[str, Any], rung: Mapping[str, Any], preset: str) -> tuple[str, str]:
    return rung.get("engine", register["engine"]), rung.get("preset", preset)


def resolve_rung(config: Config, preset: str) -> dict[str, Any]:
    """Return the first way to try a registration, with everything that a job needs to know but the GPUs that it gets.

    Parameters
    ----------
    config : dict
        Validated configuration.
    preset : str
        Name of the preset.

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
    return _resolve(config["register"], {"start": "mass"}, preset)


def registration_settings(config: Config, preset: str) -> dict[str, Any]:
    """Return what the result of a registration depends on: `resolve_rung` without the name or place of the weights.

    Rules hand this to their jobs, so that moved weights repeat nothing; `with_weights` tells the jobs where they are.
    """
    rung = resolve_rung(config, preset)
    return rung | {"preset": {key: value for key, value in rung["preset"].items() if key != "weights"}}


def with_weights(rung: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Return what `registration_settings` gives with the name or file of the weights, where the engine takes any."""
    weights = engine_weights(config["register"], rung["engine"])
    preset = rung["preset"] if weights is None else {**rung["preset"], "weights": weights}
    return {**rung, "preset": preset}


def resolve_fallback(config: Config, preset: str) -> list[dict[str, Any]]:
    """Return what is tried, in order, after a registration with `preset` fails the gate; see `resolve_rung`."""
    return [_resolve(config["register"], rung, preset) for rung in config["register"]["ladder"]]


def _resolve(register: Mapping[str, Any], rung: Mapping[str, Any], preset: str) -> dict[str, Any]:
    engine, name = _rung_preset(register, rung, preset)
    settings = register["presets"][engine][name]
    if weights := engine_weights(register, engine):
        from popatlas.zoo.store import find_weights

        settings = settings | {"weights": weights, "sha256": find_weights(weights).sha256}
    if "similarity" in rung:
        settings = settings | {"similarity": rung["similarity"], "options": {}}
    linear = rung.get("linear", register["linear"])
    return {"start": rung["start"], "linear": linear, "engine": engine, "name": name, "preset": settings}


def engine_weights(register: Mapping[str, Any], engine: str) -> str | None:
    """Return name or file of the weights that an engine takes, None for engines without a network of the zoo.

    Parameters
    ----------
    register : mapping
        The configuration's section `register`.
    engine : str
        The engine.
    """
    return {"network": register["weights"], "unigradicon": register["unigradicon"]["weights"]}.get(engine)


def iteration_preset(config: Config, iteration: int) -> str:
    """Return the name of the schedule of template iteration `iteration` (from 1); the last preset repeats."""
    presets = config["atlas"]["presets"]
    return str(presets[min(iteration, len(presets)) - 1])


def make_absolute(config: Config) -> None:
    """Make the paths of a configuration absolute, in place: jobs run in the output folder."""
    config["bids_dir"] = resolved(config["bids_dir"])
    config["out_dir"] = resolved(config["out_dir"])
    for section, key in (("atlas", "template"), ("fuse", "atlases")):
        if isinstance(config[section][key], str):
            config[section][key] = resolved(config[section][key])
    for section in (config["register"], config["register"]["unigradicon"]):
        if section["weights"].endswith(".safetensors"):  # else it is a name of the zoo
            section["weights"] = resolved(section["weights"])
    recipe = config["train"]["recipe"]
    if recipe is not None and Path(recipe).suffix in (".yaml", ".yml"):  # else it is the name of one of the package
        config["train"]["recipe"] = resolved(recipe)
