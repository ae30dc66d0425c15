"""Training targets: how they are drawn, when they are frozen, and what a version depends on."""

import pytest

from popatlas.cohort.freeze import freeze_atlas_members, freeze_label_atlases
from popatlas.cohort.index import index_cohort
from popatlas.cohort.targets import (
    FILES,
    freeze_targets,
    fusion_settings,
    read_trainings,
    training_settings,
)
from popatlas.config.load import changed, load_config
from popatlas.errors import ConfigError, InputError
from popatlas.images.io import read_json, read_table, write_text
from popatlas.receipts import FOLDER, Receipt
from popatlas.study.train import training_memory
from tests.cohorts import noise_cohort, noise_image, noise_labels

NAMES = [f"sub-{number:02d}" for number in range(1, 7)]
FUSE = {"methods": ["jlf", "dataparams"], "atlases": ["02", "05"], "dataparams": {"targets": 3}}


class Setup:
    """A small cohort and what a run does before its job graph."""

    def __init__(self, root, **fuse):
        self.bids, self.out = noise_cohort(root / "bids", NAMES), root / "out"
        self.configure(**fuse)

    def configure(self, **fuse):
        self.config = load_config({"fuse": FUSE | fuse}, bids_dir=str(self.bids))

    def freeze(self, failed=()):
        index = index_cohort(self.config, self.out)
        usable = [scan for scan in index.loc[index["state"] == "ok", "scan"] if scan not in failed]
        freeze_atlas_members(self.config, index, usable, self.out)
        atlases = freeze_label_atlases(self.config, index, usable, self.out)
        return freeze_targets(self.config, index, usable, atlases, self.out)

    def train(self, name="trust", failed=()):
        for file in FILES[name]:
            write_text(self.out / self.freeze(failed)[name].file(file), "")
        write_text(self.out / "tpl-popatlas" / "template_description.json", "{}")  # members stay as they are


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path)


def scan(name):
    return f"sub-{name}/anat/sub-{name}"


def test_targets_cover_the_cohort_and_have_two_atlases_each(setup):
    training = setup.freeze()["trust"]
    assert not training.is_trained
    # atlases are served by one other atlas only
    assert training.scans == (scan("01"), scan("04"), scan("06"))
    atlases = read_json(setup.out / "cohort/trust-atlases.json")
    assert atlases == {key: [scan("02"), scan("05")] for key in training.scans}
    table = read_table(setup.out / "cohort/trust-targets.tsv")
    assert list(table.columns) == ["scan", "subject", "session", "sha256"]
    assert read_trainings(setup.config, setup.out) == {"trust": training}


def test_targets_follow_the_usable_scans_until_the_network_is_trained(setup):
    first = setup.freeze()["trust"]
    second = setup.freeze(failed=[scan("04")])["trust"]
    assert second.scans == (scan("01"), scan("03"), scan("06"))
    assert second.version != first.version
    assert setup.freeze()["trust"] == first
    setup.train()
    assert setup.freeze(failed=[scan("04")])["trust"].scans == first.scans
    assert setup.freeze(failed=[scan("04")])["trust"].is_trained


LIST, NOTE = "cohort/trust-targets.tsv", "cohort/trust-targets.json"


@pytest.mark.parametrize("lost", ["curve.tsv", "network.safetensors", LIST, NOTE, "cut"])
def test_what_is_lost_of_a_trained_network_does_not_draw_other_targets(setup, lost):
    setup.train()
    trained = setup.freeze()["trust"]
    Receipt(made_of="x").write(setup.out / FOLDER / f"train/trust-{trained.version}.json")
    if lost == "cut":
        write_text(setup.out / LIST, "".join((setup.out / LIST).read_text().splitlines(keepends=True)[:-1]))
    else:
        (setup.out / (lost if "/" in lost else trained.file(lost))).unlink()
    # a lost list is drawn again, and is the former one as long as nobody joins
    for name in () if lost in (LIST, "cut") else ("07", "08"):
        noise_image(setup.bids / f"{scan(name)}_T1w.nii.gz", seed=int(name))
    assert setup.freeze() == {"trust": trained}
    assert read_json(setup.out / NOTE)["trained"] and len(read_table(setup.out / LIST)) == 3


def test_a_lost_list_or_network_that_cannot_be_had_again_is_refused(setup):
    setup.train()
    trained = setup.freeze()["trust"]
    kept = (setup.out / LIST).read_text()
    (setup.out / LIST).unlink()
    with pytest.raises(InputError, match=r"trust-\w+ was trained on is lost.*trust-targets\.tsv.*put the file back.*json"):
        setup.freeze(failed=[scan("04")])
    write_text(setup.out / LIST, kept)
    (setup.out / trained.file("curve.tsv")).unlink()
    with pytest.raises(ConfigError, match=r"gone, and 1 scan.*not used any more: sub-04/anat/sub-04\. Remedy: put"):
        setup.freeze(failed=[scan("04")])
    (setup.out / LIST).unlink()
    (setup.out / NOTE).unlink()
    assert setup.freeze(failed=[scan("04")])["trust"].version != trained.version, "as the remedy says"


def test_new_subjects_and_other_settings_of_fusion_change_nothing(setup):
    setup.train()
    trained = setup.freeze()["trust"]
    noise_image(setup.bids / "sub-07/anat/sub-07_T1w.nii.gz", seed=7)
    for fuse in ({}, {"jlf": {"beta": 2.0}}, {"dataparams": {"targets": 3, "gpu": 1, "votes": "softmax"}}, {"maps": False}):
        setup.configure(**fuse)
        assert setup.freeze()["trust"] == trained, fuse
    setup.configure(methods=["jlf"])
    assert setup.freeze() == read_trainings(setup.config, setup.out) == {}


@pytest.mark.parametrize(
    "fuse",
    [
        {"dataparams": {"targets": 3, "epochs": 3}},
        {"dataparams": {"targets": 2}},
        {"atlases": ["02", "04"]},
        {"through": "direct"},
    ],
)
def test_what_was_trained_with_makes_another_version(setup, fuse):
    setup.train()
    trained = setup.freeze()["trust"]
    setup.configure(**fuse)
    other = setup.freeze()["trust"]
    assert not other.is_trained
    assert other.version != trained.version
    setup.configure()
    assert setup.freeze()["trust"] == trained, "the network of the former settings is still there"


@pytest.mark.parametrize("file", ["sub-04/anat/sub-04_T1w", "derivatives/truth/sub-02/anat/sub-02_desc-truth_dseg"])
def test_a_changed_image_makes_another_version(setup, file):
    setup.config = changed(setup.config, {"atlas": {"members": ["01", "03"]}})
    setup.train()
    trained = setup.freeze()["trust"]
    write = noise_labels if file.endswith("dseg") else noise_image
    write(setup.bids / f"{file}.nii.gz", seed=999)
    assert setup.freeze()["trust"].version != trained.version


def external(setup, names="abc"):
    """Let a table name the atlases; their images are made once."""
    folder = setup.bids.parent
    for name in names:
        for write, path in ((noise_image, folder / f"{name}.nii.gz"), (noise_labels, folder / f"{name}_dseg.nii.gz")):
            if not path.is_file():
                write(path, seed=ord(name))
    rows = [f"{name}\t{name}.nii.gz\t{name}_dseg.nii.gz\n" for name in names]
    write_text(folder / "atlases.tsv", "atlas\tt1w\tdseg\n" + "".join(rows))
    setup.configure(atlases=str(folder / "atlases.tsv"))


def atlas(name):
    return f"atlases/{scan(name)}"


def recorded(out):
    """What is drawn; whether the network has been trained is noted at the next opening."""
    note = {key: value for key, value in read_json(out / "cohort/trust-targets.json").items() if key != "trained"}
    return [note, *((out / "cohort" / name).read_bytes() for name in ("trust-targets.tsv", "trust-atlases.json"))]


@pytest.mark.parametrize("failed_first", [True, False])
def test_an_atlas_that_fails_or_is_tried_again_changes_nothing_once_the_network_is_trained(setup, failed_first):
    external(setup)
    setup.train(failed=[atlas("c")] if failed_first else [])
    before = recorded(setup.out)
    trained = read_trainings(setup.config, setup.out)["trust"]
    assert trained.is_trained
    for name in ("07", "08"):
        noise_image(setup.bids / f"{scan(name)}_T1w.nii.gz", seed=int(name))
    for failed in ([], [atlas("c")], [atlas("a"), atlas("b")], []):
        assert setup.freeze(failed=failed)["trust"] == trained, failed
        assert recorded(setup.out) == before


def test_an_own_atlas_that_is_left_out_changes_nothing(setup):
    setup.configure(atlases=["02", "05", "06"])
    setup.train()
    trained = setup.freeze()["trust"]
    noise_image(setup.bids / f"{scan('07')}_T1w.nii.gz", seed=7)
    assert setup.freeze(failed=[scan("05")])["trust"] == trained
    assert setup.freeze()["trust"] == trained


@pytest.mark.parametrize("names", ["ab", "abcd"])
def test_other_atlases_in_the_table_make_another_version(setup, names):
    external(setup)
    setup.train(failed=[atlas("c")])
    trained = setup.freeze(failed=[atlas("c")])["trust"]
    external(setup, names)
    other = setup.freeze(failed=[atlas("c")])["trust"]
    assert not other.is_trained
    assert other.version != trained.version


def test_changed_labels_of_an_external_atlas_make_another_version(setup):
    external(setup)
    setup.train(failed=[atlas("c")])
    trained = setup.freeze(failed=[atlas("c")])["trust"]
    noise_labels(setup.bids.parent / "a_dseg.nii.gz", seed=999)
    assert setup.freeze(failed=[atlas("c")])["trust"].version != trained.version


def test_the_segmenter_depends_on_the_method_that_it_learns_from(tmp_path):
    segmenter = {"enabled": True, "labels": "jlf", "targets": 2}
    setup = Setup(tmp_path, segmenter=segmenter)
    setup.train("segmenter")
    trained = setup.freeze()["segmenter"]
    assert (trained.is_trained, len(trained.scans)) == (True, 2)
    setup.configure(segmenter=segmenter, similarity={"power": 2.0}, dataparams={"targets": 4})
    assert setup.freeze()["segmenter"] == trained
    setup.configure(segmenter=segmenter, jlf={"beta": 2.0})
    assert setup.freeze()["segmenter"].version != trained.version


def test_without_two_atlases_there_is_nothing_to_learn(tmp_path):
    setup = Setup(tmp_path, atlases=["02"])
    with pytest.raises(ConfigError, match=r"fuse\.dataparams: no usable scan has 2 labelled atlases.*Remedy: give more"):
        setup.freeze()
    setup.configure(atlases=0)
    assert setup.freeze() == {}


def test_each_method_has_the_settings_that_it_reads():
    config = load_config({})
    assert fusion_settings(config, "majority") == {"ties": "nearest", "select": 0}
    assert set(fusion_settings(config, "local")) == {"ties", "select", "similarity"}
    assert set(fusion_settings(config, "jlf")) == {"ties", "select", "jlf"}
    joint = fusion_settings(config, "dataparams")
    assert (set(joint), set(joint["dataparams"])) == (
        {"ties", "select", "jlf", "dataparams"},
        {"votes", "network_weight", "gate_quality"},
    )
    own = {"methods": ["dataparams"], "select": 2, "select_by": "trust", "dataparams": {"votes": "softmax"}}
    config = changed(config, {"fuse": own})
    assert fusion_settings(config, "staple")["select_by"] == "similarity"
    assert fusion_settings(config, "dataparams")["select_by"] == "trust"
    assert "jlf" not in fusion_settings(config, "dataparams")
    learned = training_settings(config, "trust")
    unlearned = {"preset", "gpu", "votes", "network_weight", "gate_quality"}
    assert set(config.content["fuse"]["dataparams"]) - set(learned) == unlearned


def test_memory_of_a_training_follows_what_is_held():
    # by hand: 3.5 million voxels; 12 + 2 * 10 bytes of each target, and one target with 10 whole candidates of 40
    assert training_memory("trust", 64, 10, 1.0) == 3000 + 3.5 * (400 + 400 + 64 * 32)
    assert training_memory("segmenter", 64, 10, 1.0) == training_memory("segmenter", 64, 3, 1.0) == 3000 + 3.5 * 3088
    fine, coarse = (training_memory("trust", 500, 30, size) - 3000 for size in (1.0, 2.0))
    assert fine == pytest.approx(8 * coarse, abs=8)
    assert training_memory("trust", 9, 5, 1.0, batch=4) - training_memory("trust", 9, 5, 1.0) == 3 * 1400
