"""Files of networks of deep combined computing: weights, architecture, contrasts and settings in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Sequence

from popatlas.errors import InputError
from popatlas.groupwise.deepcc.network import CombinedNet
from popatlas.groupwise.deepcc.settings import CombinedSettings
from popatlas.images.io import PathLike
from popatlas.networks.files import read_network, write_network
from popatlas.settings import as_content, settings_from


def write_combined(net: CombinedNet, plan: CombinedSettings, contrasts: Sequence[str], path: PathLike) -> None:
    """Write a network with the settings of its training and the names of its contrasts."""
    write_network(
        net, net.describe(), path, {"contrasts": json.dumps(list(contrasts)), "plan": json.dumps(as_content(plan))}
    )


def read_combined(path: PathLike) -> tuple[CombinedNet, CombinedSettings, list[str]]:
    """Read what `write_combined` wrote.

    Raises
    ------
    InputError
        From `popatlas.networks.files.read_network`, and for networks of another kind.
    """
    net, metadata = read_network(path, CombinedNet)
    try:
        plan = settings_from(CombinedSettings, json.loads(metadata["plan"]), "plan")
        contrasts = [str(name) for name in json.loads(metadata["contrasts"])]
    except (KeyError, ValueError, TypeError) as error:
        message = f"it is no network of TrainCombined: {error}"
        raise InputError(message, file=path, remedy="give the file that TrainCombined wrote") from error
    return net, plan, contrasts
