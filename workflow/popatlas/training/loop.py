"""The training loop: steps in mixed precision, validation, early stop, checkpoints, exact resume, several GPUs.

Several processes (one for each GPU) average their gradients once a step; each draws pairs of its own. What decides about
the training is the same in all: the first one validates, and memory that ends in one ends in all. The randomness of a step
follows from seed, rank and step, and the checkpoint holds the rest.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from popatlas.errors import InputError
from popatlas.networks.memory import free_memory, is_out_of_memory
from popatlas.networks.registration import RegistrationNetwork
from popatlas.training.checkpoint import Checkpoint
from popatlas.training.curve import Row, Terms, draw_curve, write_curve
from popatlas.training.distributed import Place
from popatlas.training.objective import Batch, Objective
from popatlas.training.randomness import step_generator
from popatlas.training.recipe import Recipe
from popatlas.training.sections import ScheduleSection
from popatlas.training.validation import validate

LINE_EVERY = 30.0  # seconds between lines of progress
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Source(Protocol):
    """Gives the pairs to learn from."""

    def draw(self, pairs: int, generator: torch.Generator) -> Batch:
        """Return a batch of pairs on the CPU."""

    def validation(self) -> Sequence[Batch]:
        """Return the pairs for validation, one each; always the same."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes
    ----------
    finished : bool
        False when it was interrupted, or its time was over: the same call goes on.
    reason : str
        Why it ended.
    checkpoint : Checkpoint
        The state then.
    scores : dict
        Of the best network on the validation pairs.
    """

    finished: bool
    reason: str
    checkpoint: Checkpoint
    scores: Terms


class Trainer:
    """Trains one network by one recipe.

    Parameters
    ----------
    recipe : Recipe
        What to do.
    net : RegistrationNetwork
        Network with its first weights.
    source : Source
        Pairs.
    folder : Path
        Existing folder; gets `checkpoint.pt`, `curve.csv` and `curve.png`.
    identity : str
        Digest of recipe and data.
    place : Place
        Device and rank.
    report : callable
        Gets lines of progress.
    extra : callable, optional
        Gets each row of the curve, for TensorBoard.
    """

    def __init__(
        self,
        recipe: Recipe,
        net: RegistrationNetwork,
        source: Source,
        folder: Path,
        identity: str,
        place: Place | None = None,
        report: Callable[[str], None] = print,
        extra: Callable[[Row], None] | None = None,
    ) -> None:
        self.recipe, self.plan, self.source, self.folder = recipe, recipe.schedule, source, folder
        self.place, self.report, self.extra = place or Place(), report, extra
        self.net = net.to(self.place.device)
        self.objective = Objective(recipe)
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=self.plan.rate)
        half = PRECISIONS[_precision(self.plan.precision, self.place.device)]
        self.half = half
        self.scaler = torch.amp.GradScaler(self.place.device, enabled=half is torch.float16)
        self.state = Checkpoint(identity, 0, {}, {}, {}, _copy(self.net), -math.inf, 0, micro_batch=self.plan.batch)

    @property
    def path(self) -> Path:
        """The checkpoint's file."""
        return self.folder / "checkpoint.pt"

    def resume(self) -> bool:
        """Go on from the checkpoint of the folder, if there is one."""
        if not self.path.is_file():
            return False
        self.state = Checkpoint.load(self.path, self.state.identity)
        self.net.load_state_dict(self.state.weights)
        self.optimiser.load_state_dict(self.state.optimiser)
        self.scaler.load_state_dict(self.state.scaler)
        self.report(f"resumed at step {self.state.step} of {self.plan.steps}")
        return True

    def run(self, seconds: float = math.inf) -> Outcome:
        """Train until the schedule or the patience ends, `seconds` are over, or a signal asks to stop.

        A training that has ended before stays as it is.

        Raises
        ------
        InputError
            When the validation pairs stay worse than without registration, the loss is not finite, or the memory of the
            device is too small for a single pair.
        """
        if self.state.ended:
            return Outcome(True, self.state.ended, self.state, self._best())
        started, spent, last_line = time.monotonic(), self.state.seconds, -math.inf
        reason = "the schedule ended"
        with stop_signals() as asked:
            while self.state.step < self.plan.steps:
                self.state.pending.append(self._step())
                self.state.step += 1
                self.state.seconds = spent + time.monotonic() - started
                if self._due(self.plan.record_every):
                    self._record("train", _mean(self.state.pending))
                    self.state.pending.clear()
                if time.monotonic() - last_line > LINE_EVERY and self.state.curve:
                    last_line = time.monotonic()
                    self.report(self._progress(self.state.seconds / self.state.step))
                if self._due(self.plan.validate_every) and not self._validate():
                    reason = f"no better score in {self.plan.patience} validations"
                    break
                if self.place.any_of(bool(asked) or time.monotonic() - started > seconds):
                    self._save()
                    why = f"signal {asked[0]}" if asked else "the time was over"
                    return Outcome(False, f"{why} at step {self.state.step}", self.state, self._best())
                if self._due(self.plan.checkpoint_every):
                    self._save()
        self.state.ended = reason
        self._save()
        return Outcome(True, reason, self.state, self._best())

    def _due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.plan.steps

    def _step(self) -> Terms:
        """Make one step; while the device's memory is too small, again with half as many pairs at once."""
        generator = step_generator(self.plan.seed, self.state.step, self.place.rank)
        batch = to_device(self.source.draw(self.plan.batch, generator), self.place.device)
        state = generator.get_state()
        while (row := self._tried(batch, generator)) is None:
            self._halve()
            generator.set_state(state)
        self.place.average_gradients(self.net.parameters())
        for group in self.optimiser.param_groups:
            group["lr"] = row["rate"] = self.plan.rate * rate_share(self.plan, self.state.step)
        self.scaler.unscale_(self.optimiser)
        if self.plan.clip:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.plan.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return row

    def _tried(self, batch: Batch, generator: torch.Generator) -> Terms | None:
        """Return the terms of a batch, nothing when memory ran out here or in another process."""
        torch.manual_seed(generator.initial_seed())  # networks that draw do the same in each try
        row = None
        try:
            row = self._gradients(batch, generator)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None if self.place.any_of(row is None) else row

    def _halve(self) -> None:
        """Take half as many pairs at once from now on."""
        self.optimiser.zero_grad(set_to_none=True)
        free_memory()
        if self.state.micro_batch == 1:
            remedy = "use a smaller grid.shape or network, or a device with more memory"
            raise InputError(f"one pair does not fit into the memory of {self.place.device}", remedy=remedy)
        self.state.micro_batch = math.ceil(self.state.micro_batch / 2)
        self.report(f"memory ran out: {self.state.micro_batch} pairs at once from now on, {self.plan.batch} a step")

    def _gradients(self, batch: Batch, generator: torch.Generator) -> Terms:
        """Sum the gradients of a batch, some pairs at a time, and return the mean terms."""
        self.optimiser.zero_grad(set_to_none=True)
        size, rows = len(batch.fixed), []
        for start in range(0, size, self.state.micro_batch):
            part = pick(batch, slice(start, start + self.state.micro_batch))
            share = len(part.fixed) / size
            with torch.autocast(self.place.device.split(":")[0], self.half, enabled=self.half is not None):
                found = self.net(part.fixed, part.moving)
            loss, terms = self.objective(part, found, generator)
            if not bool(torch.isfinite(loss)):
                remedy = "look at the images of the table, or use a lower schedule.rate or schedule.precision: float32"
                raise InputError(f"the loss is not finite at step {self.state.step + 1}", remedy=remedy)
            self.scaler.scale(share * loss).backward()  # type: ignore[no-untyped-call]
            rows.append({"loss": float(loss.detach()), **terms})
        return _mean(rows)

    def _validate(self) -> bool:
        """Validate, keep the best network, and tell whether to go on."""
        scores: Terms = {}
        if self.place.rank == 0:
            pairs = [to_device(pair, self.place.device) for pair in self.source.validation()]
            scores = validate(self.net, pairs, self.recipe.grid.spacing_mm)
        scores = self.place.from_first(scores)
        self._record("validation", scores)
        score = _score(scores)
        if score > self.state.best_score + self.plan.least_gain:
            self.state.best_score, self.state.best_step, self.state.best_weights = score, self.state.step, _copy(self.net)
        waited = (self.state.step - self.state.best_step) // self.plan.validate_every
        done = self.state.step >= self.plan.steps
        late = waited >= self.plan.patience or done
        if self.state.best_score <= _unregistered(scores) and late:
            name = "pose" if "pose" in scores else "correlation" if math.isnan(scores["dice"]) else "Dice"
            raise InputError(
                f"after {self.state.step} steps the network makes the validation pairs no better than without registration"
                f" ({name} {score:.4f}, unregistered {_unregistered(scores):.4f})",
                file=self.path,
                remedy="check that the images are affinely aligned and of one kind; train longer, or with a lower rate",
            )
        return waited < self.plan.patience

    def _record(self, phase: str, values: Terms) -> None:
        row: Row = {"step": self.state.step, "phase": phase, "seconds": round(self.state.seconds, 1), **values}
        self.state.curve.append(row)
        if self.extra is not None and self.place.rank == 0:
            self.extra(row)

    def _progress(self, each: float) -> str:
        left = each * (self.plan.steps - self.state.step)
        last = self.state.curve[-1]
        terms = ", ".join(f"{k} {v:.4g}" for k, v in last.items() if k not in ("step", "phase", "seconds", "rate"))
        return f"step {self.state.step} of {self.plan.steps}: {terms}; {each:.2f} s a step, {clock(left)} left"

    def _save(self) -> None:
        if self.place.rank:
            return
        state = self.state
        state.weights, state.optimiser = _copy(self.net), self.optimiser.state_dict()
        state.scaler = self.scaler.state_dict()
        state.save(self.path)
        if state.curve:
            write_curve(state.curve, self.folder / "curve.csv")
            draw_curve(state.curve, self.folder / "curve.png", self.recipe.title)

    def _best(self) -> Terms:
        rows = [row for row in self.state.curve if row["phase"] == "validation" and row["step"] == self.state.best_step]
        return {k: float(v) for k, v in rows[-1].items() if k not in ("step", "phase", "seconds")} if rows else {}


def rate_share(plan: ScheduleSection, step: int) -> float:
    """Return the learning rate of a step as a share of the largest one: a linear rise, then the decay of the plan."""
    if step < plan.warm_up:
        return (step + 1) / plan.warm_up
    if plan.decay == "cosine":
        done = (step - plan.warm_up) / (plan.steps - plan.warm_up)
        return 0.5 * (1 + math.cos(math.pi * done))
    if plan.decay == "halving" and step >= plan.halve_from:
        return 0.5 ** ((step - plan.halve_from) // plan.halve_every + 1)
    return 1.0


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Collect the signals by which a scheduler or a user ends a job, instead of dying by them."""
    names = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    asked: list[str] = []
    try:
        before = {name: signal.signal(name, lambda number, _: asked.append(signal.Signals(number).name)) for name in names}
    except ValueError:  # not in the main thread
        before = {}
    try:
        yield asked
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def to_device(batch: Batch, device: str) -> Batch:
    """Return a batch on a device."""
    values = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    return replace(batch, **{name: value.to(device) for name, value in values.items() if value is not None})


def pick(batch: Batch, rows: slice) -> Batch:
    """Return some pairs of a batch."""
    values = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    return replace(batch, **{name: value[rows] for name, value in values.items() if value is not None})


def clock(seconds: float) -> str:
    """Return a duration as a person says it."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _precision(wanted: str, device: str) -> str:
    if wanted != "auto":
        return wanted
    return "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"


def _copy(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}


def _mean(rows: Sequence[Terms]) -> Terms:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}


def _score(scores: Terms) -> float:
    """Return what the best network is chosen by: a known motion, Dice where there are labels, or correlation; folds cost."""
    if "pose" in scores:
        return -scores["pose"]
    value = scores["ncc"] if math.isnan(scores["dice"]) else scores["dice"]
    return value - scores["folded"]


def _unregistered(scores: Terms) -> float:
    if "pose" in scores:
        return -scores["pose_before"]
    return scores["ncc_before"] if math.isnan(scores["dice"]) else scores["dice_before"]
