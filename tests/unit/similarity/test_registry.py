"""The registry of similarities: each entry loads, is allowed, documented and told, and wrong options are refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from popatlas.config.load import load_config
from popatlas.errors import InputError
from popatlas.report.methods import Counts, read_references, write_methods
from popatlas.resources import schema_path
from popatlas.schema import schema_problems
from popatlas.settings import as_content
from popatlas.similarity.base import Similarity
from popatlas.similarity.lncc import LNCC
from popatlas.similarity.registry import OF_IMAGES, ONE_CONTRAST, SIMILARITIES, describe, make, similarity_schemas

DOCS = Path(__file__).parents[3] / "docs"
NAMES = sorted(SIMILARITIES)


def test_naming_similarities_loads_no_torch():
    code = (
        "import sys, popatlas.similarity.registry, popatlas.registration.types;"
        "print([name for name in ('torch', 'numpy', 'numba', 'scipy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_similarity_with_words(name):
    entry = SIMILARITIES[name]
    assert isinstance(make(name), Similarity)
    assert entry.title and entry.formula and entry.load().__doc__
    assert set(entry.references) <= set(read_references())
    options = similarity_schemas()[name]["properties"]
    assert all(part["description"] for part in options.values())
    assert schema_problems(similarity_schemas()[name], as_content(make(name))) == []


def test_the_configuration_allows_those_of_images():
    schedules = yaml.safe_load(schema_path("config").read_text())["properties"]["register"]["properties"]
    allowed = schedules["presets"]["properties"]["instance"]["additionalProperties"]["properties"]["similarity"]["enum"]
    assert allowed == list(OF_IMAGES) == [name for name, entry in SIMILARITIES.items() if entry.images]
    assert not SIMILARITIES["dice"].images and {"ssd", "nmi_mind"} <= set(allowed)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_the_methods_text_tells_it(name):
    config = load_config({"register": {"presets": {"instance": {"default": {"similarity": name}}}}})
    found = write_methods(config, Counts(3, 3, {}), [], {})
    assert f"{SIMILARITIES[name].title} [" in dict(found.sections)["Registration"] or not SIMILARITIES[name].references
    assert f"{SIMILARITIES[name].title} " in dict(found.sections)["Registration"]
    assert set(SIMILARITIES[name].references) <= {reference.key for reference in found.references}


@pytest.mark.parametrize("name", NAMES)
def test_the_docs_have_it(name):
    page = (DOCS / "reference" / "similarities.md").read_text()
    assert f"## `{name}`" in page and SIMILARITIES[name].formula in page


def test_which_need_one_contrast():
    assert {"ssd", "ncc", "lncc"} <= set(ONE_CONTRAST)
    assert not {"mattes", "nmi", "mind", "mindssc", "ngf", "nmi_mind"} & set(ONE_CONTRAST)


def test_words_tell_the_options():
    assert describe("lncc", {"radius": 2, "floor": 0.001}) == (
        "local normalised cross-correlation [@avants2008] (radius 2, floor 0.001)"
    )
    assert describe("ssd", {}) == "mean squared difference (defaults)"


def test_the_registry_makes_each_similarity_with_its_parameters():
    assert make("lncc", radius=4) == LNCC(radius=4)
    assert make("nmi", percentiles=[1, 99]).percentiles == (1, 99)
    assert make("nmi_mind", mind={"sigma": 1.0}).mind.sigma == 1.0
    for name, entry in SIMILARITIES.items():
        assert type(make(name)) is entry.load()


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("lnc", {}, "unknown similarity 'lnc'.*use one of .*lncc"),
        ("lncc", {"raduis": 2}, "similarity lncc: unknown key 'raduis', did you mean 'radius'"),
        ("lncc", {"radius": 0}, r"similarity lncc\.radius: 0 should be greater than or equal to 1"),
        ("lncc", {"floor": -1}, r"lncc\.floor: -1"),
        ("mattes", {"bins": 4}, "bins: 4 should be"),
        ("nmi", {"order": 2}, "order: 2 should be 0, 1 or 3"),
        ("nmi", {"bins": 3, "order": 3}, "too few"),
        ("nmi", {"percentiles": [99, 1]}, "percentiles"),
        ("nmi", {"percentiles": [0, 101]}, "percentiles.1: 101"),
        ("mind", {"sigma": 0}, "sigma"),
        ("mindssc", {"dilation": 0}, "dilation"),
        ("ngf", {"epsilon": 0}, "epsilon"),
        ("dice", {"sigmas": []}, "sigmas"),
        ("dice", {"spacing": 0.0}, "spacing"),
        ("nmi_mind", {"beta": 2}, "beta"),
        ("nmi_mind", {"mind": {"sigma": -1}}, r"nmi_mind\.mind\.sigma: -1"),
        ("nmi_mind", {"strategy": "best"}, "strategy: 'best'.*gradients"),
    ],
)
def test_wrong_options_are_errors_for_the_user(name, parameters, words):
    with pytest.raises(InputError, match=words):
        make(name, **parameters)
