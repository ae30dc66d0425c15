"""Two simulated brains of 4 mm with labels, damage to one of them, and what comes of their registration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from benchmarks.starts.brains import Brain, simulated
from benchmarks.starts.methods import dice

from popatlas.config.attempts import resolve_attempt, resolve_fallback
from popatlas.config.load import default_config
from popatlas.errors import InputError
from popatlas.images.io import read_json
from popatlas.interfaces import load_interface
from popatlas.transforms.affine import read_affine

CONFIG = default_config()
GATE = CONFIG.content["register"]["gate"]
OUTPUTS = ("warp", "inverse_warp", "composed", "inverse_composed", "warped", "warped_mask", "logjacobian")


@lru_cache(maxsize=4)
def brain(number: int, torque: float = 1.0) -> Brain:
    return simulated(3, number, 4.0, torque)


def files(fixed: Brain, moving: Brain, folder: Path) -> dict[str, str]:
    """Write two brains and return the inputs of a step."""
    found = {}
    for name, one in (("fixed", fixed), ("moving", moving)):
        place = one.write(folder / name)
        found |= {f"in_{name}": str(place / "brain.nii.gz"), f"in_{name}_mask": str(place / "mask.nii.gz")}
    return found


def register(fixed: Brain, moving: Brain, folder: Path, fallback: bool = True, **options: object) -> dict:
    """Run RegisterImages with the quick preset and return its gate file; the transforms are in the folder."""
    inputs = {"attempt": resolve_attempt(CONFIG, "quick"), "gate": GATE, "subject": "sub-07"}
    inputs["fallback"] = resolve_fallback(CONFIG, "quick")[:2] if fallback else []
    outputs = {f"out_{name}": str(folder / f"{name}.nii.gz") for name in OUTPUTS}
    outputs |= {"out_affine": str(folder / "affine.mat"), "out_gate": str(folder / "gate.json")}
    load_interface("RegisterImages")(**(inputs | options), **files(fixed, moving, folder), **outputs).run()
    return read_json(folder / "gate.json")


def rigid(fixed: Brain, moving: Brain, folder: Path) -> np.ndarray:
    """Run RegisterRigid, as for a member of a template, and return its matrix."""
    outputs = {"out_affine": str(folder / "rigid.mat"), "out_warped": str(folder / "warped.nii.gz")}
    inputs = files(fixed, moving, folder)
    load_interface("RegisterRigid")(attempt=resolve_attempt(CONFIG, "quick"), subject="sub-07", **inputs, **outputs).run()
    return read_affine(folder / "rigid.mat")


def random_turn(seed: int, degrees: float) -> np.ndarray:
    axis = np.random.default_rng(seed).normal(size=3)
    return degrees * axis / np.linalg.norm(axis)


def cloud(one: Brain) -> Brain:
    """Return noise in the shape of a brain, which overlaps perfectly and can be bent to correlate."""
    return replace(one, image=np.random.default_rng(0).uniform(0.2, 1, one.image.shape) * one.mask)


TURNS = {"turned about x": (180, 0, 0), "turned about z": (0, 0, 180), "turned at random": tuple(random_turn(5, 140))}
DAMAGES: dict[str, Callable[[Brain], Brain]] = {
    "untouched": lambda one: one,
    **{name: lambda one, turn=turn: one.turned(turn) for name, turn in TURNS.items()},
    "mirrored": lambda one: one.mirrored(),
    "mirrored and turned": lambda one: one.mirrored().turned((0, 180, 0)),
    "inverted": lambda one: one.recoloured("inverted"),
    "T2-like": lambda one: one.recoloured("T2-like"),
    "lowest third missing": lambda one: one.cropped(2, 0.3, 1.0),
    "back missing": lambda one: one.cropped(1, 0.35, 1.0),
    "top alone": lambda one: one.cropped(2, 0.72, 1.0),
    "cloud": cloud,
}


@dataclass(frozen=True)
class Outcome:
    """What came of a registration of a damaged brain to another one.

    Attributes
    ----------
    folder : Path
        Where its files are.
    gate : dict
        Its gate file; empty for a rigid one, which has none.
    refusal : str
        What was said when it was refused; empty otherwise.
    overlap : float
        Mean Dice of the labels where the moving image has a field of view; 0 when it was refused, or is rigid.
    """

    folder: Path
    gate: dict
    refusal: str
    overlap: float = 0.0


DONE: dict[tuple[str, str], Outcome] = {}


def outcome(damage: str, folder: Path, *, fallback: bool = True) -> Outcome:
    """Register a damaged brain in a folder, as `register` does; once for all tests of a process, as it takes seconds."""
    key = damage, f"fallback {fallback}"
    if key not in DONE:
        moving = DAMAGES[damage](brain(2))
        try:
            gate = register(brain(1), moving, folder, fallback)
        except InputError as error:
            DONE[key] = Outcome(folder, read_json(folder / "gate.json"), str(error))
        else:
            transforms = [str(folder / "warp.nii.gz"), str(folder / "affine.mat")]
            DONE[key] = Outcome(folder, gate, "", dice(brain(1), moving, transforms, folder))
    return DONE[key]


def member_outcome(damage: str, folder: Path) -> Outcome:
    """Align a damaged member of a template, as `rigid` does, once for all tests of a process."""
    key = damage, "rigid"
    if key not in DONE:
        try:
            rigid(brain(1), DAMAGES[damage](brain(2)), folder)
        except InputError as error:
            DONE[key] = Outcome(folder, {}, str(error))
        else:
            DONE[key] = Outcome(folder, {}, "")
    return DONE[key]
