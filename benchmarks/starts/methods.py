"""What is compared, each in this process with one thread: our step, the gate that it had before, and ANTs' affine."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.starts.brains import Brain
from benchmarks.starts.old import first_attempt
from popatlas.config.attempts import resolve_attempt, resolve_fallback
from popatlas.config.load import default_config
from popatlas.errors import PopatlasError
from popatlas.images.antspy import deterministic_ants
from popatlas.images.io import read_json
from popatlas.interfaces import load_interface
from popatlas.registration.engines.ants.core import register_linear
from popatlas.registration.engines.registry import planned_attempt
from popatlas.registration.linear import ANTS_ITERATIONS
from popatlas.registration.pair import Pair, load_pair

CONFIG = default_config()
GATE = CONFIG.content["register"]["gate"]
OUTPUTS = ("warp", "inverse_warp", "composed", "inverse_composed", "warped", "warped_mask", "logjacobian")


@dataclass(frozen=True)
class Outcome:
    """What a method did.

    Attributes
    ----------
    refused : str
        Why it let nothing pass; empty when it did.
    chain : list of str
        Transforms from fixed to moving points, in ANTs' order.
    seconds : float
        CPU time.
    """

    refused: str
    chain: list[str]
    seconds: float


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Print nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def reason(error: PopatlasError) -> str:
    """Return why something was refused, without its file and remedy."""
    return str(error).split(" [file")[0]


def ours(fixed: Path, moving: Path, out: Path) -> Outcome:
    """Run the step RegisterImages with the shipped configuration."""
    files = {
        f"in_{name}{part}": str(folder / f"{file}.nii.gz")
        for name, folder in (("fixed", fixed), ("moving", moving))
        for part, file in (("", "brain"), ("_mask", "mask"))
    }
    outputs = {f"out_{name}": str(out / f"{name}.nii.gz") for name in OUTPUTS}
    outputs |= {"out_affine": str(out / "affine.mat"), "out_gate": str(out / "gate.json")}
    options = {"attempt": resolve_attempt(CONFIG, "default"), "fallback": resolve_fallback(CONFIG, "default"), "gate": GATE}
    started = time.process_time()
    try:
        with quiet():
            load_interface("RegisterImages")(**options, **files, **outputs).run()
        refused = ""
    except PopatlasError as error:
        refused = reason(error)
    return Outcome(refused, [outputs["out_warp"], outputs["out_affine"]], time.process_time() - started)


def old(fixed: Path, moving: Path, out: Path) -> Outcome:
    """Run the first attempt as it was, with the gate that it had."""
    attempt = planned_attempt(resolve_attempt(CONFIG, "default"))
    started = time.process_time()
    with quiet():
        reasons = first_attempt(_load(fixed, moving), attempt, GATE, out)
    return Outcome("; ".join(reasons), [str(out / "warp.nii.gz"), str(out / "affine.mat")], time.process_time() - started)


def ants_affine(fixed: Path, moving: Path, out: Path) -> Outcome:
    """Run ANTs' rigid and affine stages from the centres of mass; nothing is ever refused."""
    pair = _load(fixed, moving)
    started, initial = time.process_time(), None
    for kind in ("Rigid", "Affine"):
        initial = str(register_linear(pair.fixed, pair.moving, kind, initial, ANTS_ITERATIONS, out / "stage-"))
    return Outcome("", [str(initial)], time.process_time() - started)


METHODS: dict[str, Callable[[Path, Path, Path], Outcome]] = {"ours": ours, "old gate": old, "ANTs affine": ants_affine}


def attempts_of(out: Path) -> int:
    """Return how often our step tried."""
    return len(read_json(out / "gate.json")["attempts"])


def dice(fixed: Brain, moving: Brain, chain: list[str], folder: Path) -> float:
    """Return the mean Dice of the labels of the fixed brain where the image of the moving one is.

    Parameters
    ----------
    fixed, moving : Brain
        Brains as they were registered.
    chain : list of str
        Transforms from fixed to moving points.
    folder : Path
        With the files of the two brains: `fixed` and `moving`.
    """
    ants = deterministic_ants()
    grid = ants.image_read(str(folder / "fixed" / "brain.nii.gz"))
    target = ants.image_read(str(folder / "moving" / "brain.nii.gz"))
    labels, view = (
        ants.apply_transforms(
            grid, target.new_image_like(values.astype(np.float32)), chain, interpolator="nearestNeighbor"
        ).numpy()
        for values in (moving.labels, np.ones(moving.labels.shape))
    )
    return mean_dice(np.where(view > 0, fixed.labels, 0), np.rint(labels).astype(int))


def mean_dice(truth: np.ndarray, found: np.ndarray) -> float:
    """Return the mean Dice over the labels of the truth."""
    size = int(max(truth.max(), found.max())) + 1
    both, one, other = (
        np.bincount(values.ravel().astype(int), minlength=size) for values in (truth[truth == found], truth, found)
    )
    present = np.flatnonzero(one)
    present = present[present > 0]
    return float((2 * both / np.maximum(one + other, 1))[present].mean())


def _load(fixed: Path, moving: Path) -> Pair:
    return load_pair(*(str(folder / f"{name}.nii.gz") for folder in (fixed, moving) for name in ("brain", "mask")))
