"""The registry of regularisers: each entry loads, is allowed, documented and told."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from popatlas.config.load import load_config
from popatlas.errors import InputError
from popatlas.regularisers.diffusion import diffusion
from popatlas.regularisers.registry import ALIASES, NAMES, REGULARISERS, describe, entry_of, find_regulariser, has_reductions
from popatlas.report.methods import Counts, read_references, write_methods
from popatlas.resources import schema_path
from popatlas.training.recipe import load_recipe

DOCS = Path(__file__).parents[3] / "docs"


def test_naming_regularisers_loads_no_torch():
    code = (
        "import sys, popatlas.regularisers.registry;"
        "print([name for name in ('torch', 'numpy', 'numba', 'scipy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", REGULARISERS)
def test_each_is_a_function_with_words(name):
    entry = REGULARISERS[name]
    assert callable(find_regulariser(name)) and find_regulariser(name).__doc__
    assert entry.title and entry.formula
    assert set(entry.references) <= set(read_references())


def test_an_alias_is_the_same_penalty():
    assert find_regulariser("l2") is find_regulariser("diffusion") is diffusion
    assert ALIASES == {"l2": "diffusion"} and describe("l2") == describe("diffusion")
    assert list(NAMES) == [*REGULARISERS, "l2"]


def test_an_unknown_name_is_refused_with_those_that_exist():
    with pytest.raises(InputError, match=f"unknown regulariser 'l3'.*{', '.join(REGULARISERS)}"):
        find_regulariser("l3")


@pytest.mark.parametrize("name", NAMES)
def test_configurations_and_recipes_take_it(name):
    config = load_config({"register": {"presets": {"ffd": {"default": {"regulariser": name}}}}})
    assert config.register.presets["ffd"]["default"]["regulariser"] == name
    assert load_recipe("voxelmorph", {"loss": {"regulariser": {"name": name}}}).loss.regulariser.name == name


def test_schemas_allow_nothing_else():
    engine = yaml.safe_load(schema_path("config").read_text())["properties"]["register"]["properties"]["presets"]
    allowed = engine["properties"]["ffd"]["additionalProperties"]["properties"]["regulariser"]["enum"]
    assert allowed == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_methods_text_tells_it(name):
    config = load_config({"register": {"engine": "ffd", "presets": {"ffd": {"default": {"regulariser": name}}}}})
    found = write_methods(config, Counts(3, 3, {}), [], {})
    entry = REGULARISERS[ALIASES.get(name, name)]
    assert f"{entry.title} " in dict(found.sections)["Registration"]
    assert set(entry.references) <= {reference.key for reference in found.references}


@pytest.mark.parametrize("name", REGULARISERS)
def test_the_docs_have_it(name):
    page = (DOCS / "reference" / "regularisers.md").read_text()
    assert f"## `{name}`" in page and REGULARISERS[name].formula in page
    assert all(f"`{alias}`" in page for alias in REGULARISERS[name].aliases)


@pytest.mark.parametrize("ndim", [2, 3])
def test_reductions_divide_by_the_terms_of_a_voxel(ndim):
    """Components of the field, and derivatives of each: none, first ones, second ones."""
    terms = {"magnitude": ndim, "diffusion": ndim**2, "bending": ndim**3}
    for name in NAMES:
        entry = entry_of(name)
        assert entry.divisor("sum", ndim) == 1
        assert has_reductions(name) is (ALIASES.get(name, name) in terms)
        if has_reductions(name):
            assert entry.divisor("components", ndim) == ndim
            assert entry.divisor("mean", ndim) == terms[ALIASES.get(name, name)]
        else:
            with pytest.raises(ValueError, match="no sum over components"):
                entry.divisor("mean", ndim)
    assert not has_reductions("l3") and not has_reductions(["tv"])
