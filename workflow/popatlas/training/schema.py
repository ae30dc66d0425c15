"""The JSON Schema of a recipe file, made of the classes of its sections, the networks and the similarities.

It is written to `workflow/schemas/recipe.schema.yaml` (`python docs/generate.py`), for editors; the similarities need torch.
"""

from __future__ import annotations

from collections.abc import Iterable

from popatlas.networks.architectures import ARCHITECTURES
from popatlas.schema import schema_of
from popatlas.settings import Content
from popatlas.similarity.registry import similarity_schemas
from popatlas.training.sections import Sections


def recipe_schema() -> Content:
    """Return the schema of a file, which says only what differs; options are checked where their name is given."""
    schema = schema_of(Sections, complete=False)
    parts = schema["properties"]
    extends = {"type": "string", "description": "Recipe that this one changes, or a file beside it"}
    schema["properties"] = {"extends": extends, **parts}
    networks = {name: schema_of(entry.settings, complete=False) for name, entry in ARCHITECTURES.items()}
    similarities = similarity_schemas()
    parts["network"]["allOf"] = _by_name("network", networks)
    parts["loss"]["properties"]["similarity"]["allOf"] = _by_name("similarity", similarities)
    schema["$defs"] = {
        f"{what}-{name}": options
        for what, found in (("network", networks), ("similarity", similarities))
        for name, options in found.items()
    }
    return schema


def _by_name(what: str, names: Iterable[str]) -> list[Content]:
    """Return what the options have to be for each name."""
    return [
        {
            "if": {"required": ["name"], "properties": {"name": {"const": name}}},
            "then": {"properties": {"options": {"$ref": f"#/$defs/{what}-{name}"}}},
        }
        for name in names
    ]
