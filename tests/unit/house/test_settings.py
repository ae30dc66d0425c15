"""Classes of settings: what they refuse, how it is told, and the schema that follows from them."""

from dataclasses import FrozenInstanceError, replace
from typing import Annotated, Literal

import pytest

from popatlas.errors import InputError
from popatlas.schema import schema_of, schema_problems
from popatlas.settings import Count, OneOf, as_content, find_faults, merge, option, settings, settings_from


@settings
class Inner:
    """Windows.

    Of voxels.
    """

    radius: int = option(2, "Radius, voxels", ge=1, le=9)
    floor: float = option(1e-3, "Floor", ge=0)


@settings
class Outer:
    """Everything."""

    inner: Inner = option(Inner(), "The windows")
    levels: tuple[Count, ...] = option((4, 2), "Levels", min_length=1, max_length=3)
    ends: tuple[float, float] = option((0.5, 1.0), "Ends")
    kind: Literal["one", "two"] = option("one", "Kind")
    name: str | None = option(None, "Name", min_length=1)
    engine: Annotated[str, OneOf(("ants", "ffd"))] = option("ants", "Engine")

    def __post_init__(self) -> None:
        if sorted(self.levels, reverse=True) != list(self.levels):
            raise ValueError("levels must fall")


WRONG = [
    ({"inner": {"raduis": 2}}, "here.inner: unknown key 'raduis', did you mean 'radius'?"),
    ({"inner": {"radius": 0}}, "here.inner.radius: 0 should be greater than or equal to 1"),
    ({"inner": {"radius": True}}, "here.inner.radius: True should be a valid integer"),
    ({"inner": {"radius": 2.0}}, "here.inner.radius: 2.0 should be a valid integer"),
    ({"inner": {"floor": float("nan")}}, "here.inner.floor: nan should be a finite number"),
    ({"levels": [2, 4]}, "here: levels must fall"),
    ({"levels": []}, "here.levels: Tuple should have at least 1 item"),
    ({"levels": [3, -1]}, "here.levels.1: -1 should be greater than or equal to 0"),
    ({"ends": [1]}, "here.ends.1: "),
    ({"kind": "three"}, "here.kind: 'three' should be 'one' or 'two'"),
    ({"engine": "ant"}, "here.engine: 'ant' should be 'ants' or 'ffd'"),
    ({"names": 1}, "here: unknown key 'names', did you mean 'name'?"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_what_is_wrong_is_told_with_its_place(values, message):
    with pytest.raises(InputError) as error:
        settings_from(Outer, values, "here")
    assert error.value.message.startswith(message)
    assert find_faults(Outer, values, "here")[0].startswith(message)


def test_objects_made_in_python_are_checked_too_and_stay_as_they_are():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Inner(radius=0)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        replace(Inner(), radius=-3)
    with pytest.raises(FrozenInstanceError):
        Inner().radius = 3


def test_files_and_objects_hold_the_same():
    found = settings_from(Outer, {"inner": {"radius": 3}, "ends": [0, 2], "levels": [3, 1]}, "here")
    assert found == Outer(inner=Inner(radius=3), ends=(0.0, 2.0), levels=(3, 1))
    assert settings_from(Outer, as_content(found), "here") == found
    assert as_content(Outer())["inner"] == {"radius": 2, "floor": 1e-3} and as_content(Outer())["levels"] == [4, 2]
    assert find_faults(Outer, as_content(found)) == []


def test_the_schema_says_what_the_class_says():
    schema = schema_of(Outer, complete=True)
    assert schema["required"] == ["inner", "levels", "ends", "kind", "name", "engine"]
    parts = schema["properties"]
    assert parts["inner"]["description"] == "The windows" and parts["inner"]["additionalProperties"] is False
    assert parts["inner"]["properties"]["radius"] == {
        "description": "Radius, voxels",
        "maximum": 9,
        "minimum": 1,
        "type": "integer",
    }
    assert parts["levels"] == {
        "description": "Levels",
        "items": {"minimum": 0, "type": "integer"},
        "maxItems": 3,
        "minItems": 1,
        "type": "array",
    }
    assert parts["ends"]["items"] == {"type": "number"} and parts["ends"]["minItems"] == parts["ends"]["maxItems"] == 2
    assert parts["name"] == {"description": "Name", "type": ["string", "null"], "minLength": 1}
    assert parts["kind"]["enum"] == ["one", "two"] and parts["engine"]["enum"] == ["ants", "ffd"]
    assert schema_problems(schema, as_content(Outer())) == []


@pytest.mark.parametrize(
    "values", [values for values, message in WRONG if "must fall" not in message and "nan" not in message]
)
def test_the_schema_refuses_what_the_class_refuses(values):
    assert schema_problems(schema_of(Outer, complete=True), merge(as_content(Outer()), values))
    assert schema_problems(schema_of(Outer, complete=False), values)
    assert schema_problems(schema_of(Outer, complete=False), {"inner": {"radius": 4}}) == []
