"""Which jobs follow for trained methods, the segmenter and the bench (dry runs of the real Snakefile)."""

import hashlib
import re
import shlex
from argparse import Namespace

import pytest
import yaml

from popatlas.fusion.methods import MAPS
from popatlas.images.io import read_json, read_table, write_text
from popatlas.manyvalues import with_values
from popatlas.receipts import Receipt
from popatlas.study.inventory import Inventory
from popatlas.study.rules import growing
from popatlas.study.train import training_memory

from ..cohorts import noise_cohort, noise_image, noise_labels, popatlas
from .test_dag import NAMES, opened, plan

BRAIN = {"preprocess": {"brain": {"method": "template"}}}
TRAINED = BRAIN | {
    "fuse": {
        "methods": ["majority", "dataparams"],
        "atlases": ["02", "05"],
        "dataparams": {"targets": 3, "epochs": 2},
        "segmenter": {"enabled": True, "labels": "dataparams", "targets": 2},
    }
}


@pytest.fixture
def cohort(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES)
    return tmp_path


def dry(folder, verb, *options):
    """Return the jobs of a dry run and what it printed."""
    result = popatlas(*verb, folder / "bids", folder / "out", "--config", folder / "config.yaml", "-n", *options)
    text = result.stdout + result.stderr
    jobs = {name: int(count) for name, count in re.findall(r"^([a-z_]+) +(\d+)$", text, re.M)}
    return {name: count for name, count in jobs.items() if name != "total"}, text


def finish(folder, settings, *, content=lambda path: ""):
    """Leave the files of a whole run, empty but for `content`, with the receipts of its steps; temporary ones are gone."""
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    leave(opened(folder, settings), "all", content)


def leave(study, target, content=lambda path: ""):
    """Leave the files and receipts of all that a part of the pipeline needs."""
    inventory = Inventory(study)
    for name in inventory.needed(target):
        job = inventory.jobs.jobs[name]
        for path in inventory.files(job):
            if "candidates" not in path:
                write_text(study.out_dir / path, content(path))
        inputs = {path: digest(content(path)) for need in job.needs for path in inventory.files(inventory.jobs.jobs[need])}
        made = {path: [len(content(path)), digest(content(path))] for path in inventory.files(job)}
        Receipt(study.jobs.made_of(job.rule, **job.wildcards), inputs, made).write(inventory.receipt_path(name))


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def add(folder, *names):
    """Add subjects and leave the files of the others as they are."""
    for name in names:
        noise_image(folder / "bids" / name / "anat" / f"{name}_T1w.nii.gz", seed=200 + int(name[-1]))


def fail(folder, *scans, stage="register"):
    rows = [f"{scan}\t{stage}\tmemory" for scan in scans]
    write_text(folder / "out" / "cohort" / "failures.tsv", "\n".join(["scan\tstage\treason", *rows]) + "\n")


def targets(folder, name="trust"):
    path = folder / "out" / "cohort" / f"{name}-targets.tsv"
    note = read_json(path.with_suffix(".json"))
    return path.read_bytes(), {key: value for key, value in note.items() if key != "trained"}


def test_data_parameters_are_trained_once_on_the_drawn_targets(cohort):
    jobs = plan(cohort, TRAINED)
    assert (jobs["train_trust"], jobs["train_segmenter"], jobs["segment_scan"]) == (1, 1, 6)
    assert (jobs["propagate_labels"], jobs["fuse_labels"], jobs["fuse_scan"]) == (6, 6, 6)
    assert jobs["tabulate_trust"] == 1
    assert "bench_fusion" not in jobs
    study = opened(cohort, TRAINED)
    tables, gates = ((cohort / "out" / name).read_text().split() for name in study.fuse.atlas_weights_lists())
    assert (len(tables), len(gates)) == (12, 6)
    assert "sub-01/anat/sub-01_desc-dataparams_trust.tsv" in tables
    drawn = read_table(cohort / "out/cohort/trust-targets.tsv")
    assert len(drawn) == 3
    assert set(read_json(cohort / "out/cohort/trust-atlases.json")) == set(drawn["scan"])
    assert len(read_table(cohort / "out/cohort/segmenter-targets.tsv")) == 2


def test_new_and_failed_scans_neither_train_again_nor_change_the_targets(cohort):
    finish(cohort, TRAINED)
    assert plan(cohort, TRAINED) == {}
    before = targets(cohort), targets(cohort, "segmenter")
    add(cohort, "sub-07", "sub-08")
    jobs = plan(cohort, TRAINED)
    assert not {"train_trust", "train_segmenter", "register_member", "publish_template"} & set(jobs)
    per_scan = ("prepare_scan", "register_to_template", "propagate_labels", "fuse_scan", "segment_scan", "measure_and_draw")
    assert [jobs[name] for name in per_scan] == [2] * len(per_scan)
    assert (jobs["fuse_labels"], jobs["tabulate_trust"]) == (2, 1)
    opened(cohort, TRAINED)
    fail(cohort, read_table(cohort / "out/cohort/trust-targets.tsv")["scan"][1])
    opened(cohort, TRAINED)
    assert (targets(cohort), targets(cohort, "segmenter")) == before


def test_what_the_training_depends_on_trains_again_and_nothing_else(cohort):
    finish(cohort, TRAINED)
    assert plan(cohort, TRAINED) == {}
    before = targets(cohort), targets(cohort, "segmenter")

    def changed(**dataparams):
        return TRAINED | {"fuse": TRAINED["fuse"] | {"dataparams": {"targets": 3, "epochs": 2} | dataparams}}

    assert plan(cohort, changed(gpu=1)) == {}
    assert not {"train_trust", "register_to_template"} & set(jobs := plan(cohort, changed(network_weight=0.0)))
    assert jobs["fuse_labels"] > 0
    opened(cohort, changed(gpu=1))
    assert (targets(cohort), targets(cohort, "segmenter")) == before
    jobs = plan(cohort, changed(epochs=5))
    # the segmenter learns from labels of these parameters, so it is trained again too
    assert (jobs["train_trust"], jobs["train_segmenter"], jobs["propagate_labels"]) == (1, 1, 6)
    assert "register_to_template" not in jobs
    noise_labels(cohort / "bids/derivatives/truth/sub-02/anat/sub-02_desc-truth_dseg.nii.gz", seed=99)
    assert plan(cohort, TRAINED)["train_trust"] == 1, "an atlas has other labels"


def test_segmentations_of_new_scans_need_no_registration(cohort):
    finish(cohort, TRAINED)
    add(cohort, "sub-07")
    jobs, _ = dry(cohort, ["run"], "--until", "segmentations")
    del jobs["segmentations"]
    assert jobs == dict.fromkeys(("prepare_scan", "segment_scan"), 1)


def test_segmentations_without_a_segmenter_are_refused(cohort):
    result = popatlas("run", cohort / "bids", cohort / "out", "--until", "segmentations", "-n", check=False)
    assert result.returncode == 1
    assert "fuse.segmenter.enabled" in result.stderr


def test_maps_are_outputs_when_they_are_wanted(cohort):
    for wanted in (True, False):
        (cohort / "config.yaml").write_text(yaml.safe_dump({"fuse": {"methods": ["local"], "maps": wanted}}))
        _, text = dry(cohort, ["run"], "-p", "--verbose")
        (line, *_) = re.findall(r"popatlas step FuseLabels .*", text)
        assert [f"--out_{name} " in line for name in MAPS] == [wanted] * 3
        assert re.search("--out_atlas_weights sub-.*_desc-local_trust.tsv", line)
        assert '"similarity": {"power": 8.0' in line
        assert "jlf" not in line, "settings of other methods would redo its jobs"


def external(folder, names="ab"):
    for name in names:
        noise_image(folder / f"{name}.nii.gz", seed=ord(name))
        noise_labels(folder / f"{name}_dseg.nii.gz", seed=1)
    table = folder / "atlases.tsv"
    table.write_text("atlas\tt1w\tdseg\n" + "".join(f"{name}\t{name}.nii.gz\t{name}_dseg.nii.gz\n" for name in names))
    return {"fuse": {"atlases": str(table), "methods": ["majority"]}}


def test_an_atlas_that_fails_for_good_never_trains_again(cohort):
    atlases = external(cohort, "abc")["fuse"]["atlases"]
    settings = TRAINED | {"fuse": TRAINED["fuse"] | {"atlases": atlases}}
    (cohort / "out/cohort").mkdir(parents=True)
    broken = "atlases/sub-c/anat/sub-c"
    fail(cohort, broken)
    finish(cohort, settings)
    assert plan(cohort, settings) == {}
    before = targets(cohort), targets(cohort, "segmenter")
    add(cohort, "sub-07", "sub-08")
    failures = cohort / "out/cohort/failures.tsv"
    failures.unlink()  # a run lets what failed be tried again
    for is_broken in (False, True, False):
        if is_broken:
            fail(cohort, broken)
        else:
            failures.unlink(missing_ok=True)
        jobs = plan(cohort, settings)
        assert jobs["segment_scan"] == 2
        assert jobs["propagate_labels"] == (2 if is_broken else 8), "its labels are wanted again"
        assert not {"train_trust", "train_segmenter"} & set(jobs), is_broken
        opened(cohort, settings)
        assert (targets(cohort), targets(cohort, "segmenter")) == before


def test_trainings_read_their_lists_from_files(cohort):
    (cohort / "config.yaml").write_text(yaml.safe_dump(TRAINED))
    _, text = dry(cohort, ["run"], "-p", "--verbose")
    opened(cohort, TRAINED)
    dsegs = [f"derivatives/truth/sub-{name}/anat/sub-{name}_desc-truth_dseg.nii.gz" for name in ("02", "05")]
    for step, name, own in (("TrainDataParameters", "trust", {"in_labels"}), ("TrainSegmenter", "segmenter", set())):
        (line,) = re.findall(rf"popatlas step {step} .*", text)
        scans = list(read_table(cohort / f"out/cohort/{name}-targets.tsv")["scan"])
        fused = [f"{scan}_desc-dataparams_dseg.nii.gz" for scan in scans]
        expected = {
            "scans": scans,
            "in_labels": [f"work/fuse/{scan}_candidates_dseg.nii.gz" for scan in scans],
            "in_targets": [f"{scan}_desc-brain_T1w.nii.gz" for scan in scans],
            "in_dsegs": [str(cohort / "bids" / path) for path in dsegs] if name == "trust" else fused,
        }
        found = dict(re.findall(r"--(\w+) @(\S+-training-\S+)", line))
        assert set(found) == {"scans", "in_targets", "in_dsegs"} | own
        for key, path in found.items():
            assert (cohort / "out" / path).read_text().splitlines() == expected[key]
        assert not [scan for scan in scans if scan in line]


def test_memory_of_trainings_grows_with_each_attempt(cohort):
    study = opened(cohort, TRAINED)
    assert study.train.memory("trust") == training_memory("trust", 3, 2, 2.0)
    assert study.train.memory("segmenter") == training_memory("segmenter", 2, 2, 2.0)
    assert growing(study.train.memory("trust"))(None, 3) == 3 * study.train.memory("trust")


def test_the_gpu_profile_asks_a_gpu_for_what_has_a_network(cohort):
    (cohort / "config.yaml").write_text(yaml.safe_dump(TRAINED))
    _, text = dry(cohort, ["run"], "--profile", "slurm-gpu", "--verbose")
    asked = {}
    for rule, block in re.findall(r"^(?:local)?rule (\w+):\n((?: +.*\n)+)", text, re.M):
        (resources,) = re.findall(r"^ +resources: (.*)$", block, re.M)
        method = "".join(re.findall(r"method=(\w+)", block))
        asked[rule, method if rule == "fuse_labels" else ""] = ("gpu=1" in resources, "slurm_partition=gpu" in resources)
    networks = {("train_trust", ""), ("train_segmenter", ""), ("segment_scan", ""), ("fuse_labels", "dataparams")}
    assert {key for key, found in asked.items() if found == (True, True)} == networks
    assert asked["fuse_scan", ""] == asked["propagate_labels", ""] == (False, False)


def test_external_atlases_label_each_other_in_the_bench(cohort, monkeypatch):
    settings = external(cohort)
    settings["fuse"]["bench"] = True
    jobs = plan(cohort, settings)
    assert (jobs["fuse_scan"], jobs["bench_fusion"]) == (8, 1) and "propagate_labels" not in jobs
    assert (jobs["measure_and_draw"], jobs["tabulate_trust"]) == (6, 1)
    study = opened(cohort, settings)
    assert study.bench.scans == ["atlases/sub-a/anat/sub-a", "atlases/sub-b/anat/sub-b"]
    assert [path.rsplit("/", 1)[-1] for path in study.bench.references] == ["a_dseg.nii.gz", "b_dseg.nii.gz"]
    # each reads the lists of the others, and never its own labels
    monkeypatch.chdir(cohort / "out")
    for scan, other in (study.bench.scans, study.bench.scans[::-1]):
        target = Namespace(scan=scan)
        words = with_values(shlex.split(f"{study.fuse.names(target)} {study.fuse.atlas_options(target)}"))
        listed = dict(zip(words[::2], words[1::2], strict=True))
        assert listed["--names"] == other and listed["--in_dsegs"] == study.fuse.atlases[other]
        assert listed["--in_brains"] == f"{other}_desc-brain_T1w.nii.gz"
    native = plan(cohort, {**settings, "fuse": settings["fuse"] | {"space": "native"}})
    assert native == jobs, "their labels come to the raw grid in the same jobs"
    # one that failed there is left out of the bench alone
    row = "atlases/sub-a/anat/sub-a\tbench\tmemory\n"
    write_text(cohort / "out/cohort/failures.tsv", f"scan\tstage\treason\n{row}")
    jobs = plan(cohort, settings)
    assert (jobs["fuse_scan"], jobs["register_to_template"], jobs["bench_fusion"]) == (7, 8, 1)


def test_the_bench_verb_computes_what_the_atlases_need(cohort):
    (cohort / "config.yaml").write_text(yaml.safe_dump(external(cohort)))
    jobs, text = dry(cohort, ["fuse", "bench"], "--methods", "majority", "local", "-p", "--verbose")
    assert (jobs["fuse_scan"], jobs["bench_fusion"]) == (2, 1)
    assert not {"measure_and_draw", "write_report", "train_trust"} & set(jobs)
    (line,) = re.findall(r"popatlas step BenchFusion .*", text)
    assert "--methods majority local --derivatives ." in line
    jobs, _ = dry(cohort, ["fuse", "bench"])
    # without ANTs' variant of joint label fusion, and with the candidates that data parameters are learned from
    assert jobs["fuse_scan"] == jobs["fuse_labels"] == 2
    assert (jobs["train_trust"], jobs["propagate_labels"]) == (1, 8)
