"""Which jobs follow for a registration network that is trained on the cohort, and what its version depends on."""

import re

import pytest
import yaml

from popatlas.cli.snake import profile_folder
from popatlas.config.load import load_config
from popatlas.errors import ConfigError
from popatlas.images.io import read_table, write_text
from popatlas.study.network import budget, network_memory
from popatlas.study.rules import growing
from popatlas.training.recipe import load_recipe

from ..cohorts import noise_cohort, noise_image, noise_labels, popatlas
from .test_dag import NAMES, opened, plan
from .test_fusion import add, dry, fail, leave

RULES = {"write_training_table", "train_registration"}
BASE = {
    "preprocess": {"brain": {"method": "template"}},
    "atlas": {"members": 4, "iterations": 1},
    "fuse": {"methods": ["majority"], "atlases": ["02", "05"]},
}


def asking(**train):
    return BASE | {"train": {"recipe": "brain-t1w", "labels": "majority", "scans": 4} | train}


@pytest.fixture
def cohort(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES)
    return tmp_path


def networks(folder, settings, *options):
    """Return the jobs of `--until networks` and what was printed."""
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    jobs, text = dry(folder, ["run"], "--until", "networks", *options)
    jobs.pop("networks", None)
    return jobs, text


def begin(folder, settings):
    """Leave a checkpoint, as an interrupted training does."""
    study = opened(folder, settings)
    write_text(folder / "out" / study.network.plan.work_folder / "checkpoint.pt", "")
    write_text(folder / "out" / "tpl-popatlas" / "template_description.json", "{}")  # members stay as they are
    return study.network.plan


def finish(folder, settings):
    """Leave a trained network."""
    leave(opened(folder, settings), "networks")
    write_text(folder / "out" / "tpl-popatlas" / "template_description.json", "{}")  # members stay as they are
    return opened(folder, settings).network.plan


def test_nothing_is_trained_unless_a_run_asks_for_networks(cohort):
    result = popatlas("run", cohort / "bids", cohort / "out", "--until", "networks", "-n", check=False)
    assert result.returncode == 1
    assert "train.recipe" in result.stderr
    assert not RULES & set(plan(cohort, BASE))
    assert opened(cohort, BASE).network is None
    assert not RULES & set(plan(cohort, asking())), "a whole run makes the atlas and its tables"


def test_a_training_registers_and_labels_its_scans_and_no_others(cohort):
    jobs, _ = networks(cohort, asking())
    wanted = ("register_to_template", "fuse_scan")
    # the atlases are registered too: 4 scans and at most 2 atlases
    assert jobs["fuse_scan"] == 4
    assert {name: jobs[name] for name in RULES} == dict.fromkeys(RULES, 1)
    assert not {"measure_and_draw", "write_report"} & set(jobs)
    jobs, _ = networks(cohort, asking(labels="reference"))
    assert (jobs["register_to_template"], jobs["train_registration"]) == (4, 1)
    assert not set(wanted[1:]) & set(jobs)
    unaligned = {"grid": {"affine_first": False}, "loss": {"labels": {"weight": 0.0}}}
    jobs, _ = networks(cohort, asking(labels=None, changes=unaligned))
    assert (jobs["prepare_scan"], jobs["train_registration"]) == (4, 1)
    assert not {*wanted, "register_member"} & set(jobs)


def test_a_recipe_without_data_needs_no_scan(cohort):
    plain = {"compare": "images", "options": {"recoloured": 0.0}}
    losses = {"similarity": {"weight": 0.0}, "painted": {"weight": 1.0}}
    shapes = {"data": {"source": "shapes"}, "synthesis": plain, "loss": losses}
    jobs, text = networks(cohort, asking(recipe="brain-contrast", labels=None, changes=shapes), "-p", "--verbose")
    assert jobs == {"train_registration": 1}
    assert "--in_table" not in text


def test_the_frozen_scans_are_split_by_subject(cohort):
    for session in ("1", "2"):
        name = f"sub-07/ses-{session}/anat/sub-07_ses-{session}_T1w.nii.gz"
        noise_image(cohort / "bids" / name, seed=50 + int(session))
    study = opened(cohort, asking(scans=200, validation=0.4))
    scans = read_table(cohort / "out/cohort/network-scans.tsv")
    assert set(scans["scan"]) == set(study.network.plan.scans) and len(scans) == 8
    assert scans.groupby("subject")["split"].nunique().max() == 1
    held = scans.loc[scans["split"] == "validation", "subject"].nunique()
    assert held == round(0.4 * 7)
    study = opened(cohort, asking(scans=4))
    scans = read_table(cohort / "out/cohort/network-scans.tsv")
    assert sorted(scans["split"]) == ["train"] * 3 + ["validation"]
    lists = {key: (cohort / "out" / study.network.lists[key]).read_text().split() for key in study.network.inputs()}
    assert lists["images"] == [f"{scan}_desc-brain_T1w.nii.gz" for scan in scans["scan"]]
    assert lists["affines"][0].endswith("_from-T1w_to-popatlas_mode-image_desc-affine_xfm.mat")
    assert lists["labels"] == [f"{scan}_desc-majority_dseg.nii.gz" for scan in scans["scan"]]


def test_recipes_for_whole_heads_are_trained_on_the_brains_that_there_are(cohort):
    network = opened(cohort, asking(recipe="labelreg")).network
    assert network.plan.recipe.grid.stripped and not load_recipe("labelreg").grid.stripped
    images = network.inputs()["images"]
    assert images and all(image.endswith("_desc-brain_T1w.nii.gz") for image in images)


def test_new_and_failed_scans_do_not_train_again(cohort):
    trained = finish(cohort, asking())
    assert trained.is_trained
    add(cohort, "sub-07", "sub-08")
    fail(cohort, trained.scans[0])
    assert opened(cohort, asking()).network.plan == trained
    assert not RULES & set(networks(cohort, asking())[0])


def test_a_training_that_has_begun_keeps_its_scans_and_its_checkpoint(cohort):
    begun = begin(cohort, asking())
    add(cohort, "sub-07", "sub-08")
    assert opened(cohort, asking()).network.plan == begun
    assert networks(cohort, asking())[0]["train_registration"] == 1
    # a scan that is gone cannot be trained on: the draw is made again
    fail(cohort, begun.scans[0])
    again = opened(cohort, asking()).network.plan
    assert begun.scans[0] not in again.scans and again.version != begun.version


def test_until_it_begins_the_scans_follow_the_cohort(cohort):
    first = opened(cohort, asking()).network.plan
    fail(cohort, first.scans[1])
    second = opened(cohort, asking()).network.plan
    assert first.scans[1] not in second.scans and len(second.scans) == 4


@pytest.mark.parametrize(
    "train",
    [
        {"changes": {"schedule": {"steps": 1000}}},
        {"recipe": "voxelmorph"},
        {"scans": 5},
        {"validation": 0.5},
        {"labels": "reference"},
    ],
    ids=lambda train: next(iter(train)),
)
def test_what_the_result_depends_on_is_another_version(cohort, train):
    trained = finish(cohort, asking())
    other = opened(cohort, asking(**train)).network.plan
    assert (other.version, other.is_trained) != (trained.version, True)
    assert other.version != trained.version
    assert opened(cohort, asking()).network.plan == trained, "going back finds the old one again"


def test_gpus_minutes_and_name_are_no_part_of_the_version(cohort):
    trained = finish(cohort, asking())
    assert opened(cohort, asking(gpus=2, minutes=30)).network.plan == trained
    named = opened(cohort, asking(name="mine")).network.plan
    assert (named.name, named.version) == ("mine", trained.version)
    assert named.files()["weights"] == f"networks/mine-{trained.version}/weights.safetensors"


def test_other_images_or_reference_labels_are_another_version(cohort):
    trained = finish(cohort, asking(labels="reference"))
    scan = trained.scans[0].rsplit("/", 1)[-1]
    noise_labels(cohort / f"bids/derivatives/truth/{scan}/anat/{scan}_desc-truth_dseg.nii.gz", seed=99)
    assert opened(cohort, asking(labels="reference")).network.plan.version != trained.version


def test_a_job_is_told_its_budget_its_gpus_and_where_its_checkpoint_is(cohort):
    _, text = networks(cohort, asking(), "-p", "--verbose")
    (line,) = re.findall(r"exec popatlas step TrainRegistration .*", text)
    network = opened(cohort, asking()).network.plan
    assert f"--folder work/train/brain-t1w-{network.version} --gpus 0 --minutes 705.0 " in line
    assert f"--in_table work/train/brain-t1w-{network.version}/scans.tsv" in line
    _, text = networks(cohort, asking(gpus=2, minutes=30), "-p", "--verbose")
    assert "--gpus 2 --minutes 30.0 " in text
    (resources,) = re.findall(r"rule train_registration:\n(?: +.*\n)*? +resources: (.*)\n", text)
    assert f"mem_mb={network_memory(80 * 96 * 80, 1, 4, 2)}" in resources and "gpu=2" in resources


@pytest.mark.parametrize(
    ("minutes", "runtime", "expected"), [(0, 720, 705), (0, 60, 54), (0, 10, 8), (0, 2, 1), (45, 720, 45)]
)
def test_a_job_stops_before_its_runtime_ends(minutes, runtime, expected):
    assert budget(minutes, runtime) == expected


def test_memory_does_not_grow_with_each_job_of_a_long_training():
    assert [growing(100, most=2)(None, attempt) for attempt in (1, 2, 5)] == [100, 200, 200]


def test_the_profiles_give_the_training_a_gpu_and_let_slurm_requeue_it(cohort):
    for profile, wanted in (("slurm", False), ("slurm-gpu", True)):
        _, text = networks(cohort, asking(), "--profile", profile, "--verbose")
        (resources,) = re.findall(r"rule train_registration:\n(?: +.*\n)*? +resources: (.*)\n", text)
        assert (("gpu=1" in resources), ("slurm_partition=gpu" in resources)) == (wanted, wanted)
        assert "slurm_extra=--signal=TERM@120" in resources
        assert yaml.safe_load((profile_folder(profile) / "profile.yaml").read_text())["slurm-requeue"] is True


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"recipe": "nonsense"}, "train.recipe: unknown recipe 'nonsense'; use one of"),
        ({"changes": {"schedule": {"step": 3}}}, "did you mean 'steps'"),
        ({"labels": "staple"}, "train.labels: 'staple' is not made, fuse.methods has majority"),
        ({"labels": None}, "train.labels: the recipe brain-t1w learns from labels"),
        ({"changes": {"grid": {"stripped": False}}}, "the changes ask for whole heads (grid.stripped: false)"),
    ],
)
def test_contradictions_are_told_before_the_job_graph(train, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(asking(**train))


def test_reference_labels_need_their_pattern_and_nothing_is_checked_without_a_recipe():
    with pytest.raises(ConfigError, match=r"measure\.reference is empty"):
        load_config(asking(labels="reference") | {"measure": {"reference": ""}})
    assert load_config(asking(recipe=None, labels="staple")).train.labels == "staple"


def test_too_few_scans_are_told(cohort):
    settings = asking(labels="reference") | {"measure": {"reference": "nowhere/{scan}.nii.gz"}}
    with pytest.raises(ConfigError, match=r"0 usable scan\(s\) with labels \(reference\)"):
        opened(cohort, settings)
