"""The JSON Schema of a configuration, made of the classes of its sections, the engines and the similarities.

It is written to `workflow/schemas/config.schema.yaml` (`python docs/generate.py`), so that reading a configuration need not
load the similarities, which need torch.
"""

from __future__ import annotations

from popatlas.config.sections import Config
from popatlas.registration.engines.registry import ENGINES
from popatlas.schema import schema_of
from popatlas.settings import Content
from popatlas.similarity.registry import OF_IMAGES, similarity_schemas


def config_schema() -> Content:
    """Return the schema of a complete configuration; each similarity's own options are checked by its name."""
    schema = schema_of(Config, complete=True)
    register = schema["properties"]["register"]["properties"]
    register["fallback"]["items"]["required"] = ["start"]
    register["presets"] = {
        "type": "object",
        "description": register["presets"]["description"],
        "additionalProperties": False,
        "properties": {name: _presets(name) for name in ENGINES},
    }
    schema["$defs"] = {name: options for name, options in similarity_schemas().items() if name in OF_IMAGES}
    return schema


def _presets(engine: str) -> Content:
    """Return the schema of the presets of an engine."""
    preset = schema_of(ENGINES[engine].settings, complete=True)
    if "options" in preset["properties"]:
        preset["allOf"] = [
            {
                "if": {"properties": {"similarity": {"const": name}}},
                "then": {"properties": {"options": {"$ref": f"#/$defs/{name}"}}},
            }
            for name in OF_IMAGES
        ]
    return {"type": "object", "description": f"Schedules of {ENGINES[engine].title}", "additionalProperties": preset}
