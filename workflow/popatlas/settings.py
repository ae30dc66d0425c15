"""Settings: frozen dataclasses whose types and ranges stand in one place, beside the meaning of each option.

From a class made by `settings` follow its checks (also for values given in Python), its JSON Schema, the tables of the docs
and the messages about wrong values. Files are laid over defaults by `merge` and become objects by `settings_from`.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast, dataclass_transform, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from popatlas.errors import InputError
from popatlas.paths import is_text

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema, ErrorDetails

Kind = TypeVar("Kind")
Content = dict[str, Any]  # nested mappings, lists and scalars, as YAML and JSON hold them
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_ADAPTERS: dict[type[object], TypeAdapter[object]] = {}


def option(default: Kind, description: str, **limits: Any) -> Kind:
    """Declare an option of a class made by `settings`.

    Parameters
    ----------
    default
        Its value when left out.
    description : str
        What it means, with its unit, as messages and the docs show it.
    **limits
        ``ge``, ``gt``, ``le``, ``lt`` of numbers; ``min_length``, ``max_length`` of texts and tuples; ``pattern`` of texts.
    """
    return cast("Kind", Field(default, description=description, **limits))


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))  # an option is a plain default to mypy
def settings(kind: type[Kind]) -> type[Kind]:
    """Make a class of options a frozen dataclass that refuses unknown names, other types and values out of range.

    Raises
    ------
    ValueError
        (`pydantic.ValidationError`) when an object is made with such a value.
    """
    return cast("type[Kind]", checked_dataclass(frozen=True, config=STRICT)(kind))


@dataclass(frozen=True)
class OneOf:
    """The names of a registry as a type: ``Annotated[str, OneOf(tuple(ENGINES))]``."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Tell pydantic that these texts are allowed, and no other."""
        from pydantic_core import core_schema

        return core_schema.literal_schema(list(self.names))


Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def settings_from(kind: type[Kind], values: Mapping[str, object], where: str) -> Kind:
    """Make settings of nested mappings: lists become tuples, mappings the dataclasses of their fields.

    Parameters
    ----------
    kind : type
        A class made by `settings`.
    values : mapping
        Options that differ from its defaults, as a file holds them.
    where : str
        What they belong to, for messages.

    Raises
    ------
    InputError
        For an unknown key or an impossible value; the first is named.
    """
    try:
        return cast("Kind", _adapter(kind).validate_json(json.dumps(values, default=_plain)))
    except ValidationError as error:
        raise InputError(next(iter(told(kind, error, where))), remedy="correct the value") from error


def find_faults(kind: type[object], values: Mapping[str, object], where: str = "") -> list[str]:
    """Return one line for each value that a class of settings refuses; see `settings_from`."""
    try:
        _adapter(kind).validate_json(json.dumps(values, default=_plain))
    except ValidationError as error:
        return list(told(kind, error, where))
    return []


def _adapter(kind: type[object]) -> TypeAdapter[object]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def as_content(found: object) -> Any:
    """Return settings as nested mappings and lists, as files hold them."""
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        return {item.name: as_content(getattr(found, item.name)) for item in dataclasses.fields(found) if item.init}
    if isinstance(found, Mapping):
        return {key: as_content(value) for key, value in found.items()}
    return [as_content(value) for value in found] if isinstance(found, tuple | list) else found


def _plain(value: object) -> object:
    """Return what JSON can hold of an object within settings."""
    if dataclasses.is_dataclass(value):
        return as_content(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} cannot be an option")


def told(kind: type[object], error: ValidationError, where: str = "") -> Iterator[str]:
    """Yield one readable line for each thing that pydantic refuses."""
    for found in error.errors(include_url=False):
        place = ".".join(part for part in (where, *map(str, found["loc"])) if part)
        if found["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            *above, key = found["loc"]
            known = _known(kind, above)
            place = ".".join(part for part in (where, *map(str, above)) if part) or "top level"
            yield f"{place}: unknown key '{key}'{suggest(str(key), known)}"
        else:
            yield f"{place or 'top level'}: {_reason(found)}"


def _reason(found: ErrorDetails) -> str:
    if found["type"] == "value_error":
        return found["msg"].removeprefix("Value error, ")
    return found["msg"].replace("Input", repr(found["input"]), 1)


def _known(kind: type[Any], loc: Sequence[int | str]) -> list[str]:
    """Return the names of the options of the class at a place inside of another one."""
    for part in loc:
        kind = get_type_hints(kind)[str(part)]
    return [item.name for item in dataclasses.fields(kind)]


def merge(base: Content, user: Mapping[str, object]) -> Content:
    """Return `base` with the user's values laid over it, section by section."""
    merged = copy.deepcopy(base)
    for key, value in user.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def not_plain(value: object, where: str = "") -> Iterator[str]:
    """Yield a line with its place for each value that no file of settings can hold.

    YAML has NaN and infinity, and NaN passes a schema; mappings made in Python hold dates, arrays or texts out of UTF-8.
    """
    if isinstance(value, Mapping | list | tuple):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from not_plain(part, f"{where}.{key}" if where else str(key))
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where}: {value} is not a finite number"
    elif isinstance(value, str) and not is_text(value):
        yield f"{where}: {value!r} is not in UTF-8"
    elif not (value is None or isinstance(value, str | int | float) or dataclasses.is_dataclass(value)):
        yield f"{where}: {value!r} ({type(value).__name__}) is no text, number, list or section"


def suggest(word: str, known: Iterable[str]) -> str:
    """Return the nearest known word as a question, or all known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean '{close[0]}'?" if close else f", known keys: {', '.join(known)}"
