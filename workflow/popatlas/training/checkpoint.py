"""Checkpoints of a training: everything that the next step depends on, so that a resumed training is the same training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from popatlas.errors import InputError
from popatlas.images.io import atomic_path
from popatlas.training.curve import Row, Terms

Weights = dict[str, torch.Tensor]


@dataclass
class Checkpoint:
    """State after a number of steps.

    The randomness of a step follows from seed, rank and step alone (`popatlas.training.randomness`), so that no generator
    needs to be kept.

    Attributes
    ----------
    identity : str
        Digest of recipe and data: a checkpoint of another training is refused.
    step : int
        Steps done.
    weights, optimiser, scaler : dict
        State of network, optimiser and gradient scaler.
    best_weights, best_score, best_step : dict, float, int
        Network of the best validation.
    curve, pending : list of dict
        Rows of the curve so far, and the steps since the last one.
    seconds : float
        Time spent in training.
    micro_batch : int
        Pairs that go through the network at once; smaller than the batch after memory ran out.
    ended : str
        Why the training has ended; empty while it goes on.
    """

    identity: str
    step: int
    weights: Weights
    optimiser: dict[str, object]
    scaler: dict[str, object]
    best_weights: Weights
    best_score: float
    best_step: int
    micro_batch: int
    seconds: float = 0.0
    curve: list[Row] = field(default_factory=list)
    pending: list[Terms] = field(default_factory=list)
    ended: str = ""

    def save(self, path: Path) -> None:
        """Write the checkpoint, at once."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        with atomic_path(path) as temporary:
            torch.save(content, temporary)

    @classmethod
    def load(cls, path: Path, identity: str | None = None) -> Checkpoint:
        """Read a checkpoint, of the training with an identity where one is given.

        Raises
        ------
        InputError
            When the file is damaged, or recipe or data have changed since.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            found = cls(**content)
        except Exception as error:  # torch raises kinds of its own for damaged files
            remedy = "delete it to start anew"
            raise InputError(f"cannot read the checkpoint: {error}", file=path, remedy=remedy) from error
        if identity is not None and found.identity != identity:
            message = "the checkpoint is of another training: recipe, data or the number of processes have changed since"
            raise InputError(
                message, file=path, remedy="train into another folder, or delete the checkpoint (--restart) to begin anew"
            )
        return found
