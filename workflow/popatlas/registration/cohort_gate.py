"""Registrations that passed the gate one by one and yet stand apart from the rest of their cohort.

Fixed limits have to suit every scanner and every template; a cohort tells what is usual with its own. A scan stands apart
where a number lies many robust standard deviations (1.4826 times the median absolute deviation) on the bad side of the
median. The limit is strict: of a cohort without faults nobody should be named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from popatlas.settings import Content

FEWEST = 10  # scans that tell what is usual
APART = 6.0  # robust standard deviations
MAD_TO_SD = 1.4826


@dataclass(frozen=True)
class Watched:
    """A number of the gate that is compared within a cohort.

    Attributes
    ----------
    better : int
        1 when high values are good, -1 when low ones are.
    spread : float
        Smallest robust standard deviation that is believed, in the number's unit.
    words : str
        What it says.
    """

    better: int
    spread: float
    words: str


WATCHED = {
    "edges": Watched(1, 0.015, "edges agree by {value:.2f}, those of the others by {median:.2f}"),
    "edges_affine": Watched(1, 0.02, "after the affine, edges agree by {value:.2f}, those of the others by {median:.2f}"),
    "nmi": Watched(1, 0.01, "the mutual information is {value:.3f}, that of the others {median:.3f}"),
    "pose": Watched(1, 1.0, "the pose stands out by {value:.1f} standard deviations, those of the others by {median:.1f}"),
    "covered": Watched(1, 0.02, "the image holds {value:.0%} of the fixed brain, others {median:.0%}"),
    "contrast": Watched(1, 0.03, "intensities correlate by {value:.2f} of what they share, others by {median:.2f}"),
    "log_jacobian_sd": Watched(-1, 0.03, "the log-Jacobian varies by {value:.2f}, that of the others by {median:.2f}"),
    "displacement_p95": Watched(-1, 0.7, "the deformation moves points by {value:.1f} mm, others by {median:.1f} mm"),
    "mask_dice": Watched(1, 0.01, "mask Dice {value:.3f}, that of the others {median:.3f}"),
}  # fmt: skip


@dataclass(frozen=True)
class Apart:
    """A scan that stands apart.

    Attributes
    ----------
    metric : str
        The number that is furthest from the others.
    deviations : float
        By how many robust standard deviations.
    reason : str
        In words, all numbers that stand apart, furthest first.
    """

    metric: str
    deviations: float
    reason: str


def stand_apart(gates: Mapping[str, Content], limit: float = APART) -> dict[str, Apart]:
    """Return the scans whose registration stands apart from those of a cohort.

    Parameters
    ----------
    gates : mapping
        By scan, what its gate file holds or the metrics in it, of registrations that passed; what is missing or no finite
        number is left out of the comparison.
    limit : float
        Robust standard deviations.

    Returns
    -------
    dict of str to Apart
        In the order of `gates`; empty for fewer than `FEWEST` scans.
    """
    found: dict[str, list[tuple[float, str, str]]] = {}
    for metric, watched in WATCHED.items():
        values = {scan: float(gate[metric]) for scan, gate in gates.items() if _is_number(gate.get(metric))}
        if len(values) < FEWEST:
            continue
        numbers = np.array(list(values.values()))
        median = float(np.median(numbers))
        spread = max(MAD_TO_SD * float(np.median(np.abs(numbers - median))), watched.spread)
        for scan, value in values.items():
            deviations = watched.better * (median - value) / spread
            if deviations > limit:
                found.setdefault(scan, []).append((deviations, metric, watched.words.format(value=value, median=median)))
    return {scan: _joined(found[scan]) for scan in gates if scan in found}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _joined(parts: list[tuple[float, str, str]]) -> Apart:
    parts = sorted(parts, reverse=True)
    words = "; ".join(text for _, _, text in parts)
    return Apart(parts[0][1], parts[0][0], f"the registration stands apart from the cohort: {words}")
