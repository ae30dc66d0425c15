"""Registration engines behind one interface: a linear stage, then one of several deformable stages.

Every engine takes a pair of brains and an affine to start from, and gives two displacement fields on the fixed grid in ITK
files: fixed points go through `warp`, then `affine`, to moving; moving points go back through the inverted affine, then
`inverse_warp`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popatlas.errors import InputError
from popatlas.registration.types import Deformation, Rung

if TYPE_CHECKING:
    from popatlas.registration.pair import Pair

# name in the configuration -> module with `deform(pair, preset, affine, folder, threads) -> Deformation`
ENGINES: dict[str, str] = {
    "instance": "popatlas.registration.engines.instance.files",
    "network": "popatlas.registration.engines.network.core",
    "ants": "popatlas.registration.engines.ants",
    "greedy": "popatlas.registration.engines.greedy",
    "ffd": "popatlas.registration.engines.ffd",
    "unigradicon": "popatlas.registration.engines.unigradicon",
}
ON_GPU = ("instance", "network", "unigradicon")  # engines that can use a GPU

Deform = Callable[["Pair", Mapping[str, Any], Path, Path, int], Deformation]


def planned_rung(rung: Mapping[str, Any], gpu: int = 0) -> Rung:
    """Return a rung from an entry of a ladder that the configuration resolved, and the GPUs that the job has."""
    used = {"gpu": gpu} if rung["engine"] in ON_GPU else {}
    return Rung(rung["start"], rung["linear"], rung["engine"], {**rung["preset"], **used})


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
