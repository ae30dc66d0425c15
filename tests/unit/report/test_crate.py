"""RO-Crates of a study: what they say is what was written down when it was made, and the library reads them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from popatlas.cohort.runrecords import CRATE, FILE, read_runs, recorded, rename_words
from popatlas.errors import InputError, PackageError
from popatlas.images.io import sha256, write_json
from popatlas.receipts import FOLDER, Receipt
from popatlas.report.crate import DONE, FAILED, PROFILE, write_crate

SCAN = "sub-01/anat/sub-01"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder with a scan's image and a group table, made by two steps of one run."""
    monkeypatch.chdir(tmp_path)
    files = {f"{SCAN}_desc-preproc_T1w.nii.gz": "image", "group/metrics.tsv": "dice\n0.7\n"}
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    image, table = files
    raw = {"file": "/bids/sub-01/anat/sub-01_T1w.nii.gz", "bytes": 9, "sha256": 64 * "a"}
    made = {"file": image, "bytes": 5, "sha256": sha256(image)}
    steps = {
        "preprocess/sub-01_conform": ("CorrectAndConform", SCAN, {"in_file": raw, "out_file": image}),
        "group/tabulate_cohort": ("TabulateCohort", "", {"in_tables": [made], "out_tsv": table, "threads": 1}),
    }
    for name, (step, scan, inputs) in steps.items():
        told = {"step": step, "subject": scan, "popatlas": "9.9.9", "state": "ok", "started": "2026-01-01T00:00:00Z"}
        write_json(f"logs/{name}.log.json", {**told, "seconds": 2.5, "peak_mb": 100, "host": "node7", "inputs": inputs,
                                             "versions": {"numpy": "2.3.5"}})  # fmt: skip
        Receipt.of("0", {}, [value for key, value in inputs.items() if key.startswith("out_")]).write(
            f"{FOLDER}/{name}.json"
        )
    Path("config.yaml").write_text("bids_dir: /bids\n")
    with recorded(tmp_path, ["run", "/bids", "my out"], tmp_path / "config.yaml") as ends:
        assert ends(0) == 0
    return tmp_path


def read(folder: Path):
    rocrate = pytest.importorskip("rocrate.rocrate")
    return rocrate.ROCrate(folder)


def test_the_group_results_lead_back_to_what_they_were_made_from(study: Path) -> None:
    assert write_crate(study) == study / CRATE
    crate = read(study)
    assert crate.root_dataset["conformsTo"].id == PROFILE
    table = crate.dereference("group/metrics.tsv")
    assert table["sha256"] == sha256("group/metrics.tsv") and table["contentSize"] == "9"
    assert crate.dereference(f"{SCAN}_desc-preproc_T1w.nii.gz") is None
    actions = {action["name"]: action for action in crate.get_by_type("CreateAction")}
    assert set(actions) == {"TabulateCohort", "popatlas run /bids 'my out'"}
    step = actions["TabulateCohort"]
    assert step["result"] == [table] and step["instrument"]["softwareVersion"] == "9.9.9"
    assert [read["alternateName"] for read in step["object"]] == [f"{SCAN}_desc-preproc_T1w.nii.gz"]
    assert {needed.id for needed in step["instrument"]["softwareRequirements"]} == {"#numpy-2.3.5"}
    assert actions["popatlas run /bids 'my out'"]["result"] == [table]


def test_file_by_file_it_leads_back_to_the_raw_images(study: Path) -> None:
    write_crate(study, files=True)
    crate = read(study)
    image = crate.dereference(f"{SCAN}_desc-preproc_T1w.nii.gz")
    steps = {action["name"]: action for action in crate.get_by_type("CreateAction")}
    assert steps["TabulateCohort"]["object"] == [image]
    (raw,) = steps[f"CorrectAndConform {SCAN}"]["object"]
    assert raw["alternateName"] == "/bids/sub-01/anat/sub-01_T1w.nii.gz" and raw["sha256"] == 64 * "a"


def test_what_is_gone_is_not_described(study: Path) -> None:
    (study / "group/metrics.tsv").unlink()
    write_crate(study)
    assert read(study).dereference("group/metrics.tsv") is None


def test_a_file_that_is_not_what_was_made_is_refused_but_for_the_ledger(study: Path) -> None:
    (study / "cohort/ledger.tsv").write_text("scan\n")
    Receipt.of("0", {}, ["cohort/ledger.tsv"]).write(f"{FOLDER}/group/settle_ledger.json")
    (study / "cohort/ledger.tsv").write_text("scan\nsub-01\n")
    write_crate(study)
    assert read(study).dereference("cohort/ledger.tsv")["sha256"] == sha256("cohort/ledger.tsv")
    (study / "group/metrics.tsv").write_text("dice\n0.9\n")
    with pytest.raises(InputError, match=r"not what was made: group/metrics\.tsv"):
        write_crate(study)


def test_a_run_that_was_killed_has_no_end_and_a_torn_line_costs_nothing_else(study: Path) -> None:
    with (study / FILE).open("a") as stream:
        stream.write('{"run": "torn", "sta')  # killed while it wrote
    manager = recorded(study, ["run", "killed"], study / "config.yaml")
    manager.__enter__()  # never left
    with pytest.raises(KeyboardInterrupt), recorded(study, ["run", "interrupted"], study / "config.yaml"):
        raise KeyboardInterrupt
    first, killed, interrupted = read_runs(study)
    assert first["exit_code"] == 0 and first["config_sha256"] == sha256(study / "config.yaml")
    assert "ended" not in killed and killed["command"] == "popatlas run killed"
    assert interrupted["exit_code"] == 1
    write_crate(study)
    states = {action["name"]: action["actionStatus"] for action in read(study).get_by_type("CreateAction")}
    assert states["popatlas run killed"] == states["popatlas run interrupted"] == FAILED
    assert states["popatlas run /bids 'my out'"] == DONE


def test_an_empty_folder_and_a_missing_library_are_said(study: Path, tmp_path_factory, monkeypatch) -> None:
    with pytest.raises(InputError, match="nothing was made here"):
        write_crate(tmp_path_factory.mktemp("empty"))
    monkeypatch.setitem(sys.modules, "rocrate.rocrate", None)
    with pytest.raises(PackageError, match="provenance"):
        write_crate(study)
    assert not (study / CRATE).exists()


def test_a_label_on_a_command_line_is_called_otherwise_as_a_word_of_its_own(study: Path) -> None:
    words = [
        "--participant-label=01",
        "01",
        "011",
        "02,01",
        "--set",
        "cohort.exclude=[01, 02]",
        "--query",
        "participant_id != '01'",
    ]
    with recorded(study, ["run", "/bids", "out/01", *words], study / "config.yaml") as ends:
        ends(3)
    rename_words(study, "01", "withdrawn1")
    first, last = read_runs(study)
    assert first["command"] == "popatlas run /bids 'my out'"
    words = [word.replace("01", "withdrawn1") if word != "011" else word for word in words]
    assert last["command"] == shlex.join(["popatlas", "run", "/bids", "out/01", *words]) and last["exit_code"] == 3
