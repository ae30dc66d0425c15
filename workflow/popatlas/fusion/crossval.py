"""Leave one atlas out: scores of fused labels against a held-out reference, statistics over targets, and a choice.

Every target counts once: its value is the mean over its labels. Methods are compared by the paired Wilcoxon signed-rank
test over targets, all pairs, with Holm's correction; the effect is the median of the paired differences.

Wilcoxon F. Individual comparisons by ranking methods. Biometrics Bulletin 1945;1(6):80-83. doi:10.2307/3001968
Holm S. A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 1979;6(2):65-70.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from popatlas.images.arrays import FloatArray, IntArray
from popatlas.measures.metrics import BENCH_METRICS
from popatlas.measures.overlap import LabelPair
from popatlas.measures.scores import label_scores

ALPHA = 0.05
# difference of mean Dice that is too small to pay for
CLOSE = 0.005
# with fewer targets no two-sided signed-rank test can reach ALPHA
FEWEST = 6
# values of means that differ by less are equal up to rounding
DIGITS = 12
# without ties the exact distribution is cheap up to here; with ties all signs are tried up to there
MOST_EXACT, MOST_EXACT_TIES = 50, 13
BOOTSTRAPS = 5000


def score(
    fused: IntArray, reference: IntArray, affine: FloatArray, labels: Iterable[int] | None = None, min_voxels: int = 1
) -> pd.DataFrame:
    """Score fused labels against the reference labels of the same image.

    Parameters
    ----------
    fused, reference : (x, y, z) int ndarray
        Labels on one grid, 0 is background.
    affine : (4, 4) ndarray
        Voxel to mm.
    labels : iterable of int, optional
        Labels to score; all of the reference when left out. One that the reference lacks is not scored.
    min_voxels : int
        Labels with fewer voxels in the reference are not scored.

    Returns
    -------
    DataFrame
        Columns label, metric (of :data:`popatlas.measures.metrics.BENCH_METRICS`), value and unit. Of a label that
        the fused image lacks Dice is 0, the volume error -100 %, and the distances are missing.

    Raises
    ------
    InputError
        When the shapes differ.
    """
    return label_scores(LabelPair(reference, fused, affine, labels, min_voxels), BENCH_METRICS)


@dataclass(frozen=True)
class Comparison:
    """Methods compared by one metric; of a metric without a better side, such as a signed error, the magnitude is used.

    Attributes
    ----------
    metric : str
        Name of the metric.
    targets : DataFrame
        Mean over labels; index scan, one column per method, the best method first.
    methods : DataFrame
        Index method, the best first: n, mean, sd (n - 1), median, minimum, maximum over targets.
    pairs : DataFrame
        For each pair: first, second (the better mean first), n, ahead (targets where the first is better), difference
        (median of first - second), low, high (95 % bootstrap interval of it), statistic, p, holm (corrected p), test
        (exact, approximate, or none where all differences are 0).
    labels : DataFrame
        For each label: label, n (targets), winner (all of them at a tie), value (its mean), runner_up, margin (how far it
        is behind), wins (targets where the winner beats it), then the mean of each method.
    left_out : int
        Values of a label in a target that were left out, because some method has none there.
    """

    metric: str
    targets: pd.DataFrame
    methods: pd.DataFrame
    pairs: pd.DataFrame
    labels: pd.DataFrame
    left_out: int

    @property
    def n_targets(self) -> int:
        """Number of targets."""
        return len(self.targets)

    @property
    def names(self) -> list[str]:
        """Methods, the best first."""
        return [str(name) for name in self.targets.columns]

    @property
    def smallest_holm(self) -> float:
        """The smallest corrected p that so many targets and pairs can give."""
        return min(smallest_p(self.n_targets) * max(len(self.pairs), 1), 1.0)

    def holm(self, first: str, second: str) -> float:
        """Return the corrected p of a pair, in either order."""
        both = self.pairs[["first", "second"]].isin([first, second]).all(axis=1)
        return float(self.pairs.loc[both, "holm"].iloc[0])


def compare(table: pd.DataFrame, metric: str = "dice", seed: int = 0) -> Comparison:
    """Compare methods over targets and labels.

    Parameters
    ----------
    table : DataFrame
        Tidy scores: scan, method, label, metric, value.
    metric : str
        Key of :data:`popatlas.measures.metrics.BENCH_METRICS`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Comparison
        Over the labels of each target that every method has a value for: what one method misses counts for none.
    """
    rows = table[table["metric"] == metric]
    better = BENCH_METRICS[metric].better
    rows = rows.assign(value=rows["value"].abs()) if better == "neither" else rows
    wide = rows.pivot(index=["scan", "label"], columns="method", values="value")
    wide = wide.reindex(rows["label"].drop_duplicates(), level="label")  # labels in the order of the table
    complete, sign = wide.dropna(), 1.0 if better == "higher" else -1.0
    targets = complete.groupby(level="scan").mean()
    order = targets.mean().sort_values(ascending=better != "higher", kind="stable").index
    targets = targets[order]
    pairs, labels = _by_pair(targets, sign, seed), _by_label(complete[order], sign)
    return Comparison(metric, targets, _by_method(targets), pairs, labels, len(wide) - len(complete))


def _by_method(targets: pd.DataFrame) -> pd.DataFrame:
    found = targets.agg(["count", "mean", "std", "median", "min", "max"]).T
    found.columns = pd.Index(["n", "mean", "sd", "median", "minimum", "maximum"])
    return found.astype({"n": int})


def _by_pair(targets: pd.DataFrame, sign: float, seed: int) -> pd.DataFrame:
    """Return the paired tests; `sign` is 1 where higher is better and -1 where lower is."""
    columns = ["first", "second", "n", "ahead", "difference", "low", "high", "statistic", "p", "test"]
    found = []
    for first, second in combinations(targets.columns, 2):
        differences = (targets[first] - targets[second]).to_numpy(dtype=float)
        middle = float(np.median(differences)) if len(differences) else math.nan
        interval = median_interval(differences, seed)
        ahead = int((np.round(sign * differences, DIGITS) > 0).sum())
        found.append((first, second, len(differences), ahead, middle, *interval, *signed_rank(differences)))
    pairs = pd.DataFrame(found, columns=columns)
    pairs.insert(columns.index("p") + 1, "holm", holm(pairs["p"].to_numpy(dtype=float)))
    return pairs


def _by_label(complete: pd.DataFrame, sign: float) -> pd.DataFrame:
    """Return who is best at each label; `sign` as for the pairs."""
    found = []
    for label, rows in complete.groupby(level="label", sort=False):
        means = rows.mean()
        ranked = (sign * means.round(DIGITS)).sort_values(ascending=False, kind="stable")
        winners = list(ranked.index[ranked == ranked.iloc[0]])
        tied, runner_up = len(winners) > 1, ranked.index[1] if len(ranked) > 1 else ""
        margin = float(ranked.iloc[0] - ranked.iloc[1]) if len(ranked) > 1 else math.nan
        ahead = sign * (rows[winners[0]] - rows[runner_up]).round(DIGITS) if runner_up else pd.Series(dtype=float)
        wins = 0 if tied else int((ahead > 0).sum())
        value = float(means[winners[0]])
        head = (str(label), len(rows), ", ".join(winners), value, "" if tied else runner_up, margin, wins)
        found.append((*head, *means.tolist()))
    columns = ["label", "n", "winner", "value", "runner_up", "margin", "wins", *complete.columns]
    return pd.DataFrame(found, columns=columns)


def signed_rank(differences: FloatArray) -> tuple[float, float, str]:
    """Return statistic, two-sided p, and kind of the Wilcoxon signed-rank test; differences of 0 are dropped.

    Parameters
    ----------
    differences : (n,) float ndarray
        Paired differences.

    Returns
    -------
    statistic, p : float
        The smaller rank sum, and its probability; 0 and 1 when no difference is left.
    test : str
        ``exact`` (up to 50 differences, 13 when some are equal in size), ``approximate`` (normal, with correction for
        continuity), or ``none``.
    """
    from scipy.stats import PermutationMethod, wilcoxon

    left = np.round(np.asarray(differences, dtype=float), DIGITS)
    left = left[left != 0]
    if not len(left):
        return 0.0, 1.0, "none"
    tied = len(np.unique(np.abs(left))) < len(left)
    if len(left) > (MOST_EXACT_TIES if tied else MOST_EXACT):
        found = wilcoxon(left, method="approx", correction=True)
        return float(found.statistic), float(found.pvalue), "approximate"
    found = wilcoxon(left, method=PermutationMethod(n_resamples=2 ** len(left)) if tied else "exact")
    return float(found.statistic), float(found.pvalue), "exact"


def smallest_p(n: int) -> float:
    """Return the smallest two-sided p that a signed-rank test of n targets can give: 2 of the 2^n patterns of signs."""
    return min(2.0 / 2.0**n, 1.0)


def holm(p: FloatArray) -> npt.NDArray[np.float64]:
    """Return p-values corrected for their number by Holm's step-down procedure."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(steps, 1.0)
    return corrected


def median_interval(differences: FloatArray, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a median; missing with fewer than two differences."""
    if len(differences) < 2:
        return math.nan, math.nan
    draws = np.random.default_rng(seed).choice(differences, (BOOTSTRAPS, len(differences)))
    low, high = np.quantile(np.median(draws, axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Recommendation:
    """Which method to use.

    Attributes
    ----------
    method : str
        The one to use.
    best : str
        The one with the best mean.
    close : tuple of str
        Methods that are as good for all practical purposes, the best among them.
    sentence : str
        The reason, for readers.
    """

    method: str
    best: str
    close: tuple[str, ...]
    sentence: str


def recommend(comparison: Comparison, costs: Mapping[str, float]) -> Recommendation:
    """Choose the method with the best mean Dice, or the cheapest of those that are as good.

    As good is a method that is not significantly worse than the best (corrected p at least 0.05) and within 0.005 of its
    mean Dice.

    Parameters
    ----------
    comparison : Comparison
        Of Dice, with at least one target.
    costs : mapping of str to float
        CPU seconds for a target by method; a method whose costs are missing is never chosen for being cheap.

    Returns
    -------
    Recommendation
    """
    means = comparison.methods["mean"]
    names = comparison.names
    best = names[0]
    near = [name for name in names[1:] if means[best] - means[name] <= CLOSE + 10.0**-DIGITS]
    close = [best, *(name for name in near if comparison.holm(best, name) >= ALPHA)]
    priced = [name for name in close if math.isfinite(costs.get(name, math.nan))]
    chosen = min(priced, key=lambda name: costs[name]) if best in priced else best
    return Recommendation(chosen, best, tuple(close), _reason(comparison, costs, chosen, names))


def _reason(comparison: Comparison, costs: Mapping[str, float], chosen: str, names: list[str]) -> str:
    means, n, best = comparison.methods["mean"], comparison.n_targets, names[0]
    held_out = f"{n} held-out atlas{'' if n == 1 else 'es'}"
    if len(names) == 1:
        return f"Only {best} was run (mean Dice {means[best]:.3f} over {held_out}), so there is nothing to compare it with."
    if chosen != best:
        return (
            f"Use {chosen} on this cohort: its mean Dice over {held_out} ({means[chosen]:.3f}) is within {CLOSE:g} of the "
            f"best, {best} ({means[best]:.3f}), {_evidence(comparison, best, chosen, 'not significantly worse')}, and it is "
            f"the cheapest of the methods for which that holds ({costs[chosen]:.3g} CPU seconds a target instead of "
            f"{costs[best]:.3g})."
        )
    significant = comparison.holm(best, names[1]) < ALPHA
    verdict = f"a {'significant' if significant else 'not significant'} difference"
    return (
        f"Use {best} on this cohort: it has the highest mean Dice over {held_out} ({means[best]:.3f}), followed by "
        f"{names[1]} ({means[names[1]]:.3f}), {_evidence(comparison, best, names[1], verdict)}."
    )


def _evidence(comparison: Comparison, first: str, second: str, verdict: str) -> str:
    n = comparison.n_targets
    if n < FEWEST:
        return f"with numbers too few for a test (the smallest possible p is 2/2^{n} = {smallest_p(n):.3g})"
    if comparison.smallest_holm >= ALPHA:
        count, least = len(comparison.pairs), comparison.smallest_holm
        return f"with numbers too few for {count} tests (the smallest possible p after Holm's correction is {least:.2g})"
    return f"{verdict} (signed-rank test, {tell_p(comparison.holm(first, second))} after Holm's correction)"


def tell_p(p: float) -> str:
    """Return a p-value for readers, for example `p = 0.031`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.995 else "p = 1"
