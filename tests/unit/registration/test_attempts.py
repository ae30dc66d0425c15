"""Attempts made in Python: the same as those that a configuration plans."""

import pytest

from popatlas.config.attempts import resolve_attempt
from popatlas.config.load import default_config, load_config
from popatlas.errors import ConfigError
from popatlas.registration.engines.registry import ENGINES, planned_attempt, shipped_attempt


def test_the_default_is_that_of_the_shipped_configuration():
    config = default_config()
    assert shipped_attempt() == planned_attempt(resolve_attempt(config, config.register.preset))


@pytest.mark.parametrize("name", [name for name, engine in ENGINES.items() if not engine.weights])
def test_each_preset_is_that_of_a_configuration(name):
    for preset in ENGINES[name].presets:
        planned = planned_attempt(resolve_attempt(load_config({"register": {"engine": name}}), preset))
        assert shipped_attempt(name, preset) == planned


def test_unknown_names_are_told_with_those_that_there_are():
    with pytest.raises(ConfigError, match="use one of instance"):
        shipped_attempt("instnace")
    with pytest.raises(ConfigError, match=r"no preset 'quickly'.*quick, fast"):
        shipped_attempt("instance", "quickly")
