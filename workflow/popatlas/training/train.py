"""Train a network by a recipe: from the table of scans to a weights file that tells what it is."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from popatlas.errors import InputError
from popatlas.images.io import PathLike, sha256, write_json
from popatlas.networks.registration import (
    RegistrationNetwork,
    build_registration_network,
    save_registration_network,
)
from popatlas.training.curve import TensorBoard
from popatlas.training.distributed import Place, processes
from popatlas.training.loop import Outcome, Trainer
from popatlas.training.recipe import Recipe, comparable
from popatlas.training.sources import make_source
from popatlas.training.table import TrainingScan, read_training_table
from popatlas.zoo.metadata import (
    CONTRACT,
    RECIPE,
    SCORES,
    TRAINING,
    InputContract,
    Intensity,
    Kind,
    Score,
    TrainingFacts,
    scores_to_json,
)

CONTENT = "popatlas_recipe_content"  # key of the whole recipe in the metadata
WEIGHTS = "weights.safetensors"
METRICS = ("dice_before", "dice", "ncc_before", "ncc", "folded")


@dataclass(frozen=True)
class Options:
    """How a training is run; none of it changes its result.

    Attributes
    ----------
    device : str
        ``cpu`` or ``cuda``.
    minutes : float
        Stop then, with a checkpoint.
    restart : bool
        Begin anew where there is a checkpoint.
    tensorboard : bool
        Write curves for TensorBoard too.
    """

    device: str = "cpu"
    minutes: float = math.inf
    restart: bool = False
    tensorboard: bool = False


def train(
    recipe: Recipe,
    table: PathLike | None,
    folder: PathLike,
    options: Options | None = None,
    report: Callable[[str], None] = print,
) -> Outcome:
    """Train a network, or go on with the training in a folder.

    Parameters
    ----------
    recipe : Recipe
        What to do.
    table : path-like or None
        Table of scans (`popatlas.training.table`); recipes that need no data go without.
    folder : path-like
        Gets `weights.safetensors`, `training.json`, `curve.csv`, `curve.png` and, for resuming, `checkpoint.pt`.
    options : Options, optional
        How it is run.
    report : callable
        Gets lines of progress.

    Returns
    -------
    Outcome
        When it is not finished, the same call goes on; the weights are written when it is.

    Raises
    ------
    InputError
        From reading the table, from the checkpoint, and from training; see `Trainer.run`.
    """
    options = options or Options()
    path = _made(folder)
    scans = read_training_table(table) if table is not None else []
    with processes(options.device) as place:
        quiet = report if place.rank == 0 else _nothing
        torch.manual_seed(recipe.schedule.seed)
        net = build_registration_network(recipe.network.name, recipe.ndim, **recipe.network.options)
        source = make_source(recipe, scans)
        extra = TensorBoard(path / "tensorboard").add if options.tensorboard and place.rank == 0 else None
        identity = place.from_first(identity_of(recipe, scans, place.world) if place.rank == 0 else "")
        trainer = Trainer(recipe, net, source, path, identity, place, quiet, extra)
        if options.restart or not trainer.resume():
            quiet(f"{recipe.title}: {count_parameters(net):,} parameters, {_told(scans)}, on {place.device}")
            if recipe.grid.affine_first and scans and scans[0].affine is None:
                quiet("no column `affine`: the images are taken as they are, affinely aligned to each other")
        outcome = trainer.run(60 * options.minutes)
        if outcome.finished and place.rank == 0 and not _is_published(path):
            publish(recipe, net, scans, outcome, place, path, len(source.validation()))
    return outcome


def publish(
    recipe: Recipe,
    net: RegistrationNetwork,
    scans: Sequence[TrainingScan],
    outcome: Outcome,
    place: Place,
    folder: Path,
    count: int,
) -> None:
    """Write the best network with contract, recipe, training and scores over `count` pairs, and the same facts as JSON."""
    state = outcome.checkpoint
    net.load_state_dict(state.best_weights)
    seen = sum(scan.split == "train" for scan in scans)
    facts = TrainingFacts(
        data=_told(scans),
        n=seen or None,
        device=device_name(place),
        steps=state.best_step,
        hours=round(state.seconds / 3600, 3),
    )
    found = [name for name in METRICS if math.isfinite(outcome.scores.get(name, math.nan))]
    scores = [
        Score(
            "validation pairs of the training", name, round(outcome.scores[name], 6), count, f"popatlas train {recipe.name}"
        )
        for name in found
    ]
    contract = contract_of(recipe, net)
    texts = {
        CONTRACT: contract.to_json(),
        RECIPE: recipe.name,
        TRAINING: facts.to_json(),
        SCORES: scores_to_json(scores),
        CONTENT: recipe.as_json(),
    }
    save_registration_network(net.to("cpu"), folder / WEIGHTS, texts)
    summary = {"recipe": recipe.content, "contract": contract.to_plain(), "training": facts.to_plain()}
    ended = {"reason": outcome.reason, "step": state.step, "best_step": state.best_step, "scores": outcome.scores}
    write_json(folder / "training.json", {**summary, **ended})


def contract_of(recipe: Recipe, net: RegistrationNetwork) -> InputContract:
    """Return what the images of a network must be, from its recipe."""
    grid, synthetic = recipe.grid, recipe.data.source != "scans"
    kind: Kind = "robust" if synthetic else recipe.data.intensity
    letters = "RAS" if recipe.ndim == 3 else "".join(letter for letter in "RAS" if letter != grid.slice_axis)[:2]
    return InputContract(
        spacing_mm=(grid.spacing_mm,) * recipe.ndim,
        multiple=net.stride,
        orientation=letters,
        shape=grid.shape if net.fixed_shape else None,
        usual_shape=None if net.fixed_shape else grid.shape,
        intensity=Intensity(kind),
        stripped=grid.stripped,
        affine_first=grid.affine_first,
    )


def identity_of(recipe: Recipe, scans: Sequence[TrainingScan], world: int = 1) -> str:
    """Return a digest of what makes a training what it is: recipe, scans with all of their files, number of processes."""
    parts = {scan.name: (scan.image, scan.labels, scan.mask, scan.affine) for scan in scans}
    digests = {path: sha256(path) for path in {path for files in parts.values() for path in files if path}}
    table = [
        [scan.name, scan.subject, scan.group, scan.split, *(digests[path] if path else "" for path in parts[scan.name])]
        for scan in scans
    ]
    what = {key: value for key, value in comparable(recipe.content).items() if key not in ("title", "reference")}
    return hashlib.sha256(json.dumps([what, table, world], sort_keys=True).encode()).hexdigest()


def count_parameters(net: torch.nn.Module) -> int:
    """Return the number of numbers that are learnt."""
    return sum(value.numel() for value in net.parameters())


def device_name(place: Place) -> str:
    """Return the processor or the GPU in words, and how many."""
    if place.device.startswith("cuda"):
        return f"{place.world} x {torch.cuda.get_device_name(place.device)}"
    return f"{place.world} x {platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def check_device(gpus: int) -> str:
    """Return the device for a number of GPUs, which must be visible.

    Raises
    ------
    InputError
        When fewer are.
    """
    visible = torch.cuda.device_count()
    if gpus > visible:
        raise InputError(f"{gpus} GPU(s) asked for, {visible} visible", remedy="ask for fewer, or 0 for the CPU")
    return "cuda" if gpus else "cpu"


def _made(folder: PathLike) -> Path:
    """Return the folder of a training, which is made if it is not there."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make the folder of the training: {error.strerror}"
        raise InputError(message, file=path, remedy="give a folder, or a path where one can be made") from error
    return path


def _is_published(folder: Path) -> bool:
    """Tell whether the weights of the checkpoint are written, rather than those of a training before it."""
    files = [folder / "checkpoint.pt", folder / WEIGHTS, folder / "training.json"]
    if not all(file.is_file() for file in files):
        return False
    checkpoint, *written = (file.stat().st_mtime_ns for file in files)
    return min(written) >= checkpoint


def _told(scans: Sequence[TrainingScan]) -> str:
    counts = {split: sum(scan.split == split for scan in scans) for split in ("train", "validation")}
    if not scans:
        return "no scans, images of random shapes"
    return f"{counts['train']} scans to learn from, {counts['validation']} to choose the best step"


def _nothing(line: str) -> None:
    """Report nothing: only the first process does."""
