"""The network engine: a trained network predicts the deformation, the instance engine may refine it.

A network sees images as its contract says (`popatlas.zoo.contract`); its displacement comes back to the fixed grid. Several
pairs go through the network at once where there is memory for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from popatlas.errors import InputError, SetupError
from popatlas.networks.cascade import RecursiveCascade
from popatlas.networks.memory import free_memory, is_out_of_memory
from popatlas.networks.registration import Prediction, RegistrationNetwork
from popatlas.registration.engines.instance.core import register, unfolded
from popatlas.registration.engines.instance.settings import InstanceSettings
from popatlas.registration.engines.io import between_voxels, check_isotropic, write_fields
from popatlas.registration.engines.network.settings import NetworkSettings
from popatlas.registration.types import Attempt, Deformation, PlannedWeights, settings_of
from popatlas.transforms.affine import read_affine
from popatlas.transforms.fieldops import ops_for
from popatlas.zoo.contract import ConformedPair, conform_pair
from popatlas.zoo.find import check_kind
from popatlas.zoo.lock import Entry
from popatlas.zoo.store import load_weights

if TYPE_CHECKING:
    from popatlas.registration.pair import Pair


@dataclass(frozen=True)
class Fields:
    """Displacements (1, D, *shape) in voxels of the fixed grid: fixed to moving points before the affine, and back."""

    forward: Tensor
    inverse: Tensor
    diverged: bool = False


def deform_network(pair: Pair, attempt: Attempt, affine: Path, folder: Path, threads: int) -> Deformation:
    """Predict one pair from an affine, on a GPU when one is visible and the job has one.

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
        Threads of the compiled kernels of the refinement; torch's number of threads is set by the step.
    """
    device = "cuda" if attempt.gpu and torch.cuda.is_available() else "cpu"
    net, entry = load_planned(attempt)
    conformed = conform(pair, affine, entry)
    predicted = predict(net.to(device), [conformed])[0]
    found = finish_pair(net, pair, settings_of(attempt, InstanceSettings), affine, conformed, predicted, device, threads)
    return write_fields(found.forward, found.inverse, pair.scans()[0].grid, folder, diverged=found.diverged)


def planned_weights(attempt: Attempt) -> PlannedWeights:
    """Return the weights of an attempt; SetupError when it names none."""
    if attempt.weights is None:
        raise SetupError("the preset does not say where the weights are", remedy="give settings, or weights in the preset")
    return attempt.weights


def load_planned(attempt: Attempt) -> tuple[RegistrationNetwork, Entry]:
    """Load the weights of an attempt, on the CPU.

    Raises
    ------
    SetupError
        As `load_weights`, and when they are not those that the jobs were planned with.
    """
    planned = planned_weights(attempt)
    net, entry = load_weights(planned.source)
    if entry.sha256 != planned.sha256:
        raise SetupError(f"the weights {entry.name} were replaced after the start", file=entry.path, remedy="run again")
    if isinstance(attempt.settings, NetworkSettings):
        set_passes(net, attempt.settings.passes)
        set_repeats(net, attempt.settings.repeats, entry)
    return net, entry


def set_passes(net: RegistrationNetwork, passes: int) -> None:
    """Let a network that learnt to look several times do so less often; 0 leaves it as it was trained."""
    if passes and net.passes is not None:
        net.passes = min(passes, net.passes)


def set_repeats(net: RegistrationNetwork, repeats: int, entry: Entry) -> None:
    """Let each network of a recursive cascade be applied so often; 0 leaves it as it was trained."""
    if not repeats:
        return
    if not isinstance(net, RecursiveCascade):
        message = f"the weights {entry.name} are no recursive cascade, which alone can be repeated"
        raise SetupError(message, file=entry.path, remedy="leave out repeats, or use weights of the network cascade")
    net.repeats = repeats


def conform(pair: Pair, affine: Path, entry: Entry) -> ConformedPair:
    """Bring a pair to the contract of a network, the moving brain through an affine; InputError where it does not fit."""
    check_kind(entry, stripped=pair.stripped)
    fixed, moving = pair.scans()
    files = (pair.fixed_file, pair.moving_file)
    return conform_pair(fixed, moving, read_affine(affine), entry.input, files=files, subject=pair.subject)


@torch.no_grad()
def predict(net: RegistrationNetwork, pairs: Sequence[ConformedPair]) -> list[Prediction]:
    """Register conformed pairs of one shape together; where memory ends, once more in halves.

    Parameters
    ----------
    net : RegistrationNetwork
        In evaluation mode, on the device to be used.
    pairs : sequence of ConformedPair
        Of one shape.

    Returns
    -------
    list of Prediction
        One for each pair, on the CPU, batch size 1.

    Raises
    ------
    InputError
        When half a batch, or a single pair, does not fit into the memory of the device.
    """
    most, failed = len(pairs), None
    for size in dict.fromkeys((most, math.ceil(most / 2))):
        if failed is not None:
            print(f"memory ran out with {most} pairs at once: trying {size}", flush=True)
        try:
            parts = [pairs[start : start + size] for start in range(0, most, size)]
            return [found for part in parts for found in _predict(net, part)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = error.with_traceback(None)  # it would hold the tensors of this try
        free_memory()
    shape = " x ".join(map(str, pairs[0].moving.shape[2:]))
    remedy = "set register.network.batch lower, or register.gpu: 0 for the CPU"
    raise InputError(f"{size} pair(s) of {shape} voxels do not fit into the memory of the device", remedy=remedy) from failed


def _predict(net: RegistrationNetwork, pairs: Sequence[ConformedPair]) -> list[Prediction]:
    device = next(net.parameters()).device
    fixed, moving = (torch.cat(images) for images in zip(*((p.fixed.image, p.moving) for p in pairs), strict=True))
    found = net(fixed.to(device), moving.to(device))
    velocity = None if found.velocity is None else found.velocity.cpu()
    return [
        Prediction(row, None if velocity is None else velocity[number : number + 1])
        for number, row in enumerate(found.displacement.cpu().split(1))
    ]


def finish_pair(
    net: RegistrationNetwork,
    pair: Pair,
    settings: InstanceSettings,
    affine: Path,
    conformed: ConformedPair,
    predicted: Prediction,
    device: str,
    threads: int,
) -> Fields:
    """Bring a prediction to the fixed grid, refine it when the settings say so, and find its inverse.

    Parameters
    ----------
    net : RegistrationNetwork
        What predicted it.
    pair, affine, device, threads
        See `deform_network`.
    settings : InstanceSettings
        Of the refinement; there is none without iterations.
    conformed : ConformedPair
        What the network saw.
    predicted : Prediction
        What it said.
    """
    forward = conformed.back(predicted.displacement)
    if not any(settings.iterations):
        inverse = back(net, conformed, predicted)
        ops = ops_for([forward, inverse], threads)
        return Fields(unfolded(forward, ops), unfolded(inverse, ops))
    fixed, moving = pair.scans()
    check_isotropic(fixed.grid, pair.fixed_file, pair.subject)
    result = register(
        fixed.image.to(device),
        moving.image.to(device),
        settings,
        matrix=between_voxels(affine, fixed.grid, moving.grid).to(device),
        initial=forward.to(device),
        subject=pair.subject,
        threads=threads,
    )
    return Fields(result.forward.cpu(), result.inverse.cpu(), result.diverged)


@torch.no_grad()
def back(net: RegistrationNetwork, conformed: ConformedPair, predicted: Prediction) -> Tensor:
    """Return the inverse on the fixed grid: what the network knows of it, or the inverted displacement."""
    known = net.inverse(predicted)
    if known is None:
        forward = predicted.displacement.contiguous()
        known = ops_for([forward], torch.get_num_threads()).invert(forward)
    return conformed.back(known)
