"""Write the pages of the registries: what there is, its options and their ranges, from the classes themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from popatlas.registry import Entry
from popatlas.report.methods import read_references, reference_line
from popatlas.schema import schema_of
from popatlas.settings import as_content
from popatlas.similarity.registry import SIMILARITIES

SIDES = (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"), ("exclusiveMaximum", "below"))


def similarities() -> str:
    """Return the page of the similarities."""
    lines = [
        "# Similarities\n",
        "What a registration compares by: `similarity` and its `options` in the schedules of the engines `instance`, "
        "`network`, `unigradicon` and `ffd`, and in the loss of a recipe. Lower is better. $F$ and $M$ are the fixed and "
        "the moving image, $x$ voxels, $\\Omega$ the voxels that count.\n",
    ]
    for name, entry in SIMILARITIES.items():
        lines += [*section(name, entry), *options_table(entry.load())]
        if entry.one_contrast:
            lines.append("Both images need one contrast.\n")
    return "\n".join(lines)


def section(name: str, entry: Entry) -> Iterator[str]:
    """Yield heading, meaning, formula and references of an entry."""
    yield f"## `{name}`: {entry.title}\n"
    if entry.formula:
        yield f"$$\n{entry.formula}\n$$\n"
    yield explanation(entry.load()) + "\n"
    if entry.references:
        known = read_references()
        yield " ".join(reference_line(known[key]) for key in entry.references) + "\n"


def explanation(thing: Any) -> str:
    """Return the docstring of a class or function up to its first section, as Markdown."""
    return re.split(r"\n\w[\w ]*\n---+\n", inspect.getdoc(thing) or "")[0].strip().replace("``", "`")


def options_table(kind: Any) -> list[str]:
    """Return a table of the options of a class of settings, without rows where it has none."""
    rows = list(option_rows(schema_of(kind, complete=False), as_content(kind())))
    return ["| option | default | allowed | meaning |", "|---|---|---|---|", *rows, ""] if rows else []


def option_rows(schema: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield a row for each option, those of options that have options of their own after a full stop."""
    for name, part in schema.get("properties", {}).items():
        where, value = f"{prefix}{name}", defaults[name]
        if "properties" in part:
            yield from option_rows(part, value, f"{where}.")
        else:
            shown = yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]
            yield f"| `{where}` | `{shown}` | {allowed(part)} | {part['description']} |"


def allowed(part: Mapping[str, Any]) -> str:
    """Return in words what values a schema allows."""
    if "anyOf" in part:
        return ", or ".join(allowed(inner) for inner in part["anyOf"])
    if "enum" in part:
        return ", ".join("null" if value is None else f"{value}" for value in part["enum"])
    kinds = [part["type"]] if isinstance(part["type"], str) else part["type"]
    sides = [f"{words} {part[word]:g}" for word, words in SIDES if word in part]
    if "array" in kinds:
        least, most = part.get("minItems", 0), part.get("maxItems")
        count = (
            f"{least}" if least == most else f"{least} to {most}" if most else f"{least} or more" if least else "any number"
        )
        return f"{count} of: {allowed(part['items'])}"
    words = {"boolean": "true, false", "integer": "whole number", "number": "number", "string": "text", "null": "null"}
    return ", ".join([*(words.get(kind, kind) for kind in kinds), *sides])
