"""How far from the median the farthest of a few normal values lies by chance, in robust standard deviations.

The distance of a value from the median over 1.4826 times the median absolute deviation is no normal deviate: with few values
the median absolute deviation is now and then small, and some distance large. Limits here follow from what is wanted: that
in a cohort of n normal values the chance that any of them lies beyond is at most some share. They hold on both sides, so
that a measure with a good direction, whose bad side alone counts, stays below.

`LIMITS` was made once by `simulate`, see there; ``python -m popatlas.report.limits`` prints it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from popatlas.images.arrays import FloatArray

MAD_TO_SD = 1.4826
CHANCE = 0.05
SEED = 20
VALUES = 400_000_000  # drawn for each number of scans, at most
COHORTS = 400_000  # drawn for each number of scans, at most
CHANCES = (0.05, 0.02, 0.01, 0.005, 0.002)
SCANS = (*range(5, 31), 40, 50, 70, 100, 150, 200, 300, 500, 1000, 2000, 5000, 10000)
FEWEST = SCANS[0]  # with fewer scans nobody can be told from the others
# number of scans to the limits at `CHANCES`
LIMITS: dict[int, tuple[float, ...]] = {
    5: (7.965, 13.02, 18.84, 27.15, 43.28),
    6: (5.546, 7.859, 10.16, 13.14, 18.31),
    7: (5.842, 8.231, 10.66, 13.62, 19),
    8: (4.916, 6.519, 7.969, 9.606, 12.28),
    9: (5.074, 6.722, 8.241, 9.974, 12.64),
    10: (4.581, 5.822, 6.922, 8.157, 10.07),
    11: (4.668, 5.95, 7.077, 8.414, 10.32),
    12: (4.357, 5.412, 6.299, 7.317, 8.717),
    13: (4.438, 5.512, 6.389, 7.389, 8.86),
    14: (4.217, 5.127, 5.852, 6.682, 7.823),
    15: (4.286, 5.226, 6.002, 6.844, 8.092),
    16: (4.132, 4.947, 5.602, 6.319, 7.391),
    17: (4.165, 4.991, 5.669, 6.362, 7.495),
    18: (4.044, 4.794, 5.374, 6.014, 6.893),
    19: (4.079, 4.835, 5.44, 6.059, 6.98),
    20: (3.989, 4.68, 5.249, 5.83, 6.621),
    21: (4.031, 4.731, 5.281, 5.874, 6.726),
    22: (3.954, 4.606, 5.125, 5.663, 6.408),
    23: (3.977, 4.615, 5.124, 5.636, 6.356),
    24: (3.923, 4.534, 5.012, 5.506, 6.167),
    25: (3.933, 4.559, 5.027, 5.508, 6.18),
    26: (3.89, 4.474, 4.929, 5.365, 6.037),
    27: (3.907, 4.492, 4.942, 5.391, 6.018),
    28: (3.86, 4.416, 4.848, 5.31, 5.911),
    29: (3.88, 4.439, 4.869, 5.307, 5.903),
    30: (3.844, 4.375, 4.789, 5.191, 5.755),
    40: (3.774, 4.236, 4.579, 4.918, 5.372),
    50: (3.749, 4.167, 4.48, 4.783, 5.195),
    70: (3.742, 4.107, 4.38, 4.635, 4.974),
    100: (3.743, 4.07, 4.308, 4.541, 4.832),
    150: (3.779, 4.072, 4.281, 4.479, 4.735),
    200: (3.815, 4.085, 4.276, 4.47, 4.723),
    300: (3.874, 4.131, 4.313, 4.49, 4.72),
    500: (3.962, 4.204, 4.372, 4.528, 4.744),
    1000: (4.094, 4.316, 4.481, 4.638, 4.83),
    2000: (4.231, 4.441, 4.595, 4.747, 4.938),
    5000: (4.424, 4.623, 4.77, 4.913, 5.09),
    10000: (4.559, 4.752, 4.899, 5.028, 5.214),
}


def limit(scans: int, measures: int = 1, chance: float = CHANCE) -> float:
    """Return the robust standard deviations beyond which a scan is an outlier.

    Parameters
    ----------
    scans : int
        Scans that have the measure.
    measures : int
        Measures that are looked at. Each gets an equal share of the chance (Bonferroni), whatever their correlation.
    chance : float
        At most this is the chance that any of the scans lies beyond the limit of any of the measures, when all are normal.

    Returns
    -------
    float
        Infinite for fewer scans than `FEWEST`. Between the numbers of the table, and beyond them, both axes are logarithmic.
    """
    if scans < FEWEST:
        return float("inf")
    wanted = np.log(chance / max(measures, 1))
    above = next((number for number in SCANS[1:] if number >= scans), SCANS[-1])
    below = SCANS[SCANS.index(above) - 1]
    low, high = (_along(np.log(CHANCES), np.log(LIMITS[number]), wanted) for number in (below, above))
    return float(np.exp(_along(np.log([below, above]), np.array([low, high]), np.log(scans))))


def _along(places: FloatArray, values: FloatArray, at: float) -> float:
    """Return the value at a place, on the line through the two nearest places."""
    order = np.argsort(places)
    x, y = places[order], values[order]
    first = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
    share = (at - x[first]) / (x[first + 1] - x[first])
    return float(y[first] + share * (y[first + 1] - y[first]))


def farthest(values: FloatArray) -> FloatArray:
    """Return the distance of the farthest value of each cohort (cohorts, scans) in robust standard deviations."""
    away = np.abs(values - np.median(values, axis=1, keepdims=True))
    return np.asarray(away.max(axis=1) / (MAD_TO_SD * np.median(away, axis=1)))


def simulate(scans: int, chances: Sequence[float] = CHANCES, cohorts: int | None = None, seed: int = SEED) -> list[float]:
    """Return the limits for a number of scans: quantiles of the farthest of so many normal values.

    Parameters
    ----------
    scans : int
        Values in a cohort.
    chances : sequence of float
        Chance that any value lies beyond.
    cohorts : int, optional
        Cohorts that are drawn; `COHORTS`, and for many scans `VALUES` over their number, when left out.
    seed : int
        Of the generator, with `scans`.
    """
    generator = np.random.default_rng([seed, scans])
    left = min(COHORTS, VALUES // scans) if cohorts is None else cohorts
    block = max(4_000_000 // scans, 1)
    found = []
    while left > 0:
        found.append(farthest(generator.standard_normal((min(block, left), scans))))
        left -= block
    return [float(value) for value in np.quantile(np.concatenate(found), 1 - np.asarray(chances))]


if __name__ == "__main__":
    for number in SCANS:
        print(f"    {number}: ({', '.join(f'{value:.4g}' for value in simulate(number))}),", flush=True)
