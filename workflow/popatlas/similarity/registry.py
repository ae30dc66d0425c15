"""Similarities by the names that a configuration uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from popatlas.errors import InputError
from popatlas.similarity.base import Similarity
from popatlas.similarity.combined import NMIMIND
from popatlas.similarity.lncc import LNCC
from popatlas.similarity.mi import NMI, MattesMI
from popatlas.similarity.mind import MIND, MINDSSC
from popatlas.similarity.ncc import NCC
from popatlas.similarity.ngf import NGF
from popatlas.similarity.overlap import MultiscaleDice
from popatlas.similarity.ssd import SSD

SIMILARITIES: dict[str, type[Similarity]] = {
    "ssd": SSD,
    "ncc": NCC,
    "lncc": LNCC,
    "mattes": MattesMI,
    "nmi": NMI,
    "mind": MIND,
    "mindssc": MINDSSC,
    "ngf": NGF,
    "dice": MultiscaleDice,
    "nmi_mind": NMIMIND,
}


def make(name: str, **parameters: Any) -> Similarity:
    """Make a similarity.

    Parameters
    ----------
    name : str
        Key of `SIMILARITIES`.
    **parameters
        Its fields. Lists become tuples; a mapping under the name of another similarity (those of `nmi_mind`) its parameters.

    Returns
    -------
    Similarity
        ``loss(fixed, moving, mask=None) -> (B,)``, lower is better.

    Raises
    ------
    InputError
        When there is no such similarity, or no such parameter, or its value is impossible.
    """
    if name not in SIMILARITIES:
        raise InputError(f"unknown similarity {name!r}", remedy=f"use one of {', '.join(SIMILARITIES)}")
    try:
        return SIMILARITIES[name](**{key: _value(key, value) for key, value in parameters.items()})
    except (TypeError, ValueError) as error:
        raise InputError(f"similarity {name}: {error}", remedy="correct its options") from error


def _value(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return make(key, **value)
    return tuple(value) if isinstance(value, list) else value
