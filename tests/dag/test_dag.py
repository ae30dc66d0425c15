"""Which jobs follow from a configuration and a cohort (dry runs of the real Snakefile)."""

import re

import pytest
import yaml

from popatlas.images.io import read_json, read_table

from ..cohorts import noise_cohort, noise_image, popatlas

NAMES = [f"sub-{number:02d}" for number in range(1, 7)]


def plan(tmp_path, settings):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    text = popatlas("plan", tmp_path / "bids", tmp_path / "out", "--config", config, "--cores", "1").stdout
    return {name: int(count) for name, count in re.findall(r"^  ([a-z_]+) +(\d+)$", text, re.M)}


@pytest.fixture
def cohort(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES)
    return tmp_path


def test_jobs_of_the_whole_pipeline(cohort):
    jobs = plan(cohort, {"atlas": {"members": 4, "iterations": 2}, "fuse": {"atlases": 3}})
    assert jobs == {
        "conform_image": 6,
        "extract_brains": 6,
        "normalise_brain": 6,
        "make_reference": 1,
        "align_to_reference": 4,
        "initialise_template": 1,
        "register_member": 8,
        "average_template": 2,
        "publish_template": 1,
        "register_to_template": 6,
        "propagate_labels": 6,
        "fuse_labels": 18,
        "measure_scan": 6,
        "draw_subject": 6,
        "settle_ledger": 1,
        "tabulate_cohort": 1,
        "write_report": 1,
    }


def test_direct_propagation_registers_each_atlas_to_each_other_scan(cohort):
    jobs = plan(cohort, {"fuse": {"atlases": 3, "through": "direct"}})
    # 3 atlases x 6 targets, less each atlas onto itself
    assert jobs["register_atlas_to_target"] == 15


def test_an_existing_template_needs_no_iterations(cohort):
    template = noise_image(cohort / "template.nii.gz", seed=9)
    jobs = plan(cohort, {"atlas": {"template": str(template)}, "fuse": {"methods": []}})
    assert jobs["publish_template"] == 1
    assert jobs["register_to_template"] == 6
    assert not {"register_member", "average_template", "fuse_labels", "propagate_labels"} & set(jobs)


def test_without_labels_nothing_is_fused(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES, labels=False)
    jobs = plan(tmp_path, {})
    assert not {"fuse_labels", "propagate_labels"} & set(jobs)
    assert jobs["measure_scan"] == 6


def test_an_external_labelled_set_is_registered_but_not_measured(cohort):
    for name in ("a", "b"):
        noise_image(cohort / f"{name}.nii.gz", seed=ord(name))
        noise_image(cohort / f"{name}_dseg.nii.gz", seed=1)
    table = cohort / "atlases.tsv"
    table.write_text("atlas\tt1w\tdseg\na\ta.nii.gz\ta_dseg.nii.gz\nb\tb.nii.gz\tb_dseg.nii.gz\n")
    jobs = plan(cohort, {"fuse": {"atlases": str(table), "methods": ["majority"]}})
    assert jobs["register_to_template"] == 8
    assert jobs["measure_scan"] == jobs["fuse_labels"] == 6
    assert len(read_table(cohort / "out" / "cohort" / "atlas-popatlas.tsv")) == 6


def test_template_method_and_batches_change_brain_extraction(cohort):
    assert plan(cohort, {"preprocess": {"brain": {"method": "template"}}})["extract_brain_by_template"] == 6
    (cohort / "out" / "cohort" / "batches.tsv").unlink()
    assert plan(cohort, {"preprocess": {"brain": {"batch": 4}}})["extract_brains"] == 2


def test_new_scans_form_new_batches_and_leave_frozen_atlases_alone(cohort):
    settings = {"preprocess": {"brain": {"batch": 4}}, "fuse": {"atlases": 2}}
    plan(cohort, settings)
    folder = cohort / "out" / "cohort"
    batches, atlases = read_table(folder / "batches.tsv"), (folder / "label-atlases.tsv").read_bytes()
    noise_cohort(cohort / "bids", [*NAMES, "sub-00", "sub-07"])
    plan(cohort, settings)
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
    assert plan(cohort, {})["measure_scan"] == 4
    index = read_table(cohort / "out" / "cohort" / "index.parquet").set_index("subject")
    assert index.loc["sub-03", "state"] == index.loc["sub-04", "state"] == "unavailable"
    assert "cannot be read" in index.loc["sub-03", "reason"]
    assert "0 bytes" in index.loc["sub-04", "reason"]


def test_the_label_atlas_request_is_kept_with_the_choice(cohort):
    plan(cohort, {"fuse": {"atlases": 2}})
    assert read_json(cohort / "out" / "cohort" / "label-atlases.json")["atlases"] == 2
