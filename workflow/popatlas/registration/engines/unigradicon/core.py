"""uniGradICON as engine: the network engine with its weights, so that only the prediction differs.

Packages and weights are those of its authors; see `popatlas.networks.unigradicon`. Nothing is downloaded: the file of the
weights is imported into the zoo once, which locks its digest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.registration.engines.unigradicon.weights import check_unigradicon

if TYPE_CHECKING:
    from popatlas.registration.pair import Pair
    from popatlas.registration.types import Attempt, Deformation


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
