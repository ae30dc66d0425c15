"""What each key of the configuration makes run again, on a finished study: docs/reruns.md is this table.

No Snakemake is started: what would run follows from the inventory, and that the two agree is tested elsewhere.
"""

import contextlib
import io
import json
import os
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml

from popatlas.cohort.outputs import RULES
from popatlas.cohort.view import silent_view_of
from popatlas.config.load import changed, default_content, load_config, make_absolute, parse_config
from popatlas.errors import PopatlasError
from popatlas.images.io import write_text
from popatlas.measures.truth import truth_files
from popatlas.registration.gate import GATE_REVISION, LOOKED_AT
from popatlas.resources import schema_path
from popatlas.study.inventory import Inventory
from popatlas.study.prepare import prepare
from popatlas.study.progress import STAGES
from popatlas.study.study import Study, open_study

from ..cohorts import noise_cohort, noise_image, noise_labels
from .test_fusion import leave

PAGE = Path(__file__).parents[2] / "docs" / "reruns.md"
NAMES = [f"sub-0{number}" for number in range(1, 5)]
FUSED = {"methods": ["majority", "staple", "local", "jlf", "dataparams"], "atlases": ["02", "03"]}
BASE = {
    "atlas": {"members": 3, "iterations": 1},
    "fuse": FUSED | {"dataparams": {"targets": 3}, "segmenter": {"enabled": True, "targets": 3}},
}
NETWORK = {"register": {"engine": "network"}, "atlas": {"members": 3}, "fuse": {"methods": []}}
TRAINED = BASE | {"train": {"recipe": "voxelmorph"}}
# the study on which a key is changed, where it says nothing on the usual one, and its settings
STUDY_OF = {
    **dict.fromkeys(("atlas.along", "atlas.along_values", "atlas.along_most", "atlas.conditional"), "along"),
    "register.network": "network",
    "register.weights": "network",
    "register.presets.network": "network",
    "train": "train",
    "atlas.xcoreg": "grouped",
    "tissues.maps": "existing",
}
STUDIES = {"": BASE, "network": NETWORK, "train": TRAINED, "grouped": {"atlas": {"members": 3, "method": "xcoreg"}}}
STUDIES["existing"] = {"atlas": {"template": "{folder}/template.nii.gz"}}
STUDIES["along"] = BASE | {"atlas": BASE["atlas"] | {"along": "age", "conditional": {"width": 20.0}}}
# sections of which one key stands for all
OF_ONE_KIND = ("atlas.xcoreg", "tissues.mixture")
# what a key is changed to, where the next value that its schema takes would not do
OTHERS = {
    "cohort.query": "age < 33", "cohort.include": ["01", "02", "03"], "cohort.exclude": ["04"], "cohort.channels": [],
    "cohort.filter": {"run": None}, "cohort.prefer": ["acq-mprage"], "cohort.spacing_mm": [0.3, 5.0], "cohort.min_shape": 16,
    "preprocess.n4.iterations": [50, 50], "preprocess.brain.volume_ml": [800, 2300], "register.preset": "quick",
    "register.fallback": [], "register.presets.instance": {"default": {"fluid": 2.5}},
    "register.presets.network": {"default": {"repeats": 2}},
    "register.gate.scale": [0.9, 1.1], "atlas.label": "other", "atlas.members": 2, "atlas.presets": ["fast"],
    "atlas.template": "{folder}/template.nii.gz",
    "atlas.along": None, "atlas.along_values": [25, 30], "atlas.along_most": 3,
    "fuse.methods": ["majority", "jlf", "dataparams"],
    "fuse.atlases": ["02", "04"],
    "fuse.labels": "derivatives/other/{scan}_dseg.nii.gz", "measure.reference": "", "measure.landmarks": "",
    "measure.truth": "", "fuse.segmenter.labels": "majority", "train.changes": {"schedule": {"seed": 7}},
    "train.recipe": "voxelmorph-diffeo", "train.labels": "jlf", "train.name": "mine", "retention": "minimal",
    "fuse.dataparams.votes": "label", "register.weights": "brain-contrast", "atlas.xcoreg": {"classes": 3},
    "tissues.maps": "{folder}/template.nii.gz", "tissues.channels": ["T2w"], "tissues.mixture": {"components": 1},
}  # fmt: skip
# where something lies, and what is only drawn when there is no dataset
LEFT_OUT = (
    "bids_dir", "out_dir", "simulate.enabled", "simulate.subjects", "simulate.seed", "register.unigradicon.weights",
)  # fmt: skip
# keys that no table of cohort/ follows from: members, atlases, targets
NOT_DRAWN = ("fuse.jlf.", "fuse.staple.", "fuse.similarity.", "fuse.ties", "fuse.maps", "fuse.space", "measure.", "report.")
GATE = ("register.gate.mask_dice", "register.gate.scale")  # one stands for all limits
OTHER_ENGINES = ("ants", "ffd", "greedy", "lddmm", "unigradicon")  # as those that are shown
# keys that change no result: nothing may run for them
COSMETIC = (
    "preprocess.brain.batch", "preprocess.brain.gpu", "register.network.batch", "register.gpu", "fuse.dataparams.gpu",
    "fuse.segmenter.gpu", "train.gpus", "train.minutes", "retention",
)  # fmt: skip
TRAINING = ("write_training_table", "train_registration", "write_report")
# what keys of a section must leave as it is, whatever they are changed to
SPARED = {
    "register.": ("conform_image", "extract_brains", "normalise_brain", "align_channel"),
    "register.gate.": ("register_member", "average_template", "publish_template"),
    "fuse.": ("conform_image", "normalise_brain", "register_to_template", "publish_template"),
    "measure.": ("normalise_brain", "register_to_template", "publish_template", "propagate_labels", "fuse_labels"),
    "report.": tuple(rule for rule in RULES if rule != "write_report"),
    "train.": tuple(rule for rule in RULES if rule not in TRAINING),
}
HEAD = """# What runs again

Each key of the configuration is changed on a finished study of four scans, and this is what the next run would do. The table
is written by `tests/dag/test_reruns.py` from what the code answers; the test fails when it is out of date. **atlas**, say,
stands for all jobs of that stage, `write_report` alone for the page, which tells the settings. What is not named keeps its
results: other methods, other stages, networks that are trained.

| key | from, to | what runs again |
|---|---|---|
"""


def keys(schema, values, prefix=""):
    """Yield key, schema and default of each key that is not a section; presets by engine."""
    for name, part in schema["properties"].items():
        where = f"{prefix}{name}"
        if where in OF_ONE_KIND:
            yield where, {}, {}
        elif part.get("properties") and where != "register.presets":
            yield from keys(part, values[name], f"{where}.")
        elif where == "register.presets":
            yield from ((f"{where}.{engine}", {}, {}) for engine in values[name] if engine not in OTHER_ENGINES)
        elif where not in LEFT_OUT and (not where.startswith("register.gate.") or where in GATE):
            yield where, part, values[name]


def nested(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def value_of(content, key):
    for part in key.split("."):
        content = content[part]
    return content


def others(part, value):
    """Return values that a key might be changed to."""
    if isinstance(value, bool):
        return [not value]
    if "enum" in part:
        return [one for one in part["enum"] if one != value]
    if isinstance(value, int | float):
        return [value * 2 or 1, value + 1, value / 2, value + 0.1, value - 0.1, 0.5]
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("reruns")
    noise_cohort(root / "bids", NAMES)
    noise_image(root / "bids/sub-02/anat/sub-02_T2w.nii.gz", seed=77)
    noise_image(root / "template.nii.gz", seed=9)
    for number, name in enumerate(NAMES):
        noise_labels(root / f"bids/derivatives/other/{name}/anat/{name}_dseg.nii.gz", seed=50 + number)
        truth = root / "bids/derivatives/truth"
        for path in truth_files([f"{name}/anat/{name}"]):
            write_text(truth / path, "{}")
        write_text(truth / f"{name}/anat/{name}_desc-truth_landmarks.tsv", "x\n")
    return root


def content(limits):
    """Return what a finished study holds: gates that were judged by its limits, and would pass no others."""
    gate = {"revision": GATE_REVISION, "limits": limits} | dict.fromkeys(LOOKED_AT, 0.5)
    bad = {"mask_dice": 0.0, "scale_min": 0.1, "scale_max": 9.0, "inverse_error": 99.0}
    return lambda path: json.dumps(gate | bad) if path.endswith("gate_registration.json") else ""


@pytest.fixture(scope="module")
def finished(folder):
    """Return a function that gives the configuration of a finished study of some settings, and the jobs of its first run."""

    @cache
    def study(name):
        settings = json.loads(json.dumps(STUDIES[name]).replace("{folder}", str(folder)))
        config = load_config(settings, bids_dir=str(folder / "bids"), out_dir=str(folder / (name or "out")))
        opened = open_study(config.content, main=True)
        first = needed(opened)
        for target in ("all", *(["networks"] if opened.network else [])):
            leave(opened, target, content(config.content["register"]["gate"]))
        assert left(config) == Counter()
        return config, first

    return study


def left(config, *, drawn=True):
    """Return the number of jobs by rule that the next run of a study would start; `drawn` when tables may change."""
    if not drawn:
        return needed(Study.read(config, Path(config.out_dir)))
    with silent_view_of(Path(config.out_dir)) as view:
        there = parse_config(config.content | {"out_dir": str(view)})
        prepare(there, view)
        return needed(Study.read(there, view))


def needed(study):
    inventory = Inventory(study)
    names = {*inventory.needed("all"), *(inventory.needed("networks") if study.network else [])}
    return Counter(inventory.jobs.jobs[name].rule for name in names)


def changed_to(config, key, part, value):
    """Return a configuration in which a key is another, and the value that it has there."""
    folder = Path(config.out_dir).parent
    for other in [OTHERS[key]] if key in OTHERS else others(part, value):
        try:
            shown = other.format(folder=folder) if isinstance(other, str) and "{folder}" in other else other
            return make_absolute(changed(config, nested(key, shown))), other
        except PopatlasError:
            continue
    return None


@pytest.fixture(scope="module")
def rows(finished):
    """Return for each key its value, the other one, what a first run does, and what runs for the key."""
    schema = yaml.safe_load(schema_path("config").read_text())
    found, unknown = {}, []
    for key, part, _ in keys(schema, default_content()):
        name = next((study for prefix, study in STUDY_OF.items() if f"{key}.".startswith(f"{prefix}.")), "")
        config, first = finished(name)
        value = value_of(config.content, key)
        if (other := changed_to(config, key, part, value)) is None:
            unknown.append(key)
            continue
        source, value_there = other
        with contextlib.redirect_stderr(io.StringIO()):
            found[key] = (value, value_there, first, left(source, drawn=not key.startswith(NOT_DRAWN)))
    assert not unknown, f"{unknown}: no other value of these keys is known: name one in OTHERS"
    return found


def in_words(first, found):
    """Return what runs: stages of which all runs that the first run had, and rules."""
    if not found:
        return "nothing"
    words = []
    for stage, rules in STAGES.items():
        there = [rule for rule in rules if found[rule]]
        whole = {rule for rule in rules if first[rule]}
        words += [f"**{stage}**"] if whole and whole <= set(there) else [f"`{rule}`" for rule in there]
    return ", ".join(words)


def shown(value):
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]
    return "(its keys)" if len(text) > 40 else f"`{text}`"


def page(rows):
    lines = [
        f"| `{key}` | {shown(value)}, {shown(other)} | {in_words(first, found)} |"
        for key, (value, other, first, found) in rows.items()
        if not key.startswith("register.gate.")
    ]
    gate = rows["register.gate.mask_dice"]
    note = "of scans that the new limits refuse"
    lines.append(f"| `register.gate.*` | any, a stricter one | {note}: {in_words(*gate[2:])} |")
    return HEAD + "\n".join(lines) + "\n"


def test_the_page_says_what_the_code_does(rows):
    text = page(rows)
    if os.environ.get("POPATLAS_WRITE_DOCS"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text, "run POPATLAS_WRITE_DOCS=1 pytest tests/dag/test_reruns.py"


@pytest.mark.parametrize("key", COSMETIC)
def test_what_changes_no_result_makes_nothing_run(rows, key):
    assert rows[key][3] == Counter()


def test_keys_leave_the_stages_before_theirs_as_they_are(rows):
    for key, (*_, found) in rows.items():
        for section, spared in SPARED.items():
            if key.startswith(section):
                assert not set(spared) & set(found), f"{key} runs {sorted(set(spared) & set(found))}"


@pytest.mark.parametrize(
    ("key", "methods"),
    [
        ("fuse.staple.region", {"staple"}),
        ("fuse.jlf.beta", {"jlf", "dataparams"}),  # whose votes may be those of joint label fusion
        ("fuse.similarity.radius", {"local"}),
        ("fuse.dataparams.epochs", {"dataparams"}),
        ("fuse.methods", set()),
    ],
)
def test_a_method_that_is_changed_leaves_the_others(rows, key, methods):
    assert rows[key][3]["fuse_labels"] == len(methods) * len(NAMES)
