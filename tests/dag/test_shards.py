"""Shards of a pass: each job is in one, none needs another but the first, and what failed there is not tried again."""

import argparse
from types import SimpleNamespace

import pytest

from popatlas.cli.passes import Passes
from popatlas.cli.process import BEGAN, Outcome
from popatlas.cli.snake import shares, slots
from popatlas.cohort.lock import Holder
from popatlas.config.load import load_config
from popatlas.study.inventory import Inventory
from popatlas.study.opening import begin
from popatlas.study.shards import FILE, VARIABLE, Request, read_shards, split, write_shards

from ..cohorts import noise_cohort
from .test_dag import NAMES, opened
from .test_fusion import leave

SETTINGS = {
    "atlas": {"members": 3, "iterations": 1},
    "preprocess": {"brain": {"batch": 2}},
    "fuse": {"methods": ["majority", "dataparams"], "atlases": ["02", "03", "05"], "dataparams": {"targets": 2}},
}


@pytest.fixture
def cohort(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES)
    return tmp_path


def begun(folder, target, monkeypatch, number=None):
    """Open the study as the Snakefile of a run does, in the lock of the run, for a shard of three."""
    monkeypatch.setattr("popatlas.study.opening.take_over", lambda out_dir: None)
    if number is not None:
        monkeypatch.setenv(VARIABLE, Request(number, 500, 3).variable()[VARIABLE])
    config = load_config(SETTINGS, bids_dir=str(folder / "bids"), out_dir=str(folder / "out"))
    study = begin(config, [target], main=True)
    monkeypatch.undo()
    return study


def test_without_a_wish_or_many_scans_a_pass_is_not_parted(cohort):
    inventory = Inventory(opened(cohort, SETTINGS))
    for target in ("preprocess", "subjects", "all"):
        assert split(inventory, target, Request(0, 500)) == [inventory.needed(target)]
        assert split(inventory, target, Request(0, 500, 1)) == [inventory.needed(target)]
    assert split(inventory, "all", Request(0, 500, 3)) == [inventory.needed("all")], "its tables are of all scans"


@pytest.mark.parametrize("target", ["preprocess", "subjects"])
def test_every_job_is_in_one_shard_and_needs_only_its_own_and_the_first(cohort, target):
    study = opened(cohort, SETTINGS)
    if target == "subjects":
        leave(study, "preprocess")
    inventory = Inventory(study)
    shards = split(inventory, target, Request(0, 500, 3))
    jobs, needed = inventory.jobs.jobs, inventory.needed(target)
    assert sorted(name for names in shards for name in names) == sorted(needed)
    assert len(shards) == (3 if target == "preprocess" else 4)
    first = set(shards[0]) if target == "subjects" else set()
    for names in shards:
        for name in names:
            assert {need for need in jobs[name].needs if need in needed} <= {*names, *first}
    if target == "subjects":
        assert {"publish_template", "train_trust"} <= {jobs[name].rule for name in first}
        assert {jobs[name].scan for name in first if jobs[name].rule == "register_to_template"} >= {
            f"sub-0{number}/anat/sub-0{number}" for number in (2, 3, 5)
        }, "labelled atlases serve all scans"


def test_each_snakemake_is_asked_for_its_shard_and_all_of_them_for_everything(cohort, monkeypatch):
    leave(opened(cohort, SETTINGS), "preprocess")
    everything = set(begun(cohort, "subjects", monkeypatch).jobs.to_make["subjects"])
    assert not (cohort / "out" / FILE).exists()
    asked = begun(cohort, "subjects", monkeypatch, 0).jobs.to_make["subjects"]
    shards = read_shards(cohort / "out")
    for number, names in enumerate(shards):
        if number:
            study = begun(cohort, "subjects", monkeypatch, number)
            paths = study.jobs.to_make["subjects"]
            assert paths
            assert not set(paths) & set(asked), "nothing is asked for twice"
            asked = [*asked, *paths]
        monkeypatch.setattr(Inventory, "needed", lambda self, target, names=names: names)
        leave(opened(cohort, SETTINGS), "subjects")
        monkeypatch.undo()
    assert everything <= set(asked)
    assert Inventory(opened(cohort, SETTINGS)).needed("subjects") == []


def test_what_failed_in_the_first_shard_is_not_tried_again_in_each_of_the_others(cohort, monkeypatch):
    leave(opened(cohort, SETTINGS), "preprocess")
    begun(cohort, "subjects", monkeypatch, 0)
    for number in range(1, len(read_shards(cohort / "out"))):
        assert begun(cohort, "subjects", monkeypatch, number).jobs.to_make["subjects"] == [], "there is no template"


@pytest.mark.parametrize(("ends", "calls", "code", "stopped_by"), [
    ([(0, 0, ""), (1, 0, f"{BEGAN}\nfailed\n")], [[0], [1, 2]], 1, 0),
    ([(1, 0, f"{BEGAN}\n"), (-2, 2, "")], [[0], [1, 2]], -2, 2),
    ([(1, 0, "cannot begin\n")], [[0]], 1, 0),
    ([(0, 0, ""), (-9, 0, "")], [[0], [1, 2]], -9, 0),
])  # fmt: skip
def test_shards_follow_what_all_need_side_by_side(tmp_path, monkeypatch, ends, calls, code, stopped_by):
    args = argparse.Namespace(cores=2, profile="default", snakemake=[], shards=None, verbose=False)
    config = load_config({}, bids_dir="bids", out_dir=str(tmp_path))
    passes, asked = Passes(args, tmp_path / "config.yaml", config, config, SimpleNamespace(holder=Holder.here())), []

    def supervise_all(commands, at_once, *rest):
        asked.append([Request.given(environment).number for _, environment in commands])
        cores = {line[line.index("--cores") + 1] for line, _ in commands}
        if asked == [[0]]:
            assert not read_shards(tmp_path), "those of an earlier pass are forgotten"
            write_shards(tmp_path, [["a"], ["b"], ["c"]])
            assert (at_once, cores) == (1, {"2"})
        else:
            assert (at_once, cores) == (2, {"1"})
        code, signal, text = ends[len(asked) - 1]
        return Outcome(code, signal, text)

    write_shards(tmp_path, [["old"]] * 9)
    monkeypatch.setattr("popatlas.cli.passes.supervise_all", supervise_all)
    outcome = passes._snakemake("subjects")
    assert (asked, outcome.code, outcome.stopped_by) == (calls, code, stopped_by)
    assert ("failed" in outcome.text) == any("failed" in text for _, _, text in ends)


@pytest.mark.parametrize(("profile", "cores", "options", "number", "share"), [
    ("default", 1, [], 1, 1), ("default", 2, [], 2, 1), ("default", 5, [], 4, 1), ("default", 11, [], 3, 3),
    ("default", 64, [], 4, 16), ("default", 64, ["--resources", "gpu=1"], 1, 64), ("default", 64, ["--res=gpu=1"], 1, 64),
    ("slurm", 1, [], 4, 125), ("slurm", 1, ["--jobs", "2"], 2, 1),
])  # fmt: skip
def test_shards_share_the_slots(profile, cores, options, number, share):
    args = argparse.Namespace(cores=cores, profile=profile, snakemake=options)
    found, each = shares(args, 20)
    assert (found, slots(each)) == (number, share)
    assert slots(shares(args, 1)[1]) == slots(args)
    assert args.snakemake == options
