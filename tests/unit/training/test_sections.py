"""Each key of a recipe: its default, and what is told of a misspelt one or of a number out of its range."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pytest
import yaml

from popatlas.errors import InputError
from popatlas.schema import schema_of, schema_problems
from popatlas.settings import Content, as_content, settings_from
from popatlas.training.recipe import FOLDER, load_recipe
from popatlas.training.schema import recipe_schema
from popatlas.training.sections import Sections

SCHEMA = schema_of(Sections, complete=False)
DEFAULTS = as_content(Sections())
FREE = ("network.options", "loss.similarity.options")  # keys of other classes
PARTS = ("augment.common", "augment.each", "synthesis.options")  # a file says only what differs from their defaults


def below(part: Mapping[str, Content], prefix: str = "") -> Iterator[tuple[str, Content]]:
    """Yield place and schema of each key of a schema, sections before what is in them."""
    for name, inner in part["properties"].items():
        yield f"{prefix}{name}", inner
        if "properties" in inner:
            yield from below(inner, f"{prefix}{name}.")


KEYS = dict(below(SCHEMA))
LEAVES = [key for key, part in KEYS.items() if "properties" not in part and key not in FREE]


def within(content: Content, key: str) -> object:
    for part in key.split("."):
        content = content[part]
    return content


def told(key: str, value: object) -> str:
    """Return what a recipe with a value at a key is refused with."""
    for part in reversed(key.split(".")):
        value = {part: value}
    with pytest.raises(InputError) as error:
        load_recipe("base", value, light=True)
    return error.value.message


def wrong(part: Content) -> Iterator[tuple[str, object]]:
    """Yield values that a schema does not allow, each with the place of what is wrong inside of it."""
    if "enum" in part:
        yield "", "nonsense"
    elif part["type"] == "array":
        good = [right(part["items"])] * max(part.get("minItems", 0), 1)
        for place, value in wrong(part["items"]):
            yield f".0{place}", [value, *good[1:]]
        if "maxItems" in part:
            yield "", [good[0]] * (part["maxItems"] + 1)
        if part.get("minItems"):
            yield "", good[1:] if len(good) == part["minItems"] else []
    elif part["type"] in ("number", "integer"):
        yield from (("", value) for value in (math.nan, math.inf, "many", True, None))
        yield from (("", part[word] + sign) for word, sign in (("minimum", -1), ("maximum", 1)) if word in part)
        yield from (("", part[word]) for word in ("exclusiveMinimum", "exclusiveMaximum") if word in part)
        if part["type"] == "integer":
            yield "", right(part) + 0.5
    elif part["type"] == "boolean":
        yield "", 1
    else:
        yield "", 1
        yield from (("", "") for word in ("minLength", "pattern") if word in part)


def right(part: Content) -> object:
    """Return a value that a schema allows."""
    if part["type"] == "array":
        return [right(part["items"])] * part.get("minItems", 0)
    return part.get("minimum", part.get("exclusiveMinimum", 0) + 1)


def test_the_file_of_defaults_and_the_classes_agree() -> None:
    base = yaml.safe_load((FOLDER / "base.yaml").read_text())
    assert settings_from(Sections, base, "base") == Sections()
    for key in LEAVES:
        if not key.startswith(PARTS):
            assert within(base, key) == within(DEFAULTS, key)
            assert type(within(base, key)) is type(within(DEFAULTS, key))
    assert all(within(base, key) == {} for key in (*PARTS, *FREE))


def test_all_keys_are_found() -> None:
    assert len(KEYS) > 100 and {"schedule.steps", "augment.each.look.slices", "synthesis.options.contrast.classes"} < set(
        KEYS
    )


@pytest.mark.parametrize("key", KEYS)
def test_a_misspelt_key_is_told_with_its_place_and_the_right_one(key: str) -> None:
    section, _, name = key.rpartition(".")
    assert f"{section or 'top level'}: unknown key '{name}{name[-1]}', did you mean '{name}'?" in told(f"{key}{name[-1]}", 1)


@pytest.mark.parametrize("key", LEAVES)
def test_a_value_out_of_its_range_is_told_with_its_place(key: str) -> None:
    tried = list(wrong(KEYS[key]))
    assert tried
    for place, value in tried:
        lines = told(key, value).strip().split("\n  - ")[1:]
        assert lines and all(line.startswith(f"{key}{place}: ") for line in lines), (value, lines)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_explained(key: str) -> None:
    assert len(KEYS[key]["description"]) > 3


@pytest.mark.parametrize("name", [path.stem for path in FOLDER.glob("*.yaml")])
def test_the_schema_for_editors_allows_the_recipes_of_the_package(name: str) -> None:
    assert schema_problems(recipe_schema(), yaml.safe_load((FOLDER / f"{name}.yaml").read_text())) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"network": {"name": "unet", "options": {"encodr": [3]}}}, "network.options: unknown key 'encodr', did you mean"),
        ({"network": {"name": "fast", "options": {"passes": 0}}}, "network.options.passes: 0 is less than the minimum"),
        ({"loss": {"similarity": {"name": "lncc", "options": {"radiuz": 3}}}}, "loss.similarity.options: unknown key"),
        ({"extends": 3}, "extends: 3 is not of type 'string'"),
        ({"extend": "rcn"}, "top level: unknown key 'extend', did you mean 'extends'?"),
    ],
)
def test_the_schema_for_editors_knows_the_options_too(content: Content, message: str) -> None:
    assert schema_problems(recipe_schema(), content)[0].startswith(message)


ORDER = [
    ("augment.common.bend_spacing", [16, 8]),
    ("augment.each.look.slices", [3, 2]),
    ("synthesis.options.contrast.mean", [0.9, 0.1]),
    ("synthesis.options.shapes.spacing", [32, 12]),
    ("grid.slices_mm", [30, -30]),
]


@pytest.mark.parametrize(("key", "value"), ORDER)
def test_the_ends_of_a_range_are_in_order(key: str, value: list[float]) -> None:
    section, _, name = key.rpartition(".")
    message = told(key, value)
    assert (section in message and name in message and "lower end first" in message) or "lowest place first" in message
