"""Regularisers by the names that configurations and recipes use; torch is loaded when one is looked up.

Each is a function of a displacement (B, D, *shape), in voxels of its own grid, to a penalty (B,). The free-form engine gives
it the control displacements divided by the distance of the control points: their differences are slopes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from popatlas.registry import Entry, find_entry

if TYPE_CHECKING:
    from torch import Tensor

    Regulariser = Callable[[Tensor], Tensor]


# How the terms of a voxel become one number: their sum; the mean over the components of the sum over their derivatives; the
# mean over components and derivatives. In 3D the diffusion penalty has 9 terms, so that these are 1, 1/3 and 1/9 of the sum.
Reduction = Literal["sum", "components", "mean"]


@dataclass(frozen=True, kw_only=True)
class RegulariserEntry(Entry):
    """A penalty on displacements.

    Attributes
    ----------
    aliases : tuple of str
        Other names for it.
    derivatives : int or None
        It sums the squares of the derivatives of this order of each component, 0 being the component itself; None where it
        is no such sum.
    """

    aliases: tuple[str, ...] = ()
    derivatives: int | None = None

    def divisor(self, reduction: Reduction, ndim: int) -> int:
        """Return by what the penalty of a displacement of `ndim` axes is divided for a reduction; see `Reduction`."""
        if reduction == "sum":
            return 1
        if self.derivatives is None:
            raise ValueError(f"{self.title}: no sum over components, and only the reduction 'sum'")
        return ndim ** (1 + self.derivatives) if reduction == "mean" else ndim


REGULARISERS: dict[str, RegulariserEntry] = {
    "diffusion": RegulariserEntry(
        code="popatlas.regularisers.diffusion:diffusion",
        title="mean squared first derivatives (diffusion)",
        formula=r"\frac{1}{|\Omega|} \sum_x \sum_{i,j} (\partial_j u_i)^2",
        aliases=("l2",),  # what configurations of before call it
        derivatives=1,
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
        derivatives=2,
    ),
    "magnitude": RegulariserEntry(
        code="popatlas.regularisers.diffusion:magnitude",
        title="mean squared length of the displacements",
        formula=r"\frac{1}{|\Omega|} \sum_x |u|^2",
        derivatives=0,
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
    found: Regulariser = entry_of(name).load()
    return found


def entry_of(name: str) -> RegulariserEntry:
    """Return the entry of a regulariser, by one of `NAMES`; InputError when there is none."""
    return find_entry(REGULARISERS, ALIASES.get(name, name), "regulariser")


def has_reductions(name: object) -> bool:
    """Tell whether a regulariser, by its name, has other reductions than the sum; False for what is no name of one."""
    entry = REGULARISERS.get(ALIASES.get(name, name)) if isinstance(name, str) else None
    return entry is not None and entry.derivatives is not None


def describe(name: str) -> str:
    """Return a regulariser in words, for the methods text."""
    return REGULARISERS[ALIASES.get(name, name)].cited
