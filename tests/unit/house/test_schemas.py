"""Schemas, presets and environments that are made of other files are as they would be written now."""

from dataclasses import replace

import pytest
import yaml
from docs import presets
from docs.environments import KINDS, environment_text
from docs.schemas import SCHEMAS, schema_text
from jsonschema import Draft202012Validator

from popatlas.registration.engines.registry import ENGINES
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


def test_the_shipped_configuration_has_the_presets_of_the_engines(monkeypatch):
    text = (workflow_root() / "config.yaml").read_text(encoding="utf-8")
    assert presets.with_presets(text) == text, "run docs/generate.py"
    faster = replace(ENGINES["ants"], presets=ENGINES["ants"].presets | {"quick": ENGINES["ants"].presets["fast"]})
    new = replace(ENGINES["greedy"], name="new", title="a new one")
    monkeypatch.setattr(presets, "ENGINES", ENGINES | {"ants": faster, "new": new})
    changed = presets.with_presets(text)
    before, after = (yaml.safe_load(one)["register"].pop("presets") for one in (text, changed))
    assert after.pop("new") == before["greedy"]
    assert after["ants"].pop("quick") == before["ants"]["fast"]
    del before["ants"]["quick"]
    assert after == before
    assert len(set(changed.splitlines()) - set(text.splitlines())) == 2  # the header of the new one and the other preset
    assert "    new:                           # a new one\n      quick:    {metric: WNCC," in changed
