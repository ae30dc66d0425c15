"""Which jobs follow with the network engine: batches that stay as they are, and weights that count."""

import json
import math
import re
import shlex
from types import SimpleNamespace

import pytest

from popatlas.cohort.batches import MEMBERS, PREDICTIONS, read_batch_members
from popatlas.config.load import changed, load_config
from popatlas.groupwise.template import reference_brain
from popatlas.images.io import read_table, write_json
from popatlas.manyvalues import with_values
from popatlas.receipts import FOLDER, Receipt
from popatlas.study.register import REFERENCE_MM, REGISTRATION, registration_memory
from popatlas.zoo.lock import estimate_from_lock

from ..cohorts import noise_cohort, noise_image, popatlas
from ..zoo import lock_network, tiny_network
from .test_commands import commands
from .test_dag import NAMES, opened, plan
from .test_fusion import add, digest, dry, external, fail, finish

NETWORK = {
    "preprocess": {"brain": {"method": "template"}},
    "register": {"engine": "network", "weights": "tiny", "network": {"batch": 4}},
    "fuse": {"methods": []},
}
SCANS = [f"{name}/anat/{name}" for name in NAMES]


def with_register(**changes):
    return NETWORK | {"register": NETWORK["register"] | changes}


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    monkeypatch.setenv("POPATLAS_WEIGHTS", str(tmp_path / "own"))
    lock_network(tmp_path, tiny_network())
    noise_cohort(tmp_path / "bids", NAMES)
    return tmp_path


def members(folder):
    return read_batch_members(folder / "out", PREDICTIONS)


def batch_record(states):
    """Return what a batch leaves; it is asked for by path, see `finish`."""
    return lambda path: json.dumps(states) if re.search(r"work/network/.*batch-\d+\.json$", path) else ""


ALL_OK = batch_record({scan: {"state": "ok"} for scan in [*SCANS, "sub-07/anat/sub-07"]})


def listed(folder, line):
    """Return the scans, brains and masks that a command gets from its lists, which the opened study has written."""
    words = shlex.split(line)
    found = [words[words.index(f"--{name}") + 1] for name in ("scans", "in_brains", "in_masks")]
    return [with_values([word.replace("@", f"@{folder}/out/", 1)]) for word in found]


def wanted(scans):
    brains, masks = (f"{scan}_desc-brain_T1w.nii.gz" for scan in scans), (f"{scan}_desc-brain_mask.nii.gz" for scan in scans)
    return [list(scans), list(brains), list(masks)]


def test_one_job_predicts_the_scans_of_a_batch_for_their_registrations(cohort):
    settings = with_register(gpu=1)
    lines = commands(cohort, settings, r"(?:PredictDeformations|RegisterImages)")
    study = opened(cohort, settings)
    folder = study.register.predictions
    assert re.fullmatch(rf"work/network/tiny-default-[0-9a-f]{{8}}/{study.template.version}", folder)
    predicting = [line for line in lines if "PredictDeformations" in line]
    first, second = sorted(line for line in predicting if f" {folder} " in line)
    assert listed(cohort, first) == wanted(SCANS[:4]) and listed(cohort, second) == wanted(SCANS[4:])
    assert f" --gpu 1 --out_folder {folder} --out_batch_record {folder}/batch-1.json " in first and '"sha256"' in first
    taking = [line for line in lines if f"--in_prediction {folder}/" in line]
    assert len(taking) == 6
    for scan in SCANS:
        batch = 1 if scan in SCANS[:4] else 2
        taken = f" --in_prediction {folder}/{scan} --in_batch_record {folder}/batch-{batch}.json --gpu 0 "
        assert sum(taken in line for line in taking) == 1


def test_batches_of_members_are_predicted_in_each_iteration_of_the_template(cohort):
    settings = with_register(gpu=1)
    lines = commands(cohort, settings, r"(?:PredictDeformations|RegisterImages)")
    build = opened(cohort, settings).template.build_folder
    assert read_batch_members(cohort / "out", MEMBERS) == {1: tuple(SCANS[:4]), 2: tuple(SCANS[4:])}
    for iteration in (1, 2, 3):
        folder = f"{build}/iter-{iteration}/predictions"
        template = f"--in_fixed {build}/iter-{iteration - 1}/template_T1w.nii.gz "
        for batch, scans in ((1, SCANS[:4]), (2, SCANS[4:])):
            (line,) = (line for line in lines if f" --out_batch_record {folder}/batch-{batch}.json " in line)
            assert template in line and f" --gpu 1 --out_folder {folder} " in line
            assert listed(cohort, line) == wanted(scans)
            for scan in scans:
                taken = f" --in_prediction {folder}/{scan} --in_batch_record {folder}/batch-{batch}.json --gpu 0 "
                assert sum(taken in line and template in line for line in lines) == 1


def test_the_gpu_profile_asks_a_gpu_for_predictions_only(cohort):
    (cohort / "config.yaml").write_text(json.dumps(NETWORK))
    _, text = dry(cohort, ["run"], "--profile", "slurm-gpu", "--verbose")
    asked = {
        rule: "gpu=1" in block and "slurm_partition=gpu" in block
        for rule, block in re.findall(r"^(?:local)?rule (\w+):\n((?: +.*\n)+)", text, re.M)
    }
    assert asked["predict_members"] and asked["predict_deformations"]
    assert not asked["register_member"] and not asked["register_to_template"]


@pytest.mark.parametrize(
    ("engine", "alone", "to_template"), [("network", 2, 0), ("instance", 2, 2), ("ants", 0, 0), ("ffd", 0, 0)]
)
def test_gpus_are_asked_for_where_they_are_used(cohort, engine, alone, to_template):
    study = opened(cohort, with_register(engine=engine, gpu=2))
    assert (study.register.gpu, study.register.predicted_gpu) == (alone, to_template)
    assert bool(study.register.predictions) == (engine == "network")


def test_a_network_as_fallback_needs_no_batches(cohort):
    jobs = plan(cohort, with_register(engine="instance", fallback=[{"start": "moments", "engine": "network"}]))
    assert "predict_deformations" not in jobs and jobs["register_to_template"] == 6


def test_weights_that_nobody_knows_stop_the_plan_with_a_remedy(cohort):
    (cohort / "config.yaml").write_text(json.dumps(with_register(weights="tinny")))
    result = popatlas("plan", cohort / "bids", cohort / "out", "--config", cohort / "config.yaml", check=False)
    assert result.returncode == 1
    assert "register.weights: there are no weights 'tinny'. Remedy: did you mean tiny?" in result.stderr


def test_weights_and_schedule_count_but_neither_gpus_nor_batches_nor_their_name(cohort):
    finish(cohort, NETWORK, content=ALL_OK)
    study = opened(cohort, NETWORK)
    assert plan(cohort, with_register(gpu=1, network={"batch": 2})) == {}
    for same in ({"gpu": 1}, {"network": {"batch": 2}}, {"weights": str(cohort / "own" / "tiny.safetensors")}):
        assert opened(cohort, with_register(**same)).template.version == study.template.version
    moved = cohort / "own" / "tiny.safetensors"
    assert plan(cohort, with_register(weights=str(moved))) == {}, "the same file, by its path"
    moved = moved.rename(cohort / "moved.safetensors")
    assert plan(cohort, with_register(weights=str(moved))) == {}, "the same weights, elsewhere"
    moved.rename(cohort / "own" / "tiny.safetensors")
    jobs = plan(cohort, with_register(presets={"network": {"default": {"iterations": [12]}}}))
    assert (jobs["predict_deformations"], jobs["register_to_template"]) == (2, 6)
    assert not {"register_member", "predict_members"} & set(jobs), "the template is built with other presets"
    # new scans form new batches and leave what is done alone
    assert members(cohort) == {1: tuple(SCANS[:4]), 2: tuple(SCANS[4:])}
    add(cohort, "sub-00", "sub-07")
    jobs = plan(cohort, NETWORK)
    assert (jobs["predict_deformations"], jobs["register_to_template"], jobs["prepare_scan"]) == (1, 2, 2)
    opened(cohort, NETWORK)
    assert members(cohort) == {1: tuple(SCANS[:4]), 2: tuple(SCANS[4:]), 3: ("sub-00/anat/sub-00", "sub-07/anat/sub-07")}
    # other weights under the same name make another template, and new predictions to it
    lock_network(cohort, tiny_network(seed=1))
    jobs = plan(cohort, NETWORK)
    assert (jobs["predict_deformations"], jobs["register_to_template"]) == (3, 8)
    assert (jobs["predict_members"], jobs["register_member"]) == (6, 18)
    assert opened(cohort, NETWORK).template.version != study.template.version


def test_gpus_count_for_no_engine(cohort):
    for engine in ("instance", "network"):
        without, with_one = (opened(cohort, with_register(engine=engine, gpu=gpu)) for gpu in (0, 1))
        assert (without.template, without.register.attempts) == (with_one.template, with_one.register.attempts)


def test_a_failed_prediction_goes_to_a_new_batch_unless_a_fallback_has_helped(cohort):
    study = opened(cohort, NETWORK)
    states = {scan: {"state": "ok"} for scan in SCANS[:4]} | {SCANS[1]: {"state": "failed"}}
    write_json(cohort / "out" / study.register.predictions / "batch-1.json", states)
    registered = [
        f"from-T1w_to-{study.template.label}_mode-image_xfm.nii.gz",
        f"from-{study.template.label}_to-T1w_mode-image_xfm.nii.gz",
        f"space-{study.template.label}_desc-brain_T1w.nii.gz",
        f"space-{study.template.label}_desc-logjacobian_T1w.nii.gz",
    ]
    for name in registered:
        noise_image(cohort / "out" / f"{SCANS[1]}_{name}", seed=1)
    opened(cohort, NETWORK)
    assert members(cohort) == {1: tuple(SCANS[:4]), 2: tuple(SCANS[4:])}
    (cohort / "out" / f"{SCANS[1]}_{registered[0]}").unlink()
    opened(cohort, NETWORK)
    assert members(cohort) == {1: tuple(SCANS[:4]), 2: tuple(SCANS[4:]), 3: (SCANS[1],)}


def test_a_changed_brain_predicts_its_batch_again_and_registers_its_scan_only(cohort):
    settings = NETWORK | {"atlas": {"template": str(noise_image(cohort / "mni.nii.gz", seed=5))}}
    finish(cohort, settings, content=ALL_OK)
    out = cohort / "out"
    noise_image(cohort / "bids/sub-06/anat/sub-06_T1w.nii.gz", seed=78)
    jobs = plan(cohort, settings)
    assert (jobs["predict_deformations"], jobs["register_to_template"]) == (1, 1)
    # a brain that is new already, since an earlier run ended after it, is registered as well
    brain = f"{SCANS[0]}_desc-brain_T1w.nii.gz"
    (out / brain).write_text("new")
    receipt = out / FOLDER / "preprocess" / f"{SCANS[0]}_normalise.json"
    made = Receipt.read(receipt)
    Receipt(made.made_of, made.inputs, made.outputs | {brain: [3, digest("new")]}).write(receipt)
    jobs = plan(cohort, settings)
    assert (jobs["predict_deformations"], jobs["register_to_template"]) == (2, 2)


@pytest.mark.parametrize("through", ["template", "direct"])
def test_external_atlases_are_predicted_when_labels_go_through_the_template(cohort, through):
    opened(cohort, NETWORK | {"fuse": external(cohort)["fuse"] | {"through": through}})
    listed = set(read_table(cohort / "out" / PREDICTIONS)["scan"])
    assert listed - set(SCANS) == (
        {"atlases/sub-a/anat/sub-a", "atlases/sub-b/anat/sub-b"} if through == "template" else set()
    )


def test_a_failed_scan_is_left_out_of_a_batch_that_has_not_run(cohort):
    opened(cohort, NETWORK)
    fail(cohort, SCANS[0])
    study = opened(cohort, NETWORK)
    assert listed(cohort, study.register.prediction_list(SimpleNamespace(batch="1"))) == wanted(SCANS[1:4])
    assert members(cohort)[1] == tuple(SCANS[:4]), "it keeps its place"


def test_memory_follows_the_lock_the_grid_and_the_pairs(cohort):
    assert tuple(reference_brain(1.0)[0].shape) == REFERENCE_MM
    entry = lock_network(cohort, tiny_network())
    config = load_config(NETWORK)
    need = estimate_from_lock(entry, [-(-mm // 4) for mm in REFERENCE_MM]) / 1e6
    assert REGISTRATION + need < registration_memory(config) < REGISTRATION + need + 50
    # pairs are held in the voxels of the workflow, whatever those of the network
    for size in (2.0, 1.0):
        config = changed(config, {"preprocess": {"resolution_mm": size}})
        seven = registration_memory(config, 8) - registration_memory(config)
        assert seven * 1e6 > 7 * 4 * 8 * math.prod(mm // size for mm in REFERENCE_MM), "copies of four images"
    config = changed(
        config, {"atlas": {"template": str(noise_image(cohort / "big.nii.gz", seed=1, shape=(200, 240, 200), spacing=2.0))}}
    )
    assert registration_memory(config) > REGISTRATION + need + 80
    assert registration_memory(load_config({"register": {"engine": "ants"}})) == REGISTRATION
