"""The cases: pairs of brains, and what was done to the moving one. The same ones at each call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from benchmarks.starts.brains import CONTRASTS, Brain, labelled, labelled_scans, simulated

SEED = 20
SIMULATED_MM = 3.0
AXES = {"left-right": (1, 0, 0), "front-back": (0, 1, 0), "head-foot": (0, 0, 1)}
OBLIQUE = (30, 60, 100, 130, 160)  # degrees about random axes
CROPS = {  # axis, first and last share of the brain that is kept
    "lower 30 % missing": (2, 0.3, 1.0),
    "upper 30 % missing": (2, 0.0, 0.7),
    "front half missing": (1, 0.0, 0.5),
    "back 35 % missing": (1, 0.35, 1.0),
    "one side missing": (0, 0.0, 0.5),
}
Damage = Callable[[Brain], Brain]


@dataclass(frozen=True)
class Case:
    """One damaged pair.

    Attributes
    ----------
    data, pair, kind, name : str
        Where the brains are from, which, and what was done.
    fixed, moving : callable
        Make the brains.
    damage : callable
        Changes the moving brain.
    """

    data: str
    pair: str
    kind: str
    name: str
    fixed: Callable[[], Brain]
    moving: Callable[[], Brain]
    damage: Damage


@lru_cache(maxsize=64)
def drawn(number: int) -> Brain:
    """Return a simulated brain."""
    return simulated(SEED, number, SIMULATED_MM)


def pairs(data: Path | None, real: int, made: int) -> Iterator[tuple[str, str, Callable[[], Brain], Callable[[], Brain]]]:
    """Yield where a pair is from, its name, and functions that make the two brains."""
    for number in range(made):
        one, other = 2 * number + 1, 2 * number + 2
        yield "simulated", f"{one} < {other}", partial(drawn, one), partial(drawn, other)
    if data is None:
        return
    scans = np.random.default_rng(SEED).permutation(labelled_scans(data))
    for first, second in zip(scans[::2][:real], scans[1::2][:real], strict=True):
        yield "IXI", f"{first} < {second}", partial(labelled, data, first), partial(labelled, data, second)


def damages(rng: np.random.Generator) -> Iterator[tuple[str, str, Damage]]:
    """Yield kind, name and function of each damage of a pair."""
    yield "untouched", "untouched", lambda brain: brain
    for axis, vector in AXES.items():
        for degrees in (90, 180):
            turn = degrees * np.array(vector, float)
            yield "turned by 90 or 180", f"{degrees} degrees, {axis}", partial(Brain.turned, degrees=turn)
    for degrees in OBLIQUE:
        oblique = rng.normal(size=3)
        turn = degrees * oblique / np.linalg.norm(oblique)
        yield "turned, oblique", f"{degrees} degrees", partial(Brain.turned, degrees=turn)
    shift = 90 * rng.choice([-1, 1], 3)
    yield "shifted", "90 mm along each axis", lambda brain: brain.shifted(shift)
    yield "mirrored", "mirrored", lambda brain: brain.mirrored()
    turned = 180 * np.array(list(AXES.values())[rng.integers(3)], float)
    yield "mirrored", "mirrored and turned by 180 degrees", lambda brain: brain.mirrored().turned(turned)
    for name, (number, start, stop) in CROPS.items():
        yield "cropped", name, partial(Brain.cropped, axis=number, start=start, stop=stop)
    for contrast in CONTRASTS:
        yield "other contrast", contrast, partial(Brain.recoloured, contrast=contrast)
    yield (
        "other contrast",
        "T2-like, turned by 180 degrees",
        lambda brain: brain.recoloured("T2-like").turned((0.0, 0.0, 180.0)),
    )
    yield "thick slices, noise", "6 mm, axial", lambda brain: brain.thick(2, 3 if brain.affine[2, 2] < 2.5 else 2)
    yield "thick slices, noise", "6 mm, coronal", lambda brain: brain.thick(1, 3 if brain.affine[2, 2] < 2.5 else 2)
    yield "thick slices, noise", "noise", lambda brain: brain.noisy(0.1, SEED)


def cases(data: Path | None, real: int, made: int) -> Iterator[Case]:
    """Yield all cases of some real and some simulated pairs."""
    for number, (source, name, fixed, moving) in enumerate(pairs(data, real, made)):
        for kind, what, damage in damages(np.random.default_rng([SEED, number])):
            yield Case(source, name, kind, what, fixed, moving, damage)
