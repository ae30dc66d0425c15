"""The subjects near a value of a covariate, and how much each of them counts there: a Gaussian kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from popatlas.errors import InputError, first_few
from popatlas.settings import option, settings

LEAST_WEIGHT = 0.02  # of the largest: subjects with less take no part
FEWEST = 3  # subjects of a template


@settings
class ConditionalSettings:
    """How the templates along a covariate are made."""

    width: float = option(
        0.0, "Standard deviation of the kernel, units of the covariate; 0: from the data (Silverman)", ge=0
    )
    iterations: int = option(4, "Most iterations of a template", ge=1, le=50)
    tolerance: float = option(0.01, "A template is done when it changes by less, as a share of its range", gt=0)
    bootstrap: int = option(200, "Draws of the subjects for the bands of the volumes", ge=0)
    level: float = option(0.95, "Share of the draws within the bands", gt=0, lt=1)
    seed: int = option(0, "Of the draws", ge=0)


def kernel_width(covariate: Sequence[float]) -> float:
    """Return Silverman's rule of thumb, ``0.9 min(sd, IQR / 1.34) n^(-1/5)``; of the sd alone where the IQR is 0."""
    values = np.asarray(covariate, dtype=float)
    quartiles = np.percentile(values, [25, 75])
    spread = [values.std(ddof=1), (quartiles[1] - quartiles[0]) / 1.34]
    return float(0.9 * min(size for size in spread if size > 0) * len(values) ** -0.2)


def near(covariate: Sequence[float], value: float, width: float, names: Sequence[str]) -> tuple[list[int], list[float]]:
    """Return the subjects near a value and their weights, which sum to 1.

    Parameters
    ----------
    covariate : sequence of float
        Its value for each subject.
    value : float
        Where a template is made.
    width : float
        Standard deviation of the kernel.
    names : sequence of str
        What messages call the subjects.

    Raises
    ------
    InputError
        When they are fewer than three, or worth fewer than two by their weights.
    """
    odds = np.exp(-0.5 * ((np.asarray(covariate, dtype=float) - value) / width) ** 2)
    members = [int(i) for i in np.flatnonzero(odds >= LEAST_WEIGHT * max(odds.max(), 1e-300))]
    weights = odds[members] / odds[members].sum()
    if len(members) < FEWEST or 1 / float((weights**2).sum()) < 2:
        message = f"near {value:g} there are too few subjects ({first_few(names[i] for i in members)}; width {width:.3g})"
        raise InputError(message, remedy="leave that value out, or set a larger width")
    return members, weights.tolist()
