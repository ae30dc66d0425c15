"""uniGradICON as engine: the network engine with its weights, so that only the prediction differs.

Packages and weights are those of its authors; see `popatlas.networks.unigradicon`. Nothing is downloaded: the file of the
weights is imported into the zoo once, which locks its digest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.errors import InputError, SetupError
from popatlas.networks.unigradicon import UniGradICON, check_packages
from popatlas.zoo.lock import Entry
from popatlas.zoo.store import find_weights

if TYPE_CHECKING:
    from popatlas.registration.pair import Pair
    from popatlas.registration.types import Attempt, Deformation

IMPORT = (
    "fetch Step_2_final.trch of the release unigradicon_weights at github.com/uncbiag/uniGradICON/releases, then run"
    " popatlas weights import unigradicon Step_2_final.trch"
)


def deform_unigradicon(pair: Pair, attempt: Attempt, affine: Path, folder: Path, threads: int) -> Deformation:
    """Predict one pair from an affine, and refine it as the network engine does.

    Parameters
    ----------
    pair : Pair
        Brains.
    attempt : Attempt
        With `InstanceSettings` and weights.
    affine : Path
        Affine, fixed to moving points.
    folder : Path
        Existing folder for the fields.
    threads : int
        See `popatlas.registration.engines.network.core.deform_network`.

    Raises
    ------
    InputError
        When a package or the weights are missing, or they are other weights than the jobs were planned with.
    """
    from popatlas.registration.engines.network.core import deform_network, planned_weights

    check_unigradicon(planned_weights(attempt).source)
    return deform_network(pair, attempt, affine, folder, threads)


def check_unigradicon(weights: str) -> Entry:
    """Return what is known of weights of uniGradICON.

    Raises
    ------
    PackageError
        When its packages are not installed.
    InputError
        When the weights are unknown, their file is missing, or they are of another network.
    """
    check_packages()
    try:
        entry = find_weights(weights)
    except InputError as error:
        raise SetupError(error.message, file=error.file, remedy=IMPORT) from error
    if entry.architecture != UniGradICON.name:
        message = f"the weights {entry.name} are of the network {entry.architecture}, not of uniGradICON"
        raise SetupError(message, file=entry.path, remedy=IMPORT)
    if not entry.path.is_file():
        raise SetupError(f"the file of the weights {entry.name} is missing", file=entry.path, remedy=IMPORT)
    return entry
