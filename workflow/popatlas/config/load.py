"""Reading a configuration: defaults, the user's file on top, and everything that is wrong with it in readable lines."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from popatlas.config.beside import located, with_paths
from popatlas.config.contradictions import find_contradictions
from popatlas.config.sections import DEFAULT, Config
from popatlas.errors import ConfigError, InputError
from popatlas.fusion.settings import DataParametersSettings
from popatlas.paths import check_path, is_text, resolved
from popatlas.registration.engines.registry import ENGINES
from popatlas.renamed import with_keys_of_today
from popatlas.resources import schema_path, workflow_root
from popatlas.schema import Place, schema_faults
from popatlas.settings import Content, find_faults, merge, not_plain, settings_from
from popatlas.yamlfile import read_yaml

_shipped = functools.cache(read_yaml)  # files of the package; those of the user may change between two looks


def default_content() -> Content:
    """Return the shipped configuration as nested mappings, all keys present."""
    return copy.deepcopy(dict(_shipped(workflow_root() / "config.yaml")))


def default_config() -> Config:
    """Return the shipped configuration."""
    return parse_config(default_content())


def load_config(source: Path | str | Mapping[str, Any] | Config | None = None, **overrides: object) -> Config:
    """Read, complete and validate a configuration.

    Parameters
    ----------
    source : path, mapping or Config, optional
        The user's YAML file or its content; keys left out take the shipped defaults.
    **overrides
        Top-level keys set last, for example ``bids_dir``.

    Returns
    -------
    Config
        A complete configuration.

    Raises
    ------
    ConfigError
        With one line per problem: the key, what is wrong, what is allowed.
    InputError
        When the path of the dataset or of the output folder is not in UTF-8.
    """
    name = str(source) if isinstance(source, str | Path) else "configuration"
    given = source.content if isinstance(source, Config) else source
    user = (_own(Path(given)) if isinstance(given, str | Path) else given) or {}
    if not isinstance(user, Mapping):
        raise ConfigError(f"{name}: expected keys and values at the top level. Remedy: compare with config.yaml")
    content = _laid_over(default_content(), with_keys_of_today(user))
    content |= {key: value for key, value in overrides.items() if value is not None}
    for key, what in (("bids_dir", "the dataset"), ("out_dir", "the output folder")):
        if not is_text(str(content[key])):
            check_path(content[key], what, is_input=key == "bids_dir")
    problems, whole = _look(content)
    if problems:
        lines, more = "\n  - ".join(problems), "" if whole else "; further checks follow once these are right"
        raise ConfigError(
            f"{name}: {len(problems)} problem(s)\n  - {lines}\n"
            f"Remedy: correct the keys; the shipped config.yaml lists all{more}"
        )
    return parse_config(content)


def resolved_config(path: Path) -> Config:
    """Return a configuration that a run has resolved and saved; what it says against itself was looked for then.

    Raises
    ------
    InputError
        When it cannot be read, or a value is impossible.
    """
    return parse_config(_laid_over(default_content(), with_keys_of_today(read_yaml(path, "the configuration") or {})))


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a configuration with other values of some keys; ConfigError when they cannot be."""
    return load_config(_laid_over(config.content, changes))


def _laid_over(below: Content, above: Mapping[str, Any]) -> Content:
    """Return a configuration with another's values over it.

    In presets what follows another choice does not stay. A preset of a new name lies over the engine's `default`. Options of
    data parameters that are left out are those of their preset.
    """
    merged = merge(below, above)
    for engine, presets in _mapping(_mapping(_mapping(above).get("register")).get("presets")).items():
        if engine not in ENGINES or not isinstance(presets, Mapping):
            continue
        made, old = merged["register"]["presets"][engine], below["register"]["presets"][engine]
        for name in sorted(presets, key=lambda name: name not in old):  # new ones last: `default` is made by then
            base = old.get(name) or _mapping(made[DEFAULT]) or old[DEFAULT]
            if isinstance(presets[name], Mapping):
                made[name] = ENGINES[engine].settings.laid_over(base, presets[name])
    learned = _mapping(_mapping(_mapping(above).get("fuse")).get("dataparams"))
    if learned:
        merged["fuse"]["dataparams"] = DataParametersSettings.laid_over(below["fuse"]["dataparams"], learned)
    return merged


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def find_problems(content: Mapping[str, Any]) -> list[str]:
    """Return one readable line per problem of a complete configuration."""
    return _look(content)[0]


def _look(content: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return the problems of a complete configuration, and whether that is all: some checks need parts that are faulty."""
    faults = schema_faults(_shipped(schema_path("config")), content)
    lines, places = [line for line, _ in faults], [place for _, found in faults for place in found]
    if unusual := list(not_plain(content)):
        return [*unusual, *lines], False
    sound = _sound(content, places)
    if more := find_faults(Config, sound):
        return lines or more, False
    found, whole = find_contradictions(settings_from(Config, sound, ""), places)
    return [*lines, *found], whole


def _sound(content: Mapping[str, Any], places: Iterable[Place]) -> Content:
    """Return a configuration with shipped values where it is faulty, and without unknown keys.

    Lists and presets are replaced as wholes.
    """
    sound, shipped = copy.deepcopy(dict(content)), default_content()
    presets = shipped["register"]["presets"]
    for place in places:
        if place[:2] == ("register", "presets") and len(place) > 3 and place[2] in presets:
            presets[place[2]].setdefault(place[3], presets[place[2]][DEFAULT])
            place = place[:4]
        _put_back(sound, shipped, place)
    return sound


def _put_back(content: dict[Any, Any], shipped: Mapping[Any, Any], place: Place) -> None:
    """Replace the value at a place, or the nearest above it that is shipped, by that; remove what is not."""
    for number, key in enumerate(place):
        inner, wanted = content.get(key), shipped.get(key)
        if number == len(place) - 1 or not isinstance(inner, dict) or not isinstance(wanted, Mapping):
            content.pop(key, None)
            if key in shipped:
                content[key] = copy.deepcopy(shipped[key])
            return
        content, shipped = inner, wanted


def make_absolute(config: Config) -> Config:
    """Return a configuration with absolute paths: jobs run in the output folder."""
    return parse_config(with_paths(config.content, resolved))


def _own(path: Path) -> Any:
    try:
        found = read_yaml(path, "the configuration")
        return located(found, [path]) if isinstance(found, Mapping) else found
    except InputError as error:
        raise ConfigError(str(error)) from error


def parse_config(content: Content) -> Config:
    """Return content that is valid as a configuration, which still knows how it was written; InputError when it is not."""
    config = settings_from(Config, content, "")
    config.__dict__["_content"] = content
    return config
