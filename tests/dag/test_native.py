"""Labels on the raw grid as jobs: switched on later, they are all that is made, and switched off they are kept."""

import shlex
from types import SimpleNamespace

import pytest

from popatlas.cli.together import split
from popatlas.cohort.outputs import stage_outputs
from popatlas.config.load import load_config
from popatlas.study.inventory import LOST, NEVER, OUTDATED
from popatlas.study.orphans import kept_results

from ..cohorts import noise_image
from .test_dag import opened
from .test_fusion import leave
from .test_inventory import SCAN, changed, cohort, left, stock

__all__ = ["cohort"]  # a fixture
NATIVE = changed(space="native")
NETWORK = {"fuse": NATIVE["fuse"] | {"segmenter": {"enabled": True, "targets": 2}}}


def test_switched_on_later_only_the_new_jobs_run(cohort):
    inventory = stock(cohort, NATIVE)
    found = left(inventory)
    labels = {key: verdict for key, verdict in found.items() if key[0] == "labels_to_native"}
    assert labels == {("labels_to_native", f"sub-0{n}/anat/sub-0{n}"): NEVER for n in (1, 2, 3, 4)}
    # the page of the cohort tells how it was made
    assert set(found) - set(labels) == {("write_report", "")} and found["write_report", ""] == OUTDATED
    assert sum(inventory.jobs.jobs[name].rule == "labels_to_native" for name in inventory.needed("all")) == 8
    leave(opened(cohort, NATIVE), "all")
    assert left(stock(cohort, NATIVE)) == {}


def test_they_are_made_in_the_job_that_fuses(cohort):
    study = opened(cohort, NATIVE)
    assert stock(cohort, NATIVE).count("all")["fuse_scan"] == 4
    assert "labels_to_native" not in stock(cohort, NATIVE).count("all")
    assert stock(cohort, NETWORK).count("all")["labels_to_native"] == 4, "the network labels in jobs of its own"
    line = study.fuse.steps(study.jobs, study.preprocess.raw_image)(SimpleNamespace(scan=SCAN), 1)
    name, *options = shlex.split(line)
    found = [(part.name, part.follows) for part in split(name, options)]
    assert found == [("FuseLabels", False), ("LabelsToNative", True)] * 2, "one that fails costs only its own"
    for method, part in zip(("majority", "jlf"), split(name, options)[1::2], strict=True):
        given = dict(zip(part.options[::2], part.options[1::2], strict=True))
        assert given["--in_labels"] == f"{SCAN}_desc-{method}_dseg.nii.gz"
        assert given["--in_raw"] == str(cohort / f"bids/{SCAN}_T1w.nii.gz")
        assert given["--record"] == f"logs/fuse/{SCAN}_{method}_native.log.json"
        assert given["--out_description"] == f"{SCAN}_space-orig_desc-{method}_dseg.json"


def test_they_follow_labels_and_raw_image_and_are_made_again_when_lost(cohort):
    leave(opened(cohort, NATIVE), "all")
    (cohort / "out" / f"{SCAN}_space-orig_desc-jlf_dseg.json").unlink()
    assert left(stock(cohort, NATIVE)) == {("labels_to_native", SCAN): LOST}
    leave(opened(cohort, NATIVE), "all")
    other = NATIVE | {"fuse": NATIVE["fuse"] | {"jlf": {"beta": 3.0}}}
    inventory = stock(cohort, other)
    again = [inventory.jobs.jobs[name] for name in inventory.needed("all")]
    assert {job.wildcards["method"] for job in again if job.rule == "labels_to_native"} == {"jlf"}
    noise_image(cohort / f"bids/{SCAN}_T1w.nii.gz", seed=7)
    assert left(stock(cohort, NATIVE))["labels_to_native", SCAN] == OUTDATED


def test_switched_off_they_are_kept_and_named(cohort):
    leave(opened(cohort, NATIVE), "all")
    (line,) = kept_results(stock(cohort))
    assert line == "8 results that the settings no longer ask for are kept: jlf_native (4), majority_native (4)"


@pytest.mark.parametrize("settings", [NATIVE, NETWORK], ids=["fused", "with a segmenter"])
def test_labels_of_all_methods_are_promised(settings):
    promised = stage_outputs(load_config(settings), labelled=True)
    methods = ["segmenter"] * ("segmenter" in settings["fuse"]) + ["majority", "jlf"]
    native = [pattern for pattern in promised["fuse"] if "_space-orig_" in pattern]
    assert native == [f"{{scan}}_space-orig_desc-{m}_dseg.{end}" for m in methods for end in ("nii.gz", "json")]
    assert not any("_space-orig_" in pattern for pattern in stage_outputs(load_config(), labelled=True)["fuse"])
