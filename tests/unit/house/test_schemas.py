"""The schemas in workflow/schemas that are made of classes are as these would be written now."""

import pytest
import yaml
from docs.schemas import SCHEMAS, schema_text
from jsonschema import Draft202012Validator

from popatlas.resources import schema_path
from popatlas.schema import schema_problems
from popatlas.settings import as_content


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_says_what_its_class_says(name):
    text = schema_path(name).read_text(encoding="utf-8")
    assert text == schema_text(name), "run docs/generate.py"
    schema = yaml.safe_load(text)
    Draft202012Validator.check_schema(schema)
    assert schema_problems(schema, as_content(SCHEMAS[name].kind())) == []
