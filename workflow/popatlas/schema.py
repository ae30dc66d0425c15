"""JSON Schema: made of classes of settings, and asked what is wrong with the content of a file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from popatlas.settings import Content, suggest

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

SCALARS = {"string", "number", "integer", "boolean", "null"}


def schema_of(kind: Any, *, complete: bool) -> Content:
    """Return the JSON Schema of a class of settings, in one piece and without defaults.

    Parameters
    ----------
    kind : type
        A class made by `popatlas.settings.settings`, or another type that pydantic knows.
    complete : bool
        Every key has to be there, as in a file that has been laid over the defaults.
    """
    found = TypeAdapter(kind).json_schema()
    return _plain(found, found.get("$defs", {}), complete)


def _plain(part: Content, parts: Mapping[str, Content], complete: bool) -> Content:
    """Put in what a schema refers to, and write each kind of value in the one way that messages are made from."""
    part = dict(part)
    if "$ref" in part:
        target = parts[part.pop("$ref").rsplit("/", 1)[-1]]
        part = {**target, **part}
    for word in ("title", "default", "$defs"):
        part.pop(word, None)
    if "properties" in part:
        part["properties"] = {name: _plain(inner, parts, complete) for name, inner in part["properties"].items()}
        if complete:
            part["required"] = list(part["properties"])
    if "prefixItems" in part:  # a pair of equals
        part["items"] = part.pop("prefixItems")[0]
    for word in ("items", "additionalProperties"):
        if isinstance(part.get(word), dict):
            part[word] = _plain(part[word], parts, complete)
    if "description" in part:
        part["description"] = part["description"].split("\n\n")[0].replace("\n", " ").removesuffix(".")
    if "enum" in part or "const" in part:
        part.pop("type", None)
    if "anyOf" in part:
        part |= _either([_plain(inner, parts, complete) for inner in part.pop("anyOf")])
    return part


def _either(kinds: list[Content]) -> Content:
    """Return the schema of a value of several kinds: one, where the keywords of each say nothing of the others."""
    if all("enum" in kind or kind == {"type": "null"} for kind in kinds):
        return {"enum": [value for kind in kinds for value in kind.get("enum", [None])]}
    if all(kind.get("type") in SCALARS for kind in kinds):
        joined: Content = {"type": [kind["type"] for kind in kinds]}
        for kind in kinds:
            joined |= {word: value for word, value in kind.items() if word != "type"}
        return joined
    return {"anyOf": kinds}


Place = tuple[str | int, ...]  # the keys, and the numbers within lists, that lead to a value


def schema_problems(schema: Content, content: Any) -> list[str]:
    """Return one readable line for each thing in which content differs from a schema, by place."""
    return [line for line, _ in schema_faults(schema, content)]


def schema_faults(schema: Content, content: Any) -> list[tuple[str, list[Place]]]:
    """Return what `schema_problems` says, each line with the places of the values or unknown keys that it is about."""
    errors = sorted(_validator(schema).iter_errors(content), key=lambda error: [str(part) for part in error.absolute_path])
    return [(explain(error), _places(error)) for error in errors]


def _places(error: ValidationError) -> list[Place]:
    place: Place = tuple(error.absolute_path)
    if error.validator != "additionalProperties" or not isinstance(error.schema, Mapping):
        return [place]
    given: Mapping[str, object] = error.instance  # type: ignore[assignment]
    return [(*place, key) for key in given if key not in error.schema.get("properties", {})]


def _validator(schema: Content) -> Validator:
    """Return a validator for which 3.0 is no whole number, since loops cannot count to it, nor 1 the same as true."""
    from jsonschema import Draft202012Validator, validators

    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    kind = validators.extend(  # type: ignore[no-untyped-call]
        Draft202012Validator, {"enum": _one_of}, type_checker=types
    )
    made: Validator = kind(schema)
    return made


def _one_of(validator: Validator, values: list[object], instance: object, schema: Content) -> Iterator[ValidationError]:
    from jsonschema import ValidationError

    if not any(instance == value and type(instance) is type(value) for value in values):
        yield ValidationError(f"{instance!r} is not one of {values}")


def explain(error: ValidationError) -> str:
    """Return one readable line for an error of JSON Schema."""
    where = ".".join(str(part) for part in error.absolute_path) or "top level"
    schema: Content = dict(error.schema) if isinstance(error.schema, Mapping) else {}
    if error.validator == "additionalProperties":
        known = sorted(schema.get("properties", {}))
        given: Mapping[object, object] = error.instance  # type: ignore[assignment]
        unknown = sorted(str(key) for key in given if key not in known)
        return "; ".join(f"{where}: unknown key '{key}'{suggest(key, known)}" for key in unknown)
    inside = max(error.context or (), key=lambda part: len(part.absolute_path), default=error)
    if len(inside.absolute_path) > len(error.absolute_path):  # one of several kinds, which fits but for a part of it
        return explain(inside)
    meaning = schema.get("description", "")
    hint = _type_hint(error.validator_value, error.instance) if error.validator == "type" else ""
    return f"{where}: {error.message}{hint}" + (f" ({meaning})" if meaning else "")


def _type_hint(wanted: Any, found: object) -> str:
    """Return what to write instead of a value of another type, empty when nobody knows."""
    kinds = {wanted} if isinstance(wanted, str) else set(wanted)
    if found is None:
        return "; give its keys, or remove the line" if "object" in kinds else "; give a value, or remove the line"
    if "string" in kinds and isinstance(found, bool):
        return "; YAML reads yes, no, on and off as true and false: quote the word"
    if "string" in kinds and isinstance(found, int | float):
        return f"; quote it: '{found}'"
    if kinds & {"number", "integer"} and isinstance(found, str):
        try:
            number = float(found)
        except ValueError:
            return ""
        if not math.isfinite(number) or ("number" not in kinds and not number.is_integer()):
            return ""
        text = repr(number) if "number" in kinds else f"{int(number)}"
        return f"; write {text.replace('e', '.0e') if '.' not in text else text}"
    return f"; write {int(found)}" if isinstance(found, float) and found.is_integer() else ""
