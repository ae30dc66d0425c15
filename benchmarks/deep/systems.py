"""The registration networks of papers: each trained by its recipe with the same CPU time, scored on people none has seen.

Every training sees the same 21 brains on one grid of 3 mm, whose 64 voxels all strides divide, at a learning rate that
falls to zero (papers train for days at lower ones), and ends after the steps that fit into `--budget` CPU seconds: their
number follows from a few steps whose time is measured first. So the table says what a network reaches on two cores before
lunch, not what it can reach in the end. What a paper's network is published with, losses and the convention of the weight
of smoothness, is as in its recipe.

Two rows say what that convention means: VoxelMorph's weight of 1 is for the mean over components and derivatives; as
the weight of their sum it smooths nine times as much.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from benchmarks.common import Record
from benchmarks.deep.bars import pairs_table
from benchmarks.deep.papers import PREFIX, SYSTEMS, System, weights_name
from benchmarks.deep.rows import Row, SystemRow
from popatlas.errors import InputError
from popatlas.images.io import read_json, write_json
from popatlas.networks.registration import (
    build_registration_network,
    load_registration_network,
    save_registration_network,
)
from popatlas.training.checkpoint import Checkpoint
from popatlas.training.recipe import Recipe, load_recipe
from popatlas.training.train import CONTENT, WEIGHTS, Options, contract_of, count_parameters, train
from popatlas.zoo.lock import read_locks
from popatlas.zoo.metadata import CONTRACT, RECIPE, TrainingFacts
from popatlas.zoo.store import Description, add_weights

GRID = {"shape": [64, 64, 64], "spacing_mm": 3.0, "stripped": True, "affine_first": True}
PROBES = (1, 1, 6)  # steps of short trainings: the first warms up, the others' difference says what a step costs
FACTS: tuple[Literal["parameters", "steps", "train_cpu_s", "learnt"], ...] = ("parameters", "steps", "train_cpu_s", "learnt")
TITLE = "Networks of papers, each trained with the same CPU time"


def recipe_of(system: System, steps: int, validations: int = 4) -> Recipe:
    """Return the recipe of a system for so many steps on the common grid."""
    often = {
        "validate_every": max(1, steps // validations),
        "validation_pairs": 3,
        "checkpoint_every": max(1, steps // 10),
        "record_every": max(1, steps // 40),
    }
    # the same plan for all, whatever the paper's
    plan = {
        "steps": steps,
        "batch": 1,
        "rate": system.rate,
        "warm_up": 0,
        "decay": "cosine",
        "clip": 1.0,
    }
    return load_recipe(system.recipe, {**system.changes, "grid": GRID, "schedule": {**plan, **often}})


def train_all(table: Path, out: Path, budget: float) -> dict[str, SystemRow]:
    """Train each network that is not in a folder yet, and return what each training was.

    Parameters
    ----------
    table : Path
        `training.tsv` of the cohort.
    out : Path
        Folder; finished trainings in it are kept, one that was interrupted goes on.
    budget : float
        CPU seconds of each training.
    """
    torch.set_num_threads(1)
    own = {name: system for name, system in SYSTEMS.items() if not system.trained_as}
    steps = {name: timed(system, table, out / weights_name(name)) for name, system in own.items()}  # all under one load
    return {
        name: trained(system, table, out / f"{weights_name(name)}-{budget:g}", budget, steps[name])
        for name, system in own.items()
    }


def timed(system: System, table: Path, folder: Path) -> float:
    """Return the CPU seconds of a step, which are measured once and kept."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "step.json"
    if not file.is_file():
        write_json(file, {"step_s": seconds_of_a_step(system, table, folder / "probe")})
    return float(read_json(file)["step_s"])


def trained(system: System, table: Path, folder: Path, budget: float, step: float) -> SystemRow:
    """Train a network within its budget, unless that is done; return steps, seconds, parameters and the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "system.json"
    if not file.is_file():
        recipe = recipe_of(system, max(1, int(budget / step)))
        started, learnt = time.process_time(), True
        try:
            train(recipe, table, folder, Options("cpu"))
        except InputError as error:
            print(f"{recipe.name}: {error.message}", flush=True)
            learnt = False
            save_last(recipe, folder)
        row: SystemRow = {
            "steps": recipe.schedule.steps,
            "step_s": step,
            "train_cpu_s": time.process_time() - started,
            "learnt": learnt,
            "parameters": count_parameters(load_registration_network(folder / WEIGHTS)[0]),
            "weights": str(folder / WEIGHTS),
        }
        write_json(file, row)
    found: SystemRow = read_json(file)
    return found


def save_last(recipe: Recipe, folder: Path) -> None:
    """Write the network of a training that ended no better than without registration, as its last checkpoint has it.

    `popatlas train` publishes none; here it stands in the table for what it is.
    """
    net = build_registration_network(recipe.network.name, recipe.ndim, **recipe.network.options)
    net.load_state_dict(Checkpoint.load(folder / "checkpoint.pt").weights)
    texts = {CONTRACT: contract_of(recipe, net).to_json(), RECIPE: recipe.name, CONTENT: recipe.as_json()}
    save_registration_network(net, folder / WEIGHTS, texts)


def seconds_of_a_step(system: System, table: Path, folder: Path) -> float:
    """Return the CPU seconds of a step: the difference of a short training and a shorter one."""
    seconds = []
    for steps in PROBES:
        shutil.rmtree(folder, ignore_errors=True)
        started = time.process_time()
        try:
            train(recipe_of(system, steps, validations=1), table, folder, Options("cpu"))
        except InputError as error:  # after so few steps it may well be no better than nothing
            print(error.message, flush=True)
        seconds.append(time.process_time() - started)
    shutil.rmtree(folder, ignore_errors=True)
    step = (seconds[2] - seconds[1]) / (PROBES[2] - PROBES[1])
    if step <= 0:
        raise RuntimeError(f"the steps of {system.recipe} could not be timed, the machine is too busy: {seconds}")
    return step


def add_all(found: Mapping[str, SystemRow]) -> dict[str, str]:
    """Add trained networks to the user's weights of the benchmark; return their digests by name."""
    for name, row in found.items():
        told = TrainingFacts(data="IXI brains of this benchmark", steps=row["steps"])  # where the file does not say it
        add_weights(row["weights"], Description(weights_name(name), licence="CC-BY-SA-3.0", training=told))
    return {entry.name: entry.sha256[:12] for entry in read_locks()}


def systems_table(rows: Sequence[Row], found: Mapping[str, SystemRow]) -> pd.DataFrame:
    """Return the means over the pairs beside what each training was."""
    table = pairs_table(rows).drop(columns=["inverse_error", "state"])
    table.insert(0, "network", [_name(engine) for engine in table.pop("engine")])
    facts: list[Record] = []
    for name in table["network"]:
        row = found[SYSTEMS[name].trained_as or name] if name in SYSTEMS else None
        facts.append({key: row[key] for key in FACTS} if row else {})
    return pd.concat([table, pd.DataFrame(facts, columns=list(FACTS))], axis=1)


def _name(engine: str) -> str:
    """Return what an engine is called in the table."""
    return engine.removeprefix(PREFIX) if engine.startswith(PREFIX) else f"{engine} (not trained here)"
