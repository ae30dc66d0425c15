"""Tissues and the template of a group as jobs: who has tissues, what they wait for, and what follows when they are lost."""

import shlex
from types import SimpleNamespace

from popatlas.cohort.freeze import read_members, template_version
from popatlas.config.load import load_config
from popatlas.study.inventory import LOST, SUPERSEDED, Inventory
from popatlas.study.opening import with_inventory

from .test_dag import opened
from .test_fusion import fail, leave
from .test_inventory import SCAN, SETTINGS, cohort, left, stock

__all__ = ["cohort"]  # a fixture
T2W = SETTINGS | {"tissues": {"channels": ["T2w"]}}  # sub-02 alone has one
GROUPED = SETTINGS | {"atlas": SETTINGS["atlas"] | {"method": "xcoreg", "iterations": 3}}


def divided(inventory):
    return {job.scan for job in inventory.jobs.jobs.values() if job.rule == "segment_tissues"}


def test_every_scan_has_tissues_in_the_job_that_measures_it(cohort):
    inventory = stock(cohort)
    assert divided(inventory) == set(inventory.study.scans.own)
    inventory.force(set(inventory.jobs.jobs))
    found = inventory.count("all")
    assert found["classify_template"] == 1 and found["measure_and_draw"] == 4 and "segment_tissues" not in found
    line = inventory.study.tissues.step(inventory.study.jobs)(SimpleNamespace(scan=SCAN), 1)
    name, *options, joint = shlex.split(line)
    given = dict(zip(options[::2], options[1::2], strict=False))
    assert (name, joint) == ("SegmentTissues", "--then") and given["--in_images"] == f"{SCAN}_desc-brain_T1w.nii.gz"
    assert given["--in_prior"] == "tpl-popatlas/tpl-popatlas_probseg.nii.gz"


def test_lost_tissues_are_made_again_with_what_is_measured_of_them(cohort):
    (cohort / "out" / f"{SCAN}_desc-tissues_dseg.nii.gz").unlink()
    inventory = stock(cohort)
    found = left(inventory)
    assert found["segment_tissues", SCAN] == LOST and found["measure_scan", SCAN] == SUPERSEDED
    assert {scan for _, scan in found} == {SCAN}, "its numbers come out the same: nothing of the group is made again"
    assert inventory.count("all")["measure_and_draw"] == 1


def test_a_shard_that_measures_anew_knows_that_tissues_and_what_they_were_found_in_are_made(cohort):
    """Snakemake would ask for all that the maps of the template are made of, in each shard at once."""
    leave(opened(cohort, T2W), "all")
    inventory = stock(cohort, T2W | {"measure": {"min_voxels": 3}})
    names = [name for name in inventory.needed("subjects") if inventory.jobs.jobs[name].scan == SCAN]
    assert {inventory.jobs.jobs[name].rule for name in names} == {"measure_scan", "draw_subject"}
    part = Inventory(inventory.study, names)
    study = with_inventory(part.study, part, names=names)
    assert study.jobs.asks("classify_template", study.tissues.classified)({}) == {}
    assert not study.jobs.is_asked("align_channel", {"scan": SCAN, "channel": "T2w"})


def test_a_scan_that_lacks_a_contrast_has_no_tissues_and_stays_in(cohort):
    inventory = stock(cohort, T2W)
    assert divided(inventory) == {SCAN}
    assert inventory.study.tissues.why_not("sub-01/anat/sub-01") == "it has no T2w (tissues.channels)"
    jobs = {job.scan: job for job in inventory.jobs.jobs.values() if job.rule == "segment_tissues"}
    assert any("channel-T2w" in need for need in jobs[SCAN].needs)
    assert ("measure_scan", "sub-01/anat/sub-01") in left(inventory), "its volumes were made from other tissues"
    leave(opened(cohort, T2W), "all")
    assert left(stock(cohort, T2W)) == {}
    assert stock(cohort, T2W).study.tissues.step(inventory.study.jobs)(SimpleNamespace(scan="sub-01/anat/sub-01"), 1) == ""


def test_a_scan_whose_tissues_failed_is_measured_without_them(cohort):
    fail(cohort, SCAN, stage="tissues")
    inventory = stock(cohort)
    study = inventory.study
    assert SCAN in study.scans.own and study.scans.undivided == {SCAN} and not study.tissues.has(SCAN)
    assert study.tissues.measure_option(SimpleNamespace(scan=SCAN)) == ""
    assert ("segment_tissues", SCAN) not in left(inventory) and ("measure_scan", SCAN) in left(inventory)


def test_without_tissues_nothing_is_made_for_them(cohort):
    off = SETTINGS | {"tissues": {"enabled": False}}
    inventory = stock(cohort, off)
    assert not {job.rule for job in inventory.jobs.jobs.values()} & {"classify_template", "segment_tissues"}
    assert set(study_rules(inventory, "measure_and_draw")) == {"measure_scan", "draw_subject"}


def study_rules(inventory, rule):
    return [one for one, _ in inventory.jobs.run_by(rule, {"scan": SCAN})]


def test_a_group_is_registered_at_once_and_gated_one_by_one(cohort):
    inventory = stock(cohort, GROUPED)
    found = inventory.count("all")
    assert (found["coregister_members"], found["register_member"], found["average_template"]) == (1, 3, 1)
    assert "initialise_template" not in found
    study, member = inventory.study, inventory.study.atlas.members[0]
    wildcards = SimpleNamespace(scan=member, iteration="1")
    assert study.atlas.iteration_inputs(wildcards)["batch_record"].endswith("iter-1/predictions/group.json")
    assert len(study.atlas.grouped(wildcards)["brains"]) == len(study.atlas.members) == 3
    assert study.jobs.outputs("publish_template")["classes"] == "tpl-popatlas/tpl-popatlas_desc-classes_probseg.nii.gz"


def test_settings_that_a_way_of_building_does_not_use_leave_the_version_alone(cohort):
    def version(**atlas):
        settings = {"atlas": SETTINGS["atlas"] | atlas}
        config = load_config(settings, bids_dir=str(cohort / "bids"), out_dir=str(cohort / "out"))
        return template_version(read_members(config, cohort / "out"), config)

    mean, grouped = version(), version(method="xcoreg")
    assert mean == version(xcoreg={"classes": 3}) != grouped
    assert grouped == version(method="xcoreg", iterations=5) != version(method="xcoreg", xcoreg={"classes": 3})
    assert mean != version(iterations=5)
