"""The training loop: exact resume, signals, early stop, memory, several processes."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from popatlas.errors import InputError
from popatlas.networks.registration import build_registration_network, load_registration_network
from popatlas.training import loop
from popatlas.training.checkpoint import Checkpoint
from popatlas.training.distributed import Place
from popatlas.training.loop import Trainer, rate_share
from popatlas.training.objective import Batch
from popatlas.training.recipe import Recipe, load_recipe, parse_changes
from popatlas.training.sections import ScheduleSection
from popatlas.training.sources import make_source
from popatlas.training.table import TrainingScan, read_training_table
from popatlas.training.train import Options, identity_of, train
from popatlas.training.validation import mean_dice, validate
from popatlas.transforms.itk import write_affine
from tests.unit.phantom_scans import subject, write_scans

TINY = [
    "grid.shape=[32,32]",
    "network.options={widths: [8, 16], blocks: [0, 0]}",
    "loss.labels={shrink: 1, count: 3}",
    "loss.similarity.options.radius=3",
    "augment={common: {}, each: {look: {gamma: 0.1, noise: 0.01, bias: 0.0, blur: 0.0}}}",
    "schedule={steps: 40, batch: 2, rate: 0.003, warm_up: 5, record_every: 10, validate_every: 20, checkpoint_every: 10}",
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("scans"), subjects=6)


def tiny(*changes: str):
    return load_recipe("brain-t1w", parse_changes([*TINY, *changes]))


def trainer(table: Path, folder: Path, *changes: str) -> Trainer:
    return trainer_of(tiny(*changes), table, folder)


def trainer_of(recipe: Recipe, table: Path, folder: Path, place: Place | None = None) -> Trainer:
    torch.manual_seed(0)
    net = build_registration_network(recipe.network.name, recipe.ndim, **recipe.network.options)
    source = make_source(recipe, read_training_table(table))
    return Trainer(recipe, net, source, folder, "same", place, report=lambda line: None)


def curve(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "curve.csv").drop(columns="seconds")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_registration_network(folder / "weights.safetensors")[0].state_dict()


def command(table: Path, folder: Path, *options: str) -> list[str]:
    line = [sys.executable, "-m", "popatlas.cli.main", "train", "brain-t1w", folder, "--table", table, *options]
    return [str(part) for part in [*line, "--set", *TINY]]


@pytest.fixture(scope="module")
def undisturbed(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    outcome = train(tiny(), table, folder, report=lambda line: None)
    assert outcome.finished
    return folder


def test_a_killed_training_goes_on_as_if_nothing_had_happened(table: Path, undisturbed: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command(table, tmp_path))
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint.pt").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    killed_at = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert not (tmp_path / "weights.safetensors").exists() or killed_at == 40
    subprocess.run(command(table, tmp_path), check=True)
    pd.testing.assert_frame_equal(curve(tmp_path), curve(undisturbed))
    again, before = weights(tmp_path), weights(undisturbed)
    assert all(torch.equal(again[name], before[name]) for name in before)


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_with_a_checkpoint_of_any_step(table: Path, undisturbed: Path, tmp_path: Path, asked) -> None:
    found = trainer(table, tmp_path)
    draw, count = found.source.draw, []

    def interrupted(pairs: int, generator: torch.Generator) -> Batch:
        count.append(1)
        if len(count) == 13:
            os.kill(os.getpid(), asked)
        return draw(pairs, generator)

    found.source.draw = interrupted  # type: ignore[method-assign]
    outcome = found.run()
    assert not outcome.finished and outcome.checkpoint.step == 13 and asked.name in outcome.reason
    again = trainer(table, tmp_path)
    assert again.resume() and again.run().finished
    pd.testing.assert_frame_equal(curve(tmp_path), curve(undisturbed))


def test_the_command_says_that_it_is_not_finished(table: Path, tmp_path: Path) -> None:
    found = subprocess.run(command(table, tmp_path, "--minutes", "0"), capture_output=True, text=True)
    assert found.returncode == 3 and "run the same command" in found.stdout
    assert not (tmp_path / "weights.safetensors").exists() and (tmp_path / "checkpoint.pt").is_file()


def test_the_weights_tell_what_they_are(table: Path, undisturbed: Path) -> None:
    texts = load_registration_network(undisturbed / "weights.safetensors")[1]
    contract, training = (json.loads(texts[f"popatlas_{name}"]) for name in ("contract", "training"))
    assert contract["spacing_mm"] == [2.0, 2.0] and contract["multiple"] == 4 and contract["stripped"]
    assert training["n"] == 4 and training["steps"] in (20, 40)
    assert json.loads(texts["popatlas_recipe_content"])["schedule"]["steps"] == 40
    assert {score["metric"] for score in json.loads(texts["popatlas_scores"])} >= {"dice", "ncc", "folded"}
    assert (undisturbed / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_another_recipe_does_not_continue_a_checkpoint(table: Path, undisturbed: Path) -> None:
    with pytest.raises(InputError, match="another training"):
        train(tiny("loss.regulariser.weight=0.5"), table, undisturbed)


@pytest.mark.parametrize("part", ["image", "labels", "mask", "affine"])
def test_other_content_of_a_file_is_another_training(tmp_path: Path, part: str) -> None:
    files = {name: tmp_path / name for name in ("image", "labels", "mask", "affine")}
    for path in files.values():
        path.write_text("some")
    scans = [TrainingScan("one", **files)]
    before = identity_of(tiny(), scans)
    assert identity_of(tiny(), scans) == before != identity_of(tiny(), scans, world=2)
    files[part].write_text("more")  # of the same size
    assert identity_of(tiny(), scans) != before


@pytest.mark.parametrize("source", ["scans", "labels"])
def test_a_table_without_validation_is_refused_before_the_training(table: Path, source: str) -> None:
    recipe = tiny(f"data.source={source}", "synthesis.contrast=same")
    scans = [replace(scan, split="train") for scan in read_training_table(table)]
    with pytest.raises(InputError, match="validation") as caught:
        make_source(recipe, scans)
    assert "some subjects" in str(caught.value.remedy)


def test_affines_are_for_all_scans_or_none(table: Path, tmp_path: Path) -> None:
    write_affine(tmp_path / "a.mat", np.eye(3))
    scans = read_training_table(table)
    some = [replace(scan, affine=tmp_path / "a.mat") if number < 2 else scan for number, scan in enumerate(scans)]
    with pytest.raises(InputError, match="4 of 6 scans have no affine") as caught:
        make_source(tiny(), some)
    assert caught.value.subject == "02" and "empty it" in str(caught.value.remedy)


def test_a_training_tells_that_images_are_taken_as_aligned(table: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    train(tiny(), table, tmp_path / "a", Options(minutes=0), lines.append)
    assert any("no column `affine`" in line for line in lines)
    lines.clear()
    train(tiny("grid.affine_first=false"), table, tmp_path / "b", Options(minutes=0), lines.append)
    assert lines and not any("affine" in line for line in lines)


def test_a_folder_that_is_a_file_is_named(table: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    for path in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(InputError, match="cannot make the folder") as caught:
            train(tiny(), table, path)
        assert caught.value.file == path


def test_a_damaged_checkpoint_is_named(table: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot read the checkpoint"):
        train(tiny(), table, tmp_path)


def test_restart_begins_anew(table: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    assert train(tiny(), table, tmp_path, Options(restart=True), lambda line: None).finished


def test_memory_that_ends_halves_what_goes_through_at_once(table: Path, tmp_path: Path, monkeypatch) -> None:
    """The gradient is the one of the whole batch."""
    plain = trainer(table, tmp_path, "schedule.batch=4")
    plain._step()
    small = trainer(table, tmp_path, "schedule.batch=4")
    predict = type(small.net).predict

    def hungry(self, fixed, moving):
        if len(fixed) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, fixed, moving)

    monkeypatch.setattr(type(small.net), "predict", hungry)
    small._step()
    assert small.state.micro_batch == 2
    one, two = plain.net.state_dict(), small.net.state_dict()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-3)


def test_memory_that_ends_again_and_again_repeats_the_same_step(table: Path, tmp_path: Path, monkeypatch) -> None:
    """Halved twice, and a network that draws does the same as in the first try."""
    found = trainer(table, tmp_path, "schedule.batch=8")
    predict, drawn = type(found.net).predict, []

    def hungry(self, fixed, moving):
        drawn.append((len(fixed), float(torch.rand(()))))
        if len(fixed) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, fixed, moving)

    monkeypatch.setattr(type(found.net), "predict", hungry)
    found._step()
    assert [size for size, _ in drawn] == [8, 4, 2, 2, 2, 2]
    assert drawn[0][1] == drawn[1][1] == drawn[2][1] != drawn[3][1]
    found._save()
    assert Checkpoint.load(tmp_path / "checkpoint.pt").micro_batch == 2


@pytest.mark.parametrize("batch", [1, 3])
def test_memory_that_is_too_small_for_a_pair_is_an_error(table: Path, tmp_path: Path, monkeypatch, batch: int) -> None:
    found = trainer(table, tmp_path, f"schedule.batch={batch}")

    def hungry(self, fixed, moving):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(found.net), "predict", hungry)
    with pytest.raises(InputError, match="one pair does not fit"):
        found._step()


def test_the_training_stops_where_the_network_spoils_the_pairs(table: Path, tmp_path: Path) -> None:
    """As in the failed run on retinal images that is known: the loss rose, and nobody looked."""
    found = trainer(table, tmp_path, "schedule.patience=1", "schedule.validate_every=1")
    with torch.no_grad():
        found.net.head.flow.bias.fill_(3.0)
    with pytest.raises(InputError, match="no better than without registration"):
        found.run()


def test_patience_ends_a_training(table: Path, tmp_path: Path) -> None:
    outcome = trainer(table, tmp_path, "schedule={steps: 120, patience: 1, least_gain: 0.9, validate_every: 40}").run()
    assert outcome.finished and outcome.checkpoint.step == 80 and outcome.checkpoint.best_step == 40
    saved = (tmp_path / "checkpoint.pt").read_bytes()
    again = trainer(table, tmp_path, "schedule={steps: 120, patience: 1, least_gain: 0.9, validate_every: 40}")
    assert again.resume()
    again.source.draw = None  # type: ignore[method-assign]
    later = again.run()
    assert later.finished and later.reason == outcome.reason and later.checkpoint.step == 80
    assert later.scores == outcome.scores and (tmp_path / "checkpoint.pt").read_bytes() == saved


def test_a_training_that_has_ended_writes_only_weights_that_are_missing(
    table: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed, tmp_path / "again", copy_function=shutil.copy2)
    before, first = weights(folder), (folder / "weights.safetensors").stat().st_mtime_ns
    assert train(tiny(), table, folder, report=lambda line: None).finished
    assert (folder / "weights.safetensors").stat().st_mtime_ns == first
    (folder / "weights.safetensors").unlink()
    assert train(tiny(), table, folder, report=lambda line: None).checkpoint.step == 40
    assert all(torch.equal(value, before[name]) for name, value in weights(folder).items())
    os.utime(folder / "weights.safetensors", ns=(0, 0))  # of a training before a restart
    train(tiny(), table, folder, report=lambda line: None)
    assert (folder / "weights.safetensors").stat().st_mtime_ns > 0


def test_a_loss_that_is_not_finite_is_an_error(table: Path, tmp_path: Path) -> None:
    found = trainer(table, tmp_path)
    with torch.no_grad():
        found.net.head.flow.bias.fill_(math.nan)
    with pytest.raises(InputError, match="not finite at step 1"):
        found.run()


def test_learning_rates() -> None:
    plan = ScheduleSection(warm_up=10, steps=110, decay="cosine")
    assert rate_share(plan, 0) == pytest.approx(0.1) and rate_share(plan, 10) == 1
    assert rate_share(plan, 60) == pytest.approx(0.5) and rate_share(plan, 110) == pytest.approx(0)
    halving = ScheduleSection(warm_up=0, steps=100, decay="halving", halve_from=60, halve_every=20)
    assert [rate_share(halving, step) for step in (0, 59, 60, 79, 80, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_dice_is_for_labels_only() -> None:
    image, labels = subject(0, 32, 2)
    with pytest.raises(InputError, match="no labels"):
        mean_dice(image, image, image)
    with pytest.raises(InputError, match="thousands"):
        many = torch.arange(10_000).reshape(1, 1, 100, 100)
        mean_dice(many, many, many)
    assert mean_dice(labels, labels, labels) == 1
    assert mean_dice(labels, torch.zeros_like(labels), labels) == 0


def test_a_pair_without_common_labels_leaves_the_dice_of_the_others(table: Path, tmp_path: Path) -> None:
    found = trainer(table, tmp_path)
    first, *_ = found.source.validation()
    nothing = replace(first, moving_labels=torch.zeros_like(first.moving_labels))
    alone, both = validate(found.net, [first]), validate(found.net, [first, nothing])
    assert 0 < both["dice"] < 1 and both["dice"] == alone["dice"] and both["dice_before"] == alone["dice_before"]
    assert math.isnan(validate(found.net, [nothing])["dice"])


def test_an_untrained_network_changes_nothing_and_a_guided_one_already_registers(table: Path, tmp_path: Path) -> None:
    scores = {}
    for guided in ("false", "true"):
        found = trainer(table, tmp_path, f"network.options.guided={guided}")
        scores[guided] = validate(found.net, found.source.validation())
    plain, led = scores["false"], scores["true"]
    assert plain["dice"] == plain["dice_before"] == led["dice_before"] < led["dice"]
    assert plain["ncc"] == pytest.approx(plain["ncc_before"], abs=1e-3) and led["ncc"] > led["ncc_before"] + 1e-3
    assert plain["folded"] == led["folded"] == 0


def test_two_processes_learn_one_network(table: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launcher, *command(table, tmp_path)[1:]], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    held = pd.read_csv(tmp_path / "curve.csv").query("phase == 'validation'")
    assert list(held["step"]) == [20, 40] and held["dice"].iloc[-1] > held["dice_before"].iloc[-1]


def unused() -> Recipe:
    """Return a recipe that does not train the mask branch of its network."""
    schedule = "schedule={steps: 12, batch: 4, record_every: 6, validate_every: 6, rate: 3.0e-3}"
    changes = ["grid={shape: [32, 32], affine_first: false}", "loss.mask.weight=0", schedule]
    return load_recipe("masked-fcn", parse_changes(changes))


def together(rank: int, table: Path, folder: Path) -> None:
    """Train as one of two processes: the second runs out of memory once and has no pairs for validation."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = trainer_of(unused(), table, folder, Place("cpu", rank, 2))
    gradients, tries = found._gradients, []

    def hungry(batch: Batch, generator: torch.Generator):
        tries.append(found.state.micro_batch)
        if rank == 1 and len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradients(batch, generator)

    found._gradients = hungry  # type: ignore[method-assign]
    if rank == 1:
        found.source.validation = None  # type: ignore[method-assign]
    outcome = found.run()
    torch.save([tries, outcome.scores, found.net.state_dict()], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_decide_alike(table: Path, tmp_path: Path) -> None:
    """One network, also where memory ends in one process only, and where some of it is not trained."""
    torch.multiprocessing.spawn(together, args=(table, tmp_path), nprocs=2)
    (tries, scores, net), (other_tries, other_scores, other_net) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert tries == other_tries == [4] + 12 * [2]
    assert scores == other_scores and scores["dice"] > 0
    learnt = [name for name, _ in trainer_of(unused(), table, tmp_path).net.named_parameters()]
    assert all(torch.equal(net[name], other_net[name]) for name in learnt)


def test_a_checkpoint_round_trip(tmp_path: Path) -> None:
    state = Checkpoint("me", 3, {"a": torch.ones(2)}, {"state": {}}, {}, {"a": torch.zeros(2)}, 0.5, 2, 1, 7.0, [{"x": 1}])
    state.save(tmp_path / "c.pt")
    found = Checkpoint.load(tmp_path / "c.pt", "me")
    assert found.step == 3 and found.curve == [{"x": 1}] and torch.equal(found.weights["a"], torch.ones(2))
    with pytest.raises(InputError, match="another training"):
        Checkpoint.load(tmp_path / "c.pt", "you")
    assert Checkpoint.load(tmp_path / "c.pt").identity == "me"


def test_clock() -> None:
    assert loop.clock(59 * 60) == "59 min" and loop.clock(3 * 3600 + 240) == "3 h 4 min"
