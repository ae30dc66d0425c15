"""The classes of the configuration, the schema made of them, and the configuration that is shipped say the same."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from popatlas.config.attempts import resolve_attempt, resolve_fallback
from popatlas.config.contradictions import find_contradictions
from popatlas.config.load import default_config, default_content, find_problems, load_config, resolved_config
from popatlas.config.schema import config_schema
from popatlas.config.sections import Config
from popatlas.errors import ConfigError
from popatlas.registration.engines.registry import ENGINES
from popatlas.settings import as_content, settings_from
from popatlas.similarity.registry import OF_IMAGES, similarity_schemas

SCHEMA = config_schema()
Place = tuple[str | int, ...]


def test_the_shipped_configuration_holds_the_defaults_of_the_classes():
    assert settings_from(Config, default_content(), "") == Config()
    assert default_config().content == default_content()
    assert find_contradictions(Config()) == ([], True)


@pytest.mark.parametrize("name", ENGINES)
def test_the_shipped_presets_are_those_of_the_engines(name):
    shipped = default_content()["register"]["presets"][name]
    assert shipped == {preset: as_content(found) for preset, found in ENGINES[name].presets.items()}
    assert {"quick", "fast", "default", "accurate"} == set(shipped)


def within(content: Any, place: Place) -> Any:
    for part in place:
        content = content[part]
    return content


def named(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def keys_of(schema: Mapping[str, Any], content: Any, place: Place = ()) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Yield place and schema of every key of a configuration, those of presets and of similarities too."""
    for name, part in schema.get("properties", {}).items():
        if name in content:
            yield (*place, name), part
            yield from keys_of(named(part), content[name], (*place, name))
    free = schema.get("additionalProperties")
    if isinstance(free, Mapping) and isinstance(content, Mapping) and place[:2] == ("register", "presets"):
        for name in {"default"} & set(content) if len(place) == 3 else content:  # the other presets have the same keys
            yield from keys_of(free, content[name], (*place, name))
    for rule in schema.get("allOf", ()):
        if content["similarity"] == rule["if"]["properties"]["similarity"]["const"]:
            options = named(rule["then"]["properties"]["options"])
            yield from keys_of(options, content["options"], (*place, "options"))
    if place == ("register", "fallback"):
        for number, attempt in enumerate(content):
            yield from keys_of(schema["items"], attempt, (*place, number))


KEYS = list(keys_of(SCHEMA, default_content()))


def dotted(place: Place) -> str:
    return ".".join(map(str, place))


def test_all_keys_are_looked_at():
    assert len(KEYS) > 200
    assert {("atlas", "label"), ("register", "presets", "greedy", "default", "radius")} <= {place for place, _ in KEYS}
    assert ("register", "presets", "instance", "default", "options", "radius") in {place for place, _ in KEYS}
    assert ("register", "fallback", 0, "start") in {place for place, _ in KEYS}


@pytest.mark.parametrize("place", [place for place, _ in KEYS], ids=dotted)
def test_every_misspelt_key_is_refused_with_the_right_one(place):
    content = default_content()
    *above, key = place
    section = within(content, tuple(above))
    wrong = f"{key}x"
    section[wrong] = section[key]
    problems = find_problems(content)
    assert [line for line in problems if f"{dotted(tuple(above)) or 'top level'}: unknown key '{wrong}'" in line]
    assert [line for line in problems if f"did you mean '{key}'" in line]


def beyond(part: Mapping[str, Any]) -> list[Any]:
    """Return values just outside of what a schema allows, and one of another type."""
    found: list[Any] = []
    if part.get("type") in ("number", "integer"):
        found += [part[word] - 1e-9 if part["type"] == "number" else part[word] - 1 for word in ("minimum",) if word in part]
        found += [part[word] + 1e-9 if part["type"] == "number" else part[word] + 1 for word in ("maximum",) if word in part]
        found += [part[word] for word in ("exclusiveMinimum", "exclusiveMaximum") if word in part]
        found += ["many", float("nan"), float("inf"), True]
    elif "enum" in part:
        found += ["no such thing"]
    elif part.get("type") == "boolean":
        found += ["yes", 1]
    elif part.get("type") == "array":
        found += ["text", *([[]] if part.get("minItems") else [])]
        found += [[value] * max(1, part.get("minItems", 1)) for value in beyond(named(part["items"]))]
    elif part.get("type") == "string":
        found += [5, *([""] if part.get("minLength") else [])]
    elif part.get("type") == "object":
        found += ["text", None]
    return found


WRONG = [(place, value) for place, part in KEYS for value in beyond(named(part))]


@pytest.mark.parametrize(("place", "value"), WRONG, ids=lambda part: dotted(part) if isinstance(part, tuple) else None)
def test_every_value_out_of_its_range_is_refused_with_its_place(place, value):
    content = default_content()
    within(content, place[:-1])[place[-1]] = copy.deepcopy(value)
    assert [line for line in find_problems(content) if line.startswith(dotted(place))]


@pytest.mark.parametrize("name", OF_IMAGES)
def test_options_belong_to_the_similarity_that_is_named(name):
    def preset(**options):
        return {"register": {"presets": {"ffd": {"default": {"similarity": name, "options": options}}}}}

    assert load_config(preset()).register.presets["ffd"]["default"]["options"] == {}
    known = similarity_schemas()[name]["properties"]
    with pytest.raises(ConfigError, match=r"register\.presets\.ffd\.default\.options: unknown key 'raduis'"):
        load_config(preset(raduis=2))
    for key in known:
        with pytest.raises(ConfigError, match=rf"register\.presets\.ffd\.default\.options\.{key}: "):
            load_config(preset(**{key: "many"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"raduis": 2}}, r"default\.options: unknown key 'raduis', did you mean 'radius'"),
        ({"options": {"radius": -1}}, r"default\.options\.radius: -1 is less than the minimum of 1"),
        ({"similarity": "nmi", "options": {"percentiles": [99, 1]}}, r"default\.options: .*percentiles"),
        ({"similarity": "nmi", "options": {"radius": 2}}, r"default\.options: unknown key 'radius'"),
        ({"shrink": [4, 2]}, r"default: shrink, iterations, field_shrink need one entry for each level, got 2, 3, 3"),
        ({"shrink": [3, 2, 1]}, r"shrink\.0: 3 is not one of"),
        ({"fluid": -0.1}, r"default\.fluid: -0\.1 is less than the minimum of 0"),
        ({"step": 0}, r"default\.step: 0 is less than or equal to the minimum of 0"),
        ({"window": 8}, r"default: unknown key 'window'"),
    ],
)
def test_wrong_presets_are_refused_when_the_configuration_is_read(change, message):
    with pytest.raises(ConfigError, match=message):
        load_config({"register": {"presets": {"instance": {"default": change}}}})


def test_options_of_another_similarity_do_not_stay():
    config = load_config({"register": {"presets": {"instance": {"default": {"similarity": "ngf"}}}}})
    assert config.register.presets["instance"]["default"]["options"] == {}
    config = load_config({"register": {"presets": {"instance": {"default": {"options": {"radius": 3}}}}}})
    assert config.register.presets["instance"]["default"]["options"] == {"radius": 3, "floor": 1e-3}


def test_the_sampling_of_another_metric_does_not_stay():
    def ants(**preset):
        return load_config({"register": {"presets": {"ants": {"default": preset}}}}).register.presets["ants"]["default"]

    assert ants(metric="mattes")["sampling"] == 32
    assert ants(metric="mattes", sampling=16)["sampling"] == 16
    assert ants(iterations=[9])["sampling"] == 2
    for metric, sampling in (("mattes", 7), ("mattes", 129), ("CC", 17)):
        with pytest.raises(ConfigError, match=rf"presets\.ants\.default.*sampling.*{sampling}"):
            ants(metric=metric, sampling=sampling)


def test_what_follows_a_choice_has_a_default_for_each():
    for engine in ENGINES.values():
        for key, follows in engine.settings.FOLLOWS.items():
            choices = config_schema()["properties"]["register"]["properties"]["presets"]["properties"][engine.name]
            assert set(follows.defaults) == set(choices["additionalProperties"]["properties"][follows.choice]["enum"])
            for choice, default in follows.defaults.items():
                settings_from(engine.settings, {follows.choice: choice, key: default}, "")
                assert engine.settings.completed({follows.choice: choice}) == {follows.choice: choice, key: default}


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_that_would_do_nothing_is_refused(name):
    none = {"iterations": [0, 0], "shrink": [2, 1], "field_shrink": [1, 1]}
    default = default_content()["register"]["presets"][name]["default"]
    levels = {key: none[key] if isinstance(default[key], list) else 0 for key in none if key in default}
    mine = {"register": {"presets": {name: {"default": levels}}}}
    if ENGINES[name].weights:  # a network predicts; none of its iterations are needed
        assert load_config(mine).register.presets[name]["default"]["iterations"] == [0, 0]
    else:
        with pytest.raises(ConfigError, match=rf"presets\.{name}\.default\.iterations: (there are none|0 is less)"):
            load_config(mine)


@pytest.mark.parametrize("name", ENGINES)
def test_a_preset_of_a_new_name_lies_over_the_default_of_its_engine(name):
    whole = default_content()["register"]["presets"][name]["default"]
    config = load_config({"register": {"presets": {name: {"mine": whole}}}})
    assert config.register.presets[name]["mine"] == whole
    assert load_config({"register": {"presets": {name: {"mine": {}}}}}).register.presets[name]["mine"] == whole
    key, other = next(
        (key, value) for key, value in ENGINES[name].presets["accurate"].__dict__.items() if whole[key] != as_content(value)
    )
    presets = load_config(
        {"register": {"presets": {name: {"mine": {}, "default": {key: as_content(other)}}}}}
    ).register.presets
    assert presets[name]["mine"] == presets[name]["default"] == whole | {key: as_content(other)}
    with pytest.raises(ConfigError, match=rf"presets\.{name}\.mine: unknown key 'rubbish'"):
        load_config({"register": {"presets": {name: {"mine": {"rubbish": 1}}}}})


def test_a_preset_of_ones_own_takes_other_options_with_another_similarity(tmp_path):
    mine = {"register": {"preset": "mine", "presets": {"instance": {"mine": {"similarity": "ngf", "fluid": 1.5}}}}}
    config = load_config(mine)
    assert config.register.presets["instance"]["mine"] == config.register.presets["instance"]["default"] | {
        "similarity": "ngf", "options": {}, "fluid": 1.5,
    }  # fmt: skip
    first, *fallback = [resolve_attempt(config, "mine"), *resolve_fallback(config, "mine")]
    assert first["preset"]["fluid"] == 1.5
    assert [(attempt["engine"], attempt["name"]) for attempt in fallback] == [
        ("instance", "mine"), ("instance", "mine"), ("ants", "default"),
    ]  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.content))
    assert resolved_config(tmp_path / "c.yaml").content == config.content


def test_an_engine_misspelt_in_the_presets_is_named():
    with pytest.raises(ConfigError, match="unknown key 'instanc', did you mean 'instance'"):
        load_config({"register": {"presets": {"instanc": {"default": {"similarity": "ngf"}}}}})


def test_a_saved_configuration_comes_back_as_it_was(tmp_path):
    config = load_config({"register": {"presets": {"instance": {"default": {"similarity": "ngf"}}}}})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.content))
    assert resolved_config(path) == load_config(path) == config
