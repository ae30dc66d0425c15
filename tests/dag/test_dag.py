"""Which jobs follow from a configuration and a cohort (dry runs of the real Snakefile)."""

import io
import re
import subprocess
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
import yaml

from popatlas.cli import main as popatlas_main
from popatlas.config.load import load_config
from popatlas.images.io import load_image, read_json, read_table, save_image
from popatlas.resources import workflow_root
from popatlas.study.inventory import Inventory
from popatlas.study.study import open_study

from ..cohorts import noise_cohort, noise_image, noise_labels, popatlas

NAMES = [f"sub-{number:02d}" for number in range(1, 7)]


def plan(tmp_path, settings):
    """Return the jobs of a plan, without those of scans that failed before."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    with redirect_stdout(io.StringIO()) as said:  # in this process: there are many plans
        line = ["plan", str(tmp_path / "bids"), str(tmp_path / "out"), "--config", str(config), "--cores", "1", "--no-retry"]
        assert popatlas_main.main(line) in (0, 3), "3: subjects without result and job"
    text = said.getvalue()
    return {name: int(count) for name, count in re.findall(r"^  ([a-z_]+) +(\d+)$", text, re.M)}


def opened(tmp_path, settings):
    """Open the study as the Snakefile of a run does, which writes the cohort's tables."""
    return open_study(load_config(settings, bids_dir=str(tmp_path / "bids"), out_dir=str(tmp_path / "out")), main=True)


@pytest.fixture
def cohort(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES)
    return tmp_path


def test_jobs_of_the_whole_pipeline(cohort):
    jobs = plan(cohort, {"atlas": {"members": 4, "iterations": 2}, "fuse": {"atlases": 3}})
    assert jobs == {
        "prepare_scan": 6,
        "make_reference": 1,
        "align_to_reference": 4,
        "initialise_template": 1,
        "register_member": 8,
        "average_template": 2,
        "publish_template": 1,
        "classify_template": 1,
        "register_to_template": 6,
        "fuse_scan": 6,
        "measure_and_draw": 6,
        "settle_ledger": 1,
        "tabulate_cohort": 1,
        "tabulate_trust": 1,
        "write_report": 1,
    }


def test_a_subject_of_a_large_cohort_costs_four_jobs(cohort, capsys):
    """Of which two here are members of the template: `all` means no more than most_members."""
    settings = {"atlas": {"most_members": 2}}
    study = opened(cohort, settings)
    assert "the template is built from 2 of 6 scans" in capsys.readouterr().err
    inventory = Inventory(study)
    jobs = [inventory.jobs.jobs[name] for name in inventory.needed("all")]
    runs = dict.fromkeys(
        (rule, wildcards["scan"]) for job in jobs if job.scan for rule, wildcards in [inventory.rule_of(job)]
    )
    members = set(study.atlas.members)
    found = {scan: sum(of == scan for _, of in runs) for scan in study.scans.own if scan not in members}
    assert set(found.values()) == {4} and len(found) == 4
    assert opened(cohort, {"atlas": {"members": 3}}).template.version != study.template.version
    assert len(opened(cohort, {"atlas": {"most_members": 6}}).atlas.members) == 6


def test_direct_propagation_registers_each_atlas_to_each_other_scan(cohort):
    jobs = plan(cohort, {"fuse": {"atlases": 3, "through": "direct"}})
    # 3 atlases x 6 targets, less each atlas onto itself
    assert jobs["register_atlas_to_target"] == 15


def test_an_existing_template_needs_no_iterations(cohort):
    template = noise_image(cohort / "template.nii.gz", seed=9)
    jobs = plan(cohort, {"atlas": {"template": str(template)}, "fuse": {"methods": []}})
    assert jobs["publish_template"] == 1
    assert jobs["register_to_template"] == 6
    assert not {"register_member", "average_template", "fuse_scan"} & set(jobs)


def test_without_labels_nothing_is_fused(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES, labels=False)
    jobs = plan(tmp_path, {})
    assert not {"fuse_scan"} & set(jobs)
    assert jobs["measure_and_draw"] == 6


def test_an_external_labelled_set_is_registered_but_not_measured(cohort):
    for name in ("a", "b"):
        noise_image(cohort / f"{name}.nii.gz", seed=ord(name))
        noise_labels(cohort / f"{name}_dseg.nii.gz", seed=1)
    table = cohort / "atlases.tsv"
    table.write_text("atlas\tt1w\tdseg\na\ta.nii.gz\ta_dseg.nii.gz\nb\tb.nii.gz\tb_dseg.nii.gz\n")
    settings = {"fuse": {"atlases": str(table), "methods": ["majority"]}}
    opened(cohort, settings)
    jobs = plan(cohort, settings)
    assert jobs["register_to_template"] == 8
    assert jobs["measure_and_draw"] == jobs["fuse_scan"] == 6
    assert len(read_table(cohort / "out" / "cohort" / "atlas-popatlas.tsv")) == 6


def test_template_method_and_batches_change_brain_extraction(cohort):
    assert plan(cohort, {"preprocess": {"brain": {"method": "template"}}})["prepare_scan"] == 6
    assert plan(cohort, {"preprocess": {"brain": {"batch": 4}}})["extract_brains"] == 2


def test_new_scans_form_new_batches_and_leave_frozen_atlases_alone(cohort):
    settings = {"preprocess": {"brain": {"batch": 4}}, "fuse": {"atlases": 2}}
    opened(cohort, settings)
    folder = cohort / "out" / "cohort"
    batches, atlases = read_table(folder / "batches.tsv"), (folder / "label-atlases.tsv").read_bytes()
    noise_cohort(cohort / "bids", [*NAMES, "sub-00", "sub-07"])
    opened(cohort, settings)
    after = read_table(folder / "batches.tsv")
    assert after.iloc[: len(batches)].equals(batches)
    assert set(after.iloc[len(batches) :]["batch"]) == {3}
    assert (folder / "label-atlases.tsv").read_bytes() == atlases


def test_extra_channels_are_aligned(cohort):
    noise_image(cohort / "bids/sub-01/anat/sub-01_T2w.nii.gz", seed=77)
    assert plan(cohort, {})["align_channel"] == 1


def test_one_unreadable_image_does_not_stop_the_plan(cohort):
    (cohort / "bids/sub-03/anat/sub-03_T1w.nii.gz").write_bytes(b"broken")
    (cohort / "bids/sub-04/anat/sub-04_T1w.nii.gz").write_bytes(b"")
    assert plan(cohort, {})["measure_and_draw"] == 4
    opened(cohort, {})
    index = read_table(cohort / "out" / "cohort" / "index.parquet").set_index("subject")
    assert index.loc["sub-03", "state"] == index.loc["sub-04", "state"] == "unavailable"
    assert "cannot be read" in index.loc["sub-03", "reason"]
    assert "0 bytes" in index.loc["sub-04", "reason"]


def test_the_label_atlas_request_is_kept_with_the_choice(cohort):
    opened(cohort, {"fuse": {"atlases": 2}})
    assert read_json(cohort / "out" / "cohort" / "label-atlases.json")["atlases"] == 2


def tables(folder):
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.glob("**/*")) if path.is_file()
    }


def tree(folder):
    """Return what is below a folder, with content, rights and times."""
    return {
        str(path.relative_to(folder)): (path.is_file() and path.read_bytes(), path.lstat().st_mode, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def test_a_plan_compares_with_the_last_run_and_leaves_no_trace(cohort):
    before = tree(cohort)
    for _ in range(2):
        result = popatlas("plan", cohort / "bids", cohort / "out")
        assert "6 usable (+6 new" in result.stdout
        assert tree(cohort) == before, "not even OUT_DIR"
    opened(cohort, {})
    noise_cohort(cohort / "bids", [*NAMES, "sub-07"])
    before = tree(cohort)
    for _ in range(2):
        assert "7 usable (+1 new" in popatlas("plan", cohort / "bids", cohort / "out").stdout
    assert tree(cohort) == before


def test_a_plan_takes_the_options_of_a_run(cohort, capsys):
    start = ["plan", str(cohort / "bids"), str(cohort / "out"), "--set", "preprocess.brain.batch=4"]
    assert popatlas_main.main([*start, "--until", "preprocess", "--no-retry", "--verbose", "--forceall"]) == 0
    jobs = re.findall(r"^  ([a-z_]+) +(\d+)$", capsys.readouterr().out, re.M)
    assert jobs == [("conform_image", "6"), ("extract_brains", "2"), ("normalise_brain", "6")]
    assert popatlas_main.main([*start, "--until", "networks"]) == 1
    assert "nothing is trained" in capsys.readouterr().err


def test_a_dry_run_forgets_no_failure_and_settles_nothing(cohort):
    opened(cohort, {})
    (cohort / "out" / "cohort" / "failures.tsv").write_text("scan\tstage\treason\nsub-02/anat/sub-02\tregister\tgate\n")
    before = tree(cohort)
    result = popatlas("run", cohort / "bids", cohort / "out", "--cores", "1", "-n")
    assert re.search(r"^measure_and_draw +5$", result.stdout + result.stderr, re.M)
    assert tree(cohort) == before


@pytest.fixture
def stripped(tmp_path):
    """Three small brains without skull; the second is a whole head, which method `none` refuses."""
    noise_cohort(tmp_path / "bids", NAMES[:3], labels=False)
    inside = np.linalg.norm(np.indices((36, 36, 36)) - 17.5, axis=0) < 14
    for number in (1, 3):
        data = inside * np.random.default_rng(number).integers(500, 1000, inside.shape)
        path = tmp_path / f"bids/sub-0{number}/anat/sub-0{number}_T1w.nii.gz"
        save_image(data.astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0]), path)
    return tmp_path


BRAIN = {"method": "none", "batch": 2, "volume_ml": [10, 1000]}
PREPROCESS = {"n4": {"enabled": False}, "brain": BRAIN}


def preprocess(folder, brain=BRAIN, *options):
    (folder / "c.yaml").write_text(yaml.safe_dump({"preprocess": PREPROCESS | {"brain": brain}}))
    until = ("--config", folder / "c.yaml", "--until", "preprocess", "--cores", "2")
    return popatlas("run", folder / "bids", folder / "out", *until, *options, check=False)


def dry_jobs(folder, brain=BRAIN):
    """Return the rules of what would be done for the scans that have not failed."""
    text = preprocess(folder, brain, "-n", "--quiet", "host").stdout
    return sorted(set(re.findall(r"^(?:local)?rule (\w+):", text, re.M)) - {"preprocess"})


def test_a_broken_scan_of_a_batch_does_not_redo_the_others(stripped):
    out = stripped / "out"
    result = preprocess(stripped)
    assert result.returncode == 3, result.stdout + result.stderr
    assert "sub-02/anat/sub-02 failed at preprocess: skull stripping failed: the image has no empty" in result.stderr
    first = {name: tables(out / name) for name in ("sub-01", "sub-03")}
    receipt = (out / "work/brain/none/batch-1.json").stat().st_mtime_ns
    assert dry_jobs(stripped) == []
    # neither GPUs, nor the size of batches, nor the plausible volume ask for the brains again
    assert dry_jobs(stripped, BRAIN | {"gpu": 1, "batch": 9}) == []
    assert dry_jobs(stripped, BRAIN | {"volume_ml": [1, 1000]}) == ["normalise_brain"]

    preprocess(stripped)  # tries the broken scan again, alone
    assert set(read_json(out / "work/brain/none/batch-3.json")) == {"sub-02/anat/sub-02"}
    assert (out / "work/brain/none/batch-1.json").stat().st_mtime_ns == receipt
    assert {name: tables(out / name) for name in first} == first

    # the repaired scan comes in without touching the others
    brain = load_image(stripped / "bids/sub-01/anat/sub-01_T1w.nii.gz", np.int16)
    save_image(np.flip(brain.dataobj), brain.affine, stripped / "bids/sub-02/anat/sub-02_T1w.nii.gz")
    result = preprocess(stripped)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (out / "sub-02/anat/sub-02_desc-brain_T1w.nii.gz").is_file()
    assert (out / "work/brain/none/batch-1.json").stat().st_mtime_ns == receipt
    assert {name: tables(out / name) for name in first} == first
    assert dry_jobs(stripped) == []


def test_a_study_has_absolute_paths(cohort, monkeypatch):
    monkeypatch.chdir(cohort)
    for main in (True, False):
        study = open_study({"bids_dir": "bids", "out_dir": "out"}, main=main)
        assert (study.config.bids_dir, study.out_dir) == (str(cohort / "bids"), cohort / "out")


def test_snakemake_takes_a_configuration_as_popatlas_does(cohort):
    """Relative paths, a key of before, and a preset by another similarity, whose shipped options must not come back."""
    register = {"ladder": [{"start": "moments"}], "presets": {"instance": {"default": {"similarity": "ngf"}}}}
    settings = {"bids_dir": "bids", "out_dir": "out", "register": register}
    (cohort / "own.yaml").write_text(yaml.safe_dump(settings))
    line = [sys.executable, "-m", "snakemake", "-n", "--snakefile", str(workflow_root() / "Snakefile")]
    line += ["--configfile", "own.yaml", "--cores", "1"]
    result = subprocess.run(line, cwd=cohort, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "register_to_template" in result.stdout + result.stderr
    assert "register.ladder is called register.fallback now" in result.stderr
    (cohort / "own.yaml").write_text(yaml.safe_dump({"register": register}))
    before = tree(cohort)
    text = popatlas("run", cohort / "bids", cohort / "new", "--config", cohort / "own.yaml", "--cores", "1", "-n").stdout
    assert "register_to_template" in text
    assert tree(cohort) == before, "a dry run makes no OUT_DIR"
