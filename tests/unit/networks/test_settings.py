"""Options of the architectures: each has a range and a meaning, and what is wrong with one is told before it is built."""

from __future__ import annotations

import subprocess
import sys

import pytest

from popatlas.errors import InputError
from popatlas.networks.architectures import ARCHITECTURES
from popatlas.networks.backbones import BACKBONES
from popatlas.networks.registration import build_registration_network
from popatlas.networks.segmentation import build_network
from popatlas.report.methods import read_references
from popatlas.schema import schema_of
from popatlas.settings import as_content
from popatlas.training.recipe import load_recipe

OPTIONS = [
    pytest.param(name, key, part, id=f"{name}-{key}")
    for name, entry in (ARCHITECTURES | BACKBONES).items()
    for key, part in schema_of(entry.settings, complete=False)["properties"].items()
]
WRONG = {
    "integer": [-(10**6), 0.5, 10**6, "many", True],
    "number": [-(10**6), 10**6, "many", True],
    "array": [[-1], [0.5], [10**6], "many", [1] * 300],
    "boolean": [1, "many"],
}


def refused(name, options):
    with pytest.raises(InputError) as error:
        if name in BACKBONES:
            build_network(name, 2, 3, **options)
        else:
            build_registration_network(name, 2, **options)
    return error.value.message


@pytest.mark.parametrize(("name", "key", "part"), OPTIONS)
def test_each_option_is_explained_and_refused_out_of_its_range(name, key, part):
    assert len(part["description"]) > 5
    kinds = [part["type"]] if isinstance(part.get("type"), str) else ["boolean" if "enum" in part else "array"]
    for value in WRONG[kinds[0]]:
        assert f"{key}" in refused(name, {key: value}), value


@pytest.mark.parametrize(("name", "key", "part"), OPTIONS)
def test_a_misspelt_option_is_told_with_the_right_one(name, key, part):
    wrong = f"{key}{key[-1]}"
    message = f"unknown key '{wrong}', did you mean '{key}'?"
    assert refused(name, {wrong: 1}) == f"network {name}: {message}"
    if name in ARCHITECTURES:
        with pytest.raises(InputError) as error:
            load_recipe("base", {"network": {"name": name, "options": {wrong: 1}}}, light=True)
        assert f"network.options: {message}" in error.value.message


@pytest.mark.parametrize("name", [*ARCHITECTURES, *BACKBONES])
def test_an_entry_tells_what_it_is(name):
    entry = (ARCHITECTURES | BACKBONES)[name]
    assert entry.title and set(entry.references) <= set(read_references())
    assert entry.load().name == name
    assert entry.settings().stride & (entry.settings().stride - 1) == 0 or entry.packages


@pytest.mark.parametrize("name", [name for name, entry in ARCHITECTURES.items() if not entry.packages])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_network_describes_the_options_that_it_was_made_of(name, ndim):
    entry = ARCHITECTURES[name]
    assert set(entry.ndims) == {2, 3}
    made = build_registration_network(name, ndim, **({"cascades": 1, "widths": (2, 3)} if name == "cascade" else {}))
    told = made.describe()
    assert (told.pop("name"), told.pop("ndim"), made.stride) == (name, ndim, entry.settings(**made_of(told)).stride)
    assert list(told) == list(as_content(entry.settings()))


def made_of(told):
    return {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}


def test_options_are_checked_without_torch():
    code = "import sys, popatlas.networks.backbones, popatlas.training.sections; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
