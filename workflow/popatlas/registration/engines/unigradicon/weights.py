"""The weights of uniGradICON, looked at before anything is loaded."""

from __future__ import annotations

from popatlas.errors import InputError, SetupError
from popatlas.networks.architectures import ARCHITECTURES
from popatlas.zoo.find import find_weights
from popatlas.zoo.lock import Entry

NAME = "unigradicon"
IMPORT = (
    "fetch Step_2_final.trch of the release unigradicon_weights at github.com/uncbiag/uniGradICON/releases, then run"
    " popatlas weights import unigradicon Step_2_final.trch"
)


def check_unigradicon(weights: str) -> Entry:
    """Return what is known of weights of uniGradICON.

    Raises
    ------
    PackageError
        When its packages are not installed.
    InputError
        When the weights are unknown, their file is missing, or they are of another network.
    """
    ARCHITECTURES[NAME].check_packages()
    try:
        entry = find_weights(weights)
    except InputError as error:
        raise SetupError(error.message, file=error.file, remedy=IMPORT) from error
    if entry.architecture != NAME:
        message = f"the weights {entry.name} are of the network {entry.architecture}, not of uniGradICON"
        raise SetupError(message, file=entry.path, remedy=IMPORT)
    if not entry.path.is_file():
        raise SetupError(f"the file of the weights {entry.name} is missing", file=entry.path, remedy=IMPORT)
    return entry
