"""Schemas and environments that are made of other files are as they would be written now."""

import pytest
import yaml
from docs.environments import KINDS, environment_text
from docs.schemas import SCHEMAS, schema_text
from jsonschema import Draft202012Validator

from popatlas.resources import schema_path, workflow_root
from popatlas.schema import schema_problems
from popatlas.settings import as_content


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_says_what_its_class_says(name):
    text = schema_path(name).read_text(encoding="utf-8")
    assert text == schema_text(name), "run docs/generate.py"
    schema = yaml.safe_load(text)
    Draft202012Validator.check_schema(schema)
    assert schema_problems(schema, as_content(SCHEMAS[name].kind())) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_environment_installs_what_the_lock_names(kind):
    text = (workflow_root() / "envs" / f"{kind}.yaml").read_text(encoding="utf-8")
    assert text == environment_text(kind), "run docs/generate.py"
    *_, pip = yaml.safe_load(text)["dependencies"]
    assert len(pip["pip"]) > 15 and all("==" in line for line in pip["pip"])
