"""JSON Schemas that follow from classes of settings: what stands in workflow/schemas, for editors and other programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import yaml

from popatlas.config.schema import config_schema
from popatlas.config.sections import Config
from popatlas.settings import Content
from popatlas.training.schema import recipe_schema
from popatlas.training.sections import Sections


@dataclass(frozen=True)
class Schema:
    """A schema that is written.

    Attributes
    ----------
    kind : type
        Class of settings.
    title : str
        What has this schema.
    content : callable
        Returns it.
    """

    kind: type
    title: str
    content: Callable[[], Content]


SCHEMAS: dict[str, Schema] = {
    "config": Schema(Config, "popatlas configuration", config_schema),
    "recipe": Schema(Sections, "recipe of a registration network", recipe_schema),
}


def schema_text(name: str) -> str:
    """Return a schema as YAML, with what it is made of at the top."""
    schema = SCHEMAS[name]
    content = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"popatlas/{name}",
        "title": schema.title,
        **schema.content(),
    }
    head = f"# Written by docs/generate.py from {schema.kind.__module__}.{schema.kind.__qualname__}: change it there.\n"
    return head + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=125, allow_unicode=True)
