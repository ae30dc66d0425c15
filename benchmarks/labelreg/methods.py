"""What finds a displacement for a pair: our networks, and what needs no training.

`middles` is where all others begin: the middles of both images meet. Methods called `gland` use the label of the gland in
both images, which nobody has before somebody has drawn it. All displacements are in voxels of the grid of the scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.labelreg.cases import SPACING, Pair
from benchmarks.labelreg.scores import GLAND, PairScores, centroids, score, warped_maps
from popatlas.images.grid import Grid
from popatlas.networks.registration import load_registration_network
from popatlas.registration.engines.instance.core import register
from popatlas.registration.engines.instance.settings import preset
from popatlas.training.conform import Volume, load_scan
from popatlas.training.grid import TrainingGrid
from popatlas.training.recipe import Recipe
from popatlas.training.structures import structure_maps
from popatlas.training.train import WEIGHTS
from popatlas.zoo.contract import field_to_grid

GRID = TrainingGrid((48, 64, 48), (SPACING,) * 3)  # of the scores; it holds all labels
MIND = {"similarity": "mindssc", "options": {}}


@dataclass(frozen=True)
class Loaded:
    """A pair on the grid of the scores."""

    pair: Pair
    fixed: Volume
    moving: Volume

    @classmethod
    def of(cls, pair: Pair) -> Loaded:
        """Read a pair."""
        return cls(pair, *(load_scan(scan, GRID, "zscore") for scan in (pair.fixed, pair.moving)))


class Row(PairScores):
    """Scores of a method on a pair."""

    case: str
    method: str
    cpu_s: float


Method = Callable[[Loaded], Tensor]


def nothing(loaded: Loaded) -> Tensor:
    """Leave the pair as it is."""
    return torch.zeros(1, 3, *GRID.shape)


def shifted(loaded: Loaded) -> Tensor:
    """Bring the centroids of the glands together."""
    assert loaded.fixed.labels is not None
    number = torch.tensor([GLAND])
    here = centroids(structure_maps(loaded.fixed.labels, number))
    there = centroids(warped_maps(loaded.moving, nothing(loaded), number))
    return (there - here).reshape(1, 3, 1, 1, 1).expand(1, 3, *GRID.shape).contiguous()


def optimised(loaded: Loaded, start: Tensor | None = None, *, gland: bool = False) -> Tensor:
    """Register by our engine and MIND-SSC, also by the label of the gland if so asked."""
    fixed, moving = loaded.fixed, loaded.moving
    labels = (fixed.labels, moving.labels)
    fixed_maps, moving_maps = (structure_maps(one, [GLAND]) if gland and one is not None else None for one in labels)
    settings = preset("default", **MIND)
    return register(
        fixed.image, moving.image, settings, initial=start, fixed_labels=fixed_maps, moving_labels=moving_maps
    ).forward


METHODS: Mapping[str, Method] = {
    "middles": nothing,
    "mind": optimised,
    "gland": shifted,
    "gland + mind": lambda loaded: optimised(loaded, shifted(loaded)),
    "gland + mind and its label": lambda loaded: optimised(loaded, shifted(loaded), gland=True),
}


def network(recipe: Recipe, folder: Path) -> Method:
    """Return a trained network as a method."""
    net = load_registration_network(folder / WEIGHTS)[0].eval()
    own = TrainingGrid(recipe.grid.shape, (recipe.grid.spacing_mm,) * 3)
    grids = [grid.place(Grid.isotropic((2, 2, 2))) for grid in (own, GRID)]

    def run(loaded: Loaded) -> Tensor:
        scans = (load_scan(scan, own, recipe.data.intensity) for scan in (loaded.pair.fixed, loaded.pair.moving))
        with torch.no_grad():
            found = net(*(volume.image for volume in scans)).displacement
        return field_to_grid(found, *grids)

    return run


def rows_of(name: str, method: Method, pairs: list[Loaded]) -> list[Row]:
    """Return a row for each pair."""
    rows: list[Row] = []
    for loaded in pairs:
        started = time.process_time()
        displacement = method(loaded)
        seconds = time.process_time() - started
        scores = score(loaded.fixed, loaded.moving, displacement)
        rows.append({"case": loaded.pair.name, "method": name, "cpu_s": seconds, **scores})
    return rows
