"""The registry of fusion methods and the settings of their sections: one truth for the schema, the texts and the docs."""

import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
import yaml

from popatlas.cohort.targets import training_settings
from popatlas.config.load import changed, default_config, default_content, load_config
from popatlas.errors import ConfigError, InputError
from popatlas.fusion.methods import METHODS
from popatlas.fusion.sections import SECTIONS, describe, section
from popatlas.fusion.settings import PRESETS, DataParametersSettings
from popatlas.report.methods import Counts, read_references, write_methods
from popatlas.resources import schema_path
from popatlas.schema import schema_of
from popatlas.settings import as_content

DOCS = Path(__file__).parents[3] / "docs"


def test_naming_methods_and_their_settings_loads_nothing_heavy():
    code = (
        "import sys, popatlas.fusion.methods, popatlas.fusion.settings;"
        "print([name for name in ('torch', 'numba', 'pandas', 'numpy', 'ants') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_of_the_configuration_is_its_class(name):
    fuse = yaml.safe_load(schema_path("config").read_text())["properties"]["fuse"]["properties"]
    kind = SECTIONS[name]
    assert schema_of(kind, complete=True) == fuse[name]
    assert list(schema_of(kind, complete=True)["properties"]) == list(default_content()["fuse"][name])
    assert as_content(kind()) == default_content()["fuse"][name]


def test_the_configuration_takes_each_method():
    fuse = yaml.safe_load(schema_path("config").read_text())["properties"]["fuse"]["properties"]
    assert fuse["methods"]["items"]["enum"] == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_each_is_a_function_that_takes_its_options(name):
    entry = METHODS[name]
    taken = signature(entry.load()).parameters
    assert entry.title and next(iter(taken)) == "candidates" and "ties" in taken
    known = [option for place in entry.sections[:1] for option in schema_of(SECTIONS[place], complete=False)["properties"]]
    assert set(entry.options) <= set(known)
    passed_on = any(one.kind == one.VAR_KEYWORD for one in taken.values())  # to joint label fusion
    assert set(entry.options or known) <= set(taken) or passed_on
    assert set(entry.references) <= set(read_references())


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_text_tells_it(name):
    found = write_methods(default_config(), Counts(3, 3, {}, 3, 2), [name], {})
    text = dict(found.sections)["Label fusion"]
    assert f"They were fused by {describe(name, default_content()['fuse']).split(' [@')[0]}" in text
    assert set(METHODS[name].references) <= {reference.key for reference in found.references}


@pytest.mark.parametrize("name", METHODS)
def test_the_docs_have_it(name):
    page = (DOCS / "reference" / "fusion-methods.md").read_text()
    assert f"## `{name}`: {METHODS[name].title}" in page and METHODS[name].formula in page


def dataparams(*laid: dict) -> dict:
    """The section of a configuration made of files laid over each other."""
    config = load_config({"fuse": {"dataparams": laid[0]}})
    for more in laid[1:]:
        config = changed(config, {"fuse": {"dataparams": more}})
    return config.content["fuse"]["dataparams"]


def test_a_preset_gives_what_is_left_out_and_what_is_set_wins():
    ours, paper = as_content(DataParametersSettings()), dataparams({"preset": "paper"})
    assert dataparams({}) == ours and ours["preset"] == "default"
    assert {key: value for key, value in paper.items() if value != ours[key]} == {"preset": "paper", **PRESETS["paper"]}
    # as published: section 3 of the paper, and its code for the epochs
    told = {
        "network": "lraspp",
        "rate": 0.01,
        "decay": 0.99,
        "batch": 8,
        "trust_rate": 0.1,
        "votes": "softmax",
        "epochs": 40,
    }
    assert told.items() <= paper.items() and paper["update"] == "out-of-line" and paper["network_weight"] == 0
    # also a value that is our default, whichever comes first
    for found in (
        dataparams({"preset": "paper", "network": "light", "rate": 0.02}),
        dataparams({"preset": "paper"}, {"network": "light", "rate": 0.02}),
    ):
        assert found == paper | {"network": "light", "rate": 0.02}
    assert dataparams({"rate": 0.02}, {"preset": "paper"}) == paper | {"rate": 0.02}
    assert dataparams({"preset": "paper", "rate": 0.02}, {"preset": "default"}) == ours | {"rate": 0.02}
    assert dataparams({"preset": "paper", "rate": 0.02}, {"preset": "paper"}) == paper | {"rate": 0.02}


def test_a_preset_is_one_in_python_and_in_the_steps_too():
    paper = section("dataparams", {"dataparams": {"preset": "paper", "epochs": 2}})
    assert paper == DataParametersSettings.of_preset("paper", epochs=2)
    assert as_content(paper) == dataparams({"preset": "paper", "epochs": 2})
    with pytest.raises(InputError, match=r"fuse\.dataparams: unknown key 'epoch'"):
        DataParametersSettings.of_preset("paper", epoch=2)


def test_an_impossible_preset_is_refused():
    with pytest.raises(ConfigError, match=r"fuse\.dataparams\.preset: 'papr' is not one of"):
        dataparams({"preset": "papr"})
    for wrong in ([], 3, {"paper": 1}):
        with pytest.raises(ConfigError, match=r"fuse\.dataparams\.preset"):
            dataparams({"preset": wrong})


def test_only_the_name_of_a_preset_trains_nothing_again():
    named = load_config({"fuse": {"dataparams": {"preset": "paper"}}})
    spelled = load_config({"fuse": {"dataparams": PRESETS["paper"]}})
    assert training_settings(named, "trust") == training_settings(spelled, "trust")
    assert training_settings(named, "trust") != training_settings(default_config(), "trust")
