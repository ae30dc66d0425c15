"""The real workflow on a small cohort: a broken scan, the group results, and two scans more."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from popatlas.cohort.jobbook import read_book
from popatlas.cohort.outputs import stage_outputs
from popatlas.config.load import load_config
from popatlas.images.io import load_image, read_json, read_table
from popatlas.report import outliers
from popatlas.report.cohort import Cohort
from popatlas.resources import workflow_root

from ..cohorts import popatlas
from ..wheel import outside
from .conftest import BROKEN, GOOD, HOSTILE, SETTINGS, UNREADABLE

pytestmark = pytest.mark.e2e


def scan(subject):
    return f"{subject}/anat/{subject}"


def volume_of(mask):
    return np.count_nonzero(mask.dataobj) * abs(np.linalg.det(mask.affine))


def group_metrics(work):
    """Values of scans; those of the whole cohort stand under the participant `group`."""
    metrics = read_table(work.out / "group" / "metrics.parquet")
    return metrics[metrics["participant_id"] != "group"]


def test_the_wheel_has_all_that_a_study_needs(first_run):
    """The cohort was simulated and run by an installed wheel, in a folder outside of the checkout."""
    work, _, printed = first_run
    package = work.programs.parent / "lib"
    code = "import popatlas, popatlas.resources as r; print(popatlas.__file__, r.workflow_root())"
    line = [work.programs / "python", "-c", code]
    told = subprocess.run(line, env=outside(), cwd=work.root, capture_output=True, text=True, check=True)
    assert told.stdout.count(str(package)) == 2, told.stdout
    shipped = work.call("weights", "list").stdout
    assert "brain-t1w" in shipped and "brain-contrast" in shipped
    assert "slurm" in work.call("run", "--help").stdout and "voxelmorph" in work.call("train").stdout
    mine = str(workflow_root() / "workflow")
    assert mine not in printed
    written = [path for path in work.out.rglob("*") if path.suffix in (".log", ".json", ".yaml", ".txt")]
    assert len(written) > 50 and not [path for path in written if mine in path.read_text()]


def test_a_broken_scan_stops_neither_the_others_nor_the_group(first_run):
    work, code, printed = first_run
    assert code == 3, printed
    ledger = read_table(work.out / "cohort" / "ledger.tsv").set_index(["subject", "stage"])
    for subject in GOOD:
        assert set(ledger.loc[subject, "state"]) == {"ok"}
    assert ledger.loc[(BROKEN, "preprocess"), "state"] == "failed"
    assert "remedy" in ledger.loc[(BROKEN, "preprocess"), "reason"]
    assert (work.out / ledger.loc[(BROKEN, "preprocess"), "log"]).is_file()
    assert ledger.loc[(BROKEN, "register"), "state"] == "pending"
    assert ledger.loc[(UNREADABLE, "index"), "state"] == "unavailable"
    assert set(group_metrics(work)["participant_id"]) == set(GOOD)


def test_group_outputs_say_who_is_in_and_who_is_out(first_run):
    work, _, printed = first_run
    members = read_json(work.out / "group" / "members.json")
    assert (members["n_in"], members["n_out"]) == (3, 2)
    page = (work.out / "report" / "index.html").read_text()
    assert BROKEN in page
    assert "not finite" in page
    assert f"{scan(BROKEN)} failed at preprocess" in printed


def test_a_run_tells_how_far_it_is_and_ends_with_what_came_out(first_run):
    work, _, printed = first_run
    for line in ("index: 4 of 5 done, 1 cannot be used", "preprocess: 3 of 4 done, 1 failed", "fuse: 3 of 3 done"):
        assert line in printed.splitlines()
    assert "Finished jobid" not in printed and "rule prepare_scan" not in printed
    _, _, end = printed.partition("popatlas: finished after ")
    assert "3 of 5 scan(s) came through" in end and f"QC page  {work.out / 'report/index.html'}" in end
    assert f"failed at preprocess: {BROKEN}\n" in end and f"could not be used: {UNREADABLE}: " in end
    assert f"popatlas status {work.out}" in end and f"popatlas run {work.bids} {work.out} --config" in end
    assert any("rule prepare_scan:" in log.read_text() for log in (work.out / ".snakemake/log").glob("*.log"))


def test_what_jobs_asked_for_is_held_against_what_their_records_say(first_run):
    work, _, printed = first_run
    steps = Counter(step.rule for entry in read_book(work.out) for step in entry.steps)
    assert (steps["conform_image"], steps["register_to_template"], steps["measure_scan"]) == (4, 3, 3)
    uses = {use["rule"]: use for use in json.loads(work.call("efficiency", work.out, "--json").stdout)["rules"]}
    assert (uses["prepare_scan"]["jobs"], uses["prepare_scan"]["failed"]) == (3, {"input": 1})
    records = [read_json(work.out / f"logs/register/{scan(subject)}_register.log.json") for subject in GOOD]
    assert uses["register_to_template"]["used_mb"][1] == max(record["peak_mb"] for record in records)
    assert uses["register_to_template"]["used_minutes"][1] == max(record["seconds"] for record in records) / 60
    assert uses["register_to_template"]["asked_mb"][1] > 0 < uses["register_to_template"]["asked_minutes"][1]
    fused = {step["rule"]: step["count"] for step in uses["fuse_scan"]["steps"]}
    assert fused == {"fuse_labels": 3 * len(load_config(SETTINGS).fuse.methods)}
    assert re.search(r"\d+ jobs used \d+ % of the cores and \d+ % of the memory .*attempts that failed: 1 input", printed)


def test_every_promised_file_is_there(first_run):
    work = first_run[0]
    promised = stage_outputs(load_config(SETTINGS), labelled=True)
    del promised["channel"]  # this cohort has none; test_variants has
    for patterns in promised.values():
        for pattern in patterns:
            for subject in GOOD:
                assert (work.out / pattern.format(scan=scan(subject))).stat().st_size > 0
    for name in ("volumes", "summary", "metrics", "truth", "trust"):
        table, columns = read_table(work.out / "group" / f"{name}.tsv"), read_json(work.out / "group" / f"{name}.json")
        assert len(table) and set(columns) == set(table) and all(column["Description"] for column in columns.values())


def test_the_template_was_built_from_the_scans_that_came_through(first_run):
    work = first_run[0]
    description = read_json(work.out / "tpl-tiny" / "template_description.json")
    assert [member["subject"] for member in description["Members"]] == list(GOOD)
    assert re.fullmatch("[0-9a-f]{8}", description["Version"])
    assert set(group_metrics(work)["template"].dropna()) <= {f"tiny@{description['Version']}", ""}
    assert len(read_table(work.out / "tpl-tiny" / "tpl-tiny_desc-convergence_table.tsv")) == 1


def test_the_truth_is_found_again(first_run):
    """Coarse bounds: 4 mm voxels, one quick iteration."""
    work = first_run[0]
    for subject in GOOD:
        mask = load_image(work.out / f"{scan(subject)}_desc-brain_mask.nii.gz", np.uint8)
        truth = work.bids / "derivatives" / "truth" / f"{scan(subject)}_desc-truth_mask.nii.gz"
        volumes = [
            np.asarray(m.dataobj).astype(bool).sum() * abs(np.linalg.det(m.affine))
            for m in (mask, load_image(truth, np.uint8))
        ]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.15)
    metrics = group_metrics(work)
    dice = (
        metrics[(metrics["metric"] == "dice") & (metrics["method"] == "majority")].groupby("participant_id")["value"].mean()
    )
    assert (dice > 0.55).all(), dice


def test_leave_one_out_an_atlas_is_not_its_own_reference(first_run):
    work = first_run[0]
    for subject in ("sub-01", "sub-02"):
        log = (work.out / "logs" / "fuse" / f"{scan(subject)}_jlf.log").read_text()
        listed, pattern = re.search(r"--in_brains '?@(\S+)::(\S+?)'? --in_warps", log).groups()
        brains = [pattern.replace("{}", atlas) for atlas in (work.out / listed).read_text().split()]
        other = "sub-02" if subject == "sub-01" else "sub-01"
        assert [Path(brain).name for brain in brains] == [f"{Path(scan(other)).name}_desc-brain_T1w.nii.gz"]


def test_every_column_of_the_page_is_filled(first_run):
    """A simulated cohort has all that there is to measure; a column that is missing looks for what nobody writes."""
    out, methods = first_run[0].out, list(load_config(SETTINGS).fuse.methods)
    measures = Cohort.read(out, out / "cohort/ledger.tsv", "tiny", methods, out / "cohort/config.yaml").measures
    wanted = {f"{method}_{metric}" for method, metric in outliers._FROM_METRICS}
    wanted |= {f"{method}_{metric}" for method in methods for metric in ("dice", "hd95")}
    wanted |= {measure.key for measure in (*outliers._FROM_GATE.values(), *outliers._FROM_MASK.values())}
    assert {measure.key for measure in measures} == wanted - {"mask_brain_ml"}  # the volume of the mask is there once


def test_files_at_the_top_describe_those_below(first_run):
    out = first_run[0].out
    names = read_table(out / "dseg.tsv").set_index("index")["name"]
    fused = load_image(out / f"{scan('sub-01')}_desc-jlf_dseg.nii.gz", np.int32)
    assert set(np.unique(fused.dataobj)) - {0} <= set(names.index)
    for name, table in (
        ("desc-metrics_table.json", f"{scan('sub-01')}_desc-metrics_table.tsv"),
        ("trust.json", f"{scan('sub-01')}_desc-jlf_trust.tsv"),
        ("desc-convergence_table.json", "tpl-tiny/tpl-tiny_desc-convergence_table.tsv"),
    ):
        assert list(read_json(out / name)) == list(read_table(out / table))


def test_volumes_are_joined_with_the_participants(first_run):
    volumes = read_table(first_run[0].out / "group" / "volumes.tsv")
    assert {"age", "sex"} <= set(volumes.columns)
    assert len(volumes) == 3 and "jlf_left_lateral_ventricle" in volumes
    assert volumes["atlases"].tolist() == [1, 1, 2], "an atlas does not label itself"
    metrics = group_metrics(first_run[0]).groupby("participant_id").first()
    assert metrics["age"].tolist() == volumes["age"].tolist() and metrics["age"].dtype == float


@pytest.mark.parametrize("page", ["tables", "jacobians"])
def test_python_of_the_docs_reads_the_results(first_run, page, tmp_path, monkeypatch, capsys):
    text = (workflow_root() / "docs" / "howto" / f"{page}.md").read_text()
    (code,) = re.findall(r"(?ms)^```python\n(.*?)^```", text)
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("OUT_DIR", str(first_run[0].out)), page, "exec"), {})
    said = capsys.readouterr().out
    if page == "jacobians":
        image = load_image(tmp_path / "age.nii.gz")
        assert image.shape == load_image(first_run[0].out / "tpl-tiny/tpl-tiny_T1w.nii.gz").shape
        assert np.isfinite(image.dataobj).all() and "% a year" in said
    else:
        assert all(subject in said for subject in GOOD) and "ml a year" in said and "log_jacobian_sd" in said


def test_cells_and_names_of_labels_that_would_be_run_elsewhere_are_shown_as_they_are(first_run):
    work = first_run[0]
    assert not list(work.root.rglob("*pwned*"))
    pages = [path.read_text() for path in (work.out / "report").rglob("*.html")]
    assert len(pages) >= 3 and not any("<script>alert" in page for page in pages)
    metrics = read_table(work.out / "group" / "metrics.parquet")
    assert set(HOSTILE[: len(GOOD)]) <= set(metrics["note"])
    assert any(HOSTILE[0] in str(name) and "touch pwned" in str(name) for name in metrics["label"].unique())


def test_nothing_is_left_to_do(first_run):
    result = first_run[0].popatlas("plan", "--no-retry", check=False)
    assert "everything is up to date" in result.stdout
    assert result.returncode == 3 and f"neither a result nor a job: {UNREADABLE}" in result.stdout


def test_no_step_asked_a_network(first_run):
    assert first_run[0].network.read_text() == ""


def test_plain_snakemake_agrees(first_run, tmp_path):
    """The same Snakefile, called as a Snakemake user would."""
    work = first_run[0]
    line = [sys.executable, "-m", "snakemake", "--cores", "2", "--snakefile", str(workflow_root() / "Snakefile")]
    line += ["--configfile", str(work.out / "config.yaml")]
    result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Nothing to be done" in result.stdout + result.stderr


def test_status_names_the_failed_scan_and_its_log(first_run):
    result = popatlas("status", first_run[0].out, check=False)
    assert result.returncode == 3
    assert f"failed      {scan(BROKEN)}" in result.stdout
    assert "log: " in result.stdout


def test_two_more_subjects_run_only_their_jobs_against_the_frozen_template(first_run):
    work = first_run[0]
    work.call("simulate", work.bids, "--subjects", "2", "--first", "6", "--seed", "3")
    plan = work.popatlas("plan", "--no-retry", check=False).stdout
    jobs = {name: int(count) for name, count in re.findall(r"^  ([a-z_]+) +(\d+)$", plan, re.M)}
    expected = dict.fromkeys(("prepare_scan", "register_to_template", "fuse_scan", "measure_and_draw"), 2)
    group = dict.fromkeys(("settle_ledger", "tabulate_cohort", "tabulate_trust", "score_truth", "write_report"), 1)
    assert jobs == expected | group

    template = work.digests("tpl-tiny/*")
    old = {subject: work.digests(f"{subject}/**/*") for subject in GOOD}
    result = work.popatlas("run", "--no-retry", check=False)
    assert result.returncode == 3, result.stdout + result.stderr
    assert work.digests("tpl-tiny/*") == template
    assert {subject: work.digests(f"{subject}/**/*") for subject in GOOD} == old
    assert set(group_metrics(work)["participant_id"]) == {*GOOD, "sub-06", "sub-07"}
    assert "sub-07" in (work.out / "report" / "index.html").read_text()
