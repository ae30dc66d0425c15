"""Registration engines behind one interface: a linear stage, then one of several deformable stages.

Every engine takes a pair of brains and an affine to start from, and gives two displacement fields on the fixed grid in ITK
files: fixed points go through `warp`, then `affine`, to moving; moving points go back through the inverted affine, then
`inverse_warp`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popatlas.errors import InputError

if TYPE_CHECKING:
    from popatlas.registration.pair import Pair

# name in the configuration -> module with `deform(pair, preset, affine, folder, threads) -> Deformation`
ENGINES: dict[str, str] = {
    "instance": "popatlas.registration.instance_files",
    "network": "popatlas.registration.network",
    "ants": "popatlas.registration.ants",
    "greedy": "popatlas.registration.greedy",
    "ffd": "popatlas.registration.instance_files",
    "unigradicon": "popatlas.registration.unigradicon",
}
ON_GPU = ("instance", "network", "unigradicon")  # engines that can use a GPU
ONE_CONTRAST = ("lncc", "ncc", "ssd", "cc", "wncc")  # similarities and metrics that need two images of one contrast
RECEIPT = "receipt.json"  # in the folder of a scan, beside the files that a batch predicted


@dataclass(frozen=True)
class Deformation:
    """Files of a deformable stage, and whether its optimisation diverged (the fields are then the last good ones)."""

    warp: Path
    inverse_warp: Path
    diverged: bool = False


@dataclass(frozen=True)
class Registration:
    """Files of one registration."""

    affine: Path
    warp: Path
    inverse_warp: Path
    diverged: bool = False


@dataclass(frozen=True)
class Rung:
    """One way to try: where to start, and which engine with which preset.

    Attributes
    ----------
    start : str
        "mass" (centres of mass), "moments" (and principal axes), "global" (search over rotations and shifts) or "search"
        (ANTs' multi-start search).
    linear : str
        Engine of the rigid and affine stage: "affine" (ours) or "ants".
    engine : str
        Name in `ENGINES`.
    preset : mapping
        Settings of the engine.
    """

    start: str
    linear: str
    engine: str
    preset: Mapping[str, Any]

    @classmethod
    def from_config(cls, rung: Mapping[str, Any], gpu: int = 0) -> Rung:
        """Build from an entry of a ladder that the configuration resolved, and the GPUs that the job has."""
        used = {"gpu": gpu} if rung["engine"] in ON_GPU else {}
        return cls(rung["start"], rung["linear"], rung["engine"], {**rung["preset"], **used})

    def __str__(self) -> str:
        return f"{self.engine} from {self.start}"


Deform = Callable[["Pair", Mapping[str, Any], Path, Path, int], Deformation]


def find_engine(name: str) -> Deform:
    """Return the deformable stage of an engine; an optional package that is missing is named with its remedy."""
    try:
        module = importlib.import_module(ENGINES[name])
    except ImportError as error:
        raise InputError(
            f"engine '{name}' needs a package that is not installed: {error}",
            remedy=f"pip install 'popatlas[{name}]', or choose another register.engine",
        ) from error
    deform: Deform = getattr(module, f"deform_{name}")
    return deform


def register(pair: Pair, rung: Rung, folder: Path, threads: int = 1) -> Registration:
    """Register two brains: start, rigid, affine, then the deformable stage.

    Parameters
    ----------
    pair : Pair
        Skull-stripped, intensity-normalised images and their masks.
    rung : Rung
        What to do.
    folder : Path
        Existing folder for the transform files.
    threads : int
        Threads of engines that use them.
    """
    from popatlas.registration.linear import align

    return deform(pair, rung, align(pair, rung, folder), folder, threads)


def deform(pair: Pair, rung: Rung, affine: Path, folder: Path, threads: int = 1) -> Registration:
    """Run the deformable stage of a rung from an affine; see `register`."""
    found = find_engine(rung.engine)(pair, rung.preset, affine, folder, threads)
    return Registration(affine, found.warp, found.inverse_warp, found.diverged)


def assumes_one_contrast(rung: Rung) -> bool:
    """Tell whether the deformable stage compares intensities in a way that needs them to go together.

    A local correlation is squared, but at the border of the brain, where the background is dark in every contrast, it needs
    the same sign as within. What a network learnt is not known: its refinement tells what it is meant for.
    """
    similarity = rung.preset.get("similarity", rung.preset.get("metric", ""))
    return str(similarity).lower() in ONE_CONTRAST
