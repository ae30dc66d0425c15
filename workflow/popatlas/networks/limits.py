"""Bounds of what a description of a network may ask for, so that a forged file costs neither memory nor time.

A description is a name and options, read from a file or a recipe. Its numbers are bounded before anything is built; while
a network is built around the tensors of a file, it may not make many more than these. Numbers and lists need no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST = 1 << 16  # of any other number: channels, features, labels
# numbers that something is repeated by; a grid is halved, or a flow squared, as often as its own digits allow
REPEATS = {"squarings": 32, "steps": 32, "halvings": 12, "passes": 256, "repeats": 256, "cascades": 256, "cells": 64}
ENTRIES = 256  # of a list; a list has at most so many levels of lists in it:
DEPTH = 3
TEXT = 256  # characters
COARSEST = 1 << 12  # voxels of the finest grid in one of the coarsest
SPARE = 4  # tensors of a network for each one that it saves


def check_description(values: Mapping[str, object]) -> None:
    """Check the numbers, texts and lists of a description of a network.

    Parameters
    ----------
    values : mapping of str to any
        Options by name.

    Raises
    ------
    ValueError
        Names the option and its bound.
    """
    for name, value in values.items():
        _check(str(name)[:TEXT], value, REPEATS.get(name, LARGEST), DEPTH)


def _check(name: str, value: object, most: int, depth: int) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int | float):
        if not math.isfinite(value) or abs(value) > most:
            raise ValueError(f"{name} is {_short(value)}, the most is {most}")
    elif isinstance(value, str):
        if len(value) > TEXT:
            raise ValueError(f"{name} has {len(value)} characters, the most is {TEXT}")
    elif isinstance(value, list | tuple):
        if depth == 0 or len(value) > ENTRIES:
            raise ValueError(f"{name} has {len(value)} entries, the most is {ENTRIES}, in {DEPTH} levels of lists")
        for item in value:
            _check(name, item, most, depth - 1)
    else:
        raise ValueError(f"{name} is no number, text or list")


def _short(value: float) -> str:
    return "not finite" if not math.isfinite(value) else f"{float(value):.3g}"


def check_stride(stride: int) -> None:
    """Raise ValueError when the coarsest grid of a network has voxels larger than any image."""
    if not 1 <= stride <= COARSEST:
        raise ValueError(f"the network halves its images too often: the most is {COARSEST} voxels in one")


@contextmanager
def no_more_than(tensors: int) -> Iterator[None]:
    """Bound the parameters and buffers of the networks that are built in a block.

    Parameters
    ----------
    tensors : int
        How many tensors a file holds; a few more may be made, for what a network does not save.

    Raises
    ------
    ValueError
        In the block, as soon as there are more.
    """
    from torch.nn.modules.module import (
        register_module_buffer_registration_hook,
        register_module_parameter_registration_hook,
    )

    left = SPARE * (tensors + 1)

    def made(module: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal left
        left -= value is not None
        if left < 0:
            raise ValueError(f"it needs far more tensors than the {tensors} of the file")

    hooks = [register_module_parameter_registration_hook(made), register_module_buffer_registration_hook(made)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
