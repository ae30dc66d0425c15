"""The networks of papers: which recipe, with what changed, trained with the same CPU time (`benchmarks.deep.systems`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class System:
    """A network of a paper.

    Attributes
    ----------
    recipe : str
        Recipe of the package.
    changes : mapping
        Of the recipe.
    repeats : int
        How often each network of a cascade is applied when it is used; 0 as it was trained.
    trained_as : str
        Another system whose weights it uses; "" for its own.
    rate : float
        Learning rate of the short training; lower where a step moves much: a cascade gives out 20 voxels, and LabelReg adds
        the displacements of five levels.
    """

    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 0
    trained_as: str = ""
    rate: float = 1e-3


def _cascades(count: int) -> dict[str, Any]:
    """Return a cascade without affine stage, which brains that are affinely aligned do not need."""
    return {"network": {"options": {"cascades": count, "affine": False}}}


SYSTEMS: Mapping[str, System] = {
    "voxelmorph": System("voxelmorph"),
    "voxelmorph, sum": System("voxelmorph", {"loss": {"regulariser": {"reduction": "sum"}}}),
    "voxelmorph-diffeo": System("voxelmorph-diffeo"),
    "dual-prnet": System("dual-prnet"),
    "dual-prnet-plus": System("dual-prnet-plus"),
    "vtn": System("rcn", _cascades(1), rate=2e-4),
    "vtn, twice": System("rcn", repeats=2, trained_as="vtn"),
    "rcn": System("rcn", _cascades(3), rate=4e-4),
    "rcn, twice each": System("rcn", repeats=2, trained_as="rcn"),
    "masked-fcn": System("masked-fcn"),
    # batches of one pair, whose steps see several structures instead of several pairs
    "labelreg": System(
        "labelreg", {"network": {"options": {"norm": "instance"}}, "loss": {"labels": {"count": 16}}}, rate=3e-5
    ),
    "bounding-boxes": System("bounding-boxes"),
    "brain-t1w": System("brain-t1w"),
}


PREFIX = "trained "  # of the names of their engines


def weights_name(system: str) -> str:
    """Return what the weights of a system are called in the zoo while the benchmark runs."""
    own = SYSTEMS[system].trained_as or system
    return f"deep-{own.replace(', ', '-')}"
