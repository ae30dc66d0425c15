from datetime import date

import pytest
import yaml

from popatlas.config.attempts import iteration_preset
from popatlas.config.load import default_config, default_content, find_problems, load_config
from popatlas.errors import ConfigError
from popatlas.settings import merge


def train(loss):
    return {"recipe": "voxelmorph", "changes": {"loss": loss}}


def test_the_shipped_configuration_is_valid():
    assert find_problems(default_content()) == []


def test_a_user_file_is_laid_over_the_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"atlas": {"iterations": 7}, "register": {"preset": "accurate"}}))
    config = load_config(path, out_dir="out")
    assert config.atlas.iterations == 7
    assert config.atlas.label == default_config().atlas.label
    assert config.out_dir == "out"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preproces": {}}, "did you mean 'preprocess'"),
        ({"atlas": {"iterations": 0}}, r"atlas\.iterations: 0 is less than the minimum of 1"),
        ({"atlas": {"iteration": 3}}, "did you mean 'iterations'"),
        ({"register": {"preset": "fastt"}}, "no preset is called 'fastt', did you mean 'fast'"),
        ({"atlas": {"presets": ["none"]}}, "no preset is called 'none'"),
        ({"preprocess": {"resolution_mm": "fine"}}, "is not of type 'number'"),
        ({"cohort": {"spacing_mm": [6, 0.3]}}, "first value must be below the second"),
        ({"fuse": {"methods": ["vote"]}}, "'vote' is not one of"),
        ({"register": {"presets": {"instance": {"fast": {"similarity": "lnc"}}}}}, "lnc"),
        ({"register": {"presets": {"instance": {"fast": {"iterations": [5]}}}}}, "one entry for each level"),
        ({"register": {"presets": {"instance": {"fast": {"shrink": [8, 2, 1]}}}}}, "may halve from level to level"),
        ({"register": {"presets": {"ffd": {"fast": {"shrink": [2]}}}}}, "one entry for each level"),
        ({"fuse": {"dataparams": {"epoch": 3}}}, r"fuse\.dataparams: unknown key 'epoch', did you mean 'epochs'"),
        ({"fuse": {"dataparams": {"network_weight": 2}}}, r"fuse\.dataparams\.network_weight: 2 is greater than .* 1"),
        ({"fuse": {"dataparams": {"epochs": 4, "warm_up": 4}}}, "after 4 of 4 epochs no epoch is left"),
        ({"fuse": {"methods": ["dataparams"], "dataparams": {"votes": "label", "per_label": False}}}, "'label' needs"),
        ({"fuse": {"select": 2, "select_by": "trust"}}, r"select_by: .* fuse\.methods has majority, staple, jlf; add"),
        ({"fuse": {"segmenter": {"enabled": True, "labels": "local"}}}, r"segmenter\.labels: 'local' is not made"),
        ({"fuse": {"bench": True, "atlases": 1}}, r"at least 2 are needed \(fuse\.atlases: 1\)"),
        ({"fuse": {"bench": True, "atlases": ["01"]}}, "at least 2 are needed"),
        ({"fuse": {"bench": True, "methods": []}}, "nothing to compare"),
        ({"preprocess": {"resolution_mm": float("nan")}}, r"preprocess\.resolution_mm: nan is not a finite number"),
        ({"register": {"gate": {"scale": [0.6, float("inf")]}}}, r"register\.gate\.scale\.1: inf is not a finite"),
        ({"cohort": {"include": [1]}}, r"cohort\.include\.0: 1 is not of type 'string'; quote it: '1'"),
        ({"fuse": {"atlases": ["01", 2]}}, r"fuse\.atlases\.1: 2 is not of type 'string'; quote it: '2'"),
        ({"atlas": {"members": [1]}}, r"atlas\.members\.0: 1 is not of type 'string'"),
        ({"atlas": {"label": False}}, "YAML reads yes, no, on and off as true and false: quote the word"),
        ({"atlas": None}, "atlas: None is not of type 'object'; give its keys, or remove the line"),
        ({"atlas": {"iterations": 3.0}}, "3.0 is not of type 'integer'; write 3"),
        ({"preprocess": {"n4": {"tolerance": "1e-6"}}}, r"'1e-6' is not of type 'number'; write 1\.0e-06"),
        ({"register": {"presets": {"instance": {"fast": {"shrink": [4.0, 2, 1]}}}}}, r"4\.0 is not one of"),
        ({"cohort": {"query": "\udcff"}}, r"cohort\.query: '\\udcff' is not in UTF-8"),
        (
            {"register": {"presets": {"instance": {"fast": {"options": {"radius": {1, 2}}}}}}},
            r"options\.radius: \{1, 2\} \(set\)",
        ),
        ({"cohort": {"include": [date(2024, 1, 1)]}}, r"cohort\.include\.0: datetime\.date.* is no text"),
        (
            {"train": train({"similarity": {"options": {"raduis": 2}}})},
            r"loss\.similarity\.options: .*did you mean 'radius'",
        ),
        ({"train": train({"similarity": {"options": {"radius": -1}}})}, r"loss\.similarity\.options\.radius: -1 is less"),
        ({1: 2}, "unknown key '1'"),
        ([1], "expected keys and values"),
    ],
)
def test_mistakes_are_explained(wrong, message):
    with pytest.raises(ConfigError, match=message):
        load_config(wrong)


@pytest.mark.parametrize(
    "fuse",
    [
        {"methods": ["majority", "dataparams"], "select": 2, "select_by": "trust"},
        {"methods": ["local"], "segmenter": {"enabled": True, "labels": "local"}},
        {"bench": True, "atlases": "atlases.tsv"},
        {"dataparams": {"votes": "label", "warm_up": 3}},
    ],
)
def test_settings_of_fusion_that_agree(fuse):
    assert load_config({"fuse": fuse}).fuse.methods == tuple(fuse.get("methods", ["majority", "staple", "jlf"]))


def test_a_recipe_whose_packages_are_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    changes = {"network": {"name": "unigradicon", "options": {}}, "grid": {"shape": [80, 80, 80]}}
    with pytest.raises(ConfigError, match=r"uniGradICON needs itk, icon_registration, unigradicon, .* pip install"):
        load_config({"train": {"recipe": "voxelmorph", "changes": changes}})


def test_a_missing_or_broken_file_is_explained(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("atlas: [1, 2")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(broken)
    broken2 = tmp_path / "list.yaml"
    broken2.write_text("- 1")
    with pytest.raises(ConfigError, match="expected keys and values"):
        load_config(broken2)


def test_a_file_that_was_changed_is_read_again(tmp_path):
    path = tmp_path / "c.yaml"
    for iterations in (2, 5):
        path.write_text(f"atlas: {{iterations: {iterations}}}")
        assert load_config(path).atlas.iterations == iterations


def test_names_that_yaml_reads_as_numbers_are_refused_with_their_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("cohort:\n  include: [01, 02]\n")
    with pytest.raises(ConfigError, match=r"line 2: 01 is read as the number 1 .*c\.yaml.*quote it: '01'"):
        load_config(path)


def test_merge_replaces_lists_and_joins_mappings():
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 1}
    assert merge(base, {"a": {"y": [3]}}) == {"a": {"x": 1, "y": [3]}, "b": 1}
    assert base["a"]["y"] == [1, 2]


def test_the_last_preset_repeats():
    config = load_config({"atlas": {"presets": ["quick", "fast"]}})
    assert [iteration_preset(config, k) for k in (1, 2, 3, 9)] == ["quick", "fast", "fast", "fast"]


def test_keys_of_before_are_taken_and_their_names_of_today_told(capsys):
    fallback = [{"start": "moments"}]
    config = load_config({"register": {"ladder": fallback}})
    assert [attempt.start for attempt in config.register.fallback] == ["moments"]
    assert "register.ladder is called register.fallback now" in capsys.readouterr().err
    assert "ladder" not in config.content["register"]
    with pytest.raises(ConfigError, match=r"register\.ladder is called register\.fallback now, and both are there"):
        load_config({"register": {"ladder": fallback, "fallback": fallback}})


FURTHER = "further checks follow once these are right"


@pytest.mark.parametrize(
    ("wrong", "lines", "more"),
    [
        ({"register": {"preset": "accurat"}}, ["register.preset: no preset is called 'accurat', did you mean"], False),
        (
            {
                "register": {"preset": "fastt", "presets": {"instance": {"mine": {"fluid": -1}}}},
                "cohort": {"spacing_mm": [6, 1]},
            },
            ["presets.instance.mine.fluid: -1", "register.preset: no preset", "cohort.spacing_mm: the first value"],
            True,
        ),
        ({"register": {"preset": "mine", "presets": {"instance": {"mine": {"fluid": 1e6}}}}}, ["fluid: 1000000.0"], True),
        ({"register": {"preset": "mine", "presets": {"instanc": {"mine": {"fluid": 1}}}}}, ["unknown key 'instanc'"], True),
        (
            {"register": {"engin": "ants", "gate": {"scale": [2, 1]}}},
            ["unknown key 'engin'", "gate.scale: the first"],
            False,
        ),
        (
            {"register": {"presets": {"instance": {"fast": {"similarity": "nmi", "options": {"radius": 2}}}}}},
            ["fast.options: unknown key 'radius', known keys: bins"],
            True,
        ),
        ({"register": {"presets": {"instance": {"default": None, "mine": {}}}}}, ["default: None is not of type"], True),
        ({"register": {"engine": "syn", "preset": "fastt"}}, ["register.engine: 'syn'"], True),
        ({"fuse": {"methods": ["vote"], "segmenter": {"enabled": True, "labels": "local"}}}, ["methods.0: 'vote'"], True),
        ({"preproces": {}, "fuse": {"bench": True, "atlases": 1}}, ["unknown key 'preproces'", "at least 2"], False),
        ({"register": {"fallback": [{"preset": "x"}]}, "atlas": {"iterations": 0}}, ["iterations: 0", "'start' is"], True),
    ],
)
def test_all_that_can_be_told_is_told_at_once(wrong, lines, more):
    with pytest.raises(ConfigError) as error:
        load_config(wrong)
    message = str(error.value)
    assert [line for line in lines if line not in message] == []
    assert f"{len(lines)} problem(s)" in message and message.count("\n  - ") == len(lines)
    assert message.endswith(FURTHER) == more
