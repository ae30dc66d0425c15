"""Where a training runs, alone or as one of several processes (one for each GPU), and what these tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

Value = TypeVar("Value")


@dataclass(frozen=True)
class Place:
    """Device of a process, its rank, and the number of processes.

    All processes must call the methods alike and in the same order; a process that is alone talks to nobody.
    """

    device: str = "cpu"
    rank: int = 0
    world: int = 1

    def any_of(self, flag: bool) -> bool:
        """Tell whether any process says so."""
        if self.world == 1:
            return flag
        said = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
        return bool(said > 0)

    def from_first(self, value: Value) -> Value:
        """Return what the first process has, whatever the others give."""
        if self.world == 1:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, src=0, device=torch.device(self.device))
        return held[0]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes; a parameter that has none counts as 0."""
        if self.world == 1:
            return
        learnt = [parameter for parameter in parameters if parameter.requires_grad]
        held = [torch.zeros_like(each) if each.grad is None else each.grad for each in learnt]
        flat = torch.cat([gradient.flatten() for gradient in held])
        torch.distributed.all_reduce(flat)
        flat /= self.world
        parts = torch.split(flat, [gradient.numel() for gradient in held])
        for each, gradient, part in zip(learnt, held, parts, strict=True):
            each.grad = gradient.copy_(part.view(gradient.shape))


@contextmanager
def processes(device: str) -> Iterator[Place]:
    """Join the other processes of a training (`popatlas.training.launch`); alone without them."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world == 1:
        yield Place(device)
        return
    own = f"{device}:{os.environ['LOCAL_RANK']}" if device == "cuda" else device
    if device == "cuda":
        torch.cuda.set_device(own)
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Place(own, rank, world)
    finally:
        torch.distributed.destroy_process_group()
