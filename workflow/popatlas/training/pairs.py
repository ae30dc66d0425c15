"""Which scans are registered to each other in training: uniform, seeded, exactly resumable."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from popatlas.errors import InputError
from popatlas.training.table import TrainingScan

Order = Literal["any", "listed"]

VALIDATION_SEED = 0  # one for all trainings, so that their curves compare


@dataclass(frozen=True)
class Pair:
    """Two scans to register, and a seed for what else is random about the pair, such as its augmentation."""

    fixed: TrainingScan
    moving: TrainingScan
    seed: int


class PairSampler:
    """An endless stream of ordered pairs of different training scans of a group, each pair equally likely.

    Pair number n depends on the seed and on n only, so that there is no state to keep.

    Parameters
    ----------
    scans : sequence of TrainingScan
        Those of the split ``train`` are drawn, those of ``validation`` make the validation pairs.
    seed : int
        Of the stream, at least 0.
    order : {"any", "listed"}
        ``listed``: only pairs whose fixed scan comes before the moving one in the list.

    Raises
    ------
    InputError
        When there is no pair of training scans.
    ValueError
        For an impossible seed or order.
    """

    def __init__(self, scans: Sequence[TrainingScan], seed: int, order: Order = "any") -> None:
        if seed < 0 or order not in get_args(Order):
            raise ValueError(f"seed {seed}, order {order!r}")
        self.seed = seed
        self._order: Order = order
        self._training = _Pairs([scan for scan in scans if scan.split == "train"], order)
        if not self._training.count:
            raise InputError("there is no pair of training scans", remedy="give two scans of a group the split train")
        self._scans = list(scans)

    def pair(self, number: int) -> Pair:
        """Return a pair of the stream by its number, from 0."""
        random = np.random.default_rng([self.seed, number])
        fixed, moving = self._training[int(random.integers(self._training.count))]
        return Pair(fixed, moving, int(random.integers(2**63)))

    def validation_pairs(self, count: int) -> list[Pair]:
        """Return pairs for validation, the same whatever was drawn and with every seed.

        Parameters
        ----------
        count : int
            Most pairs; all that there are when they are fewer.

        Returns
        -------
        list of Pair
            Different ordered pairs of validation scans of a group. When these make no pair, those of a validation scan with
            a training scan of its group, either being the fixed one.
        """
        validation = [scan for scan in self._scans if scan.split == "validation"]
        pairs = _Pairs(validation, self._order).all()
        if not pairs:
            both = _Pairs([scan for scan in self._scans if scan.split != "test"], self._order).all()
            pairs = [pair for pair in both if {scan.split for scan in pair} == {"train", "validation"}]
        random = np.random.default_rng(VALIDATION_SEED)
        chosen = random.permutation(len(pairs))[:count]
        return [Pair(pairs[n][0], pairs[n][1], int(random.integers(2**63))) for n in chosen]


class _Pairs:
    """All ordered pairs of different scans of a group, by number, without a list of them."""

    def __init__(self, scans: Sequence[TrainingScan], order: Order) -> None:
        groups: dict[str, list[TrainingScan]] = defaultdict(list)
        for scan in scans:
            groups[scan.group].append(scan)
        self.groups = [members for members in groups.values() if len(members) > 1]
        self.order = order
        ways = 1 if order == "any" else 2  # a pair and its reverse are one
        sizes = [len(members) * (len(members) - 1) // ways for members in self.groups]
        self.ends = np.cumsum(sizes, dtype=np.int64)
        self.count = int(self.ends[-1]) if self.groups else 0

    def __getitem__(self, number: int) -> tuple[TrainingScan, TrainingScan]:
        group = int(np.searchsorted(self.ends, number, side="right"))
        members = self.groups[group]
        within = number - (int(self.ends[group - 1]) if group else 0)
        if self.order == "any":
            fixed, other = divmod(within, len(members) - 1)
            return members[fixed], members[other + (other >= fixed)]
        moving = (1 + math.isqrt(1 + 8 * within)) // 2  # rows of a triangle: 1 pair, 2 pairs, ...
        return members[within - moving * (moving - 1) // 2], members[moving]

    def all(self) -> list[tuple[TrainingScan, TrainingScan]]:
        return [self[number] for number in range(self.count)]
