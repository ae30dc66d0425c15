"""Groups among points: Gaussian mixtures, judged by BIC, silhouette, populations without groups, and stability.

BIC alone finds too many groups where they are curved or dense; the silhouette cannot say that there is one. A grouping
stands when both speak for it, when it is clearer than the best grouping of populations that have none (a normal one, and an
even one in a box along the axes, which is the hardest to tell: Tibshirani et al., J. R. Statist. Soc. B 2001;63:411-423),
and when subsets of the subjects are grouped in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from popatlas.groupwise.types.settings import TypesSettings

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
APART = 0  # type of subjects that belong to no group
RIDGE = 1e-4  # of the variance, on the diagonal of each covariance
STARTS = 5


@dataclass(frozen=True)
class Grouping:
    """What was found among points.

    Attributes
    ----------
    types : (subjects,) ndarray of int
        Type of each subject: from 1, the largest first; 0 for subjects that lie apart. All 1 where there is one type.
    certainty : (subjects,) ndarray
        Probability of that type in the mixture.
    bic : dict of int to float
        Number of groups to Bayesian information criterion (less is better).
    silhouettes : dict of int to float
        Number of groups, from 2, to mean silhouette.
    best : int
        Number of groups with the largest silhouette, of groups that are large enough; 1 where there is none.
    reference : float
        Largest silhouette of populations without groups; NaN where it was not asked.
    stability : float
        Mean adjusted Rand index of groupings of subsets; NaN where it was not asked.
    why : str
        What speaks against more than one type; empty where there are more.
    """

    types: Labels
    certainty: Array
    bic: dict[int, float] = field(repr=False)
    silhouettes: dict[int, float] = field(repr=False)
    best: int
    reference: float
    stability: float
    why: str

    @property
    def count(self) -> int:
        """Number of types."""
        return int(self.types.max())


def mixture(points: Array, groups: int, seed: int, starts: int = STARTS) -> tuple[Labels, float, Array]:
    """Fit a Gaussian mixture with full covariances; return group of each point, BIC, and its probability."""
    from sklearn.mixture import GaussianMixture

    ridge = RIDGE * float(points.var(axis=0).mean()) + 1e-12
    model = GaussianMixture(groups, n_init=starts, random_state=seed, reg_covar=ridge, max_iter=200).fit(points)
    chances = model.predict_proba(points)
    return np.asarray(chances.argmax(axis=1), dtype=np.int64), float(model.bic(points)), np.asarray(chances.max(axis=1))


def silhouette(points: Array, labels: Labels) -> float:
    """Return the mean silhouette, -1 where there is one group."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(points, labels)) if 1 < len(np.unique(labels)) < len(points) else -1.0


def find_groups(points: Array, plan: TypesSettings) -> Grouping:
    """Look for groups.

    Parameters
    ----------
    points : (subjects, dimensions) ndarray
        Coordinates.
    plan : TypesSettings
        What is tried and what a grouping has to show.

    Returns
    -------
    Grouping
    """
    inside = np.ones(len(points), dtype=bool)
    smallest = max(3, int(np.ceil(plan.smallest_share * len(points))))
    while True:  # subjects that lie apart hide the groups of the others: they are put aside, a few at a time
        fits = _fits(points[inside], plan)
        scores = {groups: silhouette(points[inside], labels) for groups, (labels, _, _) in fits.items() if groups > 1}
        best = max(scores, key=lambda groups: scores[groups])
        sizes = np.bincount(fits[best][0])
        lonely = np.isin(fits[best][0], np.flatnonzero(sizes < smallest))
        enough = inside.sum() - lonely.sum() >= max(2 * smallest, 0.8 * len(points))
        if not lonely.any() or not enough:
            break
        inside[np.flatnonzero(inside)[lonely]] = False
    bic = {groups: found for groups, (_, found, _) in fits.items()}
    why, reference, stability = _judge(points[inside], fits[best][0], best, bic, scores, plan, crumbles=bool(lonely.any()))
    types = np.full(len(points), APART, dtype=np.int64)
    certainty = np.zeros(len(points))
    if why:
        types[:], certainty[:] = 1, 1
    else:
        types[inside], certainty[inside] = 1 + _by_size(fits[best][0]), fits[best][2]
    return Grouping(types, certainty, bic, scores, best, reference, stability, why)


def _fits(points: Array, plan: TypesSettings) -> dict[int, tuple[Labels, float, Array]]:
    most = max(2, min(plan.most_types, len(points) // 5))
    return {groups: mixture(points, groups, plan.seed) for groups in range(1, most + 1)}


def _by_size(labels: Labels) -> Labels:
    """Return labels counted from 0 in the order of their sizes."""
    numbers, counts = np.unique(labels, return_counts=True)
    order = numbers[np.argsort(-counts, kind="stable")]
    return np.asarray(np.argsort(order)[np.searchsorted(numbers, labels)], dtype=np.int64)


def _judge(
    points: Array,
    labels: Labels,
    best: int,
    bic: dict[int, float],
    scores: dict[int, float],
    plan: TypesSettings,
    *,
    crumbles: bool,
) -> tuple[str, float, float]:
    """Return what speaks against the grouping, and the numbers that were asked."""
    missing = float("nan")
    if crumbles:
        return "the clearest grouping is of single subjects", missing, missing
    if bic[best] >= bic[1]:
        return f"one normal population describes the subjects better than {best} groups (BIC)", missing, missing
    reference = largest_silhouette(points, len(bic), plan)
    if scores[best] <= reference:
        told = f"silhouette {scores[best]:.2f}, {reference:.2f} without any groups"
        return f"{best} groups are no clearer than in a population that has none ({told})", reference, missing
    stability = stability_of(points, labels, best, plan)
    if stability < plan.stable:
        told = f"adjusted Rand index {stability:.2f}"
        return f"{best} groups are not found again in subsets of the subjects ({told})", reference, stability
    return "", reference, stability


def largest_silhouette(points: Array, most: int, plan: TypesSettings) -> float:
    """Return the largest silhouette of any number of groups in populations that have none but the spread of the points.

    They are split by k-means, which does at least as well as a mixture.
    """
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(plan.seed)
    spread, found = points.std(axis=0), -1.0
    for draw in range(2 * plan.references):
        drawn = rng.normal(size=points.shape) if draw % 2 else rng.uniform(-(3**0.5), 3**0.5, size=points.shape)
        for groups in range(2, most + 1):
            labels = KMeans(groups, n_init=1, random_state=plan.seed).fit_predict(drawn * spread)
            found = max(found, silhouette(drawn * spread, labels))
    return found


def stability_of(points: Array, labels: Labels, groups: int, plan: TypesSettings) -> float:
    """Return the mean adjusted Rand index of the groupings of subsets, of 4 of 5 subjects each, with that of all."""
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(plan.seed)
    found = []
    for _ in range(plan.draws):
        drawn = rng.choice(len(points), size=round(0.8 * len(points)), replace=False)
        again, _, _ = mixture(points[drawn], groups, plan.seed, starts=2)
        found.append(adjusted_rand_score(labels[drawn], again))
    return float(np.mean(found))
