"""Regularisers by the names that configurations and recipes use; torch is loaded when one is looked up.

Each is a function of a displacement (B, D, *shape), in voxels of its own grid, to a penalty (B,). The free-form engine gives
it the control displacements divided by the distance of the control points: their differences are slopes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from popatlas.registry import Entry, find_entry

if TYPE_CHECKING:
    from torch import Tensor

    Regulariser = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class RegulariserEntry(Entry):
    """A penalty on displacements.

    Attributes
    ----------
    aliases : tuple of str
        Other names for it.
    """

    aliases: tuple[str, ...] = ()


REGULARISERS: dict[str, RegulariserEntry] = {
    "diffusion": RegulariserEntry(
        code="popatlas.regularisers.diffusion:diffusion",
        title="mean squared first derivatives (diffusion)",
        formula=r"\frac{1}{|\Omega|} \sum_x \sum_{i,j} (\partial_j u_i)^2",
        aliases=("l2",),  # in the configuration
    ),
    "tv": RegulariserEntry(
        code="popatlas.regularisers.tv:total_variation",
        title="total variation",
        references=("rudin1992",),
        formula=r"\frac{1}{|\Omega|} \sum_x \sqrt{\sum_{i,j} (\partial_j u_i)^2 + \varepsilon^2} - \varepsilon",
    ),
    "bending": RegulariserEntry(
        code="popatlas.regularisers.bending:bending",
        title="bending energy",
        references=("rueckert1999",),
        formula=r"\frac{1}{|\Omega|} \sum_x \sum_{i,j,k} (\partial_j \partial_k u_i)^2",
    ),
    "magnitude": RegulariserEntry(
        code="popatlas.regularisers.diffusion:magnitude",
        title="mean squared length of the displacements",
        formula=r"\frac{1}{|\Omega|} \sum_x |u|^2",
    ),
    "folding": RegulariserEntry(
        code="popatlas.regularisers.folding:folding_penalty",
        title="depth of the folds",
        formula=r"\frac{1}{|\Omega|} \sum_x \max\big(-\det(I + \nabla u),\, 0\big)",
    ),
}
ALIASES = {alias: name for name, entry in REGULARISERS.items() for alias in entry.aliases}
NAMES = (*REGULARISERS, *ALIASES)


def find_regulariser(name: str) -> Regulariser:
    """Return the function of a regulariser.

    Parameters
    ----------
    name : str
        One of `NAMES`.

    Raises
    ------
    InputError
        When there is no such regulariser.
    """
    found: Regulariser = find_entry(REGULARISERS, ALIASES.get(name, name), "regulariser").load()
    return found


def describe(name: str) -> str:
    """Return a regulariser in words, for the methods text."""
    return REGULARISERS[ALIASES.get(name, name)].cited
