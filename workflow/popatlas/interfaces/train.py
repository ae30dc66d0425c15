"""Steps that train a registration network on the cohort: the table of its scans, and the training, which can be resumed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from nipype.interfaces.base import File, Str, isdefined, traits

from popatlas.errors import InputError
from popatlas.images.io import atomic_path, read_table, write_table, write_text
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface, limit_threads

if TYPE_CHECKING:
    from popatlas.training.recipe import Recipe

COLUMNS = {"image": "in_images", "mask": "in_masks", "affine": "in_affines", "labels": "in_labels"}


class WriteTrainingTableInputSpec(PopatlasInputSpec):
    """Inputs of WriteTrainingTable."""

    in_scans = File(exists=True, mandatory=True, desc="frozen scans: TSV with the columns subject, session and split")
    in_images = traits.List(File(exists=True), mandatory=True, desc="image of each scan")
    in_masks = traits.List(File(exists=True), desc="brain mask of each scan")
    in_affines = traits.List(File(exists=True), desc="affine of each scan to the template")
    in_labels = traits.List(File(exists=True), desc="labels of each scan")
    out_table = File(mandatory=True, desc="training table, TSV; paths are relative to its folder")


class WriteTrainingTable(PopatlasInterface):
    """List the scans that a registration network is trained on."""

    input_spec = WriteTrainingTableInputSpec

    def _execute(self) -> None:
        inputs = self.inputs
        scans = read_table(inputs.in_scans, dtype=str).fillna("")
        table = scans[["subject", "session", "split"]].copy()
        folder = Path(inputs.out_table).resolve().parent
        for column, trait in COLUMNS.items():
            files = getattr(inputs, trait)
            if not isdefined(files) or not files:
                continue
            if len(files) != len(scans):
                message = f"{len(files)} files in {trait} for {len(scans)} scans"
                raise InputError(message, file=inputs.in_scans, remedy="give one file for each scan")
            table[column] = [os.path.relpath(Path(file).resolve(), folder) for file in files]
        write_table(table, inputs.out_table)
        self.notes |= {str(split): int(count) for split, count in table["split"].value_counts().items()}


class TrainRegistrationInputSpec(PopatlasInputSpec):
    """Inputs of TrainRegistration."""

    recipe = traits.Dict(mandatory=True, desc="complete recipe (JSON)")
    in_table = File(exists=True, desc="training table; left out for recipes that need no data")
    folder = Str(mandatory=True, desc="folder of the checkpoint, where an interrupted training goes on")
    gpus = traits.Int(0, usedefault=True, desc="GPUs, each with a process of its own; 0 for the CPU")
    minutes = traits.Float(0.0, usedefault=True, desc="stop after so many minutes, with a checkpoint; 0: never")
    out_weights = File(mandatory=True, desc="trained network with its contract, recipe, training and scores; safetensors")
    out_training = File(mandatory=True, desc="the same facts, JSON")
    out_curve = File(mandatory=True, desc="loss terms and validation scores by step, CSV")
    out_picture = File(mandatory=True, desc="the same as a picture, PNG")


class TrainRegistration(PopatlasInterface):
    """Train a registration network by a recipe, or go on with its training.

    When the time is over, or a signal asks to stop, the checkpoint is written and the step fails: the same step goes on.
    """

    input_spec = TrainRegistrationInputSpec

    def _execute(self) -> None:
        from popatlas.cohort.training import FILES
        from popatlas.training.recipe import load_recipe
        from popatlas.training.train import check_device

        inputs, folder = self.inputs, Path(self.inputs.folder)
        device = check_device(inputs.gpus)
        limit_threads(inputs.threads)  # torch has been loaded only now
        self.notes |= {"device": device, "gpus": inputs.gpus}
        write_text(folder / "recipe.yaml", _as_yaml(inputs.recipe))
        recipe = load_recipe(folder / "recipe.yaml")
        reason = self._several(folder) if inputs.gpus > 1 else self._alone(recipe, folder, device)
        if reason:
            self._say_unfinished(recipe, folder, reason)
        for key, name in FILES.items():
            with atomic_path(getattr(inputs, f"out_{key}")) as temporary:
                shutil.copyfile(folder / name, temporary)

    def _table(self) -> str | None:
        return str(self.inputs.in_table) if isdefined(self.inputs.in_table) else None

    def _alone(self, recipe: Recipe, folder: Path, device: str) -> str:
        """Train in this process; return why it stopped before the end, nothing when it is done."""
        from popatlas.training.train import Options, train

        options = Options(device, self.inputs.minutes or float("inf"))
        outcome = train(recipe, self._table(), folder, options, lambda line: print(line, flush=True))
        self.notes |= {"ended": outcome.reason, "best_step": outcome.checkpoint.best_step, "scores": outcome.scores}
        return "" if outcome.finished else outcome.reason

    def _several(self, folder: Path) -> str:
        """Train in a process for each GPU; return why they stopped before the end, nothing when they are done."""
        from popatlas.training.launch import UNFINISHED, run_processes

        inputs = self.inputs
        line = ["train", str(folder / "recipe.yaml"), str(folder), "--gpus", str(inputs.gpus)]
        line += ["--threads", str(inputs.threads), "--minutes", str(inputs.minutes or float("inf"))]
        line += ["--table", table] if (table := self._table()) else []
        code = run_processes(inputs.gpus, line)
        if code not in (0, UNFINISHED):
            raise InputError(f"a process of the training ended with {code}", file=folder, remedy="see the log above this")
        return "the time was over, or a signal came" if code else ""

    def _say_unfinished(self, recipe: Recipe, folder: Path, reason: str) -> None:
        """Fail with what has been done and what to do."""
        from popatlas.training.checkpoint import Checkpoint

        path = folder / "checkpoint.pt"
        done, steps = Checkpoint.load(path).step, recipe.schedule.steps
        self.notes |= {"steps_done": done, "steps": steps}
        message = f"not finished: {done} of {steps} steps ({reason})"
        raise InputError(message, file=path, remedy="run again, the training goes on from this checkpoint")


def _as_yaml(recipe: dict[str, object]) -> str:
    import yaml

    plain = json.loads(json.dumps(recipe))  # a trait's dict is of a kind of its own
    return str(yaml.safe_dump(plain, sort_keys=False))
