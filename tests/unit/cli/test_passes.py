"""What a run says of jobs that ended without a word, and before and after itself."""

import argparse
import json
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from popatlas.cli.notes import changes, missing_images, missing_labels, opening_notes, resolution, unserved
from popatlas.cli.passes import BEGAN, Passes, snakemake_error, why_ended
from popatlas.cli.process import Outcome
from popatlas.cohort.freeze import freeze_label_atlases
from popatlas.cohort.index import index_cohort
from popatlas.cohort.inspect import Inspection
from popatlas.cohort.labelsummary import labels_summary
from popatlas.cohort.ledger import forget_failures, read_failure
from popatlas.config.load import load_config
from popatlas.images.io import read_json, write_json, write_text
from popatlas.receipts import read_attempt
from popatlas.study import books
from popatlas.study.books import SILENT, leave_records
from popatlas.study.joblist import Job
from tests.cohorts import noise_cohort, noise_image

SCAN = "sub-1/anat/sub-1"
LOG, LABELS = f"logs/fuse/{SCAN}_propagate.log", f"work/fuse/{SCAN}_candidates_dseg.nii.gz"
SAID = {
    "killed": (
        f"/usr/bin/bash: line 1:  4801 Killed                  popatlas step PropagateLabels > {LOG} 2>&1\n",
        "the job ended with 'Killed': by somebody, or since it needed more memory",
    ),
    "crashed": (
        f"/bin/bash: line 1: 77 Segmentation fault      (core dumped) popatlas step PropagateLabels > {LOG} 2>&1\n",
        "the job ended with 'Segmentation fault'",
    ),
    "clock": (
        f"WorkflowError in rule propagate_labels in file rules/fuse.smk, line 1:\nOutput {LABELS} has older modification "
        "time (a) than input x (b). This could indicate a clock skew problem\n",
        f"Output {LABELS} has older modification time",
    ),
    "slurm": (
        "Error in rule propagate_labels:\n    message: SLURM-job '12' failed, SLURM status is: 'OUT_OF_MEMORY'. See\n"
        f"    jobid: 3\n    output: {LABELS}\n    log: {LOG}\n",
        "SLURM-job '12' failed, SLURM status is: 'OUT_OF_MEMORY'",
    ),
    "missing": (
        f"MissingOutputException in rule propagate_labels in file rules/fuse.smk, line 1:\n    Job 3 completed: {LABELS}\n",
        "files that it should make were missing",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_was_said_of_a_job_is_found(case):
    text, words = SAID[case]
    noise = "Select jobs to execute...\nError in rule fuse_labels:\n    message: other\n    output: x\n"
    assert words in why_ended(noise + text + noise, "propagate_labels", LOG, [LABELS])
    other = LABELS.replace("sub-1", "sub-11")
    assert why_ended(noise + text, "propagate_labels", LOG.replace("sub-1", "sub-11"), [other]) == ""


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("WorkflowError:\nFailed to open it\nsomewhere\n", "WorkflowError:\nFailed to open it\nsomewhere"),
        (
            'Traceback (most recent call last):\n  File "x", line 1\nsnakemake.exceptions.ResourceError: abc\n',
            "snakemake.exceptions.ResourceError: abc",
        ),
        ("Error in rule fuse_labels:\n    jobid: 3\nRuleException in rule a\n", ""),
        ("Shutting down, this might take some time.\n", ""),
    ],
)
def test_the_error_of_snakemake_itself_is_found(said, words):
    assert snakemake_error(f"Job stats:\nError in rule x:\n    message: y\n{said}") == words


def stock(folder, jobs):
    return SimpleNamespace(
        study=SimpleNamespace(out_dir=folder),
        jobs=SimpleNamespace(jobs={job.name: job for job in jobs}),
        log=lambda job: f"logs/{job.name}.log",
    )


def test_jobs_that_ended_without_a_word_get_a_record_of_this_attempt(tmp_path):
    forget_failures(tmp_path)
    names = ("silent", "told", "killed", "waits", "before")
    jobs = [Job(name, "fuse_labels", {}, SCAN, ("silent",) if name == "waits" else ("made",)) for name in names]
    attempt = read_attempt(tmp_path)
    told = {"state": "failed", "message": "an atlas is damaged", "attempt": attempt}
    write_json(tmp_path / "logs/told.log.json", told)
    write_json(tmp_path / "logs/killed.log.json", {"state": "running", "attempt": attempt})
    write_json(tmp_path / "logs/before.log.json", {"state": "ok", "attempt": "another"})
    ready = leave_records(stock(tmp_path, jobs), names, lambda job: "it was killed" if job.name == "killed" else "")
    assert [job.name for job in ready] == ["silent", "told", "killed", "before"]
    assert read_json(tmp_path / "logs/told.log.json") == told
    assert read_failure(tmp_path, "logs/killed.log")[0].startswith("fuse_labels: it was killed; remedy: ")
    for name in ("silent", "before"):
        assert SILENT in read_failure(tmp_path, f"logs/{name}.log")[0]
    assert read_failure(tmp_path, "logs/waits.log") == ("", "")


def run(tmp_path, monkeypatch, outcomes, needed=lambda target: [], replaced=""):
    """Run passes whose Snakemake ends in the given ways, one after another; return the run and its code."""
    config = load_config({"out_dir": str(tmp_path)})
    inventory = SimpleNamespace(
        needed=needed, jobs=SimpleNamespace(jobs={}), clear_unfinished=lambda names: None, replaced=lambda target: replaced
    )
    monkeypatch.setattr(books, "take_stock", lambda config, out_dir: inventory)
    monkeypatch.setattr(books, "leave_records", lambda *arguments: [])
    monkeypatch.setattr(books, "settle_study", lambda *arguments: {})
    passes = Passes(argparse.Namespace(verbose=False), tmp_path / "c.yaml", config, config, None)
    left = iter(outcomes)
    monkeypatch.setattr(passes, "_snakemake", lambda target: next(left))
    return passes, passes.run(["preprocess", "all"])


@pytest.mark.parametrize(
    ("outcomes", "code", "words"),
    [
        ([Outcome(0, 0, BEGAN)] * 2, 0, ""),
        ([Outcome(1, 0, BEGAN), *[Outcome(0, 0, BEGAN)] * 2], 0, ""),  # all was made when its last job failed
        ([Outcome(-9, 0, BEGAN)], 1, "Snakemake was killed by signal 9"),
        ([Outcome(0, 0, BEGAN), Outcome(-9, 0, BEGAN)], 1, "Snakemake was killed by signal 9"),
        ([Outcome(1, 15, BEGAN)], 143, "stopped by signal 15"),
        ([Outcome(1, 0, "Config file x\nConfigError: no such key\n")], 1, "ConfigError: no such key"),
        ([Outcome(1, 0, BEGAN)] * 2, 1, "does not come to its end"),
        ([Outcome(1, 0, f"{BEGAN}\nWorkflowError:\nno queue")] * 2, 1, "does not come to its end: WorkflowError:\nno queue"),
    ],
)
def test_a_run_that_was_stopped_never_says_finished(tmp_path, monkeypatch, outcomes, code, words):
    passes, found = run(tmp_path, monkeypatch, outcomes)
    assert found == code
    assert words in passes.why_stopped


def test_a_code_of_0_is_no_proof(tmp_path, monkeypatch):
    job = Job("left", "tabulate_cohort", {}, "", ())
    monkeypatch.setattr(Passes, "_left", lambda self, inventory, names: [job.name])
    passes, code = run(tmp_path, monkeypatch, [Outcome(0, 0, BEGAN)] * 6, lambda target: ["left"])
    assert (code, passes.why_stopped) == (1, "the pass 'preprocess' does not come to its end")
    passes, code = run(tmp_path, monkeypatch, [Outcome(0, 0, BEGAN)] * 6, lambda target: ["left"], "/bids/a.nii")
    assert code == 1 and "others than their size and times tell" in passes.why_stopped
    assert "/bids/a.nii" in passes.why_stopped


def test_changed_settings_are_said_before_and_after(tmp_path, capsys):
    before = load_config({"fuse": {"labels": "derivatives/mine/{scan}.nii.gz"}, "preprocess": {"resolution_mm": 1.0}})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(before.content))
    after = load_config({"preprocess": {"brain": {"gpu": 1, "batch": 9}}})
    lines = opening_notes(after, tmp_path / "config.yaml")
    said = capsys.readouterr().err
    assert "2 setting(s) changed since the last run" in said and said.startswith("popatlas: ")
    assert any("fuse.labels: derivatives/mine/{scan}.nii.gz -> derivatives/truth" in line for line in lines)
    assert any("preprocess.resolution_mm: 1.0 -> 2.0" in line for line in lines)
    assert opening_notes(before, tmp_path / "config.yaml") == []
    steps = load_config({**before.content, "fuse": {**before.content["fuse"], "dataparams": {"batch": 2}}})
    assert opening_notes(steps, tmp_path / "config.yaml")[1] == "  fuse.dataparams.batch: 1 -> 2"  # of a training
    (tmp_path / "config.yaml").write_text("[" * 100_000)  # deeper than Python goes
    assert opening_notes(before, tmp_path / "config.yaml") == []
    assert opening_notes(after, tmp_path / "none.yaml") == []
    write_text(tmp_path / "config.yaml", "[1, 2")
    assert opening_notes(after, tmp_path / "config.yaml") == []
    assert list(changes({"a": 1, "b": {"c": [1]}}, {"b": {"c": [2]}, "d": "x" * 99})) == [
        "a: 1 -> None", "b.c: [1] -> [2]", f"d: None -> {'x' * 60}...",
    ]  # fmt: skip


def index_of(**columns):
    basis = {"scan": ["sub-1/anat/sub-1", "sub-2/anat/sub-2"], "state": "ok", "reason": "", "t1w": "x", "role": "cohort"}
    return pd.DataFrame(basis | {"spacing_mm": "1x1x1"} | columns)


def test_scans_that_could_not_be_used_are_named():
    assert missing_images(index_of()) == (0, [])
    count, lines = missing_images(index_of(state=["ok", "unavailable"], reason="the file is empty"))
    assert count == 1 and lines == ["could not be used: sub-2: the file is empty"]
    reason = Inspection("missing").reason
    count, lines = missing_images(index_of(state=["ok", "unavailable"], t1w=["x", ""], reason=["", reason]))
    assert count == 0 and lines == ["without a T1w image: sub-2"]
    table = pd.DataFrame({"scan": [f"sub-{n}" for n in range(9)], "state": "unavailable", "t1w": "", "reason": "abcdefggg"})
    count, lines = missing_images(table.assign(reason=list("abcdefggg")))
    assert count == 9 and lines[-1] == "could not be used: sub-5, sub-6, sub-7, sub-8, for other reasons"


def test_an_image_that_is_nearly_there_could_not_be_used(tmp_path):
    """It was said to be no image, with code 0."""
    root = noise_cohort(tmp_path / "bids", [f"sub-{name}" for name in "123456"], labels=False)
    for name in "2345":
        shutil.rmtree(root / f"sub-{name}" / "anat")
    (root / "sub-2").rmdir()
    (root / "sub-2").symlink_to("gone")
    noise_image(root / "sub-3/anat/sub-1_T1w.nii.gz", seed=3)
    noise_image(root / "sub-4/anat/sub-4_t1w.nii.gz", seed=4)
    (root / "sub-6").rename(root / "sub-6_x")
    index = index_cohort(load_config(bids_dir=str(root)), tmp_path / "out")
    count, lines = missing_images(index)
    said = "\n".join(lines)
    assert count == 4
    assert "could not be used: sub-2: a link to nothing (sub-2)" in said
    assert "could not be used: sub-3: no T1w image was found (only sub-3/anat/sub-1_T1w.nii.gz)" in said
    assert "could not be used: sub-4: no T1w image was found (only sub-4/anat/sub-4_t1w.nii.gz)" in said
    assert "could not be used: sub-6_x: the folder's name is not a BIDS label" in said
    assert lines[-1] == "without a T1w image: sub-5, sub-6"  # participants.tsv names sub-6


def test_labels_that_match_nothing_or_cannot_be_used_are_named(tmp_path):
    noise_cohort(tmp_path / "bids", ["sub-1", "sub-2"])

    def found(**settings):
        config = load_config(settings, bids_dir=str(tmp_path / "bids"), out_dir=str(tmp_path / "out"))
        index = index_cohort(config, tmp_path / "out")
        freeze_label_atlases(config, index, list(index["scan"]), tmp_path / "out")
        return missing_labels(config, index, tmp_path / "out")

    assert found() == (0, [])
    count, lines = found(fuse={"labels": "derivatives/truth/{scan}_desc-trth_dseg.nii.gz"})
    assert count == 1 and lines[-1] == "no labels were made: there is no labelled atlas that can be used"
    assert "fuse.labels ('derivatives/truth/{scan}_desc-trth_dseg.nii.gz') matches no file" in lines[0]
    assert "did you mean derivatives/truth/sub-1/anat/sub-1_desc-truth_dseg.nii.gz" in lines[0]
    shutil.rmtree(tmp_path / "bids/derivatives")
    count, lines = found()
    assert count == 0 and len(lines) == 2, "nobody asked for the labels of the demo"
    assert found(fuse={"methods": []}, measure={"reference": ""}) == (0, [])
    noise_cohort(tmp_path / "bids", ["sub-1", "sub-2"])
    (tmp_path / "bids/derivatives/truth/sub-2/anat/sub-2_desc-truth_dseg.nii.gz").write_bytes(b"broken")
    count, lines = found()
    assert count == 1 and "left out" in lines[0] and "sub-2_desc-truth_dseg.nii.gz" in lines[0]


def test_a_scan_that_lost_its_only_atlas_is_named_and_counts(tmp_path):
    """The atlas of the other subject was left out by a selection: labels were asked for, and there are none."""
    write_text(tmp_path / "cohort/label-atlases.tsv", "atlas\tdseg\texternal\nsub-1/anat/sub-1\tx\tFalse\n")
    index = index_of(subject=["sub-1", "sub-2"], state=["ok", "excluded"])
    count, (line,) = unserved(load_config({"fuse": {"atlases": ["1", "sub-2"]}}), index, tmp_path)
    assert count == 1
    assert line == (
        "no labels for sub-1: there is no atlas of another subject (sub-1); of fuse.atlases, sub-2 cannot be used"
    )
    assert unserved(load_config({"fuse": {"atlases": 2}}), index, tmp_path)[0] == 1
    count, lines = unserved(load_config({"fuse": {"atlases": ["1"]}}), index, tmp_path)
    assert count == 0 and len(lines) == 1, "that is how the atlas was chosen"
    both = index_of(subject=["sub-1", "sub-2"])
    assert "sub-1" in unserved(load_config({"fuse": {"atlases": ["1"]}}), both, tmp_path)[1][0]
    (tmp_path / "cohort/label-atlases.tsv").write_text("atlas\tdseg\texternal\n")
    assert unserved(load_config({}), both, tmp_path) == (0, [])


@pytest.mark.parametrize(("key", "end"), [("reference", "dseg.nii.gz"), ("landmarks", "landmarks.tsv")])
def test_a_pattern_of_the_user_that_matches_nothing_counts(tmp_path, key, end):
    root, out = noise_cohort(tmp_path / "bids", ["sub-1", "sub-2"]), tmp_path / "out"
    write_text(root / "derivatives/truth/sub-1/anat/sub-1_desc-truth_landmarks.tsv", "name\tx\ty\tz\n")

    def found(pattern):
        config = load_config({"measure": {key: pattern}}, bids_dir=str(root), out_dir=str(out))
        index = index_cohort(config, out)
        freeze_label_atlases(config, index, list(index["scan"]), out)
        return missing_labels(config, index, out)

    assert found(right := f"derivatives/truth/{{scan}}_desc-truth_{end}") == (0, [])
    count, (line,) = found(wrong := f"derivatives/truht/{{scan}}_desc-truth_{end}")
    assert count == 1 and f"measure.{key} ('{wrong}') matches no file" in line
    assert f"did you mean derivatives/truth/sub-1/anat/sub-1_desc-truth_{end}?" in line
    assert found("") == (0, [])
    shutil.rmtree(root / "derivatives")
    assert found(right)[0] == 0, "nobody asked for those of the demo"
    assert found(right.replace("truth/", "refs/"))[0] == 1


def test_when_all_scans_have_failed_no_file_that_is_there_is_missed(tmp_path):
    config = load_config(bids_dir=str(noise_cohort(tmp_path / "bids", ["sub-1", "sub-2"])), out_dir=str(tmp_path / "out"))
    index = index_cohort(config, tmp_path / "out")
    freeze_label_atlases(config, index, [], tmp_path / "out")
    assert missing_labels(config, index, tmp_path / "out") == (
        0, ["no labels were made: there is no labelled atlas that can be used"]
    )  # fmt: skip
    assert "no file" not in "".join(labels_summary(config, index, tmp_path / "out"))


def test_a_grid_much_coarser_than_the_images_is_named():
    (line,) = resolution(load_config({}), index_of())
    assert line.startswith("images of 1 mm were brought to voxels of 2 mm")
    assert list(resolution(load_config({}), index_of(spacing_mm="2x2x2"))) == []
    assert list(resolution(load_config({"preprocess": {"resolution_mm": 1.0}}), index_of())) == []
    assert json.dumps(list(resolution(load_config({}), index_of(state="unavailable")))) == "[]"
