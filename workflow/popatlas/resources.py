"""Where the workflow's own files are: in the repository, or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def workflow_root() -> Path:
    """Return the folder that holds Snakefile, config.yaml, rules, profiles and workflow/schemas."""
    repository = PACKAGE.parents[1]
    return repository if (repository / "Snakefile").is_file() else PACKAGE / "_workflow"


def schema_path(name: str) -> Path:
    """Return the path of the JSON Schema `name`, for example "config"."""
    return workflow_root() / "workflow" / "schemas" / f"{name}.schema.yaml"


def template_folder() -> Path:
    """Return the folder of the report's page templates."""
    return workflow_root() / "workflow" / "report"
