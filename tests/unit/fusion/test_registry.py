"""The registry of fusion methods and the settings of their sections: one truth for the schema, the texts and the docs."""

import subprocess
import sys

import pytest
import yaml

from popatlas.config import default_config
from popatlas.fusion.methods import METHODS
from popatlas.fusion.sections import SECTIONS
from popatlas.resources import schema_path
from popatlas.schema import schema_of
from popatlas.settings import as_content


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
    assert list(schema_of(kind, complete=True)["properties"]) == list(default_config()["fuse"][name])
    assert as_content(kind()) == default_config()["fuse"][name]


def test_the_configuration_takes_each_method():
    fuse = yaml.safe_load(schema_path("config").read_text())["properties"]["fuse"]["properties"]
    assert fuse["methods"]["items"]["enum"] == list(METHODS)
