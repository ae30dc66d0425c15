"""A tiny registration network in a lock file of its own, for tests of what uses networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from popatlas.networks.registration import RegistrationNetwork, build_registration_network, save_registration_network
from popatlas.zoo.lock import Entry, read_lock, user_folder, write_lock
from popatlas.zoo.metadata import InputContract, Intensity, Score, TrainingFacts
from popatlas.zoo.store import Description, add_weights

SMALL = {"widths": [4, 8], "blocks": [0, 0]}
CONTRACT_2D = InputContract((2.0, 2.0), 8, orientation="RA", intensity=Intensity("minmax", 0.0, 2.0))
FACTS = TrainingFacts("simulated heads", n=12, device="one core", steps=100, hours=0.5)
SCORE = Score("held-out heads", "dice", 0.75, 4, "popatlas train tiny")


def tiny_network(seed: int = 0, ndim: int = 3, spread: float = 0.0, **options: Any) -> RegistrationNetwork:
    """Return an untrained network of a known head: it moves nothing, or at random by a spread of its weights."""
    torch.manual_seed(seed)
    net = build_registration_network("fast", ndim, **(SMALL | options)).eval()
    with torch.no_grad():
        net.head.flow.weight.normal_(0, 1).mul_(spread)
        net.head.flow.bias.zero_()
    return net


def lock_network(folder: Path, net: RegistrationNetwork, name: str = "tiny", **contract: Any) -> Entry:
    """Lock a network in the folder of POPATLAS_WEIGHTS, in the place of one with its name."""
    expected = InputContract(**({"spacing_mm": (4.0,) * net.ndim, "multiple": net.stride} | contract))
    save_registration_network(net, folder / f"{name}.safetensors", {})
    write_lock([entry for entry in read_lock(shipped=False) if entry.name != name], shipped=False)
    (user_folder() / f"{name}.safetensors").unlink(missing_ok=True)
    told = Description(name, "CC-BY-4.0", contract=expected, training=TrainingFacts("nothing"))
    return add_weights(folder / f"{name}.safetensors", told)
