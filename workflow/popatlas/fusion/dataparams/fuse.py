"""Data-parameter consensus of one target with a network trained before: parameters, the network's opinion, the vote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Unpack

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.dataparams.consensus import VoteOptions
from popatlas.fusion.dataparams.data import training_target
from popatlas.fusion.dataparams.files import DataParametersNetwork, TargetParameters
from popatlas.fusion.dataparams.train import estimate_data_parameters, network_opinion
from popatlas.fusion.fuse import choose, fuse
from popatlas.fusion.result import Fusion
from popatlas.fusion.settings import BY_PATCHES, SelectBy, Votes
from popatlas.images.arrays import FloatArray


@dataclass(frozen=True)
class DataParametersFusion:
    """A consensus and the data parameters behind it.

    Attributes
    ----------
    fusion : Fusion
        One atlas weight for each candidate that was given, 0 for those left out.
    parameters : (n_candidates,) float ndarray
        Raw data parameters; NaN for candidates without any label, which have none.
    source : {"table", "estimated"}
        Whether the parameters were known, or estimated with the network.
    """

    fusion: Fusion
    parameters: npt.NDArray[np.float64]
    source: Literal["table", "estimated"]


def fuse_by_data_parameters(
    candidates: Candidates,
    trained: DataParametersNetwork,
    find: Callable[[Sequence[str]], TargetParameters | None] | None = None,
    *,
    select: int = 0,
    select_by: SelectBy = "similarity",
    quality: FloatArray | None = None,
    votes: Votes = "auto",
    network_weight: float = 0.3,
    device: str = "cpu",
    **options: Unpack[VoteOptions],
) -> DataParametersFusion:
    """Fuse candidates by their data parameters.

    Candidates are chosen first, the network is asked then: which voxels are disputed depends on the choice.

    Parameters
    ----------
    candidates : Candidates
        With images.
    trained : DataParametersNetwork
        Must know all labels of the candidates.
    find : callable, optional
        Takes the names of the candidates that have labels and returns their known parameters, or None; parameters that are
        not known are estimated with the network as it is.
    select : int
        Use only that many candidates, the best ones; 0: all.
    select_by : {"similarity", "trust"}
        What is best: the correlation of the images or the data parameter.
    quality : (n_candidates,) float ndarray, optional
        Quality of each registration, 0 to 1; multiplies the weights.
    votes, network_weight, **options
        See :func:`popatlas.fusion.dataparams.consensus.data_parameters_vote`.
    device : str
        ``cpu`` or ``cuda``, of the network.

    Returns
    -------
    DataParametersFusion

    Raises
    ------
    InputError
        Labels that the network does not know, votes by label without parameters of labels, and what `fuse` refuses.
    """
    filled = choose(candidates)
    some = _picked(candidates, filled)
    target = training_target(some, trained.labels)
    known = None if find is None else find(some.names)
    learned = known or TargetParameters.of(
        estimate_data_parameters([target], trained.labels, trained.network, trained.settings, device), target.name
    )
    if votes == "label" and learned.label_parameters is None:
        remedy = "set fuse.dataparams.per_label to true and train again, or choose other votes"
        raise InputError("votes by label need data parameters of labels", subject=candidates.subject, remedy=remedy)
    used = choose(some, select, learned.parameters if select_by == "trust" else None)
    numbers = np.array(filled)[used]
    picked = _picked(some, used)
    # plain votes without the network need no opinion, joint ones doubt candidates by it
    asked = picked.disputed.any() and (votes in BY_PATCHES or network_weight > 0)
    opinion = network_opinion(trained.network, target, picked.disputed, device) if asked else None
    found = fuse(
        picked,
        method="dataparams",
        parameters=learned.parameters[used],
        label_parameters=None if learned.label_parameters is None else learned.label_parameters[used],
        labels=trained.labels,
        network=opinion,
        network_weight=network_weight,
        quality=None if quality is None else np.asarray(quality)[numbers],
        votes=votes,
        **options,
    )
    count = len(candidates.labels)
    shares, parameters = np.zeros(count), np.full(count, np.nan)
    shares[numbers], parameters[filled] = found.atlas_weights, learned.parameters
    left_out = [name for number, name in enumerate(candidates.names) if number not in set(numbers.tolist())]
    found = replace(found, atlas_weights=shares, notes=found.notes | {"left_out": left_out})
    return DataParametersFusion(found, parameters, "estimated" if known is None else "table")


def _picked(candidates: Candidates, numbers: list[int]) -> Candidates:
    """Return some of the candidates, without a copy when they are all."""
    return candidates if len(numbers) == len(candidates.labels) else candidates.pick(numbers)
