"""The verbs `logs` and `retry`: the right file of a scan, and what failed for one reason alone."""

import os
from pathlib import Path

import pytest
import yaml

from popatlas.cli import main as popatlas
from popatlas.cli.retry import dataset_of
from popatlas.cohort.ledger import forget_failures, read_failures, settle
from popatlas.images.io import write_text
from popatlas.receipts import read_attempt

from ..cohort.test_ledger import OUTPUTS, finish, index_of, key, record


@pytest.fixture
def study(tmp_path):
    """Two scans that failed, of memory and at the gate, and one that is done."""
    forget_failures(tmp_path)
    attempt = read_attempt(tmp_path)
    for name, code in (("01", "oom"), ("02", "gate")):
        finish(tmp_path, name, "preprocess")
        log = record(tmp_path, "register", f"{key(name)}_register", code=code, message=f"why {code}", attempt=attempt)
        write_text(log, "\n".join(f"line {number}" for number in range(100)))
        later = record(tmp_path, "preprocess", f"{key(name)}_conform", state="ok")
        os.utime(later, (2**31, 2**31))
    finish(tmp_path, "03", "preprocess", "register", "fuse", "measure")
    record(tmp_path, "measure", f"{key('03')}_measure", state="ok")
    settle(tmp_path, index_of("01", "02", "03"), OUTPUTS)
    write_text(tmp_path / "config.yaml", yaml.safe_dump({"bids_dir": "/data", "out_dir": "/moved"}))
    return tmp_path


def test_the_log_is_that_of_the_job_that_failed_though_another_is_newer(study, capsys):
    assert popatlas.main(["logs", str(study), "01", "--lines", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("line 98\nline 99\n")
    assert "failed at register (oom): why oom" in said
    assert said.endswith(f"log: {study / 'logs/register' / key('01')}_register.log\n")
    assert popatlas.main(["logs", str(study), key("01"), "--stage", "preprocess"]) == 0
    assert capsys.readouterr().out.endswith(f"log: {study / 'logs/preprocess' / key('01')}_conform.log\n")
    assert popatlas.main(["logs", str(study), "sub-03", "--all"]) == 0
    assert capsys.readouterr().out == f"{study / 'logs/measure' / key('03')}_measure.log\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["04"], "there is no scan '04'"),
        (["01", "--stage", "bench"], "has no stage 'bench'. Remedy: use one of index, preprocess"),
        (["03", "--stage", "fuse"], "has no log yet (fuse ok)"),
    ],
)
def test_what_is_not_there_is_told(study, line, words, capsys):
    assert popatlas.main(["logs", str(study), *line]) == 1
    assert words in capsys.readouterr().err


def test_a_retry_runs_with_the_last_settings_and_without_the_others(study, capsys, monkeypatch):
    assert popatlas.main(["retry", str(study), "--reason", "disk"]) == 0
    assert capsys.readouterr().out == "no scan failed for: disk\n"
    lines = []
    real = popatlas.main
    monkeypatch.setattr(popatlas, "main", lambda line: lines.append(line) or 3)
    assert real(["retry", str(study), "--reason", "OOM|time", "--cores", "3"]) == 3
    given = ["run", "/data", str(study), "--config", f"{study}/config.yaml", "--no-retry", "--profile", "default"]
    assert lines == [[*given, "--until", "all", "--cores", "3"]]
    assert list(read_failures(study)["code"]) == ["gate"]
    assert not (study / "popatlas.lock").exists()
    assert real(["retry", str(study), "--reason", "gate", "--later"]) == 0
    assert len(lines) == 1 and read_failures(study).empty


def test_a_dataset_that_was_moved_with_its_results_is_found(tmp_path):
    then = {"bids_dir": "/gone/project/bids", "out_dir": "/gone/project/derivatives/out"}
    out = tmp_path / "derivatives" / "out"
    out.mkdir(parents=True)
    assert dataset_of(then, out) == Path("/gone/project/bids"), "what is refused is the path of then"
    (tmp_path / "bids").mkdir()
    assert dataset_of(then, out) == tmp_path / "bids"
    here = then | {"bids_dir": str(tmp_path)}
    assert dataset_of(here, out) == tmp_path, "the dataset of the last run goes first"


def test_a_retry_of_nothing_is_refused(tmp_path, capsys):
    assert popatlas.main(["retry", str(tmp_path), "--reason", "oom"]) == 1
    assert "nothing has been run here" in capsys.readouterr().err
    assert popatlas.main(["retry", str(tmp_path), "--reason", "memory"]) == 2
    assert "'memory' is no reason" in capsys.readouterr().err
