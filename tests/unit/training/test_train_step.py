"""The steps that train a registration network: outputs, budgets, signals, several processes, bad tables."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from popatlas.cohort.training import NetworkTraining
from popatlas.config.load import default_config
from popatlas.errors import InputError
from popatlas.images.io import read_json, read_table, write_table
from popatlas.interfaces.train import TrainRegistration, WriteTrainingTable
from popatlas.networks.registration import load_registration_network
from popatlas.study.network import Network, network_memory
from popatlas.training.launch import UNFINISHED, run_processes
from popatlas.training.recipe import Recipe, load_recipe, parse_changes
from popatlas.training.table import read_training_table
from tests.unit.phantom_scans import write_scans
from tests.unit.training.test_loop import TINY

SOON = 1e-6  # minutes: over after one step
FOLDER = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("scans"), subjects=6)


def recipe(*changes: str) -> dict[str, Any]:
    return load_recipe("brain-t1w", parse_changes([*TINY, *changes])).content


def inputs(folder: Path, table: Path, *changes: str, **more: Any) -> dict[str, Any]:
    outputs = {key: folder / "out" / key for key in ("weights", "training", "curve", "picture")}
    given = {"recipe": recipe(*changes), "in_table": str(table), "folder": str(folder / "work"), **more}
    return given | {f"out_{key}": str(path) for key, path in outputs.items()} | {"record": str(folder / "record.json")}


def step(folder: Path, table: Path, *changes: str, **more: Any) -> None:
    TrainRegistration(**inputs(folder, table, *changes, **more)).run()


def command(folder: Path, table: Path, *changes: str) -> list[str]:
    given = inputs(folder, table, *changes)
    given["recipe"] = json.dumps(given["recipe"])
    options = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    return [sys.executable, "-m", "popatlas.cli.main", "step", "TrainRegistration", *options]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_registration_network(path)[0].state_dict()


def checkpoint(folder: Path) -> Any:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    step(folder, table)
    return folder


def test_a_training_leaves_weights_facts_and_curve(whole: Path) -> None:
    texts = load_registration_network(whole / "out/weights")[1]
    facts = read_json(whole / "out/training")
    assert json.loads(texts["popatlas_recipe_content"]) == facts["recipe"] == recipe()
    assert facts["reason"] == "the schedule ended" and facts["step"] == 40
    assert set(pd.read_csv(whole / "out/curve")["phase"]) == {"train", "validation"}
    assert (whole / "out/picture").read_bytes()[:4] == b"\x89PNG"
    record = read_json(whole / "record.json")
    assert record["state"] == "ok" and record["notes"]["device"] == "cpu"
    assert record["notes"]["best_step"] in (20, 40)


def test_a_job_whose_time_is_over_fails_with_a_checkpoint_and_the_next_one_goes_on(
    table: Path, whole: Path, tmp_path: Path
) -> None:
    for done in (1, 2):
        with pytest.raises(InputError, match=f"not finished: {done} of 40 steps .the time was over") as caught:
            step(tmp_path, table, minutes=SOON)
        assert "run again" in str(caught.value.remedy) and caught.value.file == tmp_path / "work/checkpoint.pt"
    assert not (tmp_path / "out/weights").exists() and checkpoint(tmp_path / "work")["step"] == 2
    failed = read_json(tmp_path / "record.json")
    assert failed["state"] == "failed" and failed["notes"]["steps_done"] == 2
    step(tmp_path, table)
    again, before = weights(tmp_path / "out/weights"), weights(whole / "out/weights")
    assert all(torch.equal(again[name], before[name]) for name in before)


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_job_leaves_a_checkpoint(table: Path, tmp_path: Path, asked: signal.Signals) -> None:
    long = ("schedule={steps: 100000, checkpoint_every: 5, validate_every: 100000}",)
    process = subprocess.Popen(command(tmp_path, table, *long), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "work/checkpoint.pt").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(asked)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert f"not finished: {checkpoint(tmp_path / 'work')['step']} of 100000 steps (signal {asked.name}" in message


def test_another_recipe_in_the_same_folder_is_refused(table: Path, whole: Path) -> None:
    with pytest.raises(InputError, match="another training"):
        step(whole, table, "loss.regulariser.weight=0.5")


def test_gpus_that_are_not_visible_are_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="99 GPU"):
        step(tmp_path, table, gpus=99)


def test_a_bad_table_is_named(table: Path, tmp_path: Path) -> None:
    rows = read_table(table, dtype=str)
    rows.loc[1, "image"] = "gone.nii.gz"
    bad = table.parent / "bad.tsv"
    write_table(rows, bad)
    with pytest.raises(InputError, match="row 2: the file in column image is not there") as caught:
        step(tmp_path, bad)
    assert caught.value.file == bad and caught.value.subject == "01"
    assert read_json(tmp_path / "record.json")["state"] == "failed"


def arguments(folder: Path, table: Path, *options: str, changes: tuple[str, ...] = ()) -> list[str]:
    return ["train", "brain-t1w", str(folder), "--table", str(table), *options, "--set", *TINY, *changes]


def test_processes_that_train_together_say_how_they_ended(table: Path, tmp_path: Path, capfd) -> None:
    assert run_processes(2, arguments(tmp_path, table, "--minutes", "0")) == UNFINISHED
    assert checkpoint(tmp_path)["step"] == 1 and not (tmp_path / "weights.safetensors").exists()
    assert run_processes(2, arguments(tmp_path, table, changes=("schedule.steps=41",))) == 1
    assert "another training" in capfd.readouterr().err
    assert run_processes(2, arguments(tmp_path, table)) == 0
    assert checkpoint(tmp_path)["step"] == 40 and (tmp_path / "weights.safetensors").exists()


@pytest.mark.parametrize("everyone", [False, True], ids=["one", "everyone"])
def test_a_signal_reaches_all_processes(table: Path, tmp_path: Path, everyone: bool) -> None:
    """A user signals the step alone, a scheduler all processes of the job: those get it twice then."""
    line = arguments(tmp_path, table, changes=("schedule={steps: 100000, checkpoint_every: 5, validate_every: 100000}",))
    code = f"from popatlas.training.launch import run_processes; raise SystemExit(run_processes(2, {line!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=FOLDER, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "curve.csv").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        before = checkpoint(tmp_path)["step"]
        (os.killpg if everyone else os.kill)(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == UNFINISHED
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert checkpoint(tmp_path)["step"] >= before


def test_the_table_holds_what_is_known_of_each_scan(tmp_path: Path) -> None:
    names = ["01", "02", "03"]
    splits = ["train", "train", "validation"]
    scans = pd.DataFrame({"scan": names, "subject": names, "session": ["", "ses-1", ""], "split": splits})
    write_table(scans, tmp_path / "cohort/scans.tsv")
    files = {kind: [tmp_path / "derived" / f"{name}_{kind}" for name in names] for kind in ("brain", "mask", "labels")}
    for path in chain.from_iterable(files.values()):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    given = {f"in_{key}": list(map(str, files[kind])) for key, kind in (("images", "brain"), ("masks", "mask"))}
    table = tmp_path / "work/train/scans.tsv"
    common = {"in_scans": str(tmp_path / "cohort/scans.tsv"), "out_table": str(table)}
    WriteTrainingTable(**given, in_labels=list(map(str, files["labels"])), in_affines=[], **common).run()
    found = read_training_table(table)
    assert [scan.name for scan in found] == ["01", "02_ses-1", "03"]
    assert [scan.split for scan in found] == splits
    assert [scan.image.resolve() for scan in found] == files["brain"]
    assert found[2].labels.resolve() == files["labels"][2] and found[2].affine is None
    assert not Path(read_table(table, dtype=str)["mask"][0]).is_absolute(), "the output folder may be moved"
    with pytest.raises(InputError, match="2 files in in_masks for 3 scans"):
        WriteTrainingTable(**given | {"in_masks": given["in_masks"][:2]}, **common).run()


def test_slices_are_held_as_images(tmp_path: Path) -> None:
    plain, slices = load_recipe("brain-t1w-2d", {"grid": {"slice_axis": ""}}), load_recipe("brain-t1w-2d")
    low, high = slices.grid.slices_mm
    places = int((high - low) / slices.grid.spacing_mm) + 1
    assert slices.grid.slice_axis and places > 1

    def needed(recipe: Recipe) -> int:
        return Network(default_config(), NetworkTraining("n", "v", recipe, ("a", "b"))).memory()

    voxels, batch = math.prod(plain.grid.shape), plain.schedule.batch
    assert needed(plain) == network_memory(voxels, batch, 2)
    assert needed(slices) == network_memory(voxels, batch, 2 * places) > needed(plain)
