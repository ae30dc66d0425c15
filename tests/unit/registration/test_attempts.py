"""Attempts made in Python: the same as those that a configuration plans; each engine brings two brains together."""

from dataclasses import replace

import pytest

from popatlas.config.attempts import resolve_attempt
from popatlas.config.load import default_config, load_config
from popatlas.errors import ConfigError, InputError, PackageError
from popatlas.images.miniature import draw_miniature
from popatlas.registration.attempt import try_once
from popatlas.registration.engines.registry import ENGINES, planned_attempt, shipped_attempt
from popatlas.registration.pair import load_pair
from popatlas.settings import as_content

ALONE = [name for name, engine in ENGINES.items() if not engine.weights]  # those that need no weights


def test_the_default_is_that_of_the_shipped_configuration():
    config = default_config()
    assert shipped_attempt() == planned_attempt(resolve_attempt(config, config.register.preset))


@pytest.mark.parametrize("name", ALONE)
def test_each_preset_is_that_of_a_configuration(name):
    for preset in ENGINES[name].presets:
        planned = planned_attempt(resolve_attempt(load_config({"register": {"engine": name}}), preset))
        assert shipped_attempt(name, preset) == planned


def test_unknown_names_are_told_with_those_that_there_are():
    with pytest.raises(ConfigError, match="use one of instance"):
        shipped_attempt("instnace")
    with pytest.raises(ConfigError, match=r"no preset 'quickly'.*quick, fast"):
        shipped_attempt("instance", "quickly")
    for start, linear in (("masss", "affine"), ("mass", "afine")):
        with pytest.raises(ConfigError, match="Remedy: use one of"):
            replace(shipped_attempt(), start=start, linear=linear)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    files = [draw_miniature(seed).save(folder, name)[:2] for seed, name in ((1, "fixed"), (2, "moving"))]
    return load_pair(*files[0], *files[1])


@pytest.mark.parametrize("name", ALONE)
def test_each_engine_brings_two_brains_closer_and_passes_the_gate(name, pair, tmp_path):
    try:
        result = try_once(pair, shipped_attempt(name, "quick"), as_content(default_config().register.gate), tmp_path)
    except PackageError as error:
        pytest.skip(error.message)
    assert result.reasons == []
    assert result.metrics["ncc"] > result.metrics["ncc_affine"] + 0.05 > result.metrics["ncc_before"]
    assert result.metrics["inverse_error"] < 0.2 and result.metrics["nonpositive_jacobian"] == 0


def test_a_deformable_stage_that_moves_nothing_is_told(pair, tmp_path):
    attempt = shipped_attempt("ants", "quick")
    idle = replace(attempt, settings=replace(attempt.settings, iterations=(1,), gradient_step=1e-9))
    result = try_once(pair, idle, as_content(default_config().register.gate), tmp_path)
    assert result.reasons == [] and result.metrics["displacement_p95"] < 1e-3
    assert result.row()["notes"] == ["the deformable stage moved nothing: the result is the affine alone"]


def test_what_follows_a_choice_takes_its_default_in_a_planned_attempt():
    plan = {"start": "mass", "linear": "affine", "engine": "ants"}
    assert planned_attempt(plan | {"preset": {"metric": "mattes"}}).settings.sampling == 32
    with pytest.raises(InputError, match="engine ants: sampling is the number of histogram bins of mattes here, 8 to 128"):
        planned_attempt(plan | {"preset": {"metric": "mattes", "sampling": 2}})
    with pytest.raises(InputError, match=r"engine ants\.iterations: there are none"):
        planned_attempt(plan | {"preset": {"iterations": [0, 0]}})
