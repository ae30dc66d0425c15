"""Two simulated brains of 4 mm with labels, shared by the tests of poses, sides and contrasts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from benchmarks.starts.brains import Brain, simulated
from benchmarks.starts.methods import dice

from popatlas.config.attempts import resolve_attempt, resolve_fallback
from popatlas.config.load import default_config
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


def overlap(fixed: Brain, moving: Brain, folder: Path) -> float:
    """Return the mean Dice of the labels after `register`, where the moving image has a field of view."""
    return dice(fixed, moving, [str(folder / "warp.nii.gz"), str(folder / "affine.mat")], folder)


def random_turn(seed: int, degrees: float) -> np.ndarray:
    axis = np.random.default_rng(seed).normal(size=3)
    return degrees * axis / np.linalg.norm(axis)
