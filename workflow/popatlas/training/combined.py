"""Training of deep combined computing: two optimisers that take turns, checkpoints, exact resume.

Every step evaluates a group with both branches, and one of them learns: the segmentation branch, to which the encoder
belongs, from the segmentation and the anatomy loss; the registration branch from chi, bending energy and the anatomy loss.
They change every `turn` steps, so that the registration does not repair faults of the segmentation. The running means of the
normalisations follow every step, in both branches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.groupwise.deepcc.group import views_of
from popatlas.groupwise.deepcc.losses import anatomy_loss, chi_loss, posterior, segmentation_loss
from popatlas.groupwise.deepcc.network import CombinedNet
from popatlas.groupwise.deepcc.settings import CombinedSettings
from popatlas.regularisers.bending import bending
from popatlas.training.checkpoint import Checkpoint
from popatlas.training.curve import Terms, write_curve
from popatlas.training.loop import stop_signals
from popatlas.training.randomness import step_generator

BRANCHES = ("segmentation", "registration")
RECORD_EVERY = 10  # steps


@dataclass(frozen=True)
class GroupSample:
    """One group of a step.

    Attributes
    ----------
    images : list of (1, 1, *shape) Tensor
        Scaled images; sizes are multiples of the network's stride.
    domains : tuple of int
        Contrast of each.
    labels : list of (*shape) Tensor or None
        Labels of an image, where it has any.
    prior : (K, *shape) Tensor or None
        Class probabilities of an atlas in the common space.
    """

    images: list[Tensor]
    domains: tuple[int, ...]
    labels: list[Tensor | None]
    prior: Tensor | None = None


class GroupSource(Protocol):
    """Gives the groups to learn from."""

    def draw(self, generator: torch.Generator) -> GroupSample:
        """Return a group."""


def branch_of(step: int, plan: CombinedSettings) -> str:
    """Return the branch that learns in a step, counted from 0."""
    return BRANCHES[step // plan.turn % len(BRANCHES)]


class CombinedTrainer:
    """Trains a network on groups.

    Parameters
    ----------
    net : CombinedNet
        Network with its first weights.
    source : GroupSource
        Groups.
    plan : CombinedSettings
        What to do.
    folder : Path
        Existing folder; gets `checkpoint.pt` and `curve.csv`.
    identity : str
        Digest of settings and data.
    report : callable
        Gets lines of progress.
    """

    def __init__(
        self,
        net: CombinedNet,
        source: GroupSource,
        plan: CombinedSettings,
        folder: Path,
        identity: str,
        report: Callable[[str], None] = print,
    ) -> None:
        self.net, self.source, self.plan, self.folder, self.report = net, source, plan, folder, report
        self.weights = {
            "segmentation": [*net.encoder.parameters(), *net.segmentation.parameters()],
            "registration": list(net.registration.parameters()),
        }
        rates = {"segmentation": plan.segmentation_rate, "registration": plan.registration_rate}
        self.optimisers = {name: torch.optim.Adam(self.weights[name], lr=rates[name]) for name in BRANCHES}
        self.state = Checkpoint(identity, 0, {}, {}, {}, {}, -math.inf, 0, micro_batch=plan.batch)

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
        for name, optimiser in self.optimisers.items():
            state = self.state.optimiser[name]
            assert isinstance(state, dict)
            optimiser.load_state_dict(state)
        self.report(f"resumed at step {self.state.step} of {self.plan.steps}")
        return True

    def run(self, seconds: float = math.inf) -> bool:
        """Train until the steps are done, `seconds` are over, or a signal asks to stop; tell whether they are done.

        Raises
        ------
        InputError
            When the loss is not finite.
        """
        started = time.monotonic()
        self.net.train()
        with stop_signals() as asked:
            while self.state.step < self.plan.steps:
                terms = self.step()
                self.state.step += 1
                if self.state.step % RECORD_EVERY == 0:
                    self.state.curve.append({"step": self.state.step, "phase": "train", **terms})
                if self.state.step % self.plan.checkpoint_every == 0:
                    self._save()
                    told = ", ".join(f"{name} {value:.4f}" for name, value in terms.items())
                    self.report(f"step {self.state.step} of {self.plan.steps}: {told}")
                if asked or time.monotonic() - started > seconds:
                    self._save()
                    return False
        self._save()
        return True

    def step(self) -> Terms:
        """Let one branch learn from the groups of a step, and return the losses."""
        generator = step_generator(self.plan.seed, self.state.step)
        branch = branch_of(self.state.step, self.plan)
        for name, values in self.weights.items():
            self.optimisers[name].zero_grad(set_to_none=True)
            for value in values:
                value.requires_grad_(name == branch)  # slopes of weights that rest would be thrown away
        samples = [self.source.draw(generator) for _ in range(self.plan.batch)]
        losses = self._losses(samples)
        learnt = ("anatomy", "segmentation") if branch == "segmentation" else ("chi", "bending", "anatomy")
        loss = torch.stack([losses[name] for name in learnt]).sum()
        if not bool(torch.isfinite(loss)):
            message = f"the loss is not finite at step {self.state.step + 1}"
            raise InputError(message, file=self.path, remedy="look at the images of the table, or use lower rates")
        torch.autograd.backward(loss)
        self.optimisers[branch].step()
        return {name: float(value.detach()) for name, value in losses.items()}

    def _losses(self, samples: Sequence[GroupSample]) -> dict[str, Tensor]:
        """Return the mean losses of the groups of a step, which go through the network at once."""
        domains = samples[0].domains
        images = [torch.cat([sample.images[j] for sample in samples]) for j in range(len(domains))]
        maps, fields = self.net(images, domains)
        found: dict[str, list[Tensor]] = {name: [] for name in ("chi", "bending", "anatomy", "segmentation")}
        for number, sample in enumerate(samples):
            own = [one[number : number + 1] for one in fields]
            views = views_of(sample.images, [one[number] for one in maps], own, sample.labels, self.plan)
            classes = posterior(views, self.plan, None if sample.prior is None else sample.prior.flatten(1))
            found["chi"].append(chi_loss(views, classes, self.plan))
            found["bending"].append(self.plan.bending * torch.cat([bending(field) for field in own]).mean())
            found["anatomy"].append(anatomy_loss(views, classes))
            found["segmentation"].append(segmentation_loss(views, self.plan))
        return {name: torch.stack(values).mean() for name, values in found.items()}

    def _save(self) -> None:
        self.state.weights = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        self.state.optimiser = {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}
        self.state.save(self.path)
        if self.state.curve:
            write_curve(self.state.curve, self.folder / "curve.csv")
