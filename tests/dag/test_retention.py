"""Levels of `retention`: what they leave out is neither lost nor made by jobs, and is made again without one."""

import pytest

from popatlas.cohort.outputs import DERIVED, stage_outputs
from popatlas.config.load import load_config
from popatlas.images.io import read_json
from popatlas.receipts import FOLDER, Receipt
from popatlas.study import retention
from popatlas.study.inventory import BROKEN, LOST, MADE, NEVER
from popatlas.study.opening import begin, complete, cores_of

from ..cohorts import noise_cohort
from .test_dag import NAMES, opened
from .test_fusion import leave
from .test_inventory import SETTINGS, left, stock

MINIMAL = SETTINGS | {"retention": "minimal"}
SCAN, REGISTERED = "sub-02/anat/sub-02", "register_to_template"
FIELDS = (f"{SCAN}_from-T1w_to-popatlas_mode-image_xfm.nii.gz", f"{SCAN}_from-popatlas_to-T1w_mode-image_xfm.nii.gz")


@pytest.fixture
def cohort(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES[:4])
    leave(opened(tmp_path, MINIMAL), "all")
    return tmp_path


@pytest.fixture
def standard(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES[:4])
    leave(opened(tmp_path, SETTINGS), "all", lambda path: path)
    return tmp_path


def receipt(folder):
    return Receipt.read(folder / "out" / FOLDER / f"register/{SCAN}_space-popatlas.json")


def test_fields_that_were_left_out_are_not_lost(cohort):
    assert not list((cohort / "out").rglob("*_mode-image_xfm.nii.gz"))
    for path in retention.passed(stock(cohort, MINIMAL)):  # Snakemake removes them
        (cohort / "out" / path).unlink()
    inventory = stock(cohort, MINIMAL)
    assert left(inventory) == {} and not inventory.thin and retention.notes(inventory) == []
    assert all(inventory.is_done(SCAN, stage) for stage in ("register", "fuse", "measure", "page"))


def test_the_ledger_asks_for_what_is_kept():
    label = {"retention": "minimal"}
    kept, all_of = (stage_outputs(load_config(source), labelled=True)["register"] for source in (label, {}))
    assert len(all_of) - len(kept) == len(DERIVED[REGISTERED]) and set(kept) < set(all_of)


def test_going_up_starts_no_job_and_asks_for_the_fields_alone(cohort):
    inventory = stock(cohort)
    assert left(inventory) == {}, "no registration, and nothing that follows from one"
    found = {fields.scan: fields for fields in retention.missing(inventory)}
    assert len(found) == 4 and tuple(sorted(found[SCAN].wanted.values())) == tuple(sorted(FIELDS))
    (note,) = retention.notes(inventory)
    assert "4 scan(s) are made again" in note and "without a registration" in note


def test_going_up_registers_again_where_the_fields_cannot_be_made(cohort, capsys):
    """The files of this cohort are no fields: nothing can be made from them."""
    inventory = stock(cohort)
    complete(inventory, ["--cores", "1"])
    said = capsys.readouterr().err
    assert f"{SCAN} is registered again, its fields cannot be made" in said
    assert {verdict for (rule, _), verdict in left(inventory).items() if rule == REGISTERED} == {LOST}


def test_a_look_ahead_makes_nothing(cohort):
    config = load_config(SETTINGS, bids_dir=str(cohort / "bids"), out_dir=str(cohort / "out"))
    begin(config, ["--lint"], main=True)
    assert not list((cohort / "out").rglob("*_mode-image_xfm.nii.gz"))


def test_going_down_runs_nothing_and_removes_nothing_by_itself(standard):
    inventory = stock(standard, MINIMAL)
    assert left(inventory) == {}
    assert all((standard / "out" / path).is_file() for path in FIELDS)
    assert len(retention.surplus(inventory)) == 4
    (note,) = retention.notes(inventory)
    assert "popatlas retain OUT_DIR minimal --yes" in note


def test_what_cannot_be_made_again_stays(standard):
    summary = retention.take_away(retention.surplus(stock(standard, MINIMAL)))
    assert summary.scans == summary.size == 0 and len(summary.faults) == 4
    assert all((standard / "out" / path).is_file() for path in FIELDS)
    assert set(FIELDS) <= set(receipt(standard).outputs)


def test_a_field_that_nobody_asks_for_may_be_gone_but_not_be_another_one(standard):
    (standard / "out" / FIELDS[0]).unlink()
    assert left(stock(standard, MINIMAL)) == {}
    assert left(stock(standard)) == {(REGISTERED, SCAN): LOST}
    (standard / "out" / FIELDS[1]).write_text("garbage")
    assert left(stock(standard, MINIMAL)) == {(REGISTERED, SCAN): BROKEN}


def test_a_registration_without_its_other_files_is_made_again_at_every_level(cohort):
    path = cohort / "out" / FOLDER / f"register/{SCAN}_space-popatlas.json"
    found = Receipt.read(path)
    gone = next(name for name in found.outputs if name.endswith("desc-warp_xfm.nii.gz"))
    Receipt(found.made_of, found.inputs, {name: made for name, made in found.outputs.items() if name != gone}).write(path)
    for settings in (SETTINGS, MINIMAL):
        assert left(stock(cohort, settings))[REGISTERED, SCAN] == NEVER


def test_images_of_members_go_when_the_template_is_made(standard):
    inventory = stock(standard, MINIMAL)
    members = retention.passed(inventory)
    assert len(members) == 3 * 3 and all("/iter-1/" in path for path in members)
    for path in members:
        (standard / "out" / path).unlink()
    assert left(stock(standard, MINIMAL)) == {} and left(stock(standard)) == {}
    next((standard / "out" / "work").rglob("iter-1/template_T1w.nii.gz")).unlink()
    assert retention.passed(stock(standard, MINIMAL)) == []


def test_sizes_are_those_of_the_results_that_are_there(standard):
    inventory = stock(standard)
    sizes = retention.sizes(inventory)
    assert sizes["retention"] == "standard" and 0 < sizes["derived_bytes"] < sizes["bytes"]
    assert inventory.verdicts[inventory.jobs.name(REGISTERED, scan=SCAN)] == MADE
    retention.write_sizes(inventory)
    assert read_json(standard / "out" / "cohort" / "kept.json") == sizes
    for path in FIELDS:
        (standard / "out" / path).unlink()
    assert retention.sizes(stock(standard, MINIMAL))["derived_bytes"] < sizes["derived_bytes"]


def test_cores_are_those_of_the_command_line():
    assert [cores_of(line) for line in (["--cores", "4"], ["-c", "2", "all"], ["--cores=8"], ["all"], ["--cores"])] == [
        4, 2, 8, 1, 1,
    ]  # fmt: skip
