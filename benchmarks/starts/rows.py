"""Rows of the results: which case, which method, and what came of it."""

from __future__ import annotations

from typing import TypedDict


class Key(TypedDict, total=False):
    """What is done once: a method on a case of a pair. Whole heads are pairs with the first one of their kind."""

    data: str
    pair: str
    kind: str
    case: str
    method: str


class Row(Key, total=False):
    """What came of it: verdict, Dice and that of the untouched pair, CPU seconds, and the reason of a refusal.

    Of the kind `time` there are only seconds, of the kind `sides` only the laterality of a brain, 1 on average, of the kind
    `pose` the error in voxels and seconds.
    """

    verdict: str
    dice: float
    reference: float
    seconds: float
    said: str
    sides: float
    error: float
