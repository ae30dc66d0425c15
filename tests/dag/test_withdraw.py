"""A subject who has withdrawn the consent: nothing of it stays, nothing else is lost, and it is not taken in again."""

import json
import shutil

import pandas as pd
import pytest
import yaml

from popatlas.cli.main import main
from popatlas.cohort.freeze import template_version
from popatlas.cohort.withdraw import Withdrawal, read_withdrawn
from popatlas.config.load import load_config
from popatlas.images.io import read_table, write_table, write_text
from popatlas.study.inventory import MADE, Inventory

from ..cohorts import noise_cohort
from .test_dag import NAMES, opened
from .test_fusion import leave

SETTINGS = {"atlas": {"members": 3, "iterations": 1}, "fuse": {"methods": ["majority", "jlf"], "atlases": 2}}


@pytest.fixture
def study(tmp_path):
    """A finished study whose files name subjects: tables of atlases, logs, records, lists."""
    noise_cohort(tmp_path / "bids", [*NAMES[:4], "sub-011"])
    names = "".join(f"{name} " for name in NAMES[:4])
    study, texts = opened(tmp_path, SETTINGS), (".tsv", ".json", ".html", ".js")
    leave(study, "all", lambda path: names if path.endswith(texts) and "cohort/" not in path else "")
    Inventory(study)
    study.digests.write()
    out = tmp_path / "out"
    write_text(out / "config.yaml", json.dumps(SETTINGS | {"cohort": {"include": ["01", "sub-02", "03", "04", "011"]}}))
    for name in NAMES[:4]:
        write_text(out / f"logs/fuse/{name}/anat/{name}_jlf.log", f"atlases {names}")
        write_text(out / f"logs/fuse/{name}/anat/{name}_from/sub-01/anat/sub-01.log", "")
    write_text(out / "report/subjects/order.js", names)
    write_text(out / "broken/20260101/sub-01/anat/sub-01_x.nii.gz", "x")
    write_text(out / ".snakemake/log/a.log", names)
    write_text(out / ".snakemake/slurm_logs/rule_x/sub-01/1.log", names)
    write_text(out / ".snakemake/conda/env.yaml", "installed")
    (out / "logs/crash.bin").write_bytes(b"\xff\xfe sub-01 \xff")
    return tmp_path


def everything(folder):
    """Return names and contents of all files, tables of Parquet as text."""
    found = []
    for path in sorted(folder.rglob("*")):
        content = b"" if path.is_dir() else path.read_bytes()
        is_table = path.suffix == ".parquet" and content
        text = pd.read_parquet(path).to_csv() if is_table else content.decode("utf-8", errors="replace")
        found.append(f"{path.relative_to(folder)}\n{text}")
    return "\n".join(found)


def withdraw(folder, name, *options):
    return main(["withdraw", str(folder / "out"), name, *options])


def test_nothing_happens_unconfirmed(study, capsys):
    before = everything(study / "out")
    assert withdraw(study, "01") == 1
    said = capsys.readouterr().out
    assert "nothing has been changed; with --yes" in said and "the template popatlas@" in said
    assert everything(study / "out") == before


@pytest.mark.parametrize("name", ["01", "sub-03"])
def test_nothing_of_it_stays_but_its_id_and_the_date(study, name, capsys):
    out, subject = study / "out", f"sub-{name.removeprefix('sub-')}"
    assert len(Withdrawal.of(out, subject).word.findall(everything(out))) > 40
    assert withdraw(study, name, "--yes") == 0
    listed = (out / "cohort/withdrawn.tsv").read_text()
    assert listed.split()[:3] == ["subject", "date", subject] and len(listed.split()) == 4
    (out / "cohort/withdrawn.tsv").unlink()
    assert [path.name for path in (out / ".snakemake").iterdir()] == ["conda"], "what was installed is no note"
    assert Withdrawal.of(out, subject).word.findall(everything(out)) == []
    assert "sub-011/anat/sub-011" in everything(out), "a longer name is another's"
    left = {"01", "sub-02", "03", "04", "011"} - {subject, subject.removeprefix("sub-")}
    assert set(yaml.safe_load((out / "config.yaml").read_text())["cohort"]["include"]) == left
    assert "it is still in: the template" in capsys.readouterr().out


def test_the_next_run_makes_only_what_follows_and_does_not_take_it_in(study):
    """Its raw data lie in the dataset as before; the template keeps its version though a member lost its name."""
    out = study / "out"
    version = opened(study, SETTINGS).template.version
    assert withdraw(study, "01", "--yes") == 0
    after = Inventory(opened(study, SETTINGS))
    assert after.study.template.version == version
    (path,) = [path for path in out.rglob("*") if path.is_file() and Withdrawal.of(out, "sub-01").names(path)]
    assert path == out / "cohort/withdrawn.tsv", "also after the dataset, in which it lies, was indexed"
    assert read_withdrawn(out) == {"sub-01"} and "sub-01/anat/sub-01" not in after.study.scans.images
    jobs = {after.jobs.jobs[name].rule for name in after.needed("all")}
    kept = {"normalise_brain", "register_to_template", "publish_template"}
    assert not jobs & {*kept, "conform_image", "register_member", "average_template"}, "and no image is made again"
    assert {"tabulate_cohort", "write_report"} <= jobs
    brains = [name for name, job in after.jobs.jobs.items() if job.rule in kept]
    assert len(brains) == 9 and all(after.verdicts[name] == MADE for name in brains)
    assert after.bad_files == {}, "files whose text was changed are known to their receipts"


def test_labels_that_were_fused_from_its_labels_go_whatever_is_asked_for_now(study, capsys):
    """Of jlf, which the settings have lost since: nothing would make these again."""
    out, fewer = study / "out", SETTINGS | {"fuse": {"methods": ["majority"], "atlases": 2}}
    fuse, names = opened(study, SETTINGS).fuse, [*NAMES[:4], "sub-011"]
    hit = [name for name in names[1:] if "sub-01/anat/sub-01" in fuse.atlases_for(f"{name}/anat/{name}")]
    files = [out / f"{name}/anat/{name}_desc-{method}_dseg.nii.gz" for name in hit for method in ("majority", "jlf")]
    assert hit and all(path.is_file() for path in files)
    opened(study, fewer)
    write_text(out / "cohort/kept.json", "{}")
    assert withdraw(study, "01") == 1
    assert f"{len(files)} label images of other scans" in capsys.readouterr().out and all(path.is_file() for path in files)
    assert withdraw(study, "01", "--yes") == 0
    assert not any(path.exists() for path in [*files, out / "cohort/kept.json"])
    after = Inventory(opened(study, fewer))
    made = {after.jobs.jobs[name].scan for name in after.needed("all") if after.jobs.jobs[name].rule == "fuse_labels"}
    assert made >= {f"{name}/anat/{name}" for name in hit} and after.bad_files == {}


def test_two_may_withdraw_one_after_the_other(study):
    version = opened(study, SETTINGS).template.version
    for name in ("01", "02"):
        assert withdraw(study, name, "--yes") == 0
    study_after = opened(study, SETTINGS)
    assert study_after.template.version == version
    members = set(read_table(study / "out/cohort/atlas-popatlas.tsv")["subject"])
    assert members & {"sub-01", "sub-02"} == set() and len([name for name in members if "withdrawn" in name]) >= 1
    other = load_config(SETTINGS | {"atlas": {"members": 3, "iterations": 2}}, out_dir=str(study / "out"))
    assert template_version(read_table(study / "out/cohort/atlas-popatlas.tsv", dtype=str).fillna(""), other) != version


def test_raw_files_of_another_name_are_forgotten_too(study):
    out = study / "out"
    index = read_table(out / "cohort/index.parquet")
    index.loc[index["subject"] == "sub-01", "t1w"] = "/data/x17.nii.gz"
    write_table(index, out / "cohort/index.parquet")
    digests = read_table(out / "cohort/digests.parquet")
    row = digests.iloc[[0]].assign(path="/data/x17.nii.gz")
    write_table(pd.concat([digests, row], ignore_index=True), out / "cohort/digests.parquet")
    assert withdraw(study, "01", "--yes") == 0
    assert "x17" not in everything(out)


def test_an_external_atlas_is_named_for_the_table_of_the_user_lists_it(study, capsys):
    write_text(study / "out/atlases/sub-04/anat/sub-04_desc-brain_mask.json", "{}")
    assert withdraw(study, "04", "--yes") == 0
    assert "it is still in: the table of external atlases (fuse.atlases): take it out there" in capsys.readouterr().out
    assert not (study / "out/atlases/sub-04").exists()


def test_what_is_not_there_or_busy_is_refused(study, capsys):
    assert withdraw(study, "77", "--yes") == 1
    assert "there is nothing of sub-77 here" in capsys.readouterr().err
    assert withdraw(study, "../etc", "--yes") == 2
    assert main(["withdraw", str(study), "01"]) == 1
    shutil.rmtree(study / "out/cohort")
    assert withdraw(study, "01", "--yes") == 1
    assert "nothing has been run here" in capsys.readouterr().err


def test_it_can_be_repeated(study):
    assert withdraw(study, "04", "--yes") == withdraw(study, "04", "--yes") == 0
    assert (study / "out/cohort/withdrawn.tsv").read_text().count("sub-04") == 1
