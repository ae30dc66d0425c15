"""A channel or a page that fails is told, and costs neither the scan nor the group nor the report."""

import argparse
import json
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from jsonschema import Draft202012Validator

import popatlas.report.cohort
from popatlas.cli import status
from popatlas.cli.notes import closing_notes
from popatlas.cli.passes import BEGAN, Passes
from popatlas.cli.process import Outcome
from popatlas.cli.progress import SPARING
from popatlas.cohort.ledger import failed_scans, incomplete, left_out, read_ledger, settle, summary
from popatlas.cohort.outputs import stage_outputs
from popatlas.config.load import load_config, parse_config
from popatlas.images.io import write_table, write_text
from popatlas.measures.table import members
from popatlas.report.cohort import write_report
from popatlas.resources import schema_path
from popatlas.stages import SIDE_STAGES, STAGES
from popatlas.study import books
from tests.unit.cohort.test_ledger import index_of, key, record, states
from tests.unit.report_fixture import METHODS, TEMPLATE, build

CONFIG = load_config({"atlas": {"label": "t"}})
OUTPUTS = stage_outputs(CONFIG, labelled=False)
MAIN = ("preprocess", "register", "fuse", "measure")


def finish(out_dir, name, *stages, channel=""):
    for stage in stages:
        for pattern in OUTPUTS[stage]:
            write_text(out_dir / pattern.format(scan=key(name), channel=channel), "x")


def with_channels(index, **channels):
    return index.assign(channels=[json.dumps(channels.get(name.removeprefix("sub-"), {})) for name in index["subject"]])


def fail(out_dir):
    record(out_dir, "preprocess", f"{key('02')}_channel-T2w", message="the T2w is empty", remedy="export it again")
    record(out_dir, "report", f"{key('03')}_draw", message="no space left")


@pytest.fixture
def out(tmp_path):
    """Four measured scans: the T2w of 02 could not be aligned, the page of 03 not be drawn; 04 has all it should have."""
    for name in ("01", "02", "03", "04"):
        finish(tmp_path, name, *MAIN, "tissues")
    finish(tmp_path, "01", "page")
    finish(tmp_path, "02", "page")
    finish(tmp_path, "04", "page", "channel", channel="T2w")
    fail(tmp_path)
    index = pd.concat([index_of("01", "02", "03", "04"), index_of("05", state="excluded")], ignore_index=True)
    write_table(with_channels(index, **{"02": {"T2w": "x"}, "04": {"T2w": "y"}}), tmp_path / "cohort" / "index.parquet")
    return tmp_path


def settled_files(out):
    index = pd.read_parquet(out / "cohort" / "index.parquet")
    return index, settle(out, index, OUTPUTS)


def test_the_ledger_names_them(out):
    _, ledger = settled_files(out)
    assert states(ledger, "01") == dict.fromkeys(("index", *MAIN, "tissues", "page"), "ok")  # it has no channel
    assert states(ledger, "02") == states(ledger, "01") | {"channel": "failed"}
    assert states(ledger, "03") == states(ledger, "01") | {"page": "failed"}
    assert states(ledger, "04") == states(ledger, "01") | {"channel": "ok"}
    assert states(ledger, "05")["page"] == "excluded"
    assert incomplete(ledger)[["scan", "stage", "reason"]].to_numpy().tolist() == [
        [key("02"), "channel", "the T2w is empty; remedy: export it again"],
        [key("03"), "page", "no space left"],
    ]
    assert failed_scans(out) == {
        "": set(),
        "channel": {key("02")},
        "tissues": set(),
        "page": {key("03")},
        "bench": set(),
    }
    assert summary(ledger).loc["channel"].to_dict() == {"ok": 1, "failed": 1, "excluded": 0, "unavailable": 0, "pending": 0}
    validator = Draft202012Validator(yaml.safe_load(schema_path("ledger").read_text()))
    for row in ledger.to_dict("records"):
        validator.validate(row)


@pytest.mark.parametrize(("name", "place"), [("ledger", "stage"), ("status", "stages")])
def test_the_schemas_know_all_stages(name, place):
    schema = yaml.safe_load(schema_path(name).read_text())["properties"][place]
    assert schema.get("propertyNames", schema)["enum"] == [*STAGES, *SIDE_STAGES]


def test_their_failures_end_no_scan_while_a_run_works():
    assert {"align_channel", "segment_tissues", "draw_subject"} == SPARING


def test_no_scan_is_out_for_them(out):
    index, ledger = settled_files(out)
    assert left_out(ledger)["scan"].tolist() == [key("05")]
    assert members(index, ledger)[0]["scan"].tolist() == [key(name) for name in ("01", "02", "03", "04")]


def test_they_wait_for_what_they_need(tmp_path):
    finish(tmp_path, "01", "channel", channel="T2w")  # of a run before
    record(tmp_path, "preprocess", f"{key('01')}_conform", message="broken")
    record(tmp_path, "preprocess", f"{key('01')}_channel-T2w", message="not this")
    ledger = settle(tmp_path, with_channels(index_of("01"), **{"01": {"T2w": "x"}}), OUTPUTS)
    reasons = ledger.set_index("stage")["reason"]
    assert (reasons["preprocess"], reasons["channel"]) == ("broken", "waits for preprocess")
    assert reasons["page"] == "waits for measure"
    assert set(states(settle(tmp_path, index_of("A", role="atlas"), OUTPUTS), "A")) == {"index", "preprocess", "register"}


def test_a_run_ends_with_results_names_and_code_3(out, monkeypatch, capsys):
    """Channel and page fail in the pass of the subjects; what comes after is done without them."""
    started = []

    def snakemake(target):
        started.append(target)
        blocked = target == "subjects" and not failed_scans(out)["channel"]
        if blocked:
            fail(out)
        return Outcome(int(blocked), 0, BEGAN)

    def settle_files(inventory, settled):
        _, ledger = settled_files(out)
        rows = ledger[ledger["state"] == "failed"].to_dict("records")
        return {(row["scan"], row["stage"]): row["reason"] for row in rows}

    config = parse_config(CONFIG.content | {"out_dir": str(out)})
    index = pd.read_parquet(out / "cohort" / "index.parquet").assign(t1w="x", spacing_mm="2x2x2")
    write_table(index, out / "cohort" / "index.parquet")
    shutil.rmtree(out / "logs")
    write_text(out / "report" / "index.html", "")
    inventory = SimpleNamespace(needed=lambda target: [], clear_unfinished=lambda names: None)
    monkeypatch.setattr(books, "take_stock", lambda config, out_dir: inventory)
    monkeypatch.setattr(books, "leave_records", lambda inventory, left, why: [])
    monkeypatch.setattr(books, "settle_study", settle_files)
    run = Passes(argparse.Namespace(until="all", verbose=False), out / "config.yaml", config, config, None)
    monkeypatch.setattr(run, "_snakemake", snakemake)
    code = run.run(["preprocess", "subjects", "all"])
    results = (("QC page", "report/index.html"), ("atlas", "nowhere.nii.gz"))
    assert closing_notes(config, results, run.failures, ["said before"]) == 3
    printed = capsys.readouterr()
    assert (code, started) == (3, ["preprocess", "subjects", "subjects", "all"])
    assert f"{key('02')} failed at channel: the T2w is empty; remedy: export it again" in printed.err
    assert f"QC page  {out / 'report/index.html'}" in printed.out
    assert "failed at channel: sub-02\n" in printed.out
    assert "failed at page: sub-03\n" in printed.out
    assert "said before" in printed.out


def test_status_shows_them_and_ends_with_code_3(out, capsys):
    settled_files(out)
    assert status.main(argparse.Namespace(out_dir=out, json=False, watch=False)) == 3
    printed = capsys.readouterr().out
    assert f"failed      {key('02')}  (at channel)\n  the T2w is empty" in printed
    assert status.main(argparse.Namespace(out_dir=out, json=True, watch=False)) == 3
    found = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in found["incomplete"]] == ["channel", "page"]
    assert [row["scan"] for row in found["left_out"]] == [key("05")]


def test_the_report_needs_no_page_of_anyone_and_names_what_lacks(tmp_path, monkeypatch, capsys):
    def broken(*arguments):
        raise ValueError("no picture")

    out = build(tmp_path, subjects=2)
    monkeypatch.setattr(popatlas.report.cohort, "draw_subject", broken)  # what it draws of the failed scans
    ledger = read_ledger(out)
    first = ledger.iloc[0].to_dict() | {"stage": "page", "state": "failed", "reason": "no space <left>"}
    write_table(pd.concat([ledger, pd.DataFrame([first])]), out / "cohort" / "ledger.tsv")
    page = out / "report" / "index.html"
    write_report(out, out / "cohort" / "ledger.tsv", TEMPLATE, METHODS, 50, None, page)
    text = page.read_text()
    assert "2 of 5 in the group results" in text
    assert "In, but not complete" in text
    assert "no space &lt;left&gt;" in text
    assert "its page cannot be drawn: ValueError: no picture" in capsys.readouterr().out
